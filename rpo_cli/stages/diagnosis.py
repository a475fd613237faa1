"""What reward models know of held-out pairs; what follows for the choice of an objective is in advice.py.

Everything here is a pure function of arrays; margins are r(chosen) - r(rejected) in reward units. Pairs
count as independent of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rpo_cli.stages.splits import LONGER, SHORTER, TIE
from rpo_cli.statistics import Array, Interval, student_quantile, wilson

BINS = 10  # of confidence, between a half and one
UNIT = 10  # tokens that a price is given for
LENGTH_KINDS = {"longer": LONGER, "shorter": SHORTER, "ties": TIE}
FEWEST = 10  # pairs of a side of length; of fewer nothing is said: all of four may be wrong by chance
SHOWN = 12  # values of a column that tells pairs apart: more are names, not kinds


@dataclass(frozen=True)
class Group:
    """Pairs of one kind: how many, and in what share of them the chosen response has the higher reward."""

    pairs: int
    accuracy: Interval


@dataclass(frozen=True)
class Diagnosis:
    """One reward model on held-out pairs.

    groups: by kind, `all` first; ece: of sigma(margin); temperature: None where none can be fitted, and
    `why`; price: of 10 tokens more, in standard deviations of the reward within a pair; None where lengths
    are alike.
    """

    groups: dict[str, Group]
    ece: float
    temperature: float | None
    why: str
    price: Interval | None

    @property
    def knows(self) -> bool:
        """Whether it is shown to be right on more than half of all pairs."""
        return self.groups["all"].accuracy.low > 0.5

    @property
    def contradicts(self) -> bool:
        """Whether it is shown to be right on less than half of all pairs."""
        return self.groups["all"].accuracy.high < 0.5

    @property
    def blind_side(self) -> str | None:
        """The kind of length on whose pairs it is shown to be wrong more often than right, by length alone.

        That it is shown to be right more often than not on the other kind tells what has learnt length from
        what has learnt nothing, or the contrary of the labels.
        """
        for side, other in (("shorter", "longer"), ("longer", "shorter")):
            known = [group for name in (side, other) if (group := self.groups.get(name)) is not None]
            if len(known) == 2 and min(group.pairs for group in known) >= FEWEST:
                wrong, right = (group.accuracy for group in known)
                if wrong.high < 0.5 < right.low:
                    return side
        return None

    @property
    def json(self) -> dict[str, object]:
        groups = {
            name: {"pairs": group.pairs, **group.accuracy._asdict()} for name, group in self.groups.items()
        }
        price = None if self.price is None else self.price._asdict()
        numbers = {"ece": self.ece, "temperature": self.temperature, "price_of_10_tokens": price}
        return {"accuracy": groups, **numbers}


@dataclass(frozen=True)
class Agreement:
    """Several reward models on the same pairs.

    signs: share of pairs on which two of them prefer the same response, mean over all two; correlation: of
    their margins, the same mean; lowest: of any two; deviation: of the margins over models, mean over pairs,
    after each model's margins were divided by their root mean square; by_length: share of the squares of
    these differences that is one number for each model, added where the longer response was chosen and taken
    away where the shorter was.
    """

    signs: float
    correlation: float
    lowest: float
    deviation: float
    by_length: float


def accuracy(margins: Array) -> Interval:
    """The share of margins [n] above zero, with Wilson's interval."""
    return wilson(int((margins > 0).sum()), len(margins))


def groups_of(
    margins: Array, kinds: np.ndarray, columns: Mapping[str, Sequence[object]] | None = None
) -> dict[str, Group]:
    """Accuracy over all pairs, over those of each kind of length, and over those of each value of a column.

    kinds: [n] of LONGER, SHORTER, TIE: which response was chosen. columns: by name [n] values; those with
    more than SHOWN values, or one, are passed over.
    """
    masks = {"all": np.ones(len(margins), dtype=bool)}
    masks |= {name: kinds == kind for name, kind in LENGTH_KINDS.items()}
    for name, values in (columns or {}).items():
        known = [value for value in dict.fromkeys(values) if value is not None]
        if 1 < len(known) <= SHOWN:
            masks |= {f"{name}={value}": np.array([one == value for one in values]) for value in known}
    return {
        name: Group(int(mask.sum()), accuracy(margins[mask])) for name, mask in masks.items() if mask.any()
    }


def calibration_error(margins: Array) -> float:
    """Expected calibration error of sigma(margin): mean over pairs of |accuracy - confidence| in BINS bins.

    A pair's confidence is sigma(|margin|), and its preference right where the margin is positive. Of few
    pairs the error is not 0 even for a calibrated model. Source: Guo et al. 2017, section 2.
    """
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=(margins > 0) - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(margins))


def temperature_of(margins: Array) -> tuple[float | None, str]:
    """T of sigma(margin / T) by least loss, or None and why there is none."""
    import torch

    from rpo_cli.objectives.calibration import fit_temperature

    try:
        return fit_temperature(torch.from_numpy(margins)), ""
    except ValueError as error:
        return None, str(error)


def price_of_tokens(margins: Array, tokens: Array) -> Interval | None:
    """What 10 tokens more bring within a pair, in deviations of the reward; None where lengths do not differ.

    tokens: [n], of the chosen response minus those of the rejected one. The slope is that of a regression of
    reward on length with an effect for each pair, sum(dl dr) / sum(dl^2), its error robust to unequal
    variances (White 1980). One deviation is that of a response's reward about its pair's mean, rms(margin) /
    sqrt(2).
    """
    squares, scale = float((tokens**2).sum()), float(np.sqrt(np.square(margins).mean() / 2))
    if squares == 0 or scale == 0:
        return None
    slope = float((tokens * margins).sum()) / squares
    error = float(np.sqrt((tokens**2 * (margins - slope * tokens) ** 2).sum())) / squares
    reach = student_quantile(0.975, max(1, len(margins) - 1)) * error
    return Interval(*(UNIT * value / scale for value in (slope, slope - reach, slope + reach)))


def diagnosed(
    margins: Array, kinds: np.ndarray, tokens: Array, columns: Mapping[str, Sequence[object]] | None = None
) -> Diagnosis:
    """All there is to say of one reward model's margins [n]; see `groups_of` and `price_of_tokens`."""
    margins = margins.astype(np.float64)
    found = groups_of(margins, kinds, columns)
    return Diagnosis(
        found, calibration_error(margins), *temperature_of(margins), price_of_tokens(margins, tokens)
    )


def agreement(margins: Array, kinds: np.ndarray) -> Agreement | None:
    """How far models agree: margins [k, n]; kinds: [n] of LONGER, SHORTER, TIE. None for fewer than two."""
    if len(margins) < 2:
        return None
    two = list(combinations(range(len(margins)), 2))
    signs = [float((np.sign(margins[i]) == np.sign(margins[j])).mean()) for i, j in two]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = [float(np.corrcoef(margins[i], margins[j])[0, 1]) for i, j in two]
    scale = np.sqrt(np.square(margins).mean(1, keepdims=True))
    scaled = np.divide(margins, scale, out=np.zeros_like(margins), where=scale > 0)
    return Agreement(
        float(np.mean(signs)),
        float(np.mean(correlations)),
        min(correlations),
        float(scaled.std(0).mean()),
        _share_of_length(scaled - scaled.mean(0), kinds.astype(float)),
    )


def _share_of_length(differences: Array, sides: Array) -> float:
    """Share of the squares of differences [k, n] that multiples of sides [n], one for each model, explain."""
    squares, count = float((differences**2).sum()), float((sides**2).sum())
    explained = float(((differences @ sides) ** 2).sum()) / count if count else 0.0
    return explained / squares if squares else 0.0


def short_form(margins: Array, kinds: np.ndarray, utility: str = "") -> dict[str, float | int]:
    """Accuracy by kind of length as a reward model's metrics have it, with counts; `utility_`: of what."""
    found = {name: group for name, group in groups_of(margins, kinds).items() if name != "all"}
    shares = {f"held_out_{utility}accuracy/{name}": group.accuracy.mean for name, group in found.items()}
    return shares | {f"held_out_{utility}rows/{name}": group.pairs for name, group in found.items()}
