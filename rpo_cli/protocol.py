"""The experiment as a table of cells: choose beta and tau on validation, gather what was evaluated on test."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rpo_cli import schema, snapshots
from rpo_cli.budget import spread
from rpo_cli.errors import BadInput
from rpo_cli.plan import Planner, Stage, at_rho, rho_folder
from rpo_cli.recipes import Loaded, load
from rpo_cli.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd


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
        name = "tau" if cast(schema.PolicyRecipe, self.loaded.recipe).objective.startswith("ipo") else "beta"
        return name, float(getattr(self.loaded.recipe, name))

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

    def cell(self, policy: str, rho: float | None, seed: int, split: str, extra: Sequence[str] = (), *, measured: bool = False) -> Cell:
        """One cell; `measured`: what it takes is the policy's measure on its training pairs, not an evaluation."""
        at = at_rho(rho)
        overrides = [*self.overrides, *extra, *at.pop("overrides", [])]
        flags = {"device": self.device}
        loaded = load(policy, **at, seed=seed, overrides=overrides, flags=flags, expect="policy", beside=self.beside)
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
            grids[policy] = grid_of(load(policy, overrides=self.overrides, expect="policy", beside=self.beside))
        same_budget({stem(policy): grid for policy, grid in grids.items()})
        return grids

    def grid(self, policies: Sequence[str], rhos: Sequence[float | None], seeds: Sequence[int], grid_size: int | None = None) -> list[Cell]:
        """Validation cells of every value in each policy's grid, or of `grid_size` values spread over it; raises as `grids`."""
        grids = self.grids(policies)
        return [
            self.cell(policy, rho, seed, "validation", [f"{name}={value!r}"])
            for seed in seeds
            for rho in rhos
            for policy, (name, values) in grids.items()
            for value in spread(values, grid_size)
        ]


def validation_table(cells: Sequence[Cell], workspace: Workspace) -> list[dict[str, Any]]:
    """One row for each evaluated cell: what the sweep saw."""
    rows = []
    for cell in cells:
        metrics = (workspace.manifest(cell.evaluation.path) or {})["metrics"]
        name, value = cell.strength
        rows.append(
            {"policy": cell.policy, "rho": cell.rho, "seed": cell.seed, "parameter": name, "value": value,
             "advantage": metrics["advantage"], "low": metrics["advantage_low"], "high": metrics["advantage_high"],
             "tokens_mean": metrics["tokens_mean"], "kl_to_reference": metrics["kl_to_reference"]}
        )  # fmt: skip
    return rows


def choose(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[float | None, dict[str, float]]]:
    """For each policy and rho the value with the highest validation advantage, averaged over seeds; the smaller of equals."""
    sums: dict[tuple[str, float | None, str, float], list[float]] = {}
    for row in rows:
        sums.setdefault((row["policy"], row["rho"], row["parameter"], row["value"]), []).append(row["advantage"])
    chosen: dict[str, dict[float | None, dict[str, float]]] = {}
    best: dict[tuple[str, float | None], float] = {}
    for (policy, rho, name, value), seen in sorted(sums.items(), key=lambda item: (item[0][0], item[0][1] or 0.0, item[0][3])):
        mean = sum(seen) / len(seen)
        if mean > best.get((policy, rho), float("-inf")):
            best[policy, rho] = mean
            chosen.setdefault(policy, {})[rho] = {name: value}
    return chosen


def at_edge(chosen: Mapping[str, Mapping[float | None, Mapping[str, float]]], grids: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Choices at the end of their grid, where a better value may lie outside: said, not hidden."""
    for policy, by_rho in chosen.items():
        for rho, values in by_rho.items():
            for name, value in values.items():
                if len(grids[policy]) > 2 and value in (min(grids[policy]), max(grids[policy])):
                    yield f"{policy} at {'no rho' if rho is None else f'rho {rho:g}'}: {name} {value:g} is at the edge of its grid"


def write_csv(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write rows as CSV, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, file)


Keep = Literal["best", "none", "all"]


class WeightKeeper:
    """Drops the weights of policies that a sweep no longer needs: of each policy and rho, all values but the best so far.

    The best is the one that `choose` will choose: by the mean over seeds, known when a value has been evaluated under each.
    `keep` none: no policy stays once it has been evaluated; all: every one does. The cells' hub names must be pinned: what an
    earlier run evaluated is known by its key.
    """

    def __init__(self, cells: Sequence[Cell], workspace: Workspace, keep: Keep = "best") -> None:
        self.cells = {cell.evaluation.path: cell for cell in cells}
        self.workspace = workspace
        self.keep = keep
        self.seeds = len({cell.seed for cell in cells})
        self.seen: dict[tuple[str, float | None, float], list[tuple[float, Cell]]] = {}
        self.best: dict[tuple[str, float | None], tuple[float, float]] = {}
        for cell in cells if keep == "best" else ():
            if workspace.why_stale(cell.evaluation.path, cell.evaluation.identity) is None:
                self(cell.evaluation, workspace.manifest(cell.evaluation.path) or {})

    def __call__(self, stage: Stage, manifest: Mapping[str, Any]) -> None:
        cell = self.cells.get(stage.path)
        if cell is None or self.keep == "all":
            return
        if self.keep == "none":
            self.workspace.drop_weights(cell.policy_path)
            return
        place, value = (cell.policy, cell.rho), cell.strength[1]
        seen = self.seen.setdefault((*place, value), [])
        seen.append((manifest["metrics"]["advantage"], cell))
        if len(seen) < self.seeds:
            return
        # As in `choose`: the smaller of equals.
        score = (sum(advantage for advantage, _ in seen) / len(seen), -value)
        loser = value
        if place not in self.best:
            self.best[place] = score
            return
        if score > self.best[place]:
            loser = -self.best[place][1]
            self.best[place] = score
        for _, other in self.seen[*place, loser]:
            self.workspace.drop_weights(other.policy_path)


def gather(cells: Sequence[Cell], workspace: Workspace) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Per-prompt numbers, the ensemble's choices, and where they come from; cells not evaluated are left out."""
    import pandas as pd

    from rpo_cli.statistics import per_prompt

    frames, choices = [], []
    settings: dict[str, Any] = {}
    baselines: dict[str, pd.DataFrame] = {}
    first: dict[str, Any] | None = None
    revisions: set[str] = set()
    snapshots.pin([cell.evaluation for cell in cells], workspace)
    for cell in cells:
        manifest = workspace.manifest(cell.evaluation.path)
        if manifest is None or manifest["key"] != cell.evaluation.key:
            continue
        first = first or manifest
        truncated = cast(schema.EvaluateRecipe, cell.evaluation.recipe).truncated
        baseline = cast(Stage, cell.evaluation.inputs["baseline"])
        baseline_path = baseline.path
        if baseline_path not in baselines:
            if (workspace.manifest(baseline_path) or {}).get("key") != baseline.key:
                raise BadInput(
                    f"{workspace.root / baseline_path}: not what {cell.evaluation.path} was compared with, but gone, or made with other "
                    "settings; rpo figure without --allow-missing makes it again"
                )
            baselines[baseline_path] = per_prompt(pd.read_parquet(workspace.root / baseline_path / "samples.parquet"), truncated)
        policy = per_prompt(pd.read_parquet(workspace.root / cell.evaluation.path / "samples.parquet"), truncated)
        joined = policy.join(baselines[baseline_path].add_suffix("_baseline"), how="inner")
        frames.append(
            pd.DataFrame(
                {
                    "policy": cell.policy,
                    "rho": cell.table_rho,
                    "seed": cell.seed,
                    "prompt_id": joined.index,
                    "advantage": (joined["reward"] - joined["reward_baseline"]).to_numpy(),
                    "tokens": joined["tokens"].to_numpy(),
                    "baseline_tokens": joined["tokens_baseline"].to_numpy(),
                }
            )
        )
        name, value = cell.strength
        settings.setdefault(cell.policy, {})[f"{rho_folder(cell.rho)}/seed-{cell.seed}"] = {name: value, "key": cell.evaluation.key}
        policy_manifest = workspace.manifest(cell.policy_path) or {"metrics": {}}
        revisions |= {str(found.get("git")) for found in (manifest, policy_manifest)}
        choices += [
            {"policy": cell.policy, "rho": cell.table_rho, "seed": cell.seed, "member": bias, "share": share}
            for key, share in policy_manifest["metrics"].items()
            if key.startswith("members/") and (bias := bias_of(key.removeprefix("members/"))) is not None
        ]
    if not frames:
        raise BadInput(f"{workspace.root}: no cell of this figure has been evaluated")
    assert first is not None
    provenance = {
        "cells": settings, "suite": workspace.suite, "versions": first["versions"], "rpo": first["rpo"], "git": sorted(revisions),
        "device": first["device"], "evaluate": first["recipe"],
    }  # fmt: skip
    columns = ["policy", "rho", "seed", "member", "share"]
    return pd.concat(frames, ignore_index=True), pd.DataFrame(choices, columns=columns), provenance
