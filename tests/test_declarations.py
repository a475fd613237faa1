"""Objectives declare themselves: what recipes, training and help texts know of one stands in its own file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from rpo_cli.objectives import OBJECTIVES, TEACHERS, Objective, Pair
from rpo_cli.recipes.schema import PolicyRecipe

ROOT = Path(__file__).resolve().parent.parent
SIZE, MEMBERS = 4, 3
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=list(OBJECTIVES))


def recipe_of(objective: Objective) -> PolicyRecipe:
    return PolicyRecipe.model_validate({"stage": "policy", "objective": objective.name})


def doubles(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Asked(dict[str, Tensor]):
    """Columns of a batch that note which of them were read."""

    def __init__(self, **columns: Tensor) -> None:
        super().__init__(columns)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)


def pair_of(columns: Asked) -> Pair:
    def count() -> Tensor:
        columns.read.add("lengths")
        return torch.arange(1, 2 * SIZE + 1)

    return Pair(-doubles(2 * SIZE, seed=0).abs(), columns, count)


def columns() -> Asked:
    reference = -doubles(2 * SIZE, seed=1).abs()
    return Asked(
        ref_chosen_logps=reference[:SIZE],
        ref_rejected_logps=reference[SIZE:],
        margins=doubles(SIZE, MEMBERS, seed=2),
    )


@every_objective
def test_an_objective_gives_a_loss_for_each_pair_or_for_each_member_and_pair(objective: Objective) -> None:
    losses = objective.losses(pair_of(columns()), recipe_of(objective))
    assert losses.shape == ((MEMBERS, SIZE) if objective.teacher == "ensemble" else (SIZE,))
    assert losses.isfinite().all()


def others(value: object, name: str) -> list[object]:
    """Other values of a key: another number, or the other names that it may have."""
    if isinstance(value, float):
        return [2 * value, 0.01 * value]
    return [each for each in get_args(PolicyRecipe.model_fields[name].annotation) if each != value]


@every_objective
def test_an_objective_reads_margins_only_with_a_teacher_and_all_it_declares(objective: Objective) -> None:
    asked, recipe = columns(), recipe_of(objective)
    before = objective.losses(pair_of(asked), recipe)
    assert ("margins" in asked.read) == (objective.teacher != "none")
    for name in (objective.strength, *(key.name for key in objective.keys)):
        changes = [recipe.model_copy(update={name: other}) for other in others(getattr(recipe, name), name)]
        after = [
            objective.losses(pair_of(columns()), changed) for changed in changes
        ]  # a bound may be far off
        assert not all(torch.equal(each, before) for each in after), name


def test_lengths_are_counted_only_for_losses_that_read_them() -> None:
    reads = {}
    for name, objective in OBJECTIVES.items():
        asked = columns()
        objective.losses(pair_of(asked), recipe_of(objective))
        reads[name] = "lengths" in asked.read
    assert reads["ipo-norm"] and reads["r-dpo"] and reads["dpo-sft"] and reads["simpo"]
    assert not any(reads[name] for name in ("dpo", "ipo", "p-dpo", "d-dpo", "dp-dpo", "e-dpo", "robust-dpo"))


@every_objective
def test_what_an_objective_does_not_declare_is_no_part_of_its_key(objective: Objective) -> None:
    own = {key.name for each in OBJECTIVES.values() for key in each.keys}
    unused = recipe_of(objective).unused()
    assert own - unused == {key.name for key in objective.keys}
    assert {"beta", "tau"} - unused == {objective.strength}
    assert ("gamma" in unused) != objective.pessimistic


def test_keys_of_one_name_are_one_key_with_every_owner_in_its_description() -> None:
    fields = PolicyRecipe.model_fields
    for objective in OBJECTIVES.values():
        for key in objective.keys:
            assert f"{objective.name}'s" in str(fields[key.name].description)
            assert fields[key.name].default == key.default
            assert all(
                other is key for each in OBJECTIVES.values() for other in each.keys if other.name == key.name
            )
    assert all(key.name in fields for teacher in TEACHERS.values() for key in teacher.keys)


def test_declarations_are_read_without_torch() -> None:
    code = "import sys, rpo_cli.objectives; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pydantic"} & set(done.stdout.split())
