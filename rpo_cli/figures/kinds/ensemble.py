"""E-DPO's min over its ensemble: its scope, the members' calibration, the size of their subsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd

from rpo_cli.artifacts import Stage, Workspace
from rpo_cli.figures.cells import Cell
from rpo_cli.figures.drawing import Picture, draw_lines
from rpo_cli.figures.gather import Gathered, evaluations, members
from rpo_cli.figures.kinds.base import FigureKind
from rpo_cli.figures.table import CELL

MEMBERS = [*CELL, "member", "share", "temperature", "margin_rms"]


def gather(cells: Sequence[Cell], workspace: Workspace) -> Gathered:
    """Evaluations, and the mean b of the members that taught; members.csv.

    `same_bias`: the share of pairs that the member with b = rho taught. Both are NaN without an ensemble.
    """
    found = evaluations(cells, workspace)
    shares = found.choices.astype({"rho": float, "member": float, "share": float})  # where there is none, too
    shares["member_b"] = shares["member"] * shares["share"]
    shares["same_bias"] = shares["share"].where(np.isclose(shares["member"], shares["rho"]), 0.0)
    sums = shares.groupby(CELL, dropna=False)[["member_b", "same_bias"]].sum()
    frame = found.cells.join(sums.rename(columns={"member_b": "member"}), on=CELL)
    return found._replace(cells=frame, tables={"members.csv": member_table(cells, workspace)})


def member_table(cells: Sequence[Cell], workspace: Workspace) -> pd.DataFrame:
    """What each member of each ensemble was and did: its cell, member, share, temperature, margin_rms.

    share: of the pairs that it taught; margin_rms: root of its mean squared margin on D_rho before the
    temperature, in reward units.
    """
    rows = []
    for cell in cells:
        metrics = (workspace.manifest(cell.policy_path) or {"metrics": {}})["metrics"]
        scores = cast(Stage, cell.evaluation.inputs["policy"]).inputs
        for b, share in members(cell, workspace):
            scored = workspace.finished(cast(Stage, scores[f"scores/{b:g}"]).path)
            row = {**cell.keys, "member": b, "share": share, "temperature": metrics[f"temperature/{b:g}"]}
            rows.append(row | {"margin_rms": scored["metrics"]["train/margin_rms"]})
    return pd.DataFrame(rows, columns=MEMBERS)


def draw(picture: Picture) -> None:
    """Advantage, and the mean b of the members that taught, against rho; a row of two for each panel."""
    figure = picture.figure
    figure.set_size_inches(11, 1.0 + 4.8 * len(picture.panels))
    height = figure.get_size_inches()[1]
    panels = figure.subplots(len(picture.panels), 2, squeeze=False)
    figure.subplots_adjust(
        left=0.06, right=0.985, top=1 - 1.95 / height, bottom=0.55 / height, wspace=0.14, hspace=0.6
    )
    place: dict[str, object] = {"loc": "lower left", "bbox_to_anchor": (0, 1.09), "borderaxespad": 0}
    for (left, right), (title, policies) in zip(panels, picture.panels.items(), strict=True):
        rows = picture.rows(policies)
        draw_lines(left, rows, picture.looks, "advantage")
        left.set(title=picture.advantage, xlabel=picture.rho)
        chosen = rows[rows["member"].notna()]
        if chosen.empty:
            right.set_axis_off()
        else:
            draw_lines(right, chosen, picture.looks, "member")
            right.set(title="Mean b of the members chosen", xlabel=picture.rho)
            ends = right.get_xlim()
            right.plot(ends, ends, color="#444444", linewidth=1, linestyle="--", label="b = ρ")
            right.set_xlim(ends)
        left.legend(frameon=False, ncols=5, columnspacing=1.4, **place)
        if title:
            left.text(0, 1.24, title, transform=left.transAxes, fontsize=11, weight="bold")


KIND = FigureKind("ensemble", draw, gather)
