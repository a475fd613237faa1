"""`--dry-run` of an experiment: every cell and stage of it, what is reused, and on request what it costs.

Imports neither torch nor transformers, unless an estimate is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rpo_cli.artifacts import Stage, Workspace, walk
from rpo_cli.figures.cells import Cell, read_by
from rpo_cli.figures.selection import Selection
from rpo_cli.figures.tuning import Keep
from rpo_cli.runs.question import Question
from rpo_cli.runs.session import Session
from rpo_cli.runs.todo import Todo, what_to_run
from rpo_cli.text import aligned


def plan_only(
    session: Session,
    suite: str,
    selection: Selection,
    validation: Sequence[Cell],
    test: Sequence[Cell],
    keep: Keep,
    question: Question | None,
) -> None:
    """Print the plan of these cells on stdout (as JSON with --json): every stage to build, then how many of each kind; build nothing."""
    workspace = session.open(suite)
    workspace.check()
    targets = read_by([*validation, *test])
    todo = what_to_run(targets, workspace)
    stages = walk(targets)
    session.announce(todo, len(stages) - len(todo), workspace)
    plan: dict[str, Any] = {
        "workspace": str(workspace.root),
        "cells": {
            "policies": selection.policies, "rhos": selection.rhos, "seeds": selection.seeds,
            "validation": len(validation), "test": len(test), "grids": _grids(validation),
        },
        "left_out": selection.left_out,
        "stages": groups(stages, todo, workspace),
        "build": len(todo),
        "total": len(stages),
        "todo": [{"path": t.stage.path, "kind": t.stage.kind, "reason": t.reason, "expected_seconds": t.seconds} for t in todo],
    }  # fmt: skip
    if question is not None:
        from rpo_cli.runs.estimate import estimate

        places = len({(cell.policy, cell.rho, cell.seed) for cell in [*validation, *test]})
        plan["estimate"] = estimate(todo, stages, workspace, question, keep, places)
    if session.as_json:
        session.print_json(plan)
        return
    print(
        ("\n" if todo else "")
        + _cells_line(plan["cells"])
        + (f"\nreduced: {note}" if (note := selection.note()) else "")
    )
    rows = [
        (g["kind"], str(g["total"]), str(g["build"]), str(g["up_to_date"]), str(g["not_needed"]), g["why"])
        for g in plan["stages"]
    ]
    total = [sum(g[name] for g in plan["stages"]) for name in ("total", "build", "up_to_date", "not_needed")]
    head = ("stages", "all", "build", "up to date", "not needed", "why")
    print(aligned([head, *rows, ("", *map(str, total), "")], right=(1, 2, 3, 4)), end="")
    if question is not None:
        from rpo_cli.runs.estimate import lines

        print("\n" + "\n".join(lines(plan["estimate"])))


def _grids(cells: Sequence[Cell]) -> dict[str, list[float]]:
    found: dict[str, set[float]] = {}
    for cell in cells:
        found.setdefault(cell.policy, set()).add(cell.strength[1])
    return {policy: sorted(values) for policy, values in found.items()}


def _cells_line(cells: dict[str, Any]) -> str:
    where = f"{len(cells['policies'])} policies x {len(cells['rhos'])} rho x {len(cells['seeds'])} seeds"
    tried = (
        f", {len(next(iter(cells['grids'].values())))} grid values each: {cells['validation']} cells on validation"
        if cells["grids"]
        else ""
    )
    return where + tried + (f", {cells['test']} cells on test" if cells["test"] else "")


def groups(stages: Sequence[Stage], todo: Sequence[Todo], workspace: Workspace) -> list[dict[str, Any]]:
    """Stages by kind, in the order of the plan: how many there are, are built (and why), are up to date, or are not needed.

    Not needed is what lies behind something up to date, and is itself absent or stale.
    """
    reasons = {item.stage.path: item.reason for item in todo}
    made: dict[str, dict[str, Any]] = {}
    why: dict[str, dict[str, int]] = {}
    for stage in stages:
        group = made.setdefault(
            stage.kind, {"kind": stage.kind, "total": 0, "build": 0, "up_to_date": 0, "not_needed": 0}
        )
        group["total"] += 1
        if stage.path in reasons:
            group["build"] += 1
            seen = why.setdefault(stage.kind, {})
            seen[reasons[stage.path]] = seen.get(reasons[stage.path], 0) + 1
        else:
            group[
                "up_to_date" if workspace.why_stale(stage.path, stage.identity) is None else "not_needed"
            ] += 1
    for kind, group in made.items():
        listed = sorted(why.get(kind, {}).items(), key=lambda item: -item[1])
        group["why"] = "; ".join(f"{count} {reason}" for reason, count in listed[:3]) + (
            "; ..." if len(listed) > 3 else ""
        )
    return list(made.values())
