"""What a comparison reads: the numbers of every prompt, of samples, held-out pairs, verdicts and teachers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from rpo_cli.artifacts import Stage, Workspace, walk
from rpo_cli.figures.cells import BASELINE, Cell
from rpo_cli.figures.gather import read
from rpo_cli.recipes import schema
from rpo_cli.stages.data.attributes import counts_of
from rpo_cli.stages.summary import per_prompt

COUNTED = "count/"
Source = str  # which of a cell's artifacts a number is from: evaluation, held_out, judged, taught


class Frame(NamedTuple):
    """Numbers of every prompt: columns as in figures.table. `pairs`: sums over so many pairs, not means."""

    source: Source
    measures: tuple[str, ...]
    cells: pd.DataFrame
    pairs: bool = False


def frames(cells: Sequence[Cell], workspace: Workspace, half: bool) -> Iterator[Frame]:
    """What there is to compare: samples, all of them or the finished ones; held-out pairs; verdicts.

    half: of the held-out pairs those of the half that chooses nothing.
    """
    recipe = cast(schema.EvaluateRecipe, cells[0].evaluation.recipe)
    patterns = patterns_of(cells[0])
    samples: list[pd.DataFrame] = []
    finished: list[pd.DataFrame] = []
    counted: list[pd.DataFrame] = []
    for seed in dict.fromkeys(cell.seed for cell in cells):
        own = [cell for cell in cells if cell.seed == seed]
        read_of = {cell.policy: cell.evaluation for cell in own}
        read_of[BASELINE] = cast(Stage, own[0].evaluation.inputs["baseline"])
        tables = {
            name: read(workspace.root / stage.path / "samples.parquet") for name, stage in read_of.items()
        }
        zero = per_prompt(tables[BASELINE], recipe.truncated)
        for name, table in tables.items():
            keys = {**own[0].keys, "policy": name}
            ours = per_prompt(table, recipe.truncated)
            if "reward" in ours:
                ours["advantage"] = ours["reward"] - zero["reward"]
            samples.append(ours.dropna().reset_index().assign(**keys))
            cut = 100 * (1 - per_prompt(table, "score")["finished"])
            finished.append(cut.rename("unfinished").reset_index().assign(**keys))
            kept = table[table["finished"].astype(bool)] if recipe.truncated == "drop" else table
            counts = {name: counts_of(kept["response"], pattern) for name, pattern in patterns.items()}
            each = pd.DataFrame(counts, index=kept.index).groupby(kept["prompt_id"]).mean()
            counted.append(each.reset_index().assign(**keys))
    table = pd.concat(samples, ignore_index=True)
    names = ("advantage", "tokens", "kl") if "advantage" in table else ("tokens", "kl")
    yield Frame("evaluation", names, table)
    yield Frame("evaluation", ("unfinished",), pd.concat(finished, ignore_index=True))
    if patterns:
        yield Frame("evaluation", tuple(patterns), pd.concat(counted, ignore_index=True))
    yield Frame(
        "held_out", ("accuracy", "margin"), pd.concat([_pairs(c, workspace, half) for c in cells]), True
    )
    if all(cell.taught for cell in cells):
        yield Frame("taught", ("teachers",), pd.concat([_taught(cell, workspace) for cell in cells]))
    if all(verdicts_are_there(cell, workspace) for cell in cells):
        verdicts = pd.concat([_verdicts(cell, workspace) for cell in cells])
        if len(verdicts):
            yield Frame("judged", ("judge",), verdicts)


def patterns_of(cell: Cell) -> dict[str, str]:
    """What the data recipe of a policy's pairs has counted in responses, by the name of its measure."""
    recipes = [stage.recipe for stage in walk([cell.trained])]
    found = next((recipe.counts for recipe in recipes if isinstance(recipe, schema.DataRecipe)), {})
    return {f"{COUNTED}{name}": pattern for name, pattern in found.items()}


def held_out_pairs(cell: Cell, workspace: Workspace) -> pd.DataFrame:
    assert cell.held_out is not None
    return read(workspace.root / cell.held_out.path / "pairs.parquet")


def _pairs(cell: Cell, workspace: Workspace, half: bool) -> pd.DataFrame:
    """Sums over the held-out pairs of each prompt; `half`: those that chose nothing, if there are any."""
    table = held_out_pairs(cell, workspace)
    if half and (table["half"] == "test").any():
        table = table[table["half"] == "test"]
    margin = table["h_chosen"] - table["h_rejected"]
    sums = pd.DataFrame(
        {
            "prompt_id": table["prompt_id"],
            "accuracy": 50 * (np.sign(margin) + 1),
            "margin": margin,
            "pairs": 1.0,
        }
    )
    return sums.groupby("prompt_id").sum().reset_index().assign(**cell.keys)


def _taught(cell: Cell, workspace: Workspace) -> pd.DataFrame:
    """Each prompt's gain in reward over the baseline's samples, mean over the teachers that read it.

    Teachers have scales of their own: each gain is in standard deviations of that teacher's rewards of the
    baseline's samples.
    """
    tables = [read(workspace.root / stage.path / "rewards.parquet") for stage in cell.taught]
    gains = [in_deviations(table) for table in tables]
    return pd.concat(gains).groupby(level=0).mean().rename("teachers").reset_index().assign(**cell.keys)


def in_deviations(rewards: pd.DataFrame) -> pd.Series:
    """Gain over the baseline for each prompt, in standard deviations of the baseline's rewards, if any."""
    table = rewards.set_index("prompt_id")
    spread = float(table["baseline_reward"].std(ddof=1)) if len(table) > 1 else 0.0
    return (table["reward"] - table["baseline_reward"]) / (spread if spread > 0 else 1.0)


def verdicts_are_there(cell: Cell, workspace: Workspace) -> bool:
    stage = cell.judged
    return stage is not None and workspace.why_stale(stage.path, stage.identity) is None


def _verdicts(cell: Cell, workspace: Workspace) -> pd.DataFrame:
    """The share of each prompt's comparisons with the baseline that a judge gives the policy, in percent."""
    from rpo_cli.stages.judge.winrates import scored

    assert cell.judged is not None
    table = scored(read(workspace.root / cell.judged.path / "verdicts.parquet"))
    table = table[(table["against"] == "baseline") & table["score"].notna()]
    wins = 100 * table.groupby("prompt_id")["score"].mean()
    return wins.rename("judge").reset_index().assign(**cell.keys)
