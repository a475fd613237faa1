"""`--dry-run` of an experiment: every cell and stage of it, what is reused, and on request what it costs.

Imports neither torch nor transformers, unless an estimate is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rpo_cli.artifacts import Stage, Workspace, walk
from rpo_cli.figures.cells import Cell, read_by
from rpo_cli.figures.selection import Selection, axes_of
from rpo_cli.figures.tuning import Keep
from rpo_cli.runs import processes
from rpo_cli.runs.question import Question
from rpo_cli.runs.session import Session
from rpo_cli.runs.todo import Todo, as_json, states, what_to_run
from rpo_cli.text import aligned, counted

COUNTS = {"total": "all", "build": "build", "up_to_date": "up to date", "not_needed": "not needed"}


def plan_only(
    session: Session,
    suite: str,
    selection: Selection,
    validation: Sequence[Cell],
    test: Sequence[Cell],
    keep: Keep,
    question: Question | None,
) -> None:
    """Print the plan of these cells: every stage to build, then how many of each kind; build nothing.

    On stdout, as JSON with --json.
    """
    launch = session.launch()
    workspace = session.open(suite)
    workspace.check()
    targets = read_by([*validation, *test])
    todo = what_to_run(targets, workspace)
    processes.check((item.stage for item in todo), launch)
    stages = walk(targets)
    session.announce(todo, stages, workspace)
    axes = {name: getattr(selection, name) for name in ("policies", "rhos", "seeds")}
    cells = {**axes, "validation": len(validation), "test": len(test), "grids": _grids(validation)}
    kinds = groups(stages, todo, workspace)
    plan: dict[str, object] = {
        "workspace": str(workspace.root),
        "cells": cells,
        "left_out": selection.left_out,
    }
    plan |= {"stages": kinds, "build": len(todo), "total": len(stages), "todo": as_json(todo)}
    if question is not None:
        from rpo_cli.runs.estimate import estimate

        places = len({(cell.policy, cell.rho, cell.seed) for cell in [*validation, *test]})
        plan["estimate"] = costs = estimate(
            todo, workspace, question, keep, places, several=processes.are_several(launch)
        )
    if session.as_json:
        session.print_json(plan)
        return
    print(("\n" if todo else "") + _cells_line(cells))
    if note := selection.note():
        print(f"reduced: {note}")
    counts = [[group[name] for name in COUNTS] for group in kinds]
    rows = [(g["kind"], *map(str, count), g["why"]) for g, count in zip(kinds, counts, strict=True)]
    total = ("", *(str(sum(column)) for column in zip(*counts, strict=True)), "")
    print(aligned([("stages", *COUNTS.values(), "why"), *rows, total], right=(1, 2, 3, 4)), end="")
    if question is not None:
        from rpo_cli.runs.estimate import lines

        print("\n" + "\n".join(lines(costs)))


def _grids(cells: Sequence[Cell]) -> dict[str, list[dict[str, float]]]:
    """Of each policy the settings that are tried."""
    found: dict[str, list[dict[str, float]]] = {}
    for cell in cells:
        if cell.setting not in (tried := found.setdefault(cell.policy, [])):
            tried.append(cell.setting)
    return found


def _cells_line(cells: dict[str, Any]) -> str:
    said = axes_of(cells["policies"], cells["rhos"], cells["seeds"])
    if grids := list(cells["grids"].values()):
        said += f", {len(grids[0])} grid values each: {counted(cells['validation'], 'cell')} on validation"
    return said + (f", {counted(cells['test'], 'cell')} on test" if cells["test"] else "")


def groups(stages: Sequence[Stage], todo: Sequence[Todo], workspace: Workspace) -> list[dict[str, Any]]:
    """Stages by kind, in the order of the plan: how many are built (and why), up to date, or not needed."""
    counts: dict[str, Counter[str]] = {}
    why: dict[str, Counter[str]] = {}
    found = states(stages, todo, workspace)
    for stage in stages:
        state, reason = found[stage.path]
        if reason:
            why.setdefault(stage.kind, Counter())[reason] += 1
        counts.setdefault(stage.kind, Counter()).update(("all", state))
    made = []
    for kind, count in counts.items():
        listed = [f"{number} {reason}" for reason, number in why.get(kind, Counter()).most_common()]
        said = "; ".join([*listed[:3], *(["..."] if len(listed) > 3 else [])])
        made.append({"kind": kind, **{name: count[state] for name, state in COUNTS.items()}, "why": said})
    return made
