"""Of a training's checkpoints the one that did best on validation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rpo_cli.artifacts import MANIFEST, METRICS, Job, Report, checkpoint_in, read_json
from rpo_cli.recipes.schema import PolicyRecipe


def score_of(found: Mapping[str, Any]) -> float:
    """What chooses, in a row of a table or in metrics: the advantage, without an oracle the accuracy.

    The least of all where training diverged.
    """
    name = next(name for name in ("advantage", "validation/accuracy", "accuracy") if name in found)
    return float("-inf") if found[name] is None else float(found[name])


def run(job: Job[PolicyRecipe], report: Report) -> dict[str, Any]:
    """Hand on the best checkpoint, the earlier of equals, with its training's journal and metrics.

    Further metrics: `selected/checkpoint` and `selected/step`, and of every checkpoint `kept/N`, its step,
    and `validation/N`, what it was chosen by.
    """
    found: dict[str, Any] = {}
    for name in ("trained", *(name for name in job.inputs if name.startswith("looks/"))):
        found[name] = (read_json(job.inputs[name] / MANIFEST) or {})["metrics"]
    trained = found.pop("trained")
    scores = {int(name.removeprefix("looks/")): score_of(metrics) for name, metrics in found.items()}
    best = max(scores, key=lambda number: (scores[number], -number))
    source = checkpoint_in(job.inputs["trained"], best)
    shutil.copytree(source, job.directory, copy_function=_link, dirs_exist_ok=True)
    shutil.copyfile(job.inputs["trained"] / METRICS, job.directory / METRICS)
    report(len(scores), len(scores))
    chosen = {"selected/checkpoint": best, "selected/step": trained[f"kept/{best}"]}
    return {**trained, **{f"validation/{number}": score for number, score in scores.items()}, **chosen}


def _link(source: str, target: str) -> str:
    """The same file under a second name, where the disk can do that; else a copy."""
    Path(target).unlink(missing_ok=True)  # of an interrupted stage, which goes on in its folder
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
