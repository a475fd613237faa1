"""A model is loaded whole or refused in a sentence; what it is saved as is settled before the first step."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import RHO, Tiny
from preparing import tokenizer_of
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rpo_cli.artifacts import base_of_adapter
from rpo_cli.devices import CPU
from rpo_cli.errors import BadInput
from rpo_cli.models import load_causal, load_reward, load_tokenizer, new_causal, stops_in, stops_of
from rpo_cli.recipes.schema import ScoringRecipe

RECIPE = ScoringRecipe(stage="scores", threads=1)
SFT, REWARD = "seed-0/sft", f"{RHO}/rm/b-0.2"
Tensors = dict[str, torch.Tensor]

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft asks transformers for an old name


def write(file: Path, **changes: Any) -> None:
    """A JSON file with some keys changed."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def weights(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})

    return damage


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


LAYER = "model.layers.1.mlp.up_proj.weight"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "more layers in the config": (
        lambda folder: write(folder / "config.json", num_hidden_layers=3),
        r"it has no weights for model\.layers\.2\.input_layernorm\.weight, .* and \d+ more",
    ),
    "fewer layers in the config": (
        lambda folder: write(folder / "config.json", num_hidden_layers=1),
        r"its config\.json has no place for its weights model\.layers\.1\.input_layernorm\.weight, ",
    ),
    "a tensor missing": (
        weights(lambda found: {name: tensor for name, tensor in found.items() if name != LAYER}),
        f"it has no weights for {LAYER}",
    ),
    "no tensor": (weights(lambda found: {}), r"it has no weights for \S*(lm_head|embed_tokens)\.weight, "),
    "another shape": (
        weights(lambda found: {**found, LAYER: torch.zeros(31, 16)}),
        rf"{LAYER} is of shape \[31, 16\], and by its config\.json \[32, 16\]",
    ),
    "a file cut short": (cut, "no model can be loaded: .*header"),
    "weights that are no numbers": (
        weights(lambda found: {**found, LAYER: found[LAYER] / 0}),
        f"NaN or infinity in its weights {LAYER}$",
    ),
    "weights of eight bits without their scales": (
        weights(lambda found: {**found, LAYER: (found[LAYER] * 100).to(torch.int8)}),
        f"whole numbers in its weights {LAYER}, and no quantization_config$",
    ),
    "a type that its config contradicts": (
        lambda folder: write(folder / "config.json", num_attention_heads=3),
        r"no model can be loaded: .*validate_architecture.*: .*multiple of the number of attention heads",
    ),
    "a tensor of another architecture": (
        weights(lambda found: {**found, "model.layers.0.self_attn.q_norm.weight": torch.ones(8)}),
        r"no place for its weights model\.layers\.0\.self_attn\.q_norm\.weight$",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_that_lacks_weights_or_has_some_too_many_is_refused(
    built: Tiny, tmp_path: Path, damage: str
) -> None:
    folder = Path(shutil.copytree(built.root / SFT, tmp_path / "model"))
    tokenizer = load_tokenizer(folder)
    change, says = DAMAGES[damage]
    change(folder)
    for load in (load_causal, load_reward):
        for training in (True, False):
            with pytest.raises(BadInput, match=f"^{folder}: .*{says}") as caught:
                load(folder, RECIPE, CPU, tokenizer, training=training)
            assert "\n" not in str(caught.value)


def test_a_published_tokenizer_does_not_tell_whether_the_hub_was_in_reach(built: Tiny) -> None:
    for path in (SFT, REWARD, f"{RHO}/policies/e-dpo/beta-0.2"):
        saved = json.loads((built.root / path / "tokenizer_config.json").read_text())
        assert "local_files_only" not in saved, path


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "[]", "no tokenizer can be loaded: "),
        ("config.json", "", "no tokenizer can be loaded: "),
        ("tokenizer.json", "{", "no tokenizer can be loaded: "),
        ("adapter_config.json", '{"peft_type": "NOPE", "base_model_name_or_path": "BASE"}', "NOPE"),
        ("generation_config.json", "[]", "no model can be loaded: "),
        (
            "generation_config.json",
            '{"eos_token_id": "</s>"}',
            "eos_token_id: expected the number of a token",
        ),
    ],
)
def test_a_file_of_a_model_that_says_nothing_is_said_in_a_line(
    built: Tiny, tmp_path: Path, file: str, content: str, says: str
) -> None:
    folder = Path(shutil.copytree(built.root / SFT, tmp_path / "model"))
    (folder / file).write_text(content.replace("BASE", str(built.root / SFT)))
    if file == "adapter_config.json":
        (folder / "config.json").unlink()
    with pytest.raises(BadInput, match=f"^{folder}: .*{says}") as caught:
        load_causal(folder, RECIPE, CPU, load_tokenizer(folder), training=True)
    assert "\n" not in str(caught.value)


def test_a_config_of_a_model_from_scratch_has_no_key_without_effect(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bytes")
    small = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    made = new_causal(small | {"rope_theta": 500.0, "intermediate_size": 8}, tokenizer, CPU, 0)
    assert made.config.rope_parameters["rope_theta"] == 500.0
    for keys, says in (
        (small | {"hidden_sizee": 8}, "LlamaConfig has no key hidden_sizee, did you mean hidden_size?"),
        (small | {"hidden_size": 15}, "multiple of the number of attention heads"),
        (small | {"hidden_size": "16"}, "'hidden_size' expected int, got str"),
        ({"model_type": "nosuch"}, "Unrecognized model identifier: nosuch"),
        ({"model_type": "t5"}, "Unrecognized configuration class"),
    ):
        with pytest.raises(BadInput, match=re.escape(says)) as caught:
            new_causal(keys, tokenizer, CPU, 0)
        assert str(caught.value).startswith("model_config_kwargs: ") and "\n" not in str(caught.value)


def test_only_the_head_of_a_reward_model_may_be_new_and_only_in_training(built: Tiny) -> None:
    folder = built.root / SFT
    tokenizer = load_tokenizer(folder)
    assert load_reward(folder, RECIPE, CPU, tokenizer, training=True).num_labels == 1
    with pytest.raises(BadInput, match=r"no weights for score\.weight$"):
        load_reward(folder, RECIPE, CPU, tokenizer)


def test_buffers_of_old_checkpoints_are_no_weights_too_many(built: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built.root / SFT, tmp_path / "model"))
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    weights(lambda found: {**found, old: torch.ones(4), "model.layers.1.attn.masked_bias": torch.ones(1)})(
        folder
    )
    load_causal(folder, RECIPE, CPU, load_tokenizer(folder))


def test_a_classifier_of_two_labels_is_no_reward_model(built: Tiny, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(built.root / SFT, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    for training in (True, False):
        with pytest.raises(
            BadInput, match=r"score\.weight has 2 labels; a reward model has 1, or reward_label: "
        ):
            load_reward(tmp_path, RECIPE, CPU, load_tokenizer(built.root / SFT), training=training)


def test_a_damaged_model_ends_the_command_in_a_line(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.root / SFT, tmp_path / "model"))
    write(folder / "config.json", num_hidden_layers=3)
    result = tiny.run("train-rm", "oracle.yaml", "--set", f"model_name_or_path={folder}", code=2)
    assert (
        f"{folder}: not a trained model of this kind: it has no weights for model.layers.2" in result.stderr
    )


# ── generation_config ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "contradiction",
    [
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
        {"top_k": 7, "min_p": 0.1},
        {"early_stopping": True, "length_penalty": 2.0},
    ],
)
def test_a_generation_config_that_could_not_be_saved_is_mended_when_it_is_loaded(
    built: Tiny, tmp_path: Path, contradiction: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(built.root / SFT, tmp_path / "model"))
    write(folder / "generation_config.json", repetition_penalty=1.5, **contradiction)
    model = load_causal(folder, RECIPE, CPU, load_tokenizer(folder), training=True)
    model.save_pretrained(tmp_path / "saved")
    kept = json.loads((tmp_path / "saved/generation_config.json").read_text())
    assert kept["repetition_penalty"] == 1.5 and kept["eos_token_id"] == load_tokenizer(folder).eos_token_id
    gone = {name for name in contradiction if name != "do_sample"}
    assert gone.isdisjoint(kept) and all(name in caplog.text for name in gone)


def test_what_is_published_stops_where_the_base_did(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.root / SFT, tmp_path / "base"))
    tokenizer = load_tokenizer(folder)
    other = 9
    write(folder / "generation_config.json", eos_token_id=[other], do_sample=False, temperature=0.9)
    made, _ = tiny.make("dpo.yaml", f"model_name_or_path={folder}", "max_steps=1")
    stops = [tokenizer.eos_token_id, other]
    for name in ("generation_config.json", "config.json"):
        assert json.loads((made / name).read_text())["eos_token_id"] == stops
    model, ours = AutoModelForCausalLM.from_pretrained(made), load_causal(made, RECIPE, CPU, tokenizer)
    assert stops_of(ours.generation_config, tokenizer) == stops_in(made, None, tokenizer) == stops
    for stop in stops:
        bias = {(stop,): 1e4}
        ids = torch.tensor([[5, 6, 7]])
        found = model.generate(ids, sequence_bias=bias, max_new_tokens=8, attention_mask=torch.ones_like(ids))
        assert found[0, 3:].tolist() == [stop]


def test_a_model_of_one_stop_token_is_published_with_it(built: Tiny) -> None:
    for name in ("generation_config.json", "config.json"):
        assert isinstance(json.loads((built.root / SFT / name).read_text())["eos_token_id"], int)


@pytest.mark.parametrize(("end", "says"), [("<unk>", "ends turns in <unk>, which does not stop"), ("", "")])
def test_a_template_whose_turns_end_in_another_token_than_the_eos_is_told(
    built: Tiny, tmp_path: Path, end: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built.root / SFT)
    turn = "{{ message.content }}" + (end or tokenizer.eos_token)
    tokenizer.chat_template = "{% for message in messages %}" + turn + "{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    load_causal(built.root / SFT, RECIPE, CPU, load_tokenizer(tmp_path), training=True)
    assert ("the chat template ends turns" in caplog.text) == bool(says) and says in caplog.text


# ── Adapters ────────────────────────────────────────────────────────────────────────────────────────────────


def adapted(base: Path, folder: Path, *, judge: bool = False) -> Path:
    """An adapter alone, without a tokenizer, whose weights are not zero."""
    auto = AutoModelForSequenceClassification if judge else AutoModelForCausalLM
    model = auto.from_pretrained(base, **({"num_labels": 1} if judge else {}))
    settings: dict[str, Any] = {"target_modules": "all-linear", "r": 2, "init_lora_weights": False}
    config = peft.LoraConfig(task_type="SEQ_CLS" if judge else "CAUSAL_LM", **settings)
    torch.manual_seed(0)
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_an_adapters_folder_is_a_model_base_and_adapter_in_one(built: Tiny, tmp_path: Path) -> None:
    ids = torch.arange(4, 12)[None]
    folder = adapted(built.root / SFT, tmp_path / "policy")
    model = load_causal(folder, RECIPE, CPU, load_tokenizer(folder))
    whole = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(model(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5)
    assert all(weights.requires_grad for weights in model.parameters())
    plain = AutoModelForCausalLM.from_pretrained(built.root / SFT)
    assert not torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-2)
    folder = adapted(built.root / SFT, tmp_path / "judge", judge=True)
    judge = load_reward(folder, RECIPE, CPU, load_tokenizer(folder))
    whole = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    whole.config.pad_token_id = judge.config.pad_token_id
    assert judge(input_ids=ids).logits.item() == pytest.approx(whole(input_ids=ids).logits.item(), abs=1e-5)
    # On top of another one, and as the body of a new reward model.
    twice = adapted(built.root / SFT, tmp_path / "twice")
    write(twice / "adapter_config.json", base_model_name_or_path=str(tmp_path / "policy"))
    load_reward(twice, RECIPE, CPU, load_tokenizer(twice), training=True)
    with pytest.raises(BadInput, match=r"twice: not a trained model .* no weights for score\.weight$"):
        load_reward(twice, RECIPE, CPU, load_tokenizer(twice))


def test_an_adapter_that_does_not_fit_or_has_no_base_is_refused(built: Tiny, tmp_path: Path) -> None:
    folder = adapted(built.root / SFT, tmp_path / "adapter")
    tokenizer = load_tokenizer(folder)
    file = folder / "adapter_model.safetensors"
    whole = load_file(file)
    save_file(
        {name: tensor for name, tensor in whole.items() if "layers.1" not in name}, file, {"format": "pt"}
    )
    with pytest.raises(BadInput, match=r"adapter: the adapter does not fit .*layers\.1"):
        load_causal(folder, RECIPE, CPU, tokenizer)
    for base, says in (
        (None, "base_model_name_or_path is missing"),
        ("/no/where", "base model /no/where is not"),
    ):
        write(folder / "adapter_config.json", base_model_name_or_path=base)
        for load in (load_tokenizer, base_of_adapter):
            with pytest.raises(BadInput, match=says):
                load(folder)


def test_a_stage_trains_from_an_adapter_and_keeps_the_merged_model(tiny: Tiny, tmp_path: Path) -> None:
    folder = adapted(tiny.root / SFT, tmp_path / "adapter")
    override = f"model_name_or_path={folder}"
    made, _ = tiny.make("oracle.yaml", override, "max_steps=1", "learning_rate=1e-9")
    start = load_causal(folder, RECIPE, CPU, load_tokenizer(folder)).state_dict()
    trained = load_file(made / "model.safetensors")
    assert torch.allclose(trained[LAYER], start[LAYER], atol=1e-6)
    for dtype in ("float32", "bfloat16"):
        lora = ("use_peft=true", "lora_r=2", f"dtype={dtype}")
        made, _ = tiny.make("oracle.yaml", override, "max_steps=1", *lora)
        assert (made / "model.safetensors").is_file() and not (made / "adapter").exists()


def padding_with_eos(base: Path, folder: Path, *, spare: bool) -> Path:
    """A copy of a model that pads with its EOS; `spare`: its own padding token stays a special one."""
    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name, change in (("config.json", {"pad_token_id": tokenizer.eos_token_id}),
                         ("tokenizer_config.json", {"pad_token": tokenizer.eos_token})):  # fmt: skip
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    if not spare:
        entry = f'"content": "{tokenizer.pad_token}"'
        for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
            text = file.read_text()
            head, found, tail = text.partition(entry)
            file.write_text(head + found + tail.replace('"special": true', '"special": false', 1))
            assert found or file.name == "tokenizer_config.json"
    assert AutoTokenizer.from_pretrained(folder).pad_token == tokenizer.eos_token
    return folder


@pytest.mark.slow
def test_a_model_that_pads_with_its_eos_learns_what_one_with_padding_does(tiny: Tiny, tmp_path: Path) -> None:
    """To the byte: the EOS of each response is learnt, padding is not, whichever token it is."""
    base = tiny.root / SFT
    for recipe, spare in (("dpo.yaml", False), ("rm.yaml", True)):
        made = {}
        for folder in (base, padding_with_eos(base, tmp_path / recipe.removesuffix(".yaml"), spare=spare)):
            tiny.edit("policy.yaml", f"model_name_or_path: {folder}\n")
            tiny.edit("rm.yaml", f"model_name_or_path: {folder}\n")
            directory, _ = tiny.make(recipe)
            made[folder] = (directory / "model.safetensors").read_bytes()
            tokenizer = AutoTokenizer.from_pretrained(directory)
            assert (tokenizer.pad_token == tokenizer.eos_token) == (folder != base and not spare)
        assert len(set(made.values())) == 1
        assert next(iter(made.values())) != (base / "model.safetensors").read_bytes()
