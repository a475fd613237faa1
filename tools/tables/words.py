"""Numbers of committed results, as the pages have them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rpo_cli.figures.claims import judge
from rpo_cli.figures.kinds import KINDS
from rpo_cli.figures.results import Results, load_results
from rpo_cli.recipes import schema
from rpo_cli.statistics import t_interval

Row = Mapping[str, Any]


@lru_cache(maxsize=32)
def loaded(folder: Path) -> Results:
    """The results of a folder, which several tables of a page are of; nobody changes them."""
    return load_results(folder)


def of_seeds(results: Results, asked: Sequence[schema.Claim]) -> list[Any]:
    """The differences of each seed for some claims, of which nothing else is looked at: no resampling."""
    once = results.bootstrap._replace(resamples=1)
    axes = results.axes._replace(measures=tuple(dict.fromkeys(one.measure for one in asked)))
    return [row["by_seed"] for row in judge(results.cells, axes, asked, once, brief=True)]


def number(value: float | None, digits: int = 2, sign: bool = True) -> str:
    """A number as the pages have it, with a real minus; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def between(row: Row, middle: str, low: str, high: str, digits: int = 2, scale: float = 1.0) -> str:
    """A number and its interval, all times `scale`."""
    if row.get(middle) is None:
        return number(None)
    shown = [number(scale * row[name], digits, sign=scale == 1.0) for name in (middle, low, high)]
    return f"{shown[0]} ({shown[1]} … {shown[2]})"


def less(differences: pd.Series, digits: int = 2) -> str:
    """A mean over seeds with its interval."""
    mean, low, high = t_interval(differences.to_numpy())
    return between({"mean": mean, "low": low, "high": high}, "mean", "low", "high", digits)


def claim(measure: str, more: str, than: str, *, mean_over_rho: bool) -> schema.Claim:
    """That one policy has more of a measure than another."""
    said = {"claim": measure, "more": more, "than": than, "measure": measure, "mean_over_rho": mean_over_rho}
    return schema.Claim.model_validate(said)


@lru_cache(maxsize=32)
def leads(folder: Path, measure: str) -> dict[tuple[str, str], np.ndarray]:
    """Every policy less each other in the mean over ρ, of each seed."""
    results = loaded(folder)
    pairs = list(permutations(results.axes.policies, 2))
    asked = [claim(measure, *pair, mean_over_rho=True) for pair in pairs]
    return {pair: np.array(found) for pair, found in zip(pairs, of_seeds(results, asked), strict=True)}


def lead(folder: Path, measure: str, more: str, than: str) -> np.ndarray:
    """One policy less another in the mean over ρ, of each seed."""
    return leads(folder, measure)[more, than]


def shown(values: np.ndarray) -> str:
    """Their mean with Student's t interval."""
    return "{} ({} … {})".format(*map(number, t_interval(values)))


def by_seed(cells: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Means of a measure: a row for each policy and ρ, a column for each seed."""
    means = cells.groupby(["policy", "rho", "seed"], observed=True)[measure].mean()
    return means.unstack("seed")


def means_of(folder: Path, *measures: str) -> dict[str, pd.DataFrame]:
    """Means of these measures by seed."""
    return {measure: by_seed(loaded(folder).cells, measure) for measure in measures}


def over_rhos(
    means: Mapping[str, pd.DataFrame], measure: str, more: str, than: str, rhos: Sequence[float]
) -> str:
    """One policy less another in the mean over some ρ; shares in points."""
    values = means[measure].loc[more].loc[list(rhos)].mean() - means[measure].loc[than].loc[list(rhos)].mean()
    return shown((100 if measure in ("win", "polite") else 1) * values.to_numpy())


def judged(folder: Path) -> tuple[list[Row], list[Row]]:
    """What was claimed in a figure, and what came of each claim."""
    kind = next(kind for kind in KINDS if (folder / f"{kind}.json").exists())
    told = json.loads((folder / f"{kind}.json").read_text())
    return told["provenance"].get("claims", []), told[KINDS[kind].rows]


def verdicts(rows: Sequence[Row]) -> Iterator[Sequence[str]]:
    """Rows of claims, each with the number of seeds in which its difference is above zero."""
    yield ("claim", "difference", "95 % interval", "positive in", "verdict")
    for row in rows:
        there = [value for value in row["by_seed"] if value is not None]
        numbers = ("–", "–", "–")
        if there:
            interval = f"{number(row['low'])} … {number(row['high'])}"
            positive = sum(value > 0 for value in there)
            numbers = (number(row["difference"]), interval, f"{positive} of {len(there)} seeds")
        yield (f"{row['claim']}: {row['detail']}", *numbers, row["status"])


def pairs_of(policies: Sequence[str]) -> list[tuple[str, str]]:
    """Every policy with the first, and with the second."""
    return [(more, than) for place, than in enumerate(policies[:2]) for more in policies[place + 1 :]]
