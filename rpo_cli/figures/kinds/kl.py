"""Estimators of the forward KL: bias, variance, cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rpo_cli.artifacts import Workspace
from rpo_cli.figures.cells import Cell
from rpo_cli.figures.drawing import Picture, draw_points, zero_line
from rpo_cli.figures.gather import Gathered, made, measures, pairs_of
from rpo_cli.figures.kinds.base import FigureKind
from rpo_cli.recipes.schema import ESTIMATORS


def gather(cells: Sequence[Cell], workspace: Workspace) -> Gathered:
    """Each estimator as a policy: its value in nats over a response's tokens, milliseconds of a step.

    error: its value minus that of `full` on the same prompt; square: the squared distance from its mean.
    """
    there = made(cells, workspace)
    frames = []
    for cell, manifest in there:
        rows = pairs_of(cell, workspace)
        for name in ESTIMATORS:
            value = rows[f"kl_{name}"]
            numbers = {"kl": value, "error": value - rows["kl_full"], "square": (value - value.mean()) ** 2}
            time = manifest["metrics"][f"milliseconds/{name}"]
            frames.append(pd.DataFrame({**cell.keys, "policy": name, **numbers, "milliseconds": time}))
    return measures(there, [frame.reset_index() for frame in frames], workspace)


def draw(picture: Picture) -> None:
    """Value, spread and cost of each estimator."""
    clock = " of CPU" if str(picture.meta["device"]).startswith("cpu") else ""
    panels = picture.figure.subplots(1, 3)
    picture.figure.subplots_adjust(left=0.06, right=0.985, top=0.78, bottom=0.1, wspace=0.26)
    roots = {f"deviation{end}": np.sqrt(picture.table[f"square{end}"]) for end in ("", "_low", "_high")}
    for axes, measure, title, unit in zip(
        panels,
        ("kl", "deviation", "milliseconds"),
        ("Mean: estimate of KL(π$_{ref}$ ‖ π$_θ$)", "Spread over prompts", "Cost of a training step"),
        ("nats", "standard deviation, nats", f"milliseconds{clock}, 16 pairs"),
        strict=True,
    ):
        draw_points(axes, picture.table.assign(**roots), picture.looks, measure)
        axes.set(title=title, ylabel=unit)
    zero_line(panels[0], float(picture.rows(["full"])["kl"].iloc[0]))
    panels[0].axhline(0, color="#aaaaaa", linewidth=0.8)
    for axes in panels[1:]:
        axes.set_ylim(bottom=0)


KIND = FigureKind("kl", draw, gather, prompts="training pairs")
