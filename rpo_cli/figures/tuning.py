"""Choose strengths on validation prompts, each objective with the same budget; drop the weights that lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from rpo_cli.artifacts import Stage, Workspace
from rpo_cli.figures.cells import Cell


def validation_table(cells: Sequence[Cell], workspace: Workspace) -> list[dict[str, Any]]:
    """One row for each evaluated cell: what the sweep saw."""
    rows = []
    for cell in cells:
        metrics = workspace.finished(cell.evaluation.path)["metrics"]
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
        sums.setdefault((row["policy"], row["rho"], row["parameter"], row["value"]), []).append(
            row["advantage"]
        )
    chosen: dict[str, dict[float | None, dict[str, float]]] = {}
    best: dict[tuple[str, float | None], float] = {}
    for (policy, rho, name, value), seen in sorted(
        sums.items(), key=lambda item: (item[0][0], item[0][1] or 0.0, item[0][3])
    ):
        mean = sum(seen) / len(seen)
        if mean > best.get((policy, rho), float("-inf")):
            best[policy, rho] = mean
            chosen.setdefault(policy, {})[rho] = {name: value}
    return chosen


def at_edge(
    chosen: Mapping[str, Mapping[float | None, Mapping[str, float]]], grids: Mapping[str, Sequence[float]]
) -> Iterator[str]:
    """Choices at the end of their grid, where a better value may lie outside: said, not hidden."""
    for policy, by_rho in chosen.items():
        for rho, values in by_rho.items():
            for name, value in values.items():
                if len(grids[policy]) > 2 and value in (min(grids[policy]), max(grids[policy])):
                    yield f"{policy} at {'no rho' if rho is None else f'rho {rho:g}'}: {name} {value:g} is at the edge of its grid"


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
                self(cell.evaluation, workspace.finished(cell.evaluation.path))

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


Chosen = dict[str, dict[float | None, dict[str, float]]]
