"""What the bulk readers wrote down is what the models say of one sequence at a time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RHO, SEED, Tiny, journal, manifest, pairs_of
from safetensors.torch import load_file, save_file
from worlds import LIMIT, SAMPLES, Plain, logp, reward, token_logps

from rpo_cli.artifacts import Workspace
from rpo_cli.figures.cells import Cells
from rpo_cli.figures.gather import evaluations
from rpo_cli.models import Sampling, sample
from rpo_cli.recipes import load

POLICY = f"{RHO}/policies/e-dpo/beta-0.2"
EVALUATION = f"{RHO}/evaluations/e-dpo/beta-0.2/test"
BASELINE = f"{SEED}/evaluations/sft/test"


def answers(plain: Plain, path: str) -> pd.DataFrame:
    """Samples with their tokens, as far as the text tells: special tokens inside a response are not in it."""
    table = plain.table(f"{path}/samples.parquet")
    words = [plain.response(text)[:-1] for text in table["response"]]
    eos = [plain.tokenizer.eos_token_id]
    ids = [words + eos * bool(finished) for words, finished in zip(words, table["finished"], strict=True)]
    table = table.assign(
        words=[len(w) for w in words], ids=ids, prompt_ids=[plain.prompt(p) for p in table["prompt"]]
    )
    return table[[len(i) == n for i, n in zip(table["ids"], table["tokens"], strict=True)]]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "model"), [(EVALUATION, POLICY), (BASELINE, f"{SEED}/sft")])
def test_an_evaluations_logps_and_rewards_are_the_models_own(learnt: Tiny, path: str, model: str) -> None:
    plain = Plain(learnt.root)
    policy, reference, oracle = (
        plain.policy(model),
        plain.policy(f"{SEED}/sft"),
        plain.reward_model(f"{SEED}/oracle"),
    )
    table = answers(plain, path)
    assert len(table) == 24 * SAMPLES
    for row in table.to_dict("records"):
        assert row["logp"] == pytest.approx(logp(policy, row["prompt_ids"], row["ids"]), abs=1e-4)
        assert row["ref_logp"] == pytest.approx(logp(reference, row["prompt_ids"], row["ids"]), abs=1e-4)
        assert row["reward"] == pytest.approx(reward(oracle, row["prompt_ids"], row["ids"]), abs=1e-5)
    apart = (table["logp"] - table["ref_logp"]).abs()
    assert apart.max() == 0 if path == BASELINE else apart.median() > 0.01
    metrics = manifest(learnt.root, path)["metrics"]
    assert metrics["samples"] == len(table)
    assert metrics["reward_mean"] == pytest.approx(table["reward"].mean())
    assert metrics["kl_to_reference"] == pytest.approx((table["logp"] - table["ref_logp"]).mean(), abs=1e-6)


def test_a_sample_is_finished_where_it_ends_in_eos_even_at_the_limit(learnt: Tiny) -> None:
    plain = Plain(learnt.root)
    for path in (EVALUATION, BASELINE):
        table = answers(plain, path)
        assert len(table) == 24 * SAMPLES
        assert (table["finished"] == (table["words"] < table["tokens"])).all()
        at_the_limit = table[table["tokens"] == LIMIT]["finished"]
        assert (
            at_the_limit.any() and not at_the_limit.all() and table[table["tokens"] < LIMIT]["finished"].all()
        )
        metrics = manifest(learnt.root, path)["metrics"]
        assert metrics["unfinished_share"] == pytest.approx(1 - table["finished"].mean())
        assert metrics["tokens_mean"] == pytest.approx(table["tokens"].mean())


def test_samples_of_a_prompt_differ_and_are_compared_on_the_same_prompts(learnt: Tiny) -> None:
    ours, theirs = (Plain(learnt.root).table(f"{path}/samples.parquet") for path in (EVALUATION, BASELINE))
    keys = ["prompt_id", "sample", "prompt"]
    assert ours[keys].equals(theirs[keys])
    assert sum(rows["response"].nunique() > 1 for _, rows in ours.groupby("prompt_id")) > 12
    assert (ours["response"] != theirs["response"]).any()
    metrics = manifest(learnt.root, EVALUATION)["metrics"]
    assert metrics["advantage"] == pytest.approx(ours["reward"].mean() - theirs["reward"].mean(), abs=1e-6)
    assert metrics["baseline_reward_mean"] == pytest.approx(theirs["reward"].mean())


def test_the_references_samples_have_its_own_logps_and_end(learnt: Tiny) -> None:
    plain = Plain(learnt.root)
    reference, table = plain.policy(f"{SEED}/sft"), plain.samples()
    ended = np.array([ids[-1] == plain.tokenizer.eos_token_id for ids in table["sample_ids"]])
    lengths = table["sample_ids"].map(len).to_numpy()
    metrics = manifest(learnt.root, f"{SEED}/reference-samples/relabel")["metrics"]
    assert metrics["unfinished_share"] == pytest.approx(1 - ended.mean()) and 0 < ended.mean() < 1
    assert (lengths[~ended] == LIMIT).all() and (lengths[ended] == LIMIT).any()
    assert table["prompt"].value_counts().unique().tolist() == [SAMPLES]
    for row in table.iloc[::40].to_dict("records"):
        expected = logp(reference, plain.prompt(row["prompt"]), row["sample_ids"])
        assert row["ref_sample_logps"] == pytest.approx(expected, abs=1e-4)


def drawn(
    plain: Plain, prompts: list[str], *, seed: int = 0, temperature: float = 1.0, top_p: float = 1.0
) -> list[list[int]]:
    """Two samples of the reference for each prompt, in batches of another size."""
    ids = [plain.prompt(prompt) for prompt in prompts for _ in range(SAMPLES)]
    how = Sampling(temperature, top_p, LIMIT, 7, seed)
    return sample(plain.policy(f"{SEED}/sft"), plain.tokenizer, ids, how)


def test_the_references_samples_are_drawn_as_it_is_under_the_seed_of_sampling(pupil: Tiny) -> None:
    for seed in (0, 3):
        pupil.make("p-dpo.yaml", f"sampling_seed={seed}", "max_steps=1")
        plain = Plain(pupil.root)
        table = plain.samples().iloc[: 40 * SAMPLES]
        assert table["sample_ids"].tolist() == drawn(plain, table["prompt"].tolist()[::SAMPLES], seed=seed)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_evaluation_samples_its_splits_prompts_with_its_recipes_settings(pupil: Tiny, split: str) -> None:
    directory, _ = pupil.make(
        "evaluate.yaml", f"split={split}", "temperature=0.6", "top_p=0.9", "sampling_seed=3"
    )
    plain = Plain(pupil.root)
    prompts = plain.table(f"{SEED}/data/prompts_{split}.parquet")["prompt"].tolist()
    table = pd.read_parquet(directory / "samples.parquet")
    assert table["prompt"].tolist() == [prompt for prompt in prompts for _ in range(SAMPLES)]
    assert table["sample"].tolist() == list(range(SAMPLES)) * len(prompts)
    expected = drawn(plain, prompts, seed=3, temperature=0.6, top_p=0.9)
    assert table["response"].tolist() == plain.tokenizer.batch_decode(expected, skip_special_tokens=True)


def test_an_evaluation_of_so_many_prompts_reads_the_first_ones_of_its_table(pupil: Tiny) -> None:
    directory, found = pupil.make("evaluate.yaml", "num_prompts=5")
    prompts = Plain(pupil.root).table(f"{SEED}/data/prompts_test.parquet")["prompt"].tolist()
    table = pd.read_parquet(directory / "samples.parquet")
    assert table["prompt"].tolist() == [prompt for prompt in prompts[:5] for _ in range(SAMPLES)]
    assert found["metrics"]["prompts"] == 5


def test_the_oracles_utility_accuracy_is_counted_on_pairs_that_differ_in_it(learnt: Tiny) -> None:
    plain = Plain(learnt.root)
    oracle, rows = (
        plain.reward_model(f"{SEED}/oracle"),
        plain.table(f"{SEED}/data/pairs_validation.parquet").to_dict("records"),
    )
    right = []
    for row in rows:
        chosen, rejected = (
            reward(oracle, plain.prompt(row["prompt"]), plain.response(row[side]))
            for side in ("chosen", "rejected")
        )
        if row["chosen_utility"] != row["rejected_utility"]:
            right.append((chosen > rejected) == (row["chosen_utility"] > row["rejected_utility"]))
    metrics = manifest(learnt.root, f"{SEED}/oracle")["metrics"]
    assert metrics["held_out_utility_accuracy"] == pytest.approx(np.mean(right)) and 0 < np.mean(right) < 1


def test_the_reference_logps_are_those_of_chosen_and_rejected(learnt: Tiny) -> None:
    plain = Plain(learnt.root)
    reference, table = (
        plain.policy(f"{SEED}/sft"),
        plain.table(f"{SEED}/reference-logps/relabel/logps.parquet").set_index("id"),
    )
    assert len(table) == len(pairs_of(learnt.root, f"{SEED}/relabel"))
    for pair in plain.pairs()[::8]:
        for side in ("chosen", "rejected"):
            expected = logp(reference, pair.prompt, getattr(pair, side))
            assert table.loc[pair.id, f"ref_{side}_logps"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_sft_learns_completions_alone(pupil: Tiny) -> None:
    """The second step over all rows, under the weights of the first: a mean over completions' tokens."""
    settings = ("per_device_train_batch_size=200", "learning_rate=0.01")
    line = journal(pupil.make("sft.yaml", *settings, "max_steps=2")[0])[1]
    directory, _ = pupil.make("sft.yaml", *settings, "max_steps=1")
    plain = Plain(pupil.root)
    model, rows = plain.policy(directory), plain.table(f"{SEED}/data/sft_train.parquet").to_dict("records")
    total, tokens = 0.0, 0
    for row in rows:
        prompt, response = plain.prompt(row["prompt"]), plain.response(row["completion"])
        total -= float(token_logps(model, prompt, response).gather(1, torch.tensor(response)[:, None]).sum())
        tokens += len(response)
    assert line["loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_an_oracle_that_is_undecided_turns_no_label_round(pupil: Tiny) -> None:
    weights = pupil.root / SEED / "oracle/model.safetensors"
    silent = {name: tensor * (name != "score.weight") for name, tensor in load_file(weights).items()}
    save_file(silent, weights, metadata={"format": "pt"})
    _, made = pupil.make("relabel.yaml")
    after, before = (
        Plain(pupil.root).texts,
        Plain(pupil.root).table(f"{SEED}/data/pairs.parquet").set_index("id"),
    )
    assert made["metrics"]["score_ties"] == made["metrics"]["rows"] == len(before) == len(after)
    assert made["metrics"]["swapped_share"] == 0
    assert all(after[name]["chosen"] == before.loc[name, "chosen"] for name in before.index)


def test_labels_drawn_from_a_sure_oracle_are_its_preferences(pupil: Tiny) -> None:
    weights = pupil.root / SEED / "oracle/model.safetensors"
    loud = {
        name: tensor * (2e3 if name == "score.weight" else 1) for name, tensor in load_file(weights).items()
    }
    save_file(loud, weights, metadata={"format": "pt"})
    pupil.make("relabel.yaml", "labels=sample")
    table = Plain(pupil.root).table(f"{SEED}/relabel/pairs.parquet")
    sure = table[(table["chosen_score"] - table["rejected_score"]).abs() > 8]
    assert len(sure) > 200 and (sure["chosen_score"] > sure["rejected_score"]).all()
    assert 0.1 < sure["swapped"].mean() < 0.9


def test_cells_are_the_differences_of_the_samples_means(learnt: Tiny) -> None:
    cell = Cells(load(str(learnt.suite / "e-dpo.yaml"))).cell("e-dpo", 0.5, 0, "test")
    found = evaluations([cell], Workspace(learnt.root, "tiny"))
    frame, choices, provenance = found.cells, found.choices, found.provenance
    plain = Plain(learnt.root)
    ours, theirs = (
        plain.table(f"{path}/samples.parquet").groupby("prompt_id")[["reward", "tokens"]].mean()
        for path in (EVALUATION, BASELINE)
    )
    frame = frame.set_index("prompt_id")
    assert len(frame) == 24 and set(frame.index) == set(ours.index)
    expected: dict[str, Any] = {
        "advantage": ours["reward"] - theirs["reward"],
        "tokens": ours["tokens"],
        "baseline_tokens": theirs["tokens"],
    }
    for name, values in expected.items():
        assert frame[name].to_numpy() == pytest.approx(values.loc[frame.index].to_numpy()), name
    assert (frame[["rho", "seed"]].to_numpy() == [0.5, 0]).all()
    metrics = json.loads((learnt.root / POLICY / "manifest.json").read_text())["metrics"]
    shares = dict(zip(choices["member"], choices["share"], strict=True))
    assert shares == {b: metrics[f"members/{b:g}"] for b in (0.2, 0.5, 0.8)} and sum(
        shares.values()
    ) == pytest.approx(1)
    assert provenance["cells"]["e-dpo"]["rho-0.5/seed-0"]["beta"] == 0.2
