"""A cell of an experiment, (rho, policy, seed), and the stage that evaluates it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rpo_cli.artifacts import Stage
from rpo_cli.errors import BadInput
from rpo_cli.figures.selection import spread
from rpo_cli.recipes import Loaded, load, schema
from rpo_cli.runs.planner import Planner, at_rho


@dataclass(frozen=True)
class Cell:
    """One point of the experiment, and the stage that evaluates it."""

    policy: str
    rho: float | None
    seed: int
    loaded: Loaded
    evaluation: Stage

    @property
    def strength(self) -> tuple[str, float]:
        """The swept hyperparameter's name and value."""
        return cast(schema.PolicyRecipe, self.loaded.recipe).strength

    @property
    def table_rho(self) -> float:
        """The rho that stands in tables, where cells without resampling need a number."""
        return 0.0 if self.rho is None else self.rho

    @property
    def policy_path(self) -> str:
        return cast(Stage, self.evaluation.inputs["policy"]).path


def stem(name: str | Path) -> str:
    """A policy's label: its recipe's file name."""
    return Path(name).stem


def grid_of(policy: Loaded) -> tuple[str, list[float]]:
    """The swept parameter of a policy recipe and its values; BadInput if it has none or two."""
    grid = cast(schema.PolicyRecipe, policy.recipe).grid
    if len(grid) != 1:
        raise BadInput(f"{policy.path}: grid: give one grid, of beta or of tau, to sweep over")
    name, values = next(iter(grid.items()))
    return name, [float(value) for value in values]


def read_by(cells: Sequence[Cell]) -> list[Stage]:
    """What a figure of these cells reads: their evaluations, and the baselines' own, which an evaluation is not looked behind for."""
    found = (cell.evaluation.inputs.get("baseline") for cell in cells)
    baselines = {stage.path: stage for stage in found if isinstance(stage, Stage)}
    return [*(cell.evaluation for cell in cells), *baselines.values()]


def bias_of(member: str) -> float | None:
    """The b that a member of an ensemble is named for; None where members are listed: m0, m1, …"""
    return float(member) if member.replace(".", "").isdigit() else None


def same_budget(grids: Mapping[str, tuple[str, Sequence[float]]]) -> None:
    """Raise BadInput for grids of different sizes."""
    sizes = {label: len(values) for label, (_, values) in grids.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{label} {size}" for label, size in sizes.items())
        raise BadInput(f"grids of different sizes ({listed}): every objective gets the same budget")


class Cells:
    """Makes cells, with one planner for each seed."""

    def __init__(self, beside: Path | None, overrides: Sequence[str] = (), device: str | None = None) -> None:
        self.beside, self.device = beside, device
        self.overrides = list(overrides)
        self._planners: dict[int, Planner] = {}

    def cell(
        self,
        policy: str,
        rho: float | None,
        seed: int,
        split: str,
        extra: Sequence[str] = (),
        *,
        measured: bool = False,
    ) -> Cell:
        """One cell; `measured`: what it takes is the policy's measure on its training pairs, not an evaluation."""
        at = at_rho(rho)
        overrides = [*self.overrides, *extra, *at.pop("overrides", [])]
        flags = {"device": self.device}
        loaded = load(
            policy, **at, seed=seed, overrides=overrides, flags=flags, expect="policy", beside=self.beside
        )
        planner = self._planners.setdefault(seed, Planner(seed, self.device))
        target = planner.measure(loaded) if measured else planner.evaluation(loaded, split)
        return Cell(stem(loaded.path), rho, seed, loaded, target)

    def grids(self, policies: Sequence[str]) -> dict[str, tuple[str, list[float]]]:
        """The swept parameter of each policy and its values.

        Raises:
            BadInput: a policy without a grid, or grids of different sizes: every objective gets the same budget.
        """
        grids: dict[str, tuple[str, list[float]]] = {}
        for policy in policies:
            grids[policy] = grid_of(
                load(policy, overrides=self.overrides, expect="policy", beside=self.beside)
            )
        same_budget({stem(policy): grid for policy, grid in grids.items()})
        return grids

    def grid(
        self,
        policies: Sequence[str],
        rhos: Sequence[float | None],
        seeds: Sequence[int],
        grid_size: int | None = None,
    ) -> list[Cell]:
        """Validation cells of every value in each policy's grid, or of `grid_size` values spread over it; raises as `grids`."""
        grids = self.grids(policies)
        return [
            self.cell(policy, rho, seed, "validation", [f"{name}={value!r}"])
            for seed in seeds
            for rho in rhos
            for policy, (name, values) in grids.items()
            for value in spread(values, grid_size)
        ]
