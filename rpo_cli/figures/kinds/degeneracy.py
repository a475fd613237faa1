"""Few pairs, many epochs: how far each objective moves chosen and rejected responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pandas as pd

from rpo_cli.artifacts import Workspace
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import Cell
from rpo_cli.figures.drawing import Picture, legend, zero_line
from rpo_cli.figures.gather import Gathered, made, measures, pairs_of, read
from rpo_cli.figures.kinds.base import FigureKind
from rpo_cli.recipes import schema

CURVE = ["policy", "rho", "seed", "step"]
TITLES = {
    "h_chosen": "Chosen responses",
    "h_rejected": "Rejected responses",
    "margin": "Margin Δh: chosen − rejected",
}


def gather(cells: Sequence[Cell], workspace: Workspace) -> Gathered:
    """Log-ratios of both responses after training, in nats over a response's tokens; curves over training."""
    there = made(cells, workspace)
    frames = []
    for cell, _ in there:
        rows = pairs_of(cell, workspace)[["h_chosen", "h_rejected"]].reset_index()
        frames.append(rows.assign(margin=rows["h_chosen"] - rows["h_rejected"], **cell.keys))
    curves = pd.concat([curve(cell, workspace) for cell, _ in there])
    return measures(there, frames, workspace)._replace(tables={"curves.csv": curves})


def curve(cell: Cell, workspace: Workspace) -> pd.DataFrame:
    """Log-ratios and log-probabilities over the steps of training, from the policy's metrics.jsonl.

    Columns policy, rho, seed, step, measure, value.
    """
    lines = read(workspace.root / cell.policy_path / "metrics.jsonl")
    recipe = cast(schema.PolicyRecipe, cell.loaded.recipe)
    if "rewards/chosen" not in lines or lines["rewards/chosen"].count() < 2:
        steps = f"{recipe.duration} with logging_steps: {recipe.logging_steps}"
        raise BadInput(
            f"{cell.policy_path}: {steps} leave no curve of log-ratios to draw; set a smaller logging_steps"
        )
    strength = recipe.reward_scale
    columns = {
        "h_chosen": lines["rewards/chosen"] / strength, "h_rejected": lines["rewards/rejected"] / strength,
        "margin": lines["rewards/margins"] / strength, "logps_chosen": lines["logps/chosen"],
        "logps_rejected": lines["logps/rejected"],
    }  # fmt: skip
    wide = pd.DataFrame({**cell.keys, "step": lines["step"], **columns})
    return wide.melt(id_vars=CURVE, var_name="measure", value_name="value")


def draw(picture: Picture) -> None:
    """Log-ratios of chosen and rejected responses, and their difference, over training."""
    figure = picture.figure
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.76, bottom=0.1, wspace=0.2)
    curves = picture.tables["curves.csv"]
    for axes, (measure, title) in zip(panels, TITLES.items(), strict=True):
        for policy, (colour, _) in picture.looks.items():
            rows = curves[(curves["policy"] == policy) & (curves["measure"] == measure)]
            wide = rows.pivot_table(index="step", columns="seed", values="value")
            axes.plot(wide.index, wide.mean(axis=1), color=colour, linewidth=2, label=policy)
            ends = wide.min(axis=1), wide.max(axis=1)
            axes.fill_between(wide.index, *ends, color=colour, alpha=0.12, linewidth=0)
        zero_line(axes)
        axes.set(title=title, xlabel="training steps")
    panels[0].set_ylabel("log π$_θ$ − log π$_{ref}$, nats")
    legend(figure, panels[0], 0.885, 6)


KIND = FigureKind(
    "degeneracy", draw, gather, prompts="training pairs", bars="lines: mean over seeds, shades: their range"
)
