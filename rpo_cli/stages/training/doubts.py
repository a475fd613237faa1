"""What speaks against learning from a teacher, by its margins of the pairs that are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rpo_cli.stages.advice import ALIKE
from rpo_cli.stages.diagnosis import Agreement
from rpo_cli.statistics import Array, wilson

DOUBT = "teacher: "  # how such a line begins, by which a comparison knows it
FAR = 50.0  # nats of log-ratio between chosen and rejected: few policies go as far
NEAR = 1.0  # the same: a policy that goes no further is hardly another one
SAME = 0.1  # of a margin: members that differ by less in the mean pair leave a min nothing to choose


def doubts(
    margins: Array, beta: float, agreed: Agreement | None = None, *, by_size: bool = True
) -> Iterator[str]:
    """A line for each kind of doubt.

    margins: [n, k], of k columns that are distilled; agreed: of the members behind them, where there are
    several; by_size: the loss reads how large margins are, and not their signs alone.
    """
    if not margins.size:
        return
    asked = float(np.median(np.abs(margins))) / beta  # nats, as beta dh is fitted to the margins
    if asked >= FAR:
        yield DOUBT + _far(asked)
    found = [_no_better_than_chance(margins), _near(asked) if by_size else None]
    if said := [each for each in found if each is not None]:
        yield f"{DOUBT}{'; '.join(said)}; `rpo diagnose` says what may help"
    if agreed is not None and agreed.signs >= ALIKE and agreed.deviation < SAME:
        yield (
            f"{DOUBT}the members are nearly one model: two of them prefer the same response in "
            f"{100 * agreed.signs:.0f} % of the training pairs, and they differ by "
            f"{100 * agreed.deviation:.1f} % of a margin; a min or a mean over them is any one of them"
        )


def _far(asked: float) -> str:
    return (
        f"the margins divided by beta ask for {asked:.0f} nats of log-ratio between chosen and rejected in "
        "the median pair; a larger beta asks for less, and so do margins that are calibrated "
        "(`calibrate_one` of one teacher, `calibration` of several)"
    )


def _near(asked: float) -> str | None:
    if asked >= NEAR:
        return None
    return (
        f"the margins divided by beta ask for {asked:.2g} nats of log-ratio between chosen and rejected in "
        "the median pair, so there is next to nothing to learn"
    )


def _no_better_than_chance(margins: Array) -> str | None:
    """What is shown of the best of the columns [n, k], equal rewards aside; None: that it beats chance."""
    counts = [(int((column > 0).sum()), int((column != 0).sum())) for column in margins.T]
    if not any(of for _, of in counts):
        return "the rewards of both responses are equal in every training pair"
    shares = [(wilson(right, of), of) for right, of in counts if of]
    (share, low, high), pairs = max(shares, key=lambda each: each[0].low)
    if low > 0.5:
        return None
    ends = f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of {pairs} training pairs"
    who = "it prefers" if len(counts) == 1 else f"the best of {len(counts)} prefers"
    what = "less than by chance" if high < 0.5 else "not shown to be more than chance"
    return f"{who} what the labels prefer in {ends}, {what}"


def kept_doubts(warnings: Sequence[str]) -> list[str]:
    """Of a policy's warnings those about its teacher, without the word that they begin with."""
    return [line.removeprefix(DOUBT) for line in warnings if line.startswith(DOUBT)]
