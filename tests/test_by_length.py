"""An optimiser's batches: whole, random or of like lengths, however shared and wherever resumed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader, skip_first_batches
from conftest import Tiny, column, weights
from test_policy_training import CUTS, SGD, cut, distance
from torch.utils.data import DataLoader

from rpo_cli.stages.training.order import OptimizerBatches

GROUPED = "train_sampling_strategy=group_by_length"
LENGTHS = [random.Random(i).randint(1, 1000) for i in range(410)]


def sampler(epoch: Callable[[], int], size: int = 8, *, grouped: bool = True) -> OptimizerBatches:
    return OptimizerBatches(LENGTHS, size, 0, epoch, grouped=grouped)


def batches(epoch: int, size: int = 8, *, grouped: bool = True) -> list[list[int]]:
    order = list(sampler(lambda: epoch, size, grouped=grouped))
    assert len(order) == len(sampler(lambda: epoch, size, grouped=grouped)) == len(LENGTHS) // size * size
    return [order[i : i + size] for i in range(0, len(order), size)]


def spread(rows: list[int]) -> int:
    return max(LENGTHS[i] for i in rows) - min(LENGTHS[i] for i in rows)


def test_batches_are_whole_of_like_length_and_otherwise_random() -> None:
    epochs = [batches(epoch) for epoch in range(40)]
    for found in epochs:
        rows = [i for batch in found for i in batch]
        assert len(set(rows)) == len(rows) == 408
        assert sum(map(spread, found)) / len(found) < 150  # of eight random ones about 800
    # Two rows of an epoch are left out; over epochs these are short and long ones alike.
    left = [LENGTHS[i] for found in epochs for i in set(range(410)) - {i for batch in found for i in batch}]
    assert len(left) == 80 and 350 < sum(left) / len(left) < 650
    # Neither do batches go from long to short, nor are they the same ones in the next epoch.
    means = (
        torch.tensor([[sum(LENGTHS[i] for i in batch) for batch in found] for found in epochs])
        .float()
        .mean(0)
    )
    assert means[:25].mean() == pytest.approx(means[25:].mean().item(), rel=0.05)
    assert len({frozenset(batch) for found in epochs for batch in found}) > 0.9 * 40 * 51
    assert batches(3) == epochs[3]


def test_fewer_rows_than_four_batches_are_grouped_too() -> None:
    order = list(OptimizerBatches([5, 1, 4, 2, 3, 6], 2, 0, lambda: 0, grouped=True))
    assert sorted(order) == list(range(6)) and order != sorted(order)


def test_a_random_batch_has_the_rows_of_a_random_sampler_from_long_to_short() -> None:
    for epoch in range(3):
        found = batches(epoch, grouped=False)
        plain = SeedableRandomSampler(range(410), num_samples=408, data_seed=0)
        plain.set_epoch(epoch)
        drawn = list(plain)
        assert [sorted(batch) for batch in found] == [sorted(drawn[i : i + 8]) for i in range(0, 408, 8)]
        assert all(LENGTHS[a] >= LENGTHS[b] for batch in found for a, b in pairwise(batch))
        assert list(OptimizerBatches([0] * 410, 8, epoch, lambda: 0, grouped=False)) == drawn


def test_cut_into_pieces_a_random_batch_pads_less() -> None:
    def padding(size: int) -> float:
        pieces = [batch[i : i + size] for batch in batches(0, 8, grouped=False) for i in range(0, 8, size)]
        return sum(max(LENGTHS[i] for i in piece) * size for piece in pieces) / sum(
            LENGTHS[i] for piece in pieces for i in piece
        )

    assert padding(8) > 1.7 and padding(4) < 1.45 and padding(2) < 1.25


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_that_goes_on_in_a_later_epoch_takes_its_rows(processes: int, grouped: bool) -> None:
    Accelerator(cpu=True)
    epoch = 0

    def loaders() -> Iterator[DataLoader[int]]:
        for index in range(processes):
            loader = DataLoader(
                range(410), batch_size=4, sampler=sampler(lambda: epoch, 4 * processes, grouped=grouped)
            )  # type: ignore[arg-type]
            yield prepare_data_loader(
                loader, num_processes=processes, process_index=index, put_on_device=False
            )

    epoch = 2
    whole = [[batch.tolist() for batch in loader] for loader in loaders()]
    rest = [[batch.tolist() for batch in skip_first_batches(loader, 3)] for loader in loaders()]
    assert rest == [batches[3:] for batches in whole] and len(rest[0]) > 40
    assert (
        len({i for batches in whole for batch in batches for i in batch})
        == 410 // (4 * processes) * 4 * processes
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["e-dpo.yaml", "rm.yaml", "sft.yaml"])
def test_grouped_training_does_not_depend_on_how_the_batch_is_cut(
    tiny: Tiny, tmp_path: Path, recipe: str
) -> None:
    runs = []
    for sizes in CUTS[:2] if recipe == "sft.yaml" else CUTS:
        directory, _ = tiny.make(recipe, GROUPED, "max_steps=6", *SGD, *cut(*sizes))
        runs.append(directory.rename(tmp_path / f"{sizes}"))
    for other in runs[1:]:
        assert column(other, "loss") == pytest.approx(column(runs[0], "loss"), rel=1e-4, abs=1e-6)
        assert distance(runs[0], other) < 1e-6
    plain, _ = tiny.make(recipe, "max_steps=6", *SGD)
    assert distance(plain, runs[0]) > 1e-5
    again, _ = tiny.make(recipe, GROUPED, "max_steps=6", *SGD, *cut(*CUTS[0]))
    assert weights(again) == weights(runs[0])


def test_the_default_is_no_part_of_a_key(tiny: Tiny) -> None:
    default, said, other = (
        tiny.stage("dpo.yaml", *settings).key
        for settings in ((), ("train_sampling_strategy=random",), (GROUPED,))
    )
    assert default == said != other


def test_epochs_take_turns_with_rows_that_are_there_several_times() -> None:
    def order(epoch: int, turns: int, *, grouped: bool) -> list[int]:
        return list(OptimizerBatches(LENGTHS * turns, 8, 0, lambda: epoch, grouped=grouped, turns=turns))

    for epoch, grouped in itertools.product(range(5), (False, True)):
        once, twice = (order(epoch, turns, grouped=grouped) for turns in (1, 2))
        assert twice == [row + epoch % 2 * len(LENGTHS) for row in once]
