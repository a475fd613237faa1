"""Pairs that a model's own samples make: what stands against what, and the pipeline on top of them."""

from __future__ import annotations

import json
from collections import Counter

import pandas as pd
import pytest
from conftest import SEED, Tiny, manifest
from worlds import Plain

from rpo_cli.stages.sampled import Prompt, pairs_of, rows_from

RECIPE = (
    "stage: pairs\ndevice: cpu\ndtype: float32\nthreads: 1\nmax_length: 48\ntable: sft_train\n"
    "validation_table: sft_validation\nnum_prompts: 24\nnum_samples: 4\nmax_new_tokens: 8\n"
)
ALL = ("samples", "written-samples", "written-others")


def test_a_prompts_samples_stand_against_each_other_once_and_equal_or_empty_ones_nowhere() -> None:
    prompt = Prompt("Q:", [" a", " b", " a ", " ", " c", " d", " e"], " b", " z")
    assert list(pairs_of(prompt, ["samples"])) == [("samples", " a ", " b"), ("samples", " c", " d")]
    assert [pair[1:] for pair in pairs_of(prompt, ["written-samples"])] == [
        (" b", " a "),
        (" b", " c"),
        (" b", " d"),
        (" b", " e"),
    ]
    assert list(pairs_of(prompt, ["written-others"])) == [("written-others", " b", " z")]
    assert not list(pairs_of(Prompt("Q:", [" a"], " b", "b"), ["samples", "written-others"]))


def test_the_same_pair_of_two_equal_prompts_stands_once() -> None:
    twice = [Prompt("Q:", [" a", " b"]), Prompt("Q:", [" a", " b"]), Prompt("R:", [" a", " b"])]
    rows = rows_from(twice, ["samples"])
    assert [row["prompt"] for row in rows] == ["Q:", "R:"] and len({row["id"] for row in rows}) == 2


def test_pairs_are_of_the_models_samples_that_ended_and_of_the_written_responses(pupil: Tiny) -> None:
    (pupil.suite / "pairs.yaml").write_text(RECIPE + f"contrasts: [{', '.join(ALL)}]\n")
    pupil.run("sample-pairs", "pairs.yaml")
    plain, metrics = Plain(pupil.root), manifest(pupil.root, f"{SEED}/pairs")["metrics"]
    rows = plain.table(f"{SEED}/pairs/pairs.parquet")
    source = plain.table(f"{SEED}/data/sft_train.parquet")[:24]
    written = dict(zip(source["prompt"], source["completion"], strict=True))
    kinds = Counter(rows["contrast"])
    assert set(kinds) == set(ALL) and metrics["pairs/prompts"] == 24
    for row in rows.itertuples():
        if row.contrast != "samples":
            assert row.chosen == written[row.prompt]
        if row.contrast == "written-others":
            assert row.rejected in set(source["completion"]) - {row.chosen}
        else:
            assert len(plain.response(row.rejected)) <= 8  # EOS among them: it ended
    assert metrics["rows/pairs"] == len(rows) and metrics["rows/pairs_validation"] > 0
    assert metrics["pairs/drawn"] == 4 * 24 > kinds["written-samples"] + metrics["pairs/unfinished"] - 1


def test_a_sample_has_ended_at_each_of_the_models_stop_tokens(pupil: Tiny) -> None:
    (pupil.suite / "pairs.yaml").write_text(RECIPE + "contrasts: [written-samples]\n")
    file = pupil.root / SEED / "sft/generation_config.json"
    vocabulary = len(Plain(pupil.root).tokenizer)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": list(range(vocabulary))}))
    pupil.run("sample-pairs", "pairs.yaml")
    assert manifest(pupil.root, f"{SEED}/pairs")["metrics"]["pairs/unfinished"] == 0


@pytest.mark.slow
def test_a_models_pairs_do_not_depend_on_the_batch(pupil: Tiny) -> None:
    (pupil.suite / "pairs.yaml").write_text(RECIPE + "temperatures: [0.7, 1.2]\n")
    found = []
    for size in (1, 64):
        directory, _ = pupil.make("pairs.yaml", f"per_device_eval_batch_size={size}")
        found.append(pd.read_parquet(directory / "pairs.parquet"))
    pd.testing.assert_frame_equal(*found)


@pytest.mark.slow
def test_a_policy_learns_from_the_models_own_pairs_as_the_oracle_orders_them(pupil: Tiny) -> None:
    (pupil.suite / "pairs.yaml").write_text(
        RECIPE.replace("num_prompts: 24\n", "").replace("sft_validation", "null")
    )
    pupil.edit("relabel.yaml", "data: pairs.yaml")
    pupil.edit("splits.yaml", "rho: null\nnum_pairs: 32\nheld_out: 16\nensemble: []")
    pupil.edit("dpo.yaml", "rho: null")
    pupil.run("train-policy", "dpo.yaml")
    scores = pd.read_parquet(pupil.root / SEED / "relabel/pairs.parquet")
    assert (scores["chosen_score"] >= scores["rejected_score"]).all()
    assert manifest(pupil.root, f"{SEED}/unbiased/policies/dpo/beta-0.2")["metrics"]["rows"] == 32


def test_keys_of_samples_are_said_to_have_no_effect_where_none_are_drawn(empty: Tiny) -> None:
    (empty.suite / "pairs.yaml").write_text(RECIPE + "contrasts: [written-others]\n")
    said = empty.run("sample-pairs", "pairs.yaml", "--dry-run").stderr
    assert "num_samples: no effect with contrasts" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("contrasts: [samples]\nnum_samples: 1", "num_samples of at least 2"),
        ("contrasts: [written-samples, written-samples]", "lists written-samples twice"),
        ("temperatures: [0]", "temperatures"),
    ],
)
def test_pairs_that_cannot_be_made_are_refused_with_the_recipe(empty: Tiny, change: str, said: str) -> None:
    keys = {line.split(":")[0] for line in change.splitlines()}
    kept = [line for line in RECIPE.splitlines() if line.split(":")[0] not in keys]
    (empty.suite / "pairs.yaml").write_text("\n".join([*kept, change]) + "\n")
    assert said in empty.run("sample-pairs", "pairs.yaml", code=2).output


def test_written_contrasts_need_written_responses(pupil: Tiny) -> None:
    (pupil.suite / "pairs.yaml").write_text(
        RECIPE.replace("sft_train", "warmup") + "contrasts: [written-others]\n"
    )
    said = pupil.run("sample-pairs", "pairs.yaml", code=2).output
    assert "warmup has no column `completion`" in said


def test_every_sample_asked_for_is_drawn_whatever_the_number_of_temperatures(pupil: Tiny) -> None:
    (pupil.suite / "pairs.yaml").write_text(RECIPE.replace("num_samples: 4", "num_samples: 5"))
    pupil.make("pairs.yaml", "temperatures=[0.7, 1.2]")
    assert manifest(pupil.root, f"{SEED}/pairs")["metrics"]["pairs/drawn"] == 5 * 24


@pytest.mark.parametrize("sure", ["temperatures=[0.001]", "top_p=0.001"])
def test_samples_are_drawn_as_sharply_as_the_recipe_says(pupil: Tiny, sure: str) -> None:
    """All samples of a prompt are then its likeliest response."""
    (pupil.suite / "pairs.yaml").write_text(RECIPE + "contrasts: [written-samples]\n")
    directory, _ = pupil.make("pairs.yaml", sure)
    table = pd.read_parquet(directory / "pairs.parquet")
    assert len(table) > 0 and table["prompt"].is_unique


def test_samples_of_a_prompt_at_two_temperatures_share_no_random_numbers(pupil: Tiny) -> None:
    """Of the same numbers two temperatures that are nearly one would make the same sample."""
    (pupil.suite / "pairs.yaml").write_text(
        RECIPE.replace("num_samples: 4", "num_samples: 2") + "contrasts: [written-samples]\n"
    )
    directory, found = pupil.make("pairs.yaml", "temperatures=[1.0, 1.0001]")
    ended = found["metrics"]["pairs/drawn"] - found["metrics"]["pairs/unfinished"]
    assert len(pd.read_parquet(directory / "pairs.parquet")) > 0.75 * ended
