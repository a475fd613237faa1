"""Buckets: all batches fit, tightly, and no choice of as few shapes would make fewer tokens."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from rpo_cli.models import Buckets, Shape, for_training
from rpo_cli.models.buckets import MOST, STEP, for_batches, longest

RNG = np.random.default_rng(0)
ROWS: list[Shape] = [
    (int(w), int(d)) for w, d in zip(RNG.integers(5, 400, 300), RNG.integers(2, 120, 300), strict=True)
]


def tokens(shapes: tuple[Shape, ...], needed: list[Shape]) -> float:
    """Tokens of a row of each batch, or infinity where one fits nowhere."""
    fits = [
        [sum(shape) for shape in shapes if need[0] <= shape[0] and need[1] <= shape[1]] for need in needed
    ]
    return sum(min(one, default=float("inf")) for one in fits)


def test_rows_grouped_by_length_have_shapes_of_their_own_length() -> None:
    rows = [(length, 4) for length in range(8, 264)]
    drawn, grouped = for_training(rows, 8, most=8), for_training(rows, 8, grouped=True, most=8)
    assert len(drawn.shapes) < len(grouped.shapes) and grouped.padding < 0.2 < 0.4 < drawn.padding
    assert drawn.shapes[-1] == grouped.shapes[-1] == (264, 8)


def test_the_shapes_are_a_chain_of_few_that_holds_every_row() -> None:
    found = for_training(ROWS, 4)
    assert 1 <= len(found.shapes) <= MOST
    assert all(a[0] <= b[0] and a[1] <= b[1] and a != b for a, b in pairwise(found.shapes))
    assert all(side % STEP == 0 for shape in found.shapes for side in shape)
    for row in ROWS:
        assert row[0] <= found.of(row)[0] and row[1] <= found.of(row)[1]


def test_what_is_said_of_padding_is_what_the_batches_have() -> None:
    batches = [list(range(i, i + 5)) for i in range(0, 300, 5)]
    found = for_batches(ROWS, batches)
    needed = [longest([ROWS[i] for i in batch]) for batch in batches]
    real = sum(map(sum, ROWS))
    assert found.padding == pytest.approx(1 - real / (5 * sum(sum(found.of(need)) for need in needed)))
    assert found.ragged == pytest.approx(1 - real / (5 * sum(map(sum, needed))))
    assert found.ragged < found.padding < 1


def test_no_other_chain_of_as_many_shapes_makes_fewer_tokens() -> None:
    # Rows that are a chain by themselves, so that every choice of shapes among them can be tried.
    needed: list[Shape] = [
        (8 * i, 8 * j) for i, j in ((1, 1), (2, 1), (2, 2), (5, 2), (6, 4), (9, 4), (9, 9), (10, 12))
    ] * 3
    found = for_batches(needed, [[i] for i in range(len(needed))])
    tried = [tokens(chosen, needed) for chosen in combinations(sorted(set(needed)), len(found.shapes))]
    assert tokens(found.shapes, needed) == min(tried)


def test_rows_of_one_length_need_one_shape() -> None:
    assert for_training([(14, 12)] * 50, 8).shapes == ((16, 16),)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_rows_that_fill_their_shape_have_no_padding(size: int) -> None:
    assert for_training([(16, 16)] * 64, size).padding == 0


def test_pieces_of_a_sorted_batch_are_padded_less() -> None:
    alone, together = for_training(ROWS, 4), for_training(ROWS, 4, 8)
    assert together.padding < alone.padding - 0.1 and together.ragged < alone.ragged - 0.1
    assert together.shapes[-1] == alone.shapes[-1]  # the longest rows still fit


def test_a_batch_that_no_bucket_holds_is_an_error() -> None:
    with pytest.raises(ValueError, match="33 \\+ 8 tokens exceeds the largest bucket, \\(32, 16\\)"):
        Buckets(((16, 8), (32, 16)), 0, 0).of((33, 8))
