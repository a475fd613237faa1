"""Saved models are plain Hugging Face models, and their numbers are those of a naive loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import RHO, SEED, Tiny, column, manifest, pairs_of, tokenise, weights
from foreign import model_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from rpo_cli.artifacts import Workspace, job_of
from rpo_cli.devices import Device
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.models import (
    Sampling,
    TokenRow,
    load_causal,
    load_reward,
    load_tokenizer,
    logps,
    make_batch,
    new_causal,
    pair_rewards,
    response_logps,
    rewards,
    sample,
)
from rpo_cli.models.frozen import RoundedLinear, hold_in_bfloat16
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.runs.work import run_job
from rpo_cli.stages.data.rows import Rows, read_rows, write_rows
from rpo_cli.stages.reward import held_out_metrics

CPU = Device("cpu", "float32", "test")
RECIPE = ScoringRecipe(stage="scores", threads=1)
POLICY = f"{RHO}/policies/e-dpo/beta-0.2"
REWARD = f"{RHO}/rm/b-0.2"


@pytest.fixture(scope="module")
def policy(built: Tiny) -> Any:
    return load_causal(built.root / POLICY, RECIPE, CPU, load_tokenizer(built.root / POLICY))


@pytest.fixture(scope="module")
def reward(built: Tiny) -> Any:
    return load_reward(built.root / REWARD, RECIPE, CPU, load_tokenizer(built.root / REWARD))


GPT2 = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "initializer_range": 0.5,
}


@pytest.fixture(scope="module")
def absolute(tokenizer: Any) -> Any:
    """A model with learnt positions and large weights: a shift or a padding token seen would show."""
    return new_causal(GPT2, tokenizer, CPU, 0).eval()


@pytest.fixture(scope="module")
def tokenizer(built: Tiny) -> Any:
    return load_tokenizer(built.root / POLICY)


@pytest.fixture(scope="module")
def rows(built: Tiny, tokenizer: Any) -> list[TokenRow]:
    """Held-out pairs, of many lengths."""
    found = tokenise(
        pairs_of(built.root, f"{RHO}/splits", "held_out"),
        ("chosen", "rejected"),
        tokenizer,
        48,
        "error",
        "test",
    )
    assert len({len(answer) for row in found for answer in row.responses}) > 3
    return found


# ── Plain Hugging Face ──────────────────────────────────────────────────────────────────────────────────────


def test_a_saved_policy_is_a_plain_causal_model(
    built: Tiny, policy: Any, tokenizer: Any, rows: list[TokenRow]
) -> None:
    source = built.root / POLICY
    plain, words = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    assert type(plain) is type(policy) and plain.dtype == torch.float32
    assert words.get_vocab() == tokenizer.get_vocab()
    assert (
        plain.config.pad_token_id
        == words.pad_token_id
        != words.eos_token_id
        == plain.generation_config.eos_token_id
    )
    words.padding_side = "left"
    inputs = words(
        [row["prompt"] for row in read_rows(built.root / "seed-0/data/prompts_test.parquet")][:4],
        return_tensors="pt",
        padding=True,
    )
    texts = [
        model.generate(**inputs, do_sample=False, max_new_tokens=6).tolist() for model in (plain, policy)
    ]
    assert texts[0] == texts[1]
    prompts, answers = [row.prompt_ids for row in rows], [row.responses[0] for row in rows]
    assert logps(plain, prompts, answers, 4).tolist() == logps(policy, prompts, answers, 4).tolist()


def test_a_saved_reward_model_is_a_plain_classifier_of_one_label(
    built: Tiny, reward: Any, rows: list[TokenRow]
) -> None:
    source = built.root / REWARD
    plain, words = (
        AutoModelForSequenceClassification.from_pretrained(source),
        AutoTokenizer.from_pretrained(source),
    )
    assert plain.config.num_labels == 1
    texts = [
        text["prompt"] + text["chosen"] + words.eos_token
        for text in pairs_of(built.root, f"{RHO}/splits", "held_out")
    ]
    with torch.no_grad():
        scores = [plain(**words(text, return_tensors="pt")).logits.item() for text in texts]
    ours = rewards(reward, [row.prompt_ids + row.responses[0] for row in rows], 8)
    assert ours == pytest.approx(scores, abs=1e-6)
    assert ours.std() > 1e-3


@pytest.mark.parametrize("dropout", [
    {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64,
     "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    {"model_type": "opt", "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64,
     "word_embed_proj_dim": 16, "dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    {"model_type": "gpt_neox", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2,
     "max_position_embeddings": 64, "attention_dropout": 0.5, "hidden_dropout": 0.5},
    {"model_type": "qwen3", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "head_dim": 8,
     "num_key_value_heads": 1, "max_position_embeddings": 64, "attention_dropout": 0.5},
], ids=lambda settings: settings["model_type"])  # fmt: skip
def test_no_kind_of_dropout_survives_in_training_mode(
    dropout: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    ids = torch.arange(3, 19).reshape(2, 8)
    plain = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            **dropout, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, bos_token_id=1
        )
    )
    plain.save_pretrained(tmp_path)
    plain.train()
    assert not torch.equal(plain(ids).logits, plain(ids).logits)
    for model in (
        new_causal(dropout, tokenizer, CPU, 0),
        load_causal(tmp_path, RECIPE, CPU, tokenizer, training=True),
        load_reward(tmp_path, RECIPE, CPU, tokenizer, training=True),
    ):
        quiet = model.eval()(ids).logits
        model.train()
        assert torch.equal(model(ids).logits, quiet)
        assert all(torch.equal(model(ids).logits, quiet) for _ in range(3))


# ── Rewards and log-probabilities ───────────────────────────────────────────────────────────────────────────


def test_rewards_do_not_depend_on_the_batch(reward: Any, rows: list[TokenRow], tokenizer: Any) -> None:
    single, *others = (pair_rewards(reward, rows, size) for size in (1, 8, 1000))
    for other in others:
        assert other == pytest.approx(single, abs=1e-6)
    assert single.shape == (len(rows), 2)


def test_rewards_are_read_at_the_eos(reward: Any, rows: list[TokenRow], tokenizer: Any) -> None:
    """One row alone, without padding: the head applied to the last position, which holds the EOS."""
    sequence = rows[0].prompt_ids + rows[0].responses[0]
    assert sequence[-1] == tokenizer.eos_token_id
    with torch.no_grad():
        score = reward.score(reward.model(input_ids=torch.tensor([sequence])).last_hidden_state[0, -1]).item()
    assert rewards(reward, [sequence], 1).tolist() == pytest.approx([score], abs=1e-6)


def naive_logp(model: Any, prompt: list[int], response: list[int]) -> float:
    """log pi(response | prompt), one token after another, without padding."""
    total = 0.0
    for place, token in enumerate(response):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response[:place]])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
    return total


def test_logps_are_the_sum_over_tokens_including_the_eos(
    policy: Any, rows: list[TokenRow], tokenizer: Any
) -> None:
    some = rows[:8]
    naive = [naive_logp(policy, row.prompt_ids, row.responses[0]) for row in some]
    ours = logps(
        policy,
        [row.prompt_ids for row in some],
        [row.responses[0] for row in some],
        3,
    )
    assert ours == pytest.approx(naive, abs=1e-5)
    assert all(row.responses[0][-1] == tokenizer.eos_token_id for row in some)
    without = logps(
        policy,
        [row.prompt_ids for row in some],
        [row.responses[0][:-1] for row in some],
        3,
    )
    assert (ours < without - 0.1).all()


def test_logps_do_not_depend_on_the_batch(policy: Any, rows: list[TokenRow], tokenizer: Any) -> None:
    prompts, answers = (
        [row.prompt_ids for row in rows for _ in range(2)],
        [answer for row in rows for answer in row.responses],
    )
    single, *others = (logps(policy, prompts, answers, size) for size in (1, 8, 1000))
    for other in others:
        assert other == pytest.approx(single, abs=1e-5)


@pytest.mark.parametrize("name", ["policy", "absolute"])
def test_padding_changes_no_logp_whatever_is_in_it(
    name: str, rows: list[TokenRow], tokenizer: Any, request: pytest.FixtureRequest
) -> None:
    model, row = request.getfixturevalue(name), rows[0]
    alone = naive_logp(model, row.prompt_ids, row.responses[0])
    long = [5] * (len(row.prompt_ids) + 9)
    for pad in (tokenizer.pad_token_id, 7):
        batch = make_batch([row.prompt_ids, long], [[row.responses[0]], [[9] * 14]], pad, "plain")
        assert batch["input_ids"][0, 0] == pad and batch["input_ids"][0, -1] == pad
        assert response_logps(model, batch)[0].item() == pytest.approx(alone, rel=1e-6, abs=1e-5)


def test_held_out_accuracy_is_a_plain_count(built: Tiny, tokenizer: Any, rows: list[TokenRow]) -> None:
    """24 pairs: no multiple of a batch, and TRL's mean of batch means would differ."""
    model = load_reward(built.root / REWARD, RECIPE, CPU, load_tokenizer(built.root / REWARD))
    margins = []
    for row in rows:
        chosen, rejected = (
            float(rewards(model, [row.prompt_ids + answer], 1)[0]) for answer in row.responses
        )
        margins.append(chosen - rejected)
    metrics = manifest(built.root, REWARD)["metrics"]
    assert metrics["held_out_accuracy"] == sum(margin > 0 for margin in margins) / len(margins)
    assert metrics["held_out_loss"] == pytest.approx(
        np.mean([np.log1p(np.exp(-margin)) for margin in margins]), abs=1e-6
    )
    assert (
        manifest(built.root, f"{RHO}/scores/rm/b-0.2")["metrics"]["held_out/accuracy"]
        == metrics["held_out_accuracy"]
    )


def test_held_out_pairs_of_prompts_that_were_trained_on_are_counted(tiny: Tiny) -> None:
    """In the metrics and on the card; in files of one's own nothing keeps prompts apart."""
    assert "held_out_shared_prompts" not in manifest(tiny.root, f"{SEED}/oracle")["metrics"]
    file = tiny.root / SEED / "data/pairs_validation.parquet"
    held_out, trained = pd.read_parquet(file), pd.read_parquet(file.with_name("pairs.parquet"))
    held_out.loc[:2, "prompt"] = trained["prompt"][0]
    held_out.to_parquet(file, index=False)
    folder, made = tiny.make("oracle.yaml")
    assert made["metrics"]["held_out_shared_prompts"] == 3
    assert (
        "3 of the held-out pairs share their prompt with pairs that were"
        in (folder / "README.md").read_text()
    )


def test_equal_rewards_are_counted_and_wrong() -> None:
    rows = [TokenRow(str(number), [1], [[2], [3]]) for number in range(4)]
    notes = pa.table({"id": list("0123"), "longer_preferred": [0] * 4})
    pairs = Rows(Path(), cast(Any, None), np.arange(4), np.zeros(4, dtype=bool), notes)
    found = held_out_metrics(np.array([[1, 0], [2, 2], [0, 1], [3, 3]]), rows, pairs)
    assert found["held_out_accuracy"] == 0.25 and found["held_out_equal_rewards"] == 2
    assert "held_out_equal_rewards" not in held_out_metrics(np.array([[1, 0]] * 4), rows, pairs)


def test_embeddings_of_new_tokens_are_drawn_under_the_recipes_seed(tiny: Tiny, tmp_path: Path) -> None:
    base = shutil.copytree(tiny.root / "seed-0/sft", tmp_path / "base")
    settings = ("model_config_kwargs=null", f"model_name_or_path={base}", "pad_token=<new>", "max_steps=1")
    found = []
    for state in (1, 2):
        torch.manual_seed(state)  # whatever ran in the process before
        found.append(weights(tiny.make("sft.yaml", *settings)[0]))
    assert found[0] == found[1]


def turn_labels_round(tiny: Tiny) -> None:
    """Held-out pairs on which the loss grows as the model learns: the last step is not the best one."""
    rows = pairs_of(tiny.root, f"{RHO}/splits", "held_out")
    write_rows(
        [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows],
        tiny.root / RHO / "splits/held_out.parquet",
    )


EARLY = (
    "stopping=early",
    "eval_steps=1",
    "max_steps=8",
    "learning_rate=0.03",
    "per_device_eval_batch_size=7",
)


@pytest.mark.slow
def test_an_early_stopped_run_goes_on_elsewhere_and_keeps_the_best_step(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_labels_round(tiny)
    settings = (*EARLY, "max_steps=5")
    directory, _ = tiny.make("rm.yaml", *settings)
    expected, losses = weights(directory), column(directory, "eval_loss")
    assert min(losses) == losses[3]  # with the checkpoint of step 4 it is resumed, and nothing better follows

    def press(step: int, of: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.chdir(tiny.root.parent)
    shutil.rmtree(directory)
    with pytest.raises(KeyboardInterrupt):
        Tiny(tiny.suite, Path(tiny.root.name)).make(
            "rm.yaml", *settings, progress=press
        )  # a relative workspace, as one types it
    stage = tiny.stage("rm.yaml", *settings)
    moved = Workspace(Path(shutil.move(tiny.root, tmp_path / "elsewhere")), tiny.suite.name)
    saved = {file: file.read_bytes() for file in (moved.root / stage.path).glob("checkpoints/*/*.json")}
    assert "rpo_state.json" in {file.name for file in saved}

    def untouched(step: int, of: int) -> None:  # another process of the training may be reading them
        assert all(file.read_bytes() == was for file, was in saved.items())
        saved.clear()  # after its first step a run may remove older ones

    run_job(job_of(stage, moved, {}), untouched)
    assert weights(moved.root / stage.path) == expected


def test_early_stopping_keeps_the_evaluated_step_of_least_held_out_loss(tiny: Tiny) -> None:
    turn_labels_round(tiny)
    directory, found = tiny.make("rm.yaml", *EARLY)
    losses = column(directory, "eval_loss")
    assert len(losses) == 8 and min(losses) < losses[-1] - 1e-3
    assert found["metrics"]["held_out_loss"] == pytest.approx(min(losses), abs=1e-6)


def test_a_reward_that_is_no_number_stops_the_run(built: Tiny, rows: list[TokenRow], tokenizer: Any) -> None:
    model = load_reward(built.root / REWARD, RECIPE, CPU, load_tokenizer(built.root / REWARD))
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(RunFailed, match="not finite for 3 of 3 responses"):
        rewards(model, [row.prompt_ids for row in rows[:3]], 2)


# ── Sampling ────────────────────────────────────────────────────────────────────────────────────────────────


def draw(policy: Any, tokenizer: Any, prompts: list[list[int]], seed: int, limit: int = 8) -> list[list[int]]:
    return sample(policy, tokenizer, prompts, Sampling(1.0, 1.0, limit, 5, seed))


def test_samples_repeat_under_their_seed_and_end_in_eos_or_at_the_limit(
    policy: Any, tokenizer: Any, rows: list[TokenRow]
) -> None:
    prompts = [row.prompt_ids for row in rows]
    samples = draw(policy, tokenizer, prompts, 3)
    assert draw(policy, tokenizer, prompts, 3) == samples
    assert draw(policy, tokenizer, prompts, 4) != samples
    ends = [answer[-1] == tokenizer.eos_token_id for answer in samples]
    assert any(ends) and not all(ends)
    for answer, ended in zip(samples, ends, strict=True):
        assert tokenizer.eos_token_id not in answer[:-1]
        assert len(answer) <= 8 if ended else len(answer) == 8


def test_samples_follow_the_models_own_distribution(
    absolute: Any, tokenizer: Any, rows: list[TokenRow]
) -> None:
    """First tokens of 4000 samples of one padded prompt against the model's probabilities."""
    short, long = rows[0].prompt_ids[:5], rows[0].prompt_ids
    answers = sample(absolute, tokenizer, [short] * 4000 + [long], Sampling(2.0, 1.0, 1, 4001, seed=0))
    counts = np.bincount([answer[0] for answer in answers[:4000]], minlength=len(tokenizer))
    with torch.no_grad():
        expected = (
            4000 * (absolute(input_ids=torch.tensor([short])).logits[0, -1].double() / 2).softmax(-1).numpy()
        )
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    degrees = len(expected) - 1
    assert chi_squared < degrees + 5 * (2 * degrees) ** 0.5


# ── Tokenizers that would train something else than was asked for ───────────────────────────────────────────


def words(folder: Path, **special: str) -> Path:
    """A saved tokenizer of a few words with these special tokens."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "a", "b"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    return folder


def test_a_tokenizer_without_eos_or_with_a_recipe_that_pads_with_it_is_refused(tmp_path: Path) -> None:
    padded = RECIPE.model_copy(update={"pad_token": "</s>"})
    for special, recipe, message in (
        ({"pad_token": "<pad>"}, RECIPE, "has no EOS token"),
        ({"eos_token": "</s>"}, padded, "pad_token: </s> is the EOS of .*; leave the key out"),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            load_tokenizer(words(tmp_path, **special), recipe)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("pad", [{}, {"pad_token": "</s>"}], ids=["none", "the EOS"])
def test_padding_is_found_where_a_tokenizer_has_none_of_its_own(tmp_path: Path, pad: dict[str, str]) -> None:
    """A special token to spare, else the EOS; for a reward model rather a new one."""
    spare = words(tmp_path / "spare", eos_token="</s>", additional_special_tokens=["<pad>", "b"], **pad)
    assert load_tokenizer(spare).pad_token == "<pad>" and len(load_tokenizer(spare)) == 4
    none = words(tmp_path / "none", eos_token="</s>", **pad)
    assert load_tokenizer(none).pad_token == "</s>" and len(load_tokenizer(none)) == 4
    assert load_tokenizer(none, own_pad=True).pad_token == "[PAD]"


def test_pad_token_of_the_recipe_may_be_new_or_known(tmp_path: Path) -> None:
    source = words(tmp_path, eos_token="</s>", pad_token="</s>")
    new = load_tokenizer(source, RECIPE.model_copy(update={"pad_token": "[PAD]"}))
    assert new.pad_token_id == 4 and len(new) == 5
    known = load_tokenizer(source, RECIPE.model_copy(update={"pad_token": "<pad>"}))
    assert known.pad_token_id == 0 and len(known) == 4


def test_a_folder_without_a_tokenizer_or_a_model_is_one_line(tokenizer: Any, tmp_path: Path) -> None:
    loads = (
        load_tokenizer,
        lambda folder: load_causal(folder, RECIPE, CPU, tokenizer),
        lambda folder: load_reward(folder, RECIPE, CPU, tokenizer),
    )
    for load in loads:
        with pytest.raises(BadInput, match=str(tmp_path)) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_language_model_is_no_judge(built: Tiny, tokenizer: Any) -> None:
    with pytest.raises(BadInput, match=r"no weights for score\.weight"):
        load_reward(built.root / POLICY, RECIPE, CPU, tokenizer)


def test_a_judge_reads_its_reward_at_the_tokenizers_end_whatever_its_config_calls_padding(
    built: Tiny, tokenizer: Any, tmp_path: Path
) -> None:
    judge = Path(shutil.copytree(built.root / REWARD, tmp_path / "judge"))
    config = json.loads((judge / "config.json").read_text())
    sequences = [[5, 6, 7, 8, 1], [5, 6, 1]]
    right = rewards(load_reward(built.root / REWARD, RECIPE, CPU, tokenizer), sequences, 2)
    for wrong in (config["eos_token_id"], None):
        (judge / "config.json").write_text(json.dumps({**config, "pad_token_id": wrong}))
        found = rewards(load_reward(judge, RECIPE, CPU, tokenizer), sequences, 2)
        assert found.tolist() == right.tolist()


def test_samples_are_the_models_own_whatever_its_generation_config_says(built: Tiny, tokenizer: Any) -> None:
    prompts = [[5, 6, 7]] * 64
    how = Sampling(1.0, 1.0, 8, 64, seed=3)
    model = load_causal(built.root / POLICY, RECIPE, CPU, tokenizer)
    plain = sample(model, tokenizer, prompts, how)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_p = 0.5
    assert sample(model, tokenizer, prompts, how) == plain


def test_a_prompt_beyond_the_models_positions_is_refused(built: Tiny, tokenizer: Any) -> None:
    model = load_causal(built.root / POLICY, RECIPE, CPU, tokenizer)
    room = model.config.max_position_embeddings
    with pytest.raises(BadInput, match=f"exceed the model's {room} positions"):
        sample(model, tokenizer, [[5] * room], Sampling(1.0, 1.0, 1, 1, seed=0))


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft asks transformers for an old name
def test_an_adapter_finds_its_base_from_anywhere(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tiny.root.parent)
    beside = Tiny(tiny.suite, Path(tiny.root.name))  # a workspace as the command line has it: a relative path
    directory, _ = beside.make("dpo.yaml", "use_peft=true", "lora_r=2", "max_steps=2")
    merged = AutoModelForCausalLM.from_pretrained(directory.resolve())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    adapter = (directory / "adapter").resolve()
    monkeypatch.chdir(elsewhere)
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(adapter)
    ids = torch.arange(4, 12)[None]
    assert torch.allclose(adapted(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_rewards_are_not_rounded_to_bfloat16_where_the_body_is_held_in_it(tmp_path: Path, kind: str) -> None:
    folder = model_of(tmp_path / "judge", kind, "WordPiece")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = 0
    hold_in_bfloat16(model)
    head = model.classifier if kind == "bert" else model.score
    assert head.weight.dtype == torch.float32
    assert {each.weight.dtype for each in model.base_model.modules() if type(each) is RoundedLinear} == {
        torch.bfloat16
    }
    rows = [TokenRow(str(n), [5, 6, 7 + n], ([8 + n, 9], [10, 11 + n])) for n in range(6)]
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.from_numpy(pair_rewards(model, rows, 3))
    assert (found != found.to(torch.bfloat16).float()).float().mean() > 0.8
