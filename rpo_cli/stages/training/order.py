"""The order of rows in training: whole optimiser batches, each from its longest row to its shortest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler


class OptimizerBatches(Sampler[int]):
    """Rows in whole optimiser batches, each from long to short so that its micro-batches pad little.

    A batch is drawn at random and stands for the data; `grouped`: its rows are of about equal length, as
    transformers' group_by_length has them. As there, rows are shuffled, and sorted within pieces of up to 50
    batches. What differs: the rows that an epoch leaves out are drawn from all, not the shortest of the last
    piece; and batches are shuffled, not taken from long to short. The batch meant is the optimiser's,
    whatever number of micro-batches and processes share it. `turns`: the rows are there so many times, one
    time after another, and epochs take turns with them.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch: int,
        seed: int,
        epoch: Callable[[], int],
        *,
        grouped: bool,
        turns: int = 1,
    ) -> None:
        self.lengths, self.batch, self.seed, self.epoch, self.grouped = lengths, batch, seed, epoch, grouped
        self.turns, self.rows = turns, len(lengths) // turns

    def __len__(self) -> int:
        # dataloader_drop_last would leave an accumulated batch incomplete at the end of an epoch.
        return self.rows // self.batch * self.batch

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        draw = torch.Generator().manual_seed(self.seed + epoch)
        first = epoch % self.turns * self.rows
        rows = [first + i for i in torch.randperm(self.rows, generator=draw).tolist()[: len(self)]]
        if not self.grouped:
            yield from self._from_long_to_short(rows, self.batch)
            return
        # At least four pieces, which differ from epoch to epoch.
        size = max(1, min(len(rows) // (4 * self.batch), 50)) * self.batch
        ordered = self._from_long_to_short(rows, size)
        for batch in torch.randperm(len(rows) // self.batch, generator=draw).tolist():
            yield from ordered[batch * self.batch : (batch + 1) * self.batch]

    def _from_long_to_short(self, rows: list[int], size: int) -> list[int]:
        """The rows of each piece of this size by length; those of one length stay as drawn."""
        pieces = (rows[start : start + size] for start in range(0, len(rows), size))
        return [i for piece in pieces for i in sorted(piece, key=lambda i: -self.lengths[i])]
