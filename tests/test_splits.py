"""Splits and labels: which pairs are drawn, with which bias, and whose prompts are held out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from conftest import RHO, SEED, Tiny, manifest, pairs_of
from test_data import GOOD, lines
from transformers import AutoTokenizer

from rpo_cli.errors import BadInput
from rpo_cli.models import TokenRow
from rpo_cli.recipes.schema import SplitsRecipe
from rpo_cli.stages.data.rows import Rows, read_rows
from rpo_cli.stages.splits import (
    LONGER,
    SHORTER,
    TIE,
    Split,
    bias_of,
    bias_trained_on,
    draw,
    hold_out,
    preference_of_length,
)

# 600 longer, 500 shorter, 200 ties, in no order.
KINDS = np.random.default_rng(0).permutation(np.repeat([LONGER, SHORTER, TIE], [600, 500, 200]))


def splits(**values: Any) -> SplitsRecipe:
    return SplitsRecipe(
        **{
            "stage": "splits",
            "rho": 0.3,
            "num_pairs": 200,
            "held_out": 50,
            "ensemble": [0.2, 0.5, 0.8],
            **values,
        }
    )


def share(rows: np.ndarray, kinds: np.ndarray = KINDS) -> float:
    found = bias_of(kinds, rows)["longer_share"]
    assert found is not None
    return found


def everything(split: Split) -> list[int]:
    return [*split.train.tolist(), *split.held_out.tolist()]


# ── Length and bias ─────────────────────────────────────────────────────────────────────────────────────────


def test_longer_means_a_share_more_tokens_and_always_more() -> None:
    chosen, rejected = np.array([11, 10, 109, 22, 100, 10, 1, 5]), np.array([10, 11, 100, 20, 110, 10, 2, 5])
    assert preference_of_length(chosen, rejected, 0.1).tolist() == [
        LONGER,
        SHORTER,
        TIE,
        LONGER,
        SHORTER,
        TIE,
        SHORTER,
        TIE,
    ]
    assert preference_of_length(chosen, rejected, 0.0).tolist() == [
        LONGER,
        SHORTER,
        LONGER,
        LONGER,
        SHORTER,
        TIE,
        SHORTER,
        TIE,
    ]


@pytest.mark.parametrize("rho", [0.2, 0.3, 0.5, 0.7, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_has_exactly_its_bias_and_draws_no_row_twice(rho: float, seed: int) -> None:
    split = draw(KINDS, splits(rho=rho), seed)
    assert len(split.train) == 200 and len(split.held_out) == 50
    assert len(set(everything(split))) == 250
    assert share(split.train) == rho and share(split.held_out) == rho
    assert not (KINDS[everything(split)] == TIE).any()
    assert abs(share(split.train[:100]) - rho) < 0.2  # shuffled: not the longer ones first


def test_subsets_have_exactly_their_bias_inside_the_training_rows() -> None:
    for size in ("equal", "largest", 50):
        split = draw(KINDS, splits(rho=0.5, num_pairs=160, subset_size=size), 0)
        assert list(split.subsets) == [0.2, 0.5, 0.8]
        for b, rows in split.subsets.items():
            assert len(set(rows.tolist())) == len(rows)
            assert set(rows.tolist()) <= set(split.train.tolist())
            assert share(rows) == b
        # 80 longer and 80 shorter pairs: 100 at b 0.2 and 0.8, all 160 at b 0.5.
        expected = {"equal": [100, 100, 100], "largest": [100, 160, 100], 50: [50, 50, 50]}
        assert [len(rows) for rows in split.subsets.values()] == expected[size]


def test_a_rounded_bias_is_off_by_less_than_one_pair() -> None:
    split = draw(KINDS, splits(rho=0.37, num_pairs=101, ensemble=[0.23, 0.61], subset_size="largest"), 0)
    assert abs(share(split.train) * 101 - 0.37 * 101) <= 0.5
    for b, rows in split.subsets.items():
        assert abs(share(rows) * len(rows) - b * len(rows)) <= 1


def test_ties_are_left_out_or_kept_at_their_natural_share() -> None:
    split = draw(KINDS, splits(rho=0.4, num_pairs=260, held_out=130, ties="include"), 0)
    assert bias_of(KINDS, split.train) == {
        "size": 260,
        "longer_share": pytest.approx(0.4, abs=1 / 220),
        "tie_share": 40 / 260,
    }
    assert bias_of(KINDS, split.held_out)["tie_share"] == 20 / 130
    assert len(set(everything(split))) == 390
    assert all(not (KINDS[rows] == TIE).any() for rows in split.subsets.values())


def test_without_a_rho_the_pairs_are_as_they_come() -> None:
    split = draw(KINDS, splits(rho=None, num_pairs=None, held_out=100), 0)
    assert sorted(everything(split)) == list(range(len(KINDS))) and len(split.held_out) == 100
    some = draw(KINDS, splits(rho=None, num_pairs=700, held_out=100), 0)
    assert len(some.train) == 700 and len(set(everything(some))) == 800
    assert bias_of(KINDS, some.train)["tie_share"] == pytest.approx(200 / 1300, abs=0.05)


def test_draws_repeat_under_their_seed_and_differ_under_another() -> None:
    one, again, other = (draw(KINDS, splits(), seed) for seed in (0, 0, 1))
    assert one.train.tolist() == again.train.tolist() and one.held_out.tolist() == again.held_out.tolist()
    assert all(one.subsets[b].tolist() == again.subsets[b].tolist() for b in one.subsets)
    assert one.train.tolist() != other.train.tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho": 0.8, "num_pairs": 900},
         "splits: rho 0.8 with num_pairs 900 and held_out 50 needs 760 pairs whose longer response is "
         "preferred, 600 exist"),
        ({"rho": 0.2, "num_pairs": 600}, "needs 520 pairs whose shorter response is preferred, 500 exist"),
        ({"rho": None, "num_pairs": 1300},
        "splits: 1300 training and 50 held-out pairs are needed, 1300 exist"),
        ({"subset_size": 100}, (r"splits: subset_size 100 cannot be filled for b 0.8: 75 pairs at most, from "
            r"60 longer and 140 shorter")),
        ({"rho": 0.01, "num_pairs": 20, "subset_size": "largest"},
         "splits: the subset for b 0.2 would be empty: D_rho has 0 longer and 20 shorter"),
    ],
)  # fmt: skip
def test_a_split_that_cannot_be_filled_says_how_many_pairs_there_are(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        draw(KINDS, splits(**values), 0)


def test_the_splits_stage_writes_what_it_drew(built: Tiny) -> None:
    """Token counts with EOS, kinds and shares, recounted from the text."""
    tokenizer = AutoTokenizer.from_pretrained(built.root / "seed-0/sft")
    folder = built.root / RHO / "splits"
    pairs = {row["id"]: row for row in pairs_of(built.root, f"{SEED}/relabel")}
    tables = {
        name: pairs_of(built.root, f"{RHO}/splits", name)
        for name in ("train", "held_out", "b-0.2", "b-0.5", "b-0.8")
    }
    metrics = manifest(built.root, f"{RHO}/splits")["metrics"]
    counts_of = {
        row["id"]: row for name in ("train", "held_out") for row in read_rows(folder / f"{name}.parquet")
    }
    for name, rows in tables.items():
        rows = [row | counts_of[row["id"]] for row in rows]
        assert len({row["id"] for row in rows}) == len(rows) == metrics[f"{name}/size"]
        for row in rows:
            assert all(row[key] == value for key, value in pairs[row["id"]].items())
            lengths = [len(tokenizer(row[side])["input_ids"]) + 1 for side in ("chosen", "rejected")]
            assert [row["chosen_tokens"], row["rejected_tokens"]] == lengths
            assert row["longer_preferred"] == (LONGER if lengths[0] > lengths[1] else SHORTER)
            assert max(lengths) >= 1.1 * min(lengths)
        counts = Counter(row["longer_preferred"] for row in rows)
        expected = float(name[2:]) if name.startswith("b-") else 0.5
        assert counts[LONGER] / len(rows) == metrics[f"{name}/longer_share"] == expected
    ids = {name: {row["id"] for row in rows} for name, rows in tables.items()}
    assert not ids["train"] & ids["held_out"]
    assert all(ids[name] <= ids["train"] for name in ids if name.startswith("b-"))


# ── Relabelling ─────────────────────────────────────────────────────────────────────────────────────────────


def test_relabelling_puts_the_higher_score_first_and_marks_what_it_turned(built: Tiny) -> None:
    human = {row["id"]: row for row in read_rows(built.root / "seed-0/data/pairs.parquet")}
    rows = pairs_of(built.root, f"{SEED}/relabel")
    assert [row["id"] for row in rows] == list(human)
    for row in rows:
        assert row["chosen_score"] >= row["rejected_score"]
        sides = ("rejected", "chosen") if row["swapped"] else ("chosen", "rejected")
        assert [row["prompt"], row["chosen"], row["rejected"]] == [
            human[row["id"]][side] for side in ("prompt", *sides)
        ]
    swapped = sum(row["swapped"] for row in rows)
    assert 0 < swapped < len(rows)
    assert manifest(built.root, "seed-0/relabel")["metrics"]["swapped_share"] == swapped / len(rows)


def test_sampled_labels_follow_the_scores_and_repeat(tiny: Tiny) -> None:
    first, _ = tiny.make("relabel.yaml", "labels=sample")
    rows = read_rows(first / "pairs.parquet")
    against = sum(row["chosen_score"] < row["rejected_score"] for row in rows)
    # An oracle of six steps is almost indifferent: about half of the draws go against its scores.
    expected = sum(1 / (1 + np.exp(abs(row["chosen_score"] - row["rejected_score"]))) for row in rows)
    assert abs(against - expected) < 5 * np.sqrt(len(rows) / 4)
    tiny.make("relabel.yaml", "labels=sample")
    assert read_rows(first / "pairs.parquet") == rows


@pytest.mark.parametrize("temperature", [0.001, 4.0])
def test_labels_drawn_at_a_temperature_go_against_the_oracle_as_often_as_it_says(
    tiny: Tiny, temperature: float
) -> None:
    found, made = tiny.make("relabel.yaml", "labels=sample", f"label_temperature={temperature}")
    rows = read_rows(found / "pairs.parquet")
    gaps = np.array([abs(row["chosen_score"] - row["rejected_score"]) for row in rows]) / temperature
    doubt = 1 / (1 + np.exp(gaps))
    against = np.array([row["chosen_score"] < row["rejected_score"] for row in rows])
    assert abs(against.sum() - doubt.sum()) < 4 * np.sqrt((doubt * (1 - doubt)).sum())
    assert made["metrics"]["against_share"] == pytest.approx(against.mean())
    assert against.mean() < 0.2 if temperature < 1 else against.mean() > 0.3


def test_a_temperature_of_labels_that_are_not_drawn_changes_no_key(empty: Tiny) -> None:
    plain, hot = (empty.stage("relabel.yaml", *more) for more in ((), ("label_temperature=2",)))
    drawn, hot_drawn = (
        empty.stage("relabel.yaml", "labels=sample", *more) for more in ((), ("label_temperature=2",))
    )
    assert plain.key == hot.key != drawn.key != hot_drawn.key


# ── Prompts ─────────────────────────────────────────────────────────────────────────────────────────────────


def prompts_of(kinds: np.ndarray, each: int) -> list[str]:
    """`each` pairs for a prompt, scattered over the rows."""
    return [f"p{number // each}" for number in np.random.default_rng(1).permutation(len(kinds)).tolist()]


@pytest.mark.parametrize(
    "values", [{}, {"rho": None}, {"rho": None, "num_pairs": None}, {"rho": 0.6, "ties": "include"}]
)
@pytest.mark.parametrize("each", [2, 5])
def test_pairs_of_one_prompt_are_trained_on_or_held_out_never_both(values: dict[str, Any], each: int) -> None:
    prompts = prompts_of(KINDS, each)
    recipe = splits(**values)
    split = draw(KINDS, recipe, 0, prompts)
    apart = [{prompts[row] for row in rows.tolist()} for rows in (split.train, split.held_out)]
    assert not apart[0] & apart[1]
    assert len(split.held_out) == 50 and len(set(everything(split))) == len(everything(split))
    if recipe.num_pairs is not None:
        assert len(split.train) == 200
    else:  # all pairs of the prompts that are not held out
        assert len(split.train) == sum(prompt not in apart[1] for prompt in prompts)
        assert len(apart[1]) <= -(-50 // each)
    if recipe.rho is not None:
        assert share(split.train) == pytest.approx(recipe.rho, abs=0.01) and share(
            split.held_out
        ) == pytest.approx(recipe.rho, abs=0.02)


@pytest.mark.parametrize(
    "values", [{}, {"rho": None}, {"rho": None, "num_pairs": None}, {"rho": 0.6, "ties": "include"}]
)
def test_where_every_prompt_is_unique_prompts_change_nothing(values: dict[str, Any]) -> None:
    recipe = splits(**values)
    one, other = draw(KINDS, recipe, 3), draw(KINDS, recipe, 3, prompts_of(KINDS, 1))
    assert one.train.tolist() == other.train.tolist() and one.held_out.tolist() == other.held_out.tolist()
    assert [rows.tolist() for rows in one.subsets.values()] == [
        rows.tolist() for rows in other.subsets.values()
    ]


def test_pairs_are_held_out_behind_those_to_train_on_and_of_prompts_that_are_held_out_already() -> None:
    first, second = np.arange(4), np.arange(4, 8)
    apart = hold_out([(first, 3, 1), (second, 2, 2)], np.arange(8))
    assert [rows.tolist() for rows in apart] == [[3], [6, 7]]
    shared = hold_out([(first, 3, 1), (second, 3, 1)], np.array([0, 1, 2, 3, 3, 2, 1, 0]))
    assert [rows.tolist() for rows in shared] == [[3], [4]]  # one prompt is lost to training, not two


@pytest.mark.parametrize(("left_out", "told"), [("longer", True), ("shorter", True), ("both", False)])
def test_a_bias_that_moved_either_way_is_told_of_though_few_pairs_are_left_out(
    left_out: str, told: bool
) -> None:
    kinds = np.array([LONGER, SHORTER] * 50, dtype=np.int8)
    ids = [str(number) for number in range(100)]
    notes = pa.table({"id": ids, "longer_preferred": kinds})
    pairs = Rows(Path(), cast(Any, None), np.arange(100), np.zeros(100, dtype=bool), notes)
    lost = {"longer": {"0", "2", "4"}, "shorter": {"1", "3", "5"}, "both": {"0", "1", "2", "3"}}[left_out]
    kept, said = [TokenRow(name, [], []) for name in ids if name not in lost], list[str]()
    found = bias_trained_on(pairs, kept, 48, cast(Any, SimpleNamespace(warn=said.append)))
    share = {"longer": 47 / 97, "shorter": 50 / 97, "both": 0.5}[left_out]
    assert found == {"longer_share": pytest.approx(share)} and bool(said) == told


def test_a_split_that_prompts_leave_too_few_pairs_for_says_how_many_there_are() -> None:
    message = (
        r"num_pairs 600 and held_out 50 needs 420 training pairs whose shorter response is preferred, "
        r"\d+ share no prompt with the 50 held"
    )
    with pytest.raises(BadInput, match=message):
        draw(
            KINDS,
            splits(rho=0.3, num_pairs=600, ensemble=[]),
            0,
            ["one"] * 900 + [f"p{n}" for n in range(400)],
        )
    with pytest.raises(
        BadInput,
        match="splits: num_pairs 1200 cannot be filled: 0 pairs share no prompt with the 50 held-out pairs",
    ):
        draw(KINDS, splits(rho=None, num_pairs=1200), 0, ["one"] * 1300)


def test_prompts_that_tables_share_are_counted_and_a_leak_is_said(empty: Tiny) -> None:
    (empty.suite / "pairs.jsonl").write_bytes(lines(*[GOOD | {"prompt": f"p{index}"} for index in range(6)]))
    (empty.suite / "test.jsonl").write_bytes(lines(*[{"prompt": f"p{index}"} for index in range(4, 14)]))
    (empty.suite / "written.jsonl").write_bytes(
        lines(*[{"prompt": f"p{index}", "completion": "c"} for index in range(4)])
    )
    (empty.suite / "data.yaml").write_text(
        "stage: data\nfiles: {pairs: pairs.jsonl, prompts_test: test.jsonl, sft_train: written.jsonl}\n"
    )
    leak = (
        "seed-0/data: leak: 2 of the 10 prompts of prompts_test are in pairs too; on them nothing is held out"
    )
    result = empty.run("train-sft", "sft.yaml", code=2)  # these files bring no tokenizer
    assert f"warning: {leak}" in result.stderr.splitlines()
    found = manifest(empty.root, "seed-0/data")
    assert found["warnings"] == [leak.removeprefix("seed-0/data: ")]
    shared = {name: value for name, value in found["metrics"].items() if name.startswith("shared_prompts/")}
    assert shared == {"shared_prompts/pairs/prompts_test": 2, "shared_prompts/sft_train/prompts_test": 0}


def test_data_inspect_counts_the_prompts_that_tables_share(tiny: Tiny) -> None:
    (data,) = json.loads(tiny.run("data inspect", "data.yaml", "--json").stdout).values()
    assert len(data["shared_prompts"]) == 7 and set(data["shared_prompts"].values()) == {0}
    result = tiny.run("data inspect", "splits.yaml")
    assert "prompts of held_out that are in train too: 0" in result.stdout
    assert "leak" not in result.stderr
