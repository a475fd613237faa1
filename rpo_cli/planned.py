"""`--dry-run` of an experiment: every cell and stage of it, what is reused, and on request what it costs.

Imports neither torch nor transformers, unless an estimate is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rpo_cli.budget import Selection
from rpo_cli.columns import aligned
from rpo_cli.errors import BadInput
from rpo_cli.pipeline import Todo, what_to_run
from rpo_cli.plan import Stage, walk
from rpo_cli.protocol import Cell, Keep, read_by
from rpo_cli.session import Session
from rpo_cli.workspace import Workspace

MFU = 0.35
DEVICES = Path(__file__).with_name("devices.yaml")


@dataclass(frozen=True)
class Device:
    """One accelerator: peak TFLOP/s, and GB and GB/s of memory where they are known."""

    name: str
    tflops: float
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None


@dataclass(frozen=True)
class Question:
    """What an estimate is asked for."""

    device: Device | None
    mfu: float
    price_per_hour: float | None
    params: float | None


def asked(
    dry_run: bool,
    estimate: bool,
    device_name: str | None,
    tflops: float | None,
    mfu: float | None,
    price_per_hour: float | None,
    params: float | None,
) -> Question | None:
    """The question that the command line asks; None without any of these options.

    Raises:
        BadInput: not a dry run, an unknown device, a price without a device.
    """
    if not estimate and all(option is None for option in (device_name, tflops, mfu, price_per_hour, params)):
        return None
    if not dry_run:
        raise BadInput("--estimate and its options go with --dry-run: an estimate builds nothing")
    device = None
    if device_name is not None:
        known = yaml.safe_load(DEVICES.read_text())
        if device_name not in known:
            raise BadInput(f"--device-name {device_name}: not among {', '.join(known)}; give --tflops for another")
        device = Device(device_name, **{**known[device_name], **({} if tflops is None else {"tflops": tflops})})
    elif tflops is not None:
        device = Device(f"a device of {tflops:g} TFLOP/s", tflops)
    if device is None and (mfu is not None or price_per_hour is not None):
        raise BadInput("--mfu and --price-per-hour need a device: --device-name or --tflops")
    return Question(device, MFU if mfu is None else mfu, price_per_hour, params)


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
            "policies": [Path(policy).stem for policy in selection.policies], "rhos": selection.rhos, "seeds": selection.seeds,
            "validation": len(validation), "test": len(test), "grids": _grids(validation),
        },
        "left_out": selection.left_out,
        "stages": groups(stages, todo, workspace),
        "build": len(todo),
        "total": len(stages),
        "todo": [{"path": t.stage.path, "kind": t.stage.kind, "reason": t.reason, "expected_seconds": t.seconds} for t in todo],
    }  # fmt: skip
    if question is not None:
        from rpo_cli.estimate import estimate

        plan["estimate"] = estimate(todo, stages, workspace, question, keep, [*validation, *test])
    if session.as_json:
        session.print_json(plan)
        return
    print(("\n" if todo else "") + _cells_line(plan["cells"]) + (f"\nreduced: {note}" if (note := selection.note()) else ""))
    rows = [(g["kind"], str(g["total"]), str(g["build"]), str(g["up_to_date"]), str(g["not_needed"]), g["why"]) for g in plan["stages"]]
    total = [sum(g[name] for g in plan["stages"]) for name in ("total", "build", "up_to_date", "not_needed")]
    head = ("stages", "all", "build", "up to date", "not needed", "why")
    print(aligned([head, *rows, ("", *map(str, total), "")], right=(1, 2, 3, 4)), end="")
    if question is not None:
        from rpo_cli.estimate import lines

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
        group = made.setdefault(stage.kind, {"kind": stage.kind, "total": 0, "build": 0, "up_to_date": 0, "not_needed": 0})
        group["total"] += 1
        if stage.path in reasons:
            group["build"] += 1
            seen = why.setdefault(stage.kind, {})
            seen[reasons[stage.path]] = seen.get(reasons[stage.path], 0) + 1
        else:
            group["up_to_date" if workspace.why_stale(stage.path, stage.identity) is None else "not_needed"] += 1
    for kind, group in made.items():
        listed = sorted(why.get(kind, {}).items(), key=lambda item: -item[1])
        group["why"] = "; ".join(f"{count} {reason}" for reason, count in listed[:3]) + ("; ..." if len(listed) > 3 else "")
    return list(made.values())
