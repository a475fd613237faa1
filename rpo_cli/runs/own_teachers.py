"""How long `rpo init` has a teacher trained, and how rewards that are given come to the scale of beta."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rpo_cli.statistics import FEW_PAIRS
from rpo_cli.text import percent

FEWEST = 16  # held-out pairs to fit the temperature of a reward model that one names
STEPS = 50  # in fewer a reward model, whose head starts at random, hardly learns to tell responses apart
PASSES = 10  # at most, to make up for few steps
WRONG = 5  # held-out pairs to expect against the labels: that there are none, and no temperature, is rare
SCALED = "where beta means what it does for other objectives; set it to false if that fails"


def passes_for(steps: int, asked: float) -> float:
    """Passes of so many steps that a reward model needs for STEPS; who asks for a part of one means it."""
    if asked < 1 or round(asked * steps) >= STEPS:
        return asked
    return float(min(max(PASSES, asked), math.ceil(STEPS / steps)))


def scores_fit(margins: np.ndarray, held_out: int) -> bool:
    """Whether so many held-out pairs are likely to fit a temperature of scores with these margins [n]."""
    against, error = float((margins < 0).mean()), float(margins.std()) / held_out**0.5
    # Nor may the held-out pairs' mean be against the labels, by whose luck it is off by so many errors.
    enough = held_out >= max(FEWEST, WRONG / against if against else math.inf)
    return enough and float(margins.mean()) > 2.5 * error


def model_fits(held_out: int) -> bool:
    """The same for a reward model of which nothing is known yet: most have some of so many pairs wrong."""
    return held_out >= FEW_PAIRS


def said_of_model(held_out: int) -> str:
    """What becomes of the scale of a reward model that is given."""
    if model_fits(held_out):
        return f"calibrate_one: true brings its rewards to the labels' scale, {SCALED}"
    return (
        f"{held_out} held-out pairs are too few to bring its rewards to the labels' scale: beta and its grid "
        "may not suit them; a training warns of margins that are far from zero, or near"
    )


def said_of_scores(columns: Sequence[str], margins: np.ndarray, held_out: int) -> str:
    """How often scores contradict the labels, and what becomes of their scale."""
    against, size = int((margins < 0).sum()), float(np.median(np.abs(margins)))
    if scores_fit(margins, held_out):
        how = f"calibrate_one: true brings them to the labels' scale, {SCALED}"
    elif size:
        how = (
            "so few held-out pairs or contradictions may fit no temperature: the grid of beta goes with the "
            f"scores' median difference, {size:.2g}"
        )
    else:
        how = "they are equal in most pairs, and the grid of beta is the default one"
    said = f"contradict the label in {against} of {len(margins)} pairs, {percent(against / len(margins))}"
    return f"{', '.join(columns)}: {said}; {how}"
