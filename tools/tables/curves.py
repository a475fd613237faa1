"""Tables of learning curves, and of advantage against KL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rpo_cli.figures.drawing import line_of
from tools.tables.words import between, less, loaded


def slopes(folder: Path) -> Iterator[Sequence[str]]:
    """What the last two checkpoints of each policy differ by, and whether that is a plateau."""
    yield ("policy", "slope, sd per epoch", "plateau")
    for row in json.loads((folder / "curves.json").read_text())["table"]:
        yield row["policy"], between(row, "slope", "slope_low", "slope_high", 3), row["plateau"]


def ends(folder: Path) -> Iterator[Sequence[str]]:
    """What the last two checkpoints differ by, not divided by epochs, and the highest and the last.

    Looked at afterwards: the highest of five means was picked for being it.
    """
    yield ("policy", "the last two, sd", "highest after, passes", "from there to the end, sd")
    for policy, curve in along(folder).items():
        top = curve.mean().idxmax()
        *_, before, last = curve.columns
        fallen = "–" if top == last else less(curve[last] - curve[top])
        yield policy, less(curve[last] - curve[before], 3), f"{top:g}", fallen


def lengths(folder: Path) -> Iterator[Sequence[str]]:
    """The ends of two lengths of training, in sd of the reward over the reference's samples."""
    short, long = along(folder), along(folder.with_name(f"{folder.name}-long"))
    yield ("policy", "twelve passes less three, sd")
    for policy, curve in short.items():
        yield policy, less(long[policy][long[policy].columns[-1]] - curve[curve.columns[-1]])


def along(folder: Path) -> dict[str, pd.DataFrame]:
    """Each policy's advantage in sd: a row for each seed, a column for each checkpoint's epoch."""
    found = pd.read_csv(folder / "checkpoints.csv")
    found["sd"] = found["advantage"] / found["baseline_sd"]
    return {
        policy: rows.pivot_table(index="seed", columns="epoch", values="sd")
        for policy, rows in found.groupby("policy", sort=False)
    }


def equal_kl(folder: Path) -> Iterator[Sequence[str]]:
    """Lines less the first at equal KL, each interpolated between the two of its points around it, by seed.

    A seed in which a line does not reach a KL from both sides has no value there.
    """
    results = loaded(folder)
    cells = results.cells.astype({"policy": str})
    cells["line"] = [line_of(name, results.meta) for name in cells["policy"]]
    points = cells.groupby(["rho", "line", "seed", "policy"])[["kl", "advantage", "utility"]].mean()
    first, *others = dict.fromkeys(line_of(name, results.meta) for name in results.axes.policies)
    yield ("ρ", "KL, nats", f"less {first}", "seeds", "advantage, sd", "utility")
    for rho in results.axes.rhos:
        for nats in (1.0, 1.5, 2.0):
            at = {line: _at_kl(points.loc[rho, line], nats) for line in (first, *others)}
            for line in others:
                apart = (at[line] - at[first]).dropna()
                told = [less(apart[name]) if len(apart) > 1 else "–" for name in ("advantage", "utility")]
                yield f"{rho:g}", f"{nats:g}", line, str(len(apart)), *told


def _at_kl(points: pd.DataFrame, nats: float) -> pd.DataFrame:
    """Advantage and utility of each seed at a KL, of points [seed, policy]; NaN where it is not reached."""
    found = {}
    for seed, own in points.sort_values("kl").groupby("seed"):
        found[seed] = {
            name: np.interp(nats, own["kl"], own[name], left=np.nan, right=np.nan)
            for name in ("advantage", "utility")
        }
    return pd.DataFrame(found).T
