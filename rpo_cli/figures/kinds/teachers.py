"""Teachers: what each knows of held-out pairs, by kind of length, and what policies trained on it reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd

from rpo_cli.artifacts import Stage, Workspace
from rpo_cli.figures.cells import Cell
from rpo_cli.figures.drawing import Picture, draw_cross, legend_above, panels_below, zero_line
from rpo_cli.figures.gather import Gathered, evaluations
from rpo_cli.figures.kinds.base import FigureKind
from rpo_cli.objectives import TEACHERS
from rpo_cli.recipes import schema
from rpo_cli.runs.planner import planner_for
from rpo_cli.stages.diagnosis import LENGTH_KINDS, groups_of, price_of_tokens
from rpo_cli.statistics import Array, Interval, t_interval, wilson

SIDES = ("all", *LENGTH_KINDS)
SHOWN = {
    "shorter": "accuracy where the shorter won",
    "longer": "accuracy where the longer won",
    "price": "price of 10 tokens, sd of a reward",
}


def gather(cells: Sequence[Cell], workspace: Workspace) -> Gathered:
    """Evaluations, with each prompt's lead over the variant without a teacher; accuracies.csv.

    lead: advantage minus that of the first variant without a teacher, on the same prompt.
    """
    found = evaluations(cells, workspace)
    untaught = next(cell.policy for cell in cells if not cell.taught_by)
    place = ["rho", "seed", "prompt_id"]
    zero = found.cells[found.cells["policy"] == untaught].set_index(place)["advantage"]
    frame = found.cells.join(zero.rename("lead"), on=place, how="inner")
    frame["lead"] = frame["advantage"] - frame["lead"]
    there = [cell for cell in cells if workspace.manifest(cell.policy_path) is not None]
    rows = [row for cell in there for row in known_by(cell, workspace)]
    return found._replace(cells=frame, tables={"accuracies.csv": pd.DataFrame(rows)})


def known_by(cell: Cell, workspace: Workspace) -> Iterator[dict[str, object]]:
    """What a policy's teacher, and each model that it is made of, knows of the pairs held out of its D_rho.

    member: none for the teacher. Of each kind of length accuracy and pairs; price of 10 tokens. Members are
    divided by the temperatures that the policy was trained with. A min is that of the first step, at which
    the policy is the reference: the least margin, of each pair or over all.
    """
    from rpo_cli.runs.diagnose import tables_of
    from rpo_cli.stages.data.rows import margins_by_id

    policy = cast(Stage, cell.evaluation.inputs["policy"])
    data, recipe = cast(Stage, policy.inputs["data"]), cast(schema.PolicyRecipe, cell.loaded.recipe)
    scores = cell.taught_by
    pairs = tables_of(workspace, planner_for(cell.loaded), cell.loaded, data, scores).get("held_out")
    if pairs is None or not scores:
        return
    temperatures = workspace.finished(policy.path)["metrics"]
    tables = {name: workspace.root / stage.path / "held_out.parquet" for name, stage in scores.items()}
    scored = {
        name: {
            pair: margin / temperatures[f"temperature/{name}"] for pair, margin in margins_by_id(file).items()
        }
        for name, file in tables.items()
    }
    ids = [pair for pair in pairs.ids if all(pair in each for each in scored.values())]
    held_out = pairs.take(ids)
    margins = np.array([[each[pair] for pair in ids] for each in scored.values()])
    models = {None: as_taught(margins, recipe)} | dict(zip(scored, margins, strict=True))
    for name, values in models.items():
        groups, price = groups_of(values, held_out.kinds), price_of_tokens(values, held_out.tokens)
        row: dict[str, object] = {**cell.keys, "member": name}
        for side in SIDES:
            group = groups.get(side)
            row |= {side: group and group.accuracy.mean, f"{side}_pairs": group.pairs if group else 0}
        ends = price or Interval(np.nan, np.nan, np.nan)
        yield row | {"price": ends.mean, "price_low": ends.low, "price_high": ends.high}


def as_taught(margins: Array, recipe: schema.PolicyRecipe) -> Array:
    """The margins [n] that a policy starts to learn from, of those [k, n] of its teachers."""
    import torch

    from rpo_cli.objectives.members import ensemble_losses

    members = torch.from_numpy(margins)
    if recipe.takes_min:
        _, chosen = ensemble_losses(members**2, "example" if recipe.ensemble_min == "example" else "batch")
        return np.asarray(members.gather(0, chosen[None])[0])
    return np.asarray(TEACHERS[recipe.teacher].of(members, recipe)[0])


def beside(table: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The table with what each policy's teacher knows; over seeds with Student's t, of one seed with its own.

    The own interval of an accuracy is Wilson's, that of a price its regression's.
    """
    known = tables["accuracies.csv"]
    known = known[known["member"].isna()]
    rows = [
        {name: value for measure in (*SIDES, "price") for name, value in _over(own, measure).items()}
        for own in (
            known[(known["policy"] == row.policy) & (known["rho"].fillna(0.0) == np.nan_to_num(row.rho))]
            for row in table[["policy", "rho"]].itertuples()
        )
    ]
    return pd.concat([table, pd.DataFrame(rows, index=table.index).round(6)], axis=1)


def _over(rows: pd.DataFrame, measure: str) -> dict[str, float]:
    """A measure of a teacher in several seeds, or in one, with its ends."""
    values = rows[measure].dropna().to_numpy(np.float64)
    found = Interval(np.nan, np.nan, np.nan)
    if len(values) > 1:
        found = t_interval(values)
    elif len(values) and measure == "price":
        found = Interval(*rows.loc[rows[measure].notna(), ["price", "price_low", "price_high"]].to_numpy()[0])
    elif len(values):
        pairs = int(rows[f"{measure}_pairs"].sum())
        found = wilson(round(values[0] * pairs), pairs)
    return dict(zip((measure, f"{measure}_low", f"{measure}_high"), found, strict=True))


def draw(picture: Picture) -> None:
    """Lead over the policy without a teacher against what the teacher knows; a row for each rho."""
    panels = panels_below(picture.figure, len(picture.by_rho), len(SHOWN), len(picture.lines))
    for row, (title, table) in zip(panels, picture.by_rho.items(), strict=True):
        for axes, (measure, said) in zip(row, SHOWN.items(), strict=True):
            for policy in table[table[measure].notna()].to_dict("records"):
                draw_cross(axes, policy, picture, measure, "lead")
            zero_line(axes)
            axes.set(title=title, xlabel=said)
        row[0].set_ylabel(f"lead in advantage, {picture.unit}")
    legend_above(picture.figure, panels[0][0])


KIND = FigureKind("teachers", draw, gather, beside=beside, bars="bars: 95 % intervals", lines=True)
