"""A few shapes for many batches, where a device compiles a program for each: chosen from the data's lengths.

A shape is (width, depth): columns of the longest prompt, and of the most response tokens behind it, as
`layout` lays rows out. The buckets are a chain, each holding the one before, so what a batch gets is the
first that its longest row fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, int]
MOST = 4  # each is a program to compile, or two, which takes long where models are large
WORTH = 0.05  # a bucket more must spare this share of all tokens
STEP = 8  # rows of a TPU's vector registers: it pads to multiples by itself
DRAWS = 256


@dataclass(frozen=True)
class Buckets:
    """The shapes, ascending, and what share of the tokens they make is padding.

    `ragged`: the share if every batch were as long as its longest row only.
    """

    shapes: tuple[Shape, ...]
    padding: float
    ragged: float

    def of(self, needed: Shape) -> Shape:
        """The first shape that holds a batch.

        Raises:
            ValueError: none does: the buckets were made for other rows.
        """
        width, depth = needed
        for shape in self.shapes:
            if width <= shape[0] and depth <= shape[1]:
                return shape
        raise ValueError(f"a batch of {width} + {depth} tokens exceeds the largest bucket, {self.shapes[-1]}")

    def __str__(self) -> str:
        listed = ", ".join(f"{width} + {depth}" for width, depth in self.shapes)
        cut = f"{self.ragged:.0%} if batches were cut to their longest row"
        padding = f"{self.padding:.0%} of all tokens are padding ({cut})"
        return f"{len(self.shapes)} shapes of prompt + responses: {listed} tokens; {padding}"


def for_batches(rows: Sequence[Shape], batches: Sequence[Sequence[int]]) -> Buckets:
    """Buckets for exactly these batches of row numbers; the last is filled up to the size of the others."""
    return _buckets(rows, batches, max(map(len, batches)), [])


def _buckets(
    rows: Sequence[Shape],
    batches: Sequence[Sequence[int]],
    size: int,
    besides: Sequence[Shape],
    most: int = MOST,
    worth: float = WORTH,
) -> Buckets:
    """Buckets for batches of `size` rows; shapes `besides` must fit too, and do not count as padding."""
    needed = [longest([rows[i] for i in batch]) for batch in batches]
    chosen = _fit([*needed, *besides], most, worth)
    made = Buckets(chosen, 0, 0)
    real = sum(sum(rows[i]) for batch in batches for i in batch)
    padded = size * sum(sum(made.of(shape)) for shape in needed)
    cut = size * sum(map(sum, needed))
    return Buckets(chosen, 1 - real / padded, 1 - real / cut)


def for_training(
    rows: Sequence[Shape],
    size: int,
    together: int = 1,
    *,
    grouped: bool = False,
    most: int = MOST,
    worth: float = WORTH,
) -> Buckets:
    """Buckets for batches of `size` rows, and for one that holds the longest rows there are.

    Rows are drawn at random for `together` batches at once, an optimiser's, which are cut from the longest
    row to the shortest; `grouped`: such rows are of about equal length.
    """
    rng = np.random.default_rng(0)
    batches: list[list[int]] = []
    count = min(size * together, len(rows))
    by_length = np.argsort([-sum(row) for row in rows], kind="stable")
    while len(batches) < DRAWS:
        if grouped:
            start = int(rng.integers(len(rows) - count + 1))
            drawn = by_length[start : start + count].tolist()
        else:
            drawn = rng.choice(len(rows), count, replace=False).tolist()
        if together > 1:
            drawn.sort(key=lambda i: -sum(rows[i]))
        batches += [drawn[start : start + size] for start in range(0, len(drawn), size)]
    return _buckets(rows, batches, size, [longest(rows)], most, worth)


def longest(rows: Sequence[Shape]) -> Shape:
    """The shape of a batch of rows of these shapes."""
    return max(row[0] for row in rows), max(row[1] for row in rows)


def _fit(needed: Sequence[Shape], most: int, worth: float) -> tuple[Shape, ...]:
    """At most `most` shapes for batches that need these, with the fewest tokens in all.

    There are fewer where more would spare little.
    """
    rounded = [(-(-width // STEP) * STEP, -(-depth // STEP) * STEP) for width, depth in needed]
    rounded.sort(key=lambda shape: (sum(shape), shape))
    # In a chain a group's shape holds all groups before it as well.
    chain = np.maximum.accumulate(np.array(rounded), axis=0)
    places, counts = np.unique(chain, axis=0, return_counts=True)
    order = np.argsort(places.sum(1), kind="stable")
    shapes, cost, ends = places[order], places[order].sum(1), np.cumsum(counts[order])
    # least[k][j]: tokens of the first j + 1 shapes in k + 1 buckets, the last one being shape j.
    least = [cost * ends]
    cuts: list[list[int]] = []
    for _ in range(1, min(most, len(shapes))):
        before = least[-1]
        options = [[before[i] + cost[j] * (ends[j] - ends[i]) for i in range(j)] for j in range(len(shapes))]
        cuts.append([int(np.argmin(row)) if row else -1 for row in options])
        least.append(np.array([min([*row, before[j]]) for j, row in enumerate(options)]))
    best = float(least[-1][-1])
    count = next(k for k, tokens in enumerate(least) if tokens[-1] <= best + worth * float(least[0][-1]))
    chosen, j = [len(shapes) - 1], len(shapes) - 1
    for k in range(count - 1, -1, -1):
        j = cuts[k][j]
        if j < 0:
            break
        chosen.append(j)
    return tuple((int(shapes[j][0]), int(shapes[j][1])) for j in reversed(chosen))
