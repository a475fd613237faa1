"""Evaluated cells, one (policy, rho, seed) each: checked, bootstrapped together, and as a table.

Numbers are whole multiples of 1e-4, so that sums are exact and a redraw gives the same bytes whatever the order of
summation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from rpo_cli.statistics import Array, interval, resample_means, weighted_means

MEASURES = ("advantage", "tokens", "baseline_tokens")
OF_ENSEMBLES = ("member", "same_bias")  # measures that are NaN for a policy without an ensemble
KEYS = ("policy", "rho", "seed", "prompt_id")
UNIT = 1e-4  # of the rewards and lengths kept
UNBIASED = 0.0  # the rho of cells without resampling, in tables; a share is never 0


class MissingCells(ValueError):
    """Some cells of the figure have not been evaluated; `cells` lists them as (policy, rho, seed)."""

    def __init__(self, cells: Sequence[tuple[str, float, int]]) -> None:
        self.cells = list(cells)
        named = "; ".join(f"{policy} at rho {rho:g}, seed {seed}" for policy, rho, seed in self.cells[:8])
        more = f"; and {len(self.cells) - 8} more" if len(self.cells) > 8 else ""
        super().__init__(f"{len(self.cells)} cells are missing: {named}{more}")


class Draws(NamedTuple):
    """Cell means and their bootstrap: point [S, policies, rhos, measures], drawn [resamples, S, …]; NaN = missing."""

    point: Array
    drawn: Array


def check_cells(cells: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """The cells with rho rounded to 6 decimals, sorted; ValueError for missing columns, missing numbers, duplicates."""
    absent = [column for column in (*KEYS, *measures) if column not in cells.columns]
    if absent:
        raise ValueError(f"cells: no column {', '.join(absent)}")
    cells = cells[[*KEYS, *measures]].assign(rho=cells["rho"].astype(float).round(6))
    needed = [measure for measure in measures if measure not in OF_ENSEMBLES]
    for what, bad in (
        ("a number is missing", ~np.isfinite(cells[needed].to_numpy(np.float64)).all(1)),
        ("the prompt occurs twice", cells.duplicated(list(KEYS)).to_numpy()),
    ):
        if bad.any():
            raise ValueError(
                "cells: " + what + " at " + ", ".join(f"{k} {cells[k].to_numpy()[bad][0]}" for k in KEYS)
            )
    return cells.sort_values(list(KEYS), ignore_index=True)


def missing(
    cells: pd.DataFrame, policies: Sequence[str], rhos: Sequence[float], seeds: Sequence[int]
) -> list[tuple[str, float, int]]:
    """The cells (policy, rho, seed) of the figure that have no row."""
    have = cells[["policy", "rho", "seed"]].drop_duplicates()
    present = {(str(p), round(float(r), 6), int(s)) for p, r, s in have.itertuples(index=False)}
    return [(p, r, s) for p in policies for r in rhos for s in seeds if (p, round(r, 6), s) not in present]


def resample(
    cells: pd.DataFrame,
    policies: Sequence[str],
    rhos: Sequence[float],
    seeds: Sequence[int],
    *,
    resamples: int,
    seed: int,
    resample_seeds: bool = True,
    measures: Sequence[str] = MEASURES,
) -> Draws:
    """One bootstrap for all cells at once (statistics.resample_means), so that any comparison of cells is paired.

    Where every seed has the same prompt ids one draw of prompts serves all seeds.
    """
    index = pd.MultiIndex.from_product([measures, policies, [round(rho, 6) for rho in rhos]])
    per_seed, prompts = [], []
    for _, rows in check_cells(cells[cells["seed"].isin(seeds)], measures).groupby("seed"):
        wide = rows.pivot(index="prompt_id", columns=["policy", "rho"], values=list(measures)).reindex(
            columns=index
        )
        per_seed.append(np.rint(wide.to_numpy(np.float64) / UNIT))
        prompts.append(list(wide.index))
    if not per_seed:
        raise ValueError("cells: none of the seeds of the figure has any rows")
    same = all(ids == prompts[0] for ids in prompts)
    drawn = resample_means(per_seed, resamples, seed, same_prompts=same, resample_seeds=resample_seeds)
    point = np.concatenate([weighted_means(np.ones((1, len(values))), values) for values in per_seed])
    shape = (len(measures), len(policies), len(rhos))
    point, drawn = (np.moveaxis(x.reshape(*x.shape[:-1], *shape), -3, -1) * UNIT for x in (point, drawn))
    return Draws(point, drawn)


def over_seeds(values: Array, axis: int) -> Array:
    """Mean over the seeds that have the cell; NaN where none has."""
    present = np.isfinite(values)
    count = present.sum(axis)
    total = np.where(present, values, 0.0).sum(axis)
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))


def table(
    cells: pd.DataFrame,
    policies: Sequence[str],
    rhos: Sequence[float],
    seeds: Sequence[int],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """The numbers drawn, one row per (policy, rho): means over prompts, then over the seeds that have the cell.

    advantage in oracle units with low, high (prompts and seeds) and prompt_low, prompt_high (prompts, these seeds);
    tokens with tokens_low, tokens_high (prompts and seeds); baseline_tokens: pi_SFT's; `seeds`, and `prompts` of the
    smallest seed. A cell that no seed has: seeds 0 and NaN.
    """
    both = resample(cells, policies, rhos, seeds, resamples=resamples, seed=seed)
    prompts = resample(cells, policies, rhos, seeds, resamples=resamples, seed=seed, resample_seeds=False)
    sizes = cells.assign(rho=cells["rho"].round(6)).groupby(["policy", "rho", "seed"]).size()
    sizes = (
        sizes[sizes.index.get_level_values("seed").isin(seeds)]
        .groupby(["policy", "rho"])
        .agg(["min", "count"])
    )
    rows = []
    for i, policy in enumerate(policies):
        for j, rho in enumerate(rhos):
            at = (slice(None), i, j)
            mean = over_seeds(both.point[at], 0)
            advantage, tokens = (interval(mean[m], over_seeds(both.drawn[:, *at, m], 1)) for m in (0, 1))
            fixed = interval(mean[0], over_seeds(prompts.drawn[:, *at, 0], 1))
            key = (policy, round(rho, 6))
            smallest, count = sizes.loc[key] if key in sizes.index else (0, 0)
            row = {"policy": policy, "rho": key[1], "seeds": int(count), "prompts": int(smallest)}
            row |= {"advantage": advantage.mean, "low": advantage.low, "high": advantage.high}
            row |= {"prompt_low": fixed.low, "prompt_high": fixed.high}
            row |= {"tokens": tokens.mean, "tokens_low": tokens.low, "tokens_high": tokens.high}
            rows.append(row | {"baseline_tokens": float(mean[2])})
    return pd.DataFrame(rows).round(6)
