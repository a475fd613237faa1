"""Collected from a workspace beside a figure: margins of teachers, and words shared with a person's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tools import margins
from tools.small import overlaps, shares
from tools.tables import curves, experiments, teachers, words

RESULTS = Path(__file__).resolve().parent.parent / "results/miniature"


def test_shares_count_each_word_as_often_as_both_texts_have_it() -> None:
    same = shares("Mail client, for GNOME", "for gnome: mail CLIENT", "A client. Mail!")
    assert same == {"overlap": 1.0, "of_the_written": 1.0, "of_its_own": 1.0, "copied": 0.5}
    often = shares("mail mail mail", "mail", "")
    assert often == {
        "overlap": pytest.approx(2 * 1 / (3 + 1)), "of_the_written": 1.0, "of_its_own": 1 / 3, "copied": 0.0
    }  # fmt: skip
    assert set(shares("", "", "").values()) == set(shares("", "c", "c").values()) == {0.0}


def test_samples_are_compared_with_their_own_posts_lines_and_policies_on_the_same_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = tmp_path / "seed-0"
    (seed / "data").mkdir(parents=True)
    lines = pd.DataFrame({"prompt": ["one", "two"], "completion": ["a b", "c d"]})
    lines.to_parquet(seed / "data/prompts_test.parquet")

    def evaluated(place: Path, key: str, answers: dict[str, str]) -> None:
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(json.dumps({"key": key}))
        rows = [(f"id-{prompt}", prompt, answer) for prompt, answer in answers.items()]
        columns = ["prompt_id", "prompt", "response"]
        pd.DataFrame(rows, columns=columns).to_parquet(place / "samples.parquet")

    evaluated(seed / "evaluations/sft/test", "s", {"one": "x", "two": "y"})
    evaluated(seed / "rho-0.2/evaluations/dpo/test", "d", {"one": "a b", "two": "a b"})
    evaluated(seed / "rho-0.2/evaluations/e-dpo/test", "e", {"two": "c d", "one": "a b"})  # in another order
    cells = {name: {"rho-0.2/seed-0": {"key": name[0]}} for name in ("dpo", "e-dpo")}
    (tmp_path / "provenance.json").write_text(json.dumps({"cells": cells}))
    found = pd.concat(overlaps(seed, tmp_path), ignore_index=True)
    found.to_parquet(tmp_path / "overlap.parquet")
    axes = SimpleNamespace(policies=["dpo", "e-dpo"], rhos=[0.2])
    monkeypatch.setattr(words, "load_results", lambda folder: SimpleNamespace(axes=axes))
    _, sft, dpo, e_dpo = experiments.overlap(tmp_path)
    assert (sft[2], dpo[2], e_dpo[2]) == ("0.0", "50.0", "100.0")
    assert e_dpo[-1].startswith("+50.00 (")


def scores(seed: Path, member: float, chosen: list[float], rejected: list[float]) -> None:
    place = seed / f"rho-0.2/scores/rm/b-{member:g}"
    place.mkdir(parents=True)
    pd.DataFrame({"chosen": chosen, "rejected": rejected}).to_parquet(place / "train.parquet")


def test_the_member_of_the_smallest_margins_is_told_from_the_one_that_taught(tmp_path: Path) -> None:
    """Two seeds: in one the two are the same, in the other they are not."""
    for number, small in ((1, 0.8), (2, 0.5)):
        for member in (0.5, 0.8):
            size = 1.0 if member == small else 3.0
            scores(tmp_path / f"seed-{number}", member, [size, size], [0.0, 2 * size])  # margins ±size
    taught = [(seed, member, share) for seed in (1, 2) for member, share in ((0.5, 0.25), (0.8, 0.75))]
    rows = [("e-dpo as written", 0.2, *row) for row in taught]
    columns = ["policy", "rho", "seed", "member", "share"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "choices.csv", index=False)
    found = pd.DataFrame(margins.rows(tmp_path, tmp_path))
    assert found["mean_square"].tolist() == [9.0, 1.0, 1.0, 9.0]
    found.to_csv(tmp_path / "margins.csv", index=False)
    assert list(teachers.smallest(tmp_path))[1:] == [("0.2", "b 0.8: 2", "1 of 2")]


def test_at_equal_kl_a_way_lies_between_the_strengths_around_it_and_nowhere_where_it_does_not_reach() -> None:
    index = pd.MultiIndex.from_product([[1, 2], ["weak", "strong"]], names=["seed", "policy"])
    points = pd.DataFrame(
        {"kl": [2.0, 1.0, 1.4, 0.2], "advantage": [0.5, 0.1, 0.3, 0.1], "utility": [3.0, 1.0, 2.0, 1.0]},
        index=index,
    )
    found = curves._at_kl(points, 1.5)
    assert found.loc[1].tolist() == pytest.approx([0.3, 2.0])
    assert found.loc[2].isna().all()


def test_break_even_of_a_line_is_where_the_mean_of_its_seeds_lines_is_zero() -> None:
    folder = RESULTS / "teachers-grid"
    rows = [row for row in teachers.even(folder) if row[1:4:2] == ("balanced", "right, %")]
    cells = pd.read_parquet(folder / "cells.parquet").astype({"policy": str})
    known = pd.read_csv(folder / "accuracies.csv")
    known = known[known["member"].isna() & known["policy"].str.startswith("balanced")]
    leads = cells.groupby(["policy", "seed"])["lead"].mean().rename("lead")
    both = known.set_index(["policy", "seed"]).join(leads).reset_index()
    lines = [np.polyfit(own["all"], own["lead"], 1) for _, own in both.groupby("seed")]
    slope, start = np.mean(lines, axis=0)
    assert len(lines) == 10 and [row[-1].split()[0] for row in rows] == [f"{-100 * start / slope:.0f}"]
    assert list(teachers.even(RESULTS / "teachers"))[1:] == []  # no line of four


def test_claims_are_found_whatever_the_kind_of_a_figure() -> None:
    for name in ("teachers", "information"):
        asked, found = words.judged(RESULTS / name)
        assert found and {row["claim"] for row in found} == {claim["claim"] for claim in asked}
