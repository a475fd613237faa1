"""Collected from a workspace beside a figure: margins of teachers, and words shared with a person's."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tools import margins, results
from tools.small import overlap


def test_overlap_counts_each_word_as_often_as_both_texts_have_it() -> None:
    assert overlap("Mail client, for GNOME", "for gnome: mail CLIENT") == 1.0
    assert overlap("mail mail mail", "mail") == pytest.approx(2 * 1 / (3 + 1))
    assert overlap("a b", "c") == overlap("", "c") == overlap("", "") == 0.0


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
    assert list(results.smallest(tmp_path))[1:] == [("0.2", "b 0.8: 2", "1 of 2")]
