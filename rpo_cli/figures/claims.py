"""The paper's claims about Figure 2, each passed or not with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from rpo_cli.figures.results import plain
from rpo_cli.figures.table import over_seeds, resample
from rpo_cli.statistics import Array, Interval, interval
from rpo_cli.text import WIDEST, aligned

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


HARD, EASY = 0.5, 0.6  # e-dpo leads up to the first, d-dpo above the second


class Difference(NamedTuple):
    """A quantity that a claim says is positive: its interval over prompts and seeds, and its value in each seed."""

    interval: Interval
    by_seed: list[float]

    @property
    def status(self) -> str:
        if not np.isfinite(self.interval.mean):
            return "not measured"
        return (
            "passed"
            if self.interval.low > 0
            else "contradicted"
            if self.interval.high < 0
            else "not significant"
        )


def all_of(parts: Sequence[Difference]) -> str:
    """Status of "every one of these": contradicted by any, passed by all only."""
    statuses = {part.status for part in parts} or {"not measured"}
    return next(s for s in ("contradicted", "not significant", "not measured", "passed") if s in statuses)


def difference(point: Array, drawn: Array) -> Difference:
    """From a quantity's value in each seed [S] and in each resampled seed [resamples, S]."""
    return Difference(interval(float(over_seeds(point, 0)), over_seeds(drawn, 1)), [float(x) for x in point])


def range_difference(point: tuple[Array, Array], drawn: tuple[Array, Array]) -> Difference:
    """Range over rho of the first curve minus that of the second.

    A range is max - min of the curve averaged over seeds; noise widens that of the flatter curve more, which speaks
    against a claim of flatness. point: two [S, rhos]; drawn: two [resamples, S, rhos]. A seed counts where it has both
    whole curves.
    """

    def ranges(curves: tuple[Array, Array], axis: int) -> Array:
        whole = np.isfinite(curves[0] + curves[1]).all(-1, keepdims=True)
        first, second = (
            np.ptp(over_seeds(np.where(whole, curve, np.nan), axis), axis=-1) for curve in curves
        )
        return np.asarray(first - second)

    by_seed = np.ptp(point[0], axis=-1) - np.ptp(point[1], axis=-1)
    return Difference(interval(float(ranges(point, 0)), ranges(drawn, 1)), [float(x) for x in by_seed])


def orderings(
    cells: pd.DataFrame,
    policies: Sequence[str],
    rhos: Sequence[float],
    seeds: Sequence[int],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The paper's claims about Figure 2 as rows {claim, detail, by_seed, difference, low, high, status, passed}.

    Each difference is claimed to be positive and is paired: same seeds, same prompts. `passed` means that its 95 %
    interval over prompts and seeds lies above zero; status tells apart `not significant` (zero inside), `contradicted`
    (interval below zero) and `not measured`. A row about "every" or "best" shows the weakest of its parts and passes if
    all of them do. No correction for the number of rows. Without any true difference a row should pass in 2.5 % of
    experiments; the more seeds differ the nearer that comes to 13 % with three seeds, and to half with one.
    """
    known = [*policies, *(p for p in ("e-dpo", "dpo", "ipo", "d-dpo") if p not in policies)]
    draws = resample(cells, known, rhos, seeds, resamples=resamples, seed=seed)
    point, drawn = (
        draws.point[..., 0],
        draws.drawn[..., 0],
    )  # [S, policies, rhos], [resamples, S, policies, rhos]
    rows: list[dict[str, Any]] = []

    def say(claim: str, detail: str, parts: Sequence[Difference]) -> None:
        """One row; of several parts the one with the lowest bound is shown."""
        measured = [part for part in parts if part.status != "not measured"]
        nothing = Difference(interval(math.nan, np.empty(0)), [])
        shown = min(measured, key=lambda part: part.interval.low, default=nothing)
        status = all_of(parts)
        if 0 < len(measured) < len(parts):
            detail += f"; {len(parts) - len(measured)} of {len(parts)} not measured"
        numbers = dict(zip(("difference", "low", "high"), shown.interval, strict=True))
        row = {"claim": claim, "detail": detail, "by_seed": shown.by_seed, **numbers, "status": status}
        rows.append(plain(row | {"passed": status == "passed"}))

    def above(first: str, second: str | None, rho: float) -> Difference:
        """first - second at rho; second None: pi_SFT, whose advantage is zero."""
        i, j = known.index(first), list(rhos).index(rho)
        if second is None:
            return difference(point[:, i, j], drawn[:, :, i, j])
        k = known.index(second)
        return difference(point[:, i, j] - point[:, k, j], drawn[:, :, i, j] - drawn[:, :, k, j])

    claim = "every policy beats pi_SFT at every rho"
    parts = {policy: {rho: above(policy, None, rho) for rho in rhos} for policy in policies}
    for policy, by_rho in parts.items():
        say(claim, f"{policy}, worst at rho {_weakest(by_rho)}", list(by_rho.values()))
    everything = {
        f"{policy} at rho {rho:g}": part for policy, by_rho in parts.items() for rho, part in by_rho.items()
    }
    say(claim, f"all, worst {_weakest(everything)}", list(everything.values()))

    claim = f"e-dpo beats dpo and ipo at rho <= {HARD:g}"
    hard = [rho for rho in rhos if rho <= HARD + 1e-9]
    for rho in hard:
        for other in ("dpo", "ipo"):
            say(claim, f"e-dpo - {other} at rho {rho:g}", [above("e-dpo", other, rho)])
    if not hard:
        say(claim, "no such rho", [])

    claim = f"d-dpo is best at rho > {EASY:g}"
    easy = [rho for rho in rhos if rho > EASY + 1e-9]
    others = [policy for policy in policies if policy != "d-dpo"]
    for rho in easy:
        each = {other: above("d-dpo", other, rho) for other in others}
        say(
            claim, f"d-dpo - each other at rho {rho:g}, least lead over {_weakest(each)}", list(each.values())
        )
        for other, part in each.items():
            say(claim, f"d-dpo - {other} at rho {rho:g}", [part])
    if not easy:
        say(claim, "no such rho", [])

    claim = "e-dpo is flattest: smallest max - min over rho"
    mine = known.index("e-dpo")
    for other in (policy for policy in policies if policy != "e-dpo"):
        i = known.index(other)
        part = range_difference((point[:, i], point[:, mine]), (drawn[:, :, i], drawn[:, :, mine]))
        say(claim, f"range of {other} - range of e-dpo", [part])
    return rows


def _weakest(parts: dict[Any, Difference]) -> str:
    """The key of the measured part with the lowest bound."""
    lows = {key: part.interval.low for key, part in parts.items() if part.status != "not measured"}
    return str(min(lows, key=lows.__getitem__)) if lows else "unknown"


def orderings_table(rows: Sequence[dict[str, Any]], console: Console) -> Table | Text:
    """The rows of `orderings` for this console: a table on a terminal, else plain lines of which each says everything.

    By-seed numbers, which the JSON has too, are shown where they leave the other columns room.
    """
    head = ("claim", "detail", "difference", "95 % interval", "by seed", "verdict")
    cells: list[list[str]] = []
    for row in rows:
        number = [
            f"{row[key]:+.3f}" if row[key] is not None else "-" for key in ("difference", "low", "high")
        ]
        ends = f"{number[1]} .. {number[2]}" if row["low"] is not None else "-"
        seeds = " ".join("-" if x is None else f"{x:+.2f}" for x in row["by_seed"])
        cells.append([row["claim"], row["detail"], number[0], ends, seeds, row["status"]])
    if not console.is_terminal:
        from rich.text import Text

        return Text(aligned([head, *cells], right=(2,)).removesuffix("\n"), no_wrap=True, overflow="ignore")
    whole = _boxed(head, cells)
    narrow = console.measure(whole, options=console.options.update(max_width=WIDEST)).maximum > console.width
    return _boxed([*head[:4], *head[5:]], [[*row[:4], *row[5:]] for row in cells]) if narrow else whole


def _boxed(head: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """Each claim once; claim and detail are folded where the terminal is narrow, numbers and verdicts never."""
    from rich.table import Table

    colours = {"passed": "green", "contradicted": "red", "not significant": "yellow", "not measured": "dim"}
    out = Table()
    for name in head:
        out.add_column(name, no_wrap=name not in ("claim", "detail"))
    previous = ""
    for claim, *middle, status in cells:
        out.add_row(claim if claim != previous else "", *middle, f"[{colours[status]}]{status}[/]")
        previous = claim
    return out
