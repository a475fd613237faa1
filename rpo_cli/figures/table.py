"""Evaluated cells, one (policy, rho, seed) each: checked, bootstrapped together, and as a table.

Numbers are whole multiples of 1e-4, so that sums are exact and a redraw gives the same bytes whatever the
order of summation. The rho of cells without resampling is NaN in a table and None in a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from rpo_cli.figures.selection import at
from rpo_cli.statistics import (
    Array,
    Interval,
    Spread,
    interval,
    resample_means,
    spread_of_seeds_and_prompts,
    t_interval,
    weighted_means,
)

OF_ENSEMBLES = ("member", "same_bias")  # measures that are NaN for a policy without an ensemble
CELL = ["policy", "rho", "seed"]
KEYS = (*CELL, "prompt_id")
UNIT = 1e-4  # of the numbers kept
Rho = float | None
Missing = list[tuple[str, Rho, int]]


def that_are_missing(cells: Missing) -> str:
    """That some cells of a figure have not been evaluated, in words."""
    named = "; ".join(f"{policy}{at(rho)}, seed {seed}" for policy, rho, seed in cells[:8])
    more = f"; and {len(cells) - 8} more" if len(cells) > 8 else ""
    return f"{len(cells)} cells are missing: {named}{more}"


class Axes(NamedTuple):
    """The cells of a figure: one for each of these policies, rhos and seeds; and what is measured of each."""

    policies: list[str]
    rhos: list[Rho]
    seeds: list[int]
    measures: tuple[str, ...]


class Bootstrap(NamedTuple):
    """How often, and under which seed, prompts and seeds are drawn again.

    student: intervals of several seeds are Student's t over their means instead.
    """

    resamples: int = 2000
    seed: int = 0
    student: bool = False


class Basis(NamedTuple):
    """What intervals rest on: Student's t over several seeds, or draws alone; and on how many prompts.

    prompts: of a single seed, or of several that share them all or in part; None: every seed has its own.
    """

    student: bool
    prompts: int | None


class Draws(NamedTuple):
    """Cell means [S, policies, rhos, measures] and their bootstrap [resamples, S, …]; NaN: missing.

    Of several seeds for Student's t that share prompts the draws are of these prompts alone.
    """

    point: Array
    drawn: Array
    basis: Basis


def key(rho: Rho) -> float:
    """A rho as indices and cells.parquet have it: 0, which no share is, without resampling."""
    return 0.0 if rho is None else round(rho, 6)


def check_cells(cells: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """The cells sorted, rho as `key` has it; ValueError for missing columns, missing numbers, duplicates."""
    absent = [column for column in (*KEYS, *measures) if column not in cells.columns]
    if absent:
        raise ValueError(f"cells: no column {', '.join(absent)}")
    cells = cells[[*KEYS, *measures]].assign(rho=cells["rho"].astype(float).fillna(key(None)).round(6))
    needed = [measure for measure in measures if measure not in OF_ENSEMBLES]
    for what, bad in (
        ("a number is missing", ~np.isfinite(cells[needed].to_numpy(np.float64)).all(1)),
        ("the prompt occurs twice", cells.duplicated(list(KEYS)).to_numpy()),
    ):
        if bad.any():
            where = ", ".join(f"{name} {cells[name].to_numpy()[bad][0]}" for name in KEYS)
            raise ValueError(f"cells: {what} at {where}")
    return cells.sort_values(list(KEYS), ignore_index=True)


def of_all(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of prompts that all policies of their seed and rho have, so that differences are paired."""
    place = [cells["seed"], cells["rho"].fillna(key(None)).round(6)]
    policies = cells["policy"].groupby(place).transform("nunique")
    there = cells["policy"].groupby([*place, cells["prompt_id"]]).transform("nunique")
    return cells[there == policies]


def missing(cells: pd.DataFrame, axes: Axes) -> Missing:
    """The cells (policy, rho, seed) of the figure that have no row."""
    present = set(sizes_of(cells).index)
    listed = [(p, rho, seed) for p in axes.policies for rho in axes.rhos for seed in axes.seeds]
    return [(p, rho, seed) for p, rho, seed in listed if (p, key(rho), seed) not in present]


def sizes_of(cells: pd.DataFrame) -> pd.Series[int]:
    """How many prompts each cell has, by policy, rho (as `key` has it) and seed."""
    return cells[CELL].assign(rho=cells["rho"].fillna(key(None)).round(6)).groupby(CELL).size()


def resample(cells: pd.DataFrame, axes: Axes, how: Bootstrap, *, resample_seeds: bool = True) -> Draws:
    """One bootstrap for all cells at once (statistics.resample_means): any comparison of cells is paired.

    Where seeds share prompt ids one draw of prompts serves all seeds.
    """
    index = pd.MultiIndex.from_product([axes.measures, axes.policies, [key(rho) for rho in axes.rhos]])
    tables = []
    for _, rows in of_all(check_cells(cells[cells["seed"].isin(axes.seeds)], axes.measures)).groupby("seed"):
        wide = rows.pivot(index="prompt_id", columns=["policy", "rho"], values=list(axes.measures))
        tables.append(wide.reindex(columns=index))
    if not tables:
        raise ValueError("cells: in none of the seeds of the figure is there a prompt that all policies have")
    everything = pd.Index(np.unique(np.concatenate([wide.index.to_numpy(object) for wide in tables])))
    shared = len(everything) < sum(map(len, tables)) or len(tables) == 1
    if shared and len(tables) > 1:
        tables = [wide.reindex(everything) for wide in tables]
    per_seed = [np.rint(wide.to_numpy(np.float64) / UNIT) for wide in tables]
    student = how.student and resample_seeds
    of_prompts = shared and student
    drawn = resample_means(
        per_seed,
        how.resamples,
        how.seed,
        same_prompts=shared,
        resample_seeds=resample_seeds and not of_prompts,
    )
    point = np.concatenate([weighted_means(np.ones((1, len(values))), values) for values in per_seed])
    shape = (len(axes.measures), len(axes.policies), len(axes.rhos))
    point, drawn = (np.moveaxis(x.reshape(*x.shape[:-1], *shape), -3, -1) * UNIT for x in (point, drawn))
    return Draws(point, drawn, Basis(student, len(everything) if shared else None))


def over_seeds(values: Array, axis: int) -> Array:
    """Mean over the seeds that have the cell; NaN where none has."""
    present = np.isfinite(values)
    count = present.sum(axis)
    total = np.where(present, values, 0.0).sum(axis)
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))


def of_seeds(by_seed: Array, drawn: Array, basis: Basis, whole: float | None = None) -> Interval:
    """Mean over the seeds that have it: by_seed [S], drawn [resamples, S].

    With the interval of its draws, or Student's t over several seeds. whole: of what it is a share.
    """
    there = by_seed[np.isfinite(by_seed)]
    if basis.student and len(there) > 1:
        return t_interval(there, spread=spread_of(by_seed, drawn, basis))
    prompts = basis.prompts if len(by_seed) == 1 else None
    return interval(float(over_seeds(by_seed, 0)), over_seeds(drawn, 1), prompts, whole)


def spread_of(by_seed: Array, drawn: Array, basis: Basis) -> Spread | None:
    """How well the mean over the seeds that have it is known, where they share prompts; else None."""
    there = np.isfinite(by_seed)
    if basis.prompts is None or not basis.student or there.sum() < 2:
        return None
    draws = drawn[:, there]
    together = np.cov(draws[np.isfinite(draws).all(1)].T) * basis.prompts / max(1, basis.prompts - 1)
    return spread_of_seeds_and_prompts(by_seed[there], together, basis.prompts)


def summary(cells: pd.DataFrame, axes: Axes, how: Bootstrap, *, resample_seeds: bool = True) -> pd.DataFrame:
    """The numbers drawn, a row for each (policy, rho): means over prompts, then over seeds that have it.

    Each measure with `_low` and `_high`, over prompts and seeds (without resample_seeds over prompts, these
    seeds); `seeds`, and `prompts` of the smallest seed. A cell that no seed has: seeds 0 and NaN.
    """
    draws = resample(cells, axes, how, resample_seeds=resample_seeds)
    sizes = sizes_of(of_all(cells[cells["seed"].isin(axes.seeds)]))
    counts = sizes.groupby(level=CELL[:2]).agg(["min", "count"])
    rows = []
    for i, policy in enumerate(axes.policies):
        for j, rho in enumerate(axes.rhos):
            place = (policy, key(rho))
            smallest, count = counts.loc[place] if place in counts.index else (0, 0)
            shown = float("nan") if rho is None else key(rho)
            row = {"policy": policy, "rho": shown, "seeds": int(count), "prompts": int(smallest)}
            for m, measure in enumerate(axes.measures):
                point, drawn = draws.point[:, i, j, m], draws.drawn[:, :, i, j, m]
                found = of_seeds(point, drawn, draws.basis)
                row |= {measure: found.mean, f"{measure}_low": found.low, f"{measure}_high": found.high}
            rows.append(row)
    return pd.DataFrame(rows).round(6)
