"""Learning curves: what each checkpoint of a training reaches on validation prompts; is the end flat?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, cast

import numpy as np
import pandas as pd

from rpo_cli.artifacts import Workspace
from rpo_cli.figures.cells import Cell
from rpo_cli.figures.drawing import KL, Picture, draw_points, legend_above, panels_below, zero_line
from rpo_cli.figures.gather import Gathered, made, measures, numbers_of
from rpo_cli.figures.kinds.base import FigureKind
from rpo_cli.recipes import schema

FLAT = 0.02  # sd per epoch: what a slope may be at a plateau
VERDICTS = ("not known", "at its plateau", "not at its plateau")


def gather(cells: Sequence[Cell], workspace: Workspace) -> Gathered:
    """Numbers of every validation prompt at the last checkpoint, and means at each of them: checkpoints.csv.

    slope: what the advantage gained between the last two checkpoints, in standard deviations of the oracle's
    reward over pi_SFT's samples, for each epoch between them.
    """
    there = made([cell for cell in cells if _is_whole(cell, workspace)] or cells, workspace)
    baselines: dict[str, pd.DataFrame] = {}
    frames, curves = [], []
    for cell, _ in there:
        looks = [numbers_of(look, workspace, baselines) for look in cell.looks]
        steps, epochs = passed(cell, workspace)
        gained = (looks[-1]["advantage"] - looks[-2]["advantage"]) / looks[-1]["baseline_sd"]
        last = looks[-1].assign(slope=gained / (epochs[-1] - epochs[-2]))
        frames.append(pd.DataFrame({**cell.keys, **last.reset_index()}))
        means = pd.DataFrame([look.mean() for look in looks])
        curves.append(pd.DataFrame({**cell.keys, "step": steps, "epoch": epochs, **means}))
    return measures(there, frames, workspace)._replace(tables={"checkpoints.csv": pd.concat(curves)})


def _is_whole(cell: Cell, workspace: Workspace) -> bool:
    return all(workspace.why_stale(look.path, look.identity) is None for look in cell.looks)


def passed(cell: Cell, workspace: Workspace) -> tuple[list[int], list[float]]:
    """Steps and epochs after which a training kept its checkpoints; an epoch has whole batches alone."""
    trained, recipe = workspace.finished(cell.policy_path), cast(schema.PolicyRecipe, cell.loaded.recipe)
    steps = [int(trained["metrics"][f"kept/{number}"]) for number in range(1, len(cell.looks) + 1)]
    return steps, [step / (trained["metrics"]["rows"] // recipe.batch) for step in steps]


def verdicts(table: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The table with `plateau`: whether the whole interval of the slope is within FLAT of 0, or outside."""
    low, high = table["slope_low"], table["slope_high"]
    flat, steep = (low >= -FLAT) & (high <= FLAT), (low > FLAT) | (high < -FLAT)
    return table.assign(plateau=np.select([flat, steep], VERDICTS[1:], VERDICTS[0]))


def draw(picture: Picture) -> None:
    """A row for each rho: advantage against epochs and against KL, and the slope at the end."""
    curves = picture.tables["checkpoints.csv"]
    if picture.meta.get("unit") == "sd":
        curves = curves.assign(advantage=curves["advantage"] / curves["baseline_sd"])
    means = curves.groupby(["policy", "rho", "step"], dropna=False).mean(numeric_only=True).reset_index()
    panels = panels_below(picture.figure, len(picture.by_rho), 3, len(picture.looks))
    for (left, middle, right), (title, rows) in zip(panels, picture.by_rho.items(), strict=True):
        for policy, curve in rows[["policy", "rho"]].merge(means).groupby("policy", sort=False):
            colour, marker = picture.looks[str(policy)]
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5}
            left.plot(curve["epoch"], curve["advantage"], label=policy, **look)
            middle.plot(curve["kl"], curve["advantage"], **look)
        left.set(title=title, xlabel="epochs", ylabel=f"advantage over π$_{{SFT}}$, {picture.unit}")
        middle.set(title="the same against KL", xlabel=KL)
        draw_points(right, rows, picture.looks, "slope")
        right.axhspan(-FLAT, FLAT, color="#dddddd", zorder=0)
        right.set(title="slope at the end, sd per epoch")
        both = zip(rows["policy"], rows["plateau"], strict=True)
        width = min(11, 48 // len(rows))  # letters that stand beside the others'
        labels = ["\n".join(fill(text, width, break_long_words=False) for text in texts) for texts in both]
        right.set_xticks(range(len(rows)), labels, fontsize=7)
        for axes in (left, middle, right):
            zero_line(axes)
    legend_above(picture.figure, panels[0][0])


KIND = FigureKind(
    "curves", draw, gather, beside=verdicts, prompts="validation prompts",
    bars="lines: mean over seeds, bars: 95 % intervals, grey: a plateau",
)  # fmt: skip
