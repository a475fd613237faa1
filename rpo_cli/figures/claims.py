"""What a figure claims, each comparison passed or not with its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rpo_cli.figures.results import plain
from rpo_cli.figures.selection import at
from rpo_cli.figures.table import (
    Axes,
    Basis,
    Bootstrap,
    Draws,
    Rho,
    key,
    of_seeds,
    over_seeds,
    resample,
    spread_of,
)
from rpo_cli.recipes import schema
from rpo_cli.statistics import Array, Interval, Spread, holm, interval, t_interval, t_test
from rpo_cli.text import WIDEST, aligned


class Difference(NamedTuple):
    """A quantity that is claimed to be positive: over prompts and seeds, and its value in each seed.

    spread: how well its mean is known where the seeds share prompts.
    """

    interval: Interval
    by_seed: list[float]
    spread: Spread | None = None

    @property
    def status(self) -> str:
        if not np.isfinite(self.interval.mean):
            return "not measured"
        if self.interval.low > 0:
            return "passed"
        return "contradicted" if self.interval.high < 0 else "not significant"

    @property
    def lowest(self) -> float:
        """The lower end of its interval; below all others where that is not known."""
        return self.interval.low if np.isfinite(self.interval.low) else -np.inf

    @property
    def there(self) -> Array:
        values: Array = np.array(self.by_seed, dtype=np.float64)
        return values[np.isfinite(values)]

    @property
    def p_value(self) -> float:
        """Of a true difference of zero, by Student's t over the seeds; 1 of a single seed; NaN: not known."""
        return t_test(self.there, self.spread) if len(self.there) > 1 else 1.0


NOTHING = Difference(Interval(np.nan, np.nan, np.nan), [])
Parts = Mapping[str, Difference]


def range_difference(point: Sequence[Array], drawn: Sequence[Array], basis: Basis) -> Difference:
    """Range over rho of the first curve minus that of the second.

    A range is max - min of the curve averaged over seeds; noise widens that of the flatter curve more, which
    speaks against a claim of flatness. point: two [S, rhos]; drawn: two [resamples, S, rhos]. A seed counts
    where it has both whole curves. By Student's t it is the mean of each seed's own.
    """

    def own(curves: Sequence[Array]) -> Array:
        first, second = (np.ptp(curve, axis=-1) for curve in curves)
        return np.asarray(first - second)

    def of_means(curves: Sequence[Array], axis: int) -> Array:
        whole = np.isfinite(curves[0] + curves[1]).all(-1, keepdims=True)
        return own([over_seeds(np.where(whole, curve, np.nan), axis) for curve in curves])

    by_seed = own(point)
    if basis.student and np.isfinite(by_seed).sum() > 1:
        apart = own(drawn)
        found, spread = of_seeds(by_seed, apart, basis), spread_of(by_seed, apart, basis)
        return Difference(found, by_seed.tolist(), spread)
    prompts = basis.prompts if len(by_seed) == 1 else None
    found = interval(float(of_means(point, 0)), of_means(drawn, 1), prompts)
    return Difference(found, by_seed.tolist())


class Verdict(TypedDict):
    """A row of what is claimed; see `judge`."""

    claim: str
    detail: str
    by_seed: list[float | None]
    difference: float | None
    low: float | None
    high: float | None
    status: str
    passed: bool
    p: NotRequired[float | None]


def judge(
    cells: pd.DataFrame, axes: Axes, claims: Sequence[schema.Claim], how: Bootstrap, *, brief: bool = False
) -> list[Verdict]:
    """Every claim as rows {claim, detail, by_seed, difference, low, high, status, passed}.

    Each difference is claimed to be positive and is paired: same seeds, same prompts. It is more - than; with
    `within` w it is w - |more - than|, with `beyond` w |more - than| - w, of the mean over seeds. `passed`
    means that its 95 % interval over prompts and seeds lies above zero; status tells apart `not significant`
    (zero inside), `contradicted` (interval below zero) and `not measured`. A row about every one of several
    shows the weakest of its parts and passes if all of them do; over seeds (Student's t) its interval is that
    of the least of their true values. No correction for the number of rows. Without
    any true difference a row should pass in 2.5 % of experiments; the more seeds differ the nearer that comes
    to 13 % with three seeds, and to half with one.

    Where intervals are Student's t over the seeds, rows have a p-value besides. That of a primary claim
    stands as it is; the others' are corrected for their number (Holm 1979), and a verdict needs one below
    0.05. A claim with a bound (`within`, `beyond`) is judged by its interval alone.

    brief: a detail names no measure, and always the rho, as Figure 2's do.
    """
    named = [name for claim in claims for name in claim.names]
    known = list(dict.fromkeys([*axes.policies, *named]))  # what is named and not there is not measured
    draws = resample(cells, axes._replace(policies=known), how)
    judges = (_Judge(claim, axes, known, draws, brief) for claim in claims)
    found = [
        (judging.claim, detail, list(parts.values()))
        for judging in judges
        for detail, parts in judging.rows()
    ]
    rows = [_row(claim, detail, parts, how.student) for claim, detail, parts in found]
    return _corrected(rows, found) if how.student else rows


def _corrected(
    rows: Sequence[Verdict], found: Sequence[tuple[schema.Claim, str, Sequence[Difference]]]
) -> list[Verdict]:
    """The rows with p-values, and verdicts that hold for all rows at once."""
    tested = {
        place: _p_value(parts) for place, (claim, _, parts) in enumerate(found) if parts and not claim.bounded
    }
    unknown = {place for place, p in tested.items() if np.isnan(p)}
    others = [place for place in tested if not found[place][0].primary]
    raised = holm([1.0 if place in unknown else tested[place] for place in others])
    tested |= dict(zip(others, raised, strict=True)) | dict.fromkeys(unknown, 1.0)
    out: list[Verdict] = []
    for place, row in enumerate(rows):
        verdict = row["status"]
        if verdict in ("passed", "contradicted") and tested.get(place, 0.0) >= 0.05:
            verdict = "not significant"
        p = None if place in unknown else tested.get(place)
        more = {"p": p, "status": verdict, "passed": verdict == "passed"}
        out.append(plain({**row, **more}))
    return out


def _p_value(parts: Sequence[Difference]) -> float:
    """Of the least of the true differences being zero: all must be above it, or any one of them below.

    NaN where one that decides is not known.
    """
    below = [part.p_value for part in parts if part.interval.mean < 0]
    if below:
        return float(min(1.0, len(parts) * np.min(below)))
    return float(np.max([part.p_value for part in parts]))


def _of_the_least(weakest: Difference, parts: Sequence[Difference]) -> Difference:
    """The weakest of several differences over seeds, with the interval of the least of their true values.

    Any of k parts may be the least: its interval begins where the lowest begins, and ends where the first
    ends of those at a level of 1 - 0.05 / k. A single seed has no such interval.
    """
    if min(len(part.there) for part in parts) < 2:
        return weakest
    level = 1 - 0.05 / len(parts)
    high = min(t_interval(part.there, level, part.spread).high for part in parts)
    mean, low, _ = weakest.interval
    return weakest._replace(interval=Interval(mean, low, max(mean, high)))


def _row(claim: schema.Claim, detail: str, parts: Sequence[Difference], student: bool) -> Verdict:
    """One row; of several parts the one with the lowest bound is shown."""
    measured = [part for part in parts if part.status != "not measured"]
    shown = min(measured, key=lambda part: part.lowest, default=NOTHING)
    statuses = {part.status for part in parts} or {"not measured"}
    if student and not claim.bounded and len(measured) == len(parts) > 1:
        shown = _of_the_least(shown, parts)
        statuses = {shown.status}
    worst = ("contradicted", "not significant", "not measured", "passed")
    status = next(status for status in worst if status in statuses)
    if 0 < len(measured) < len(parts):
        detail += f"; {len(parts) - len(measured)} of {len(parts)} not measured"
    numbers = dict(zip(("difference", "low", "high"), shown.interval, strict=True))
    row = {"claim": claim.claim, "detail": detail, "by_seed": shown.by_seed, **numbers, "status": status}
    found: Verdict = plain(row | {"passed": status == "passed"})
    return found


class _Judge:
    """One claim and the draws that it is judged by."""

    def __init__(self, claim: schema.Claim, axes: Axes, known: list[str], draws: Draws, brief: bool) -> None:
        self.claim, self.axes, self.known, self.brief, self.basis = claim, axes, known, brief, draws.basis
        m = axes.measures.index(claim.measure)
        self.point, self.drawn = draws.point[..., m], draws.drawn[..., m]

    def rows(self) -> Iterator[tuple[str, Parts]]:
        """What each row says, and the comparisons that it is about."""
        claim, rhos = self.claim, self.rhos()
        first, second = self.sides(claim.more, claim.than), self.sides(claim.than, claim.more)
        pairs = [(more, than) for more in first for than in second if more != than]
        if not rhos:
            yield "no such rho", {}
        elif claim.range:
            for more, than in pairs:
                part = self.ranges(str(more), str(than), rhos)
                yield self.detail(f"range of {more} - range of {than}"), {"": part}
        elif claim.every_rho:
            everything: dict[str, Difference] = {}
            for more, than in pairs:
                parts = {f"rho {rho:g}" if rho else "no rho": self.part(more, than, [rho]) for rho in rhos}
                said = self.apart(more, than)
                yield self.detail(f"{said}, worst at {_weakest(parts, 'rho unknown')}"), parts
                everything |= {f"{said} at {where}": part for where, part in parts.items()}
            if len(pairs) > 1:
                yield self.detail(f"all, worst {_weakest(everything)}"), everything
        else:
            for group in [rhos] if claim.mean_over_rho else [[rho] for rho in rhos]:
                where = self.where(group)
                if claim.each is not None:
                    (more,) = first
                    others = self.sides(claim.each, claim.more)
                    parts = {str(other): self.part(more, other, group) for other in others}
                    each = "each other" if claim.each == schema.EVERY else f"each of {', '.join(parts)}"
                    yield self.detail(f"{more} - {each}{where}, least lead over {_weakest(parts)}"), parts
                    pairs = [(more, other) for other in others]
                for more, than in pairs:
                    said = self.detail(self.bounded(self.apart(more, than)) + where)
                    yield said, {"": self.part(more, than, group)}

    def sides(self, side: str | list[str] | None, other: str | list[str] | None) -> list[str | None]:
        """The variants that a side of the claim means."""
        if side == schema.EVERY:
            return [name for name in self.axes.policies if name != other]
        return list(side) if isinstance(side, list) else [side]

    def rhos(self) -> list[Rho]:
        claim = self.claim
        if claim.rhos is not None:
            return list(claim.rhos)
        return [
            rho for rho in self.axes.rhos
            if (claim.up_to is None or (rho is not None and rho <= claim.up_to + 1e-9))
            and (claim.above is None or (rho is not None and rho > claim.above + 1e-9))
        ]  # fmt: skip

    def curve(self, values: Array, name: str, rhos: Sequence[Rho]) -> Array:
        """The values of one policy at some rhos, [..., rhos]."""
        places = [key(rho) for rho in self.axes.rhos]
        return values[..., self.known.index(name), [places.index(key(rho)) for rho in rhos]]

    def ranges(self, more: str, than: str, rhos: Sequence[Rho]) -> Difference:
        point, drawn = (
            [self.curve(v, name, rhos) for name in (more, than)] for v in (self.point, self.drawn)
        )
        return range_difference(point, drawn, self.basis)

    def part(self, more: str | None, than: str | None, rhos: Sequence[Rho]) -> Difference:
        """more - than, of the mean over these rhos; a side that is None is zero, as pi_SFT's advantage."""

        def apart(values: Array) -> Array:
            first, second = (
                np.zeros(()) if name is None else self.curve(values, name, rhos).mean(-1)
                for name in (more, than)
            )
            return np.asarray(first - second)

        point, drawn = apart(self.point), apart(self.drawn)
        by_seed = self.side(point).tolist()
        if self.basis.student:
            found = self.sides_of(of_seeds(point, drawn, self.basis))
            return Difference(found, by_seed, spread_of(point, drawn, self.basis))
        mean, draws = over_seeds(point, 0), over_seeds(drawn, 1)
        prompts = self.basis.prompts if len(point) == 1 and not self.claim.bounded else None
        return Difference(interval(float(self.side(mean)), self.side(draws), prompts), by_seed)

    def sides_of(self, found: Interval) -> Interval:
        """`side` of an estimate and of the values in its interval."""
        if not self.claim.bounded:
            return found
        ends = [abs(found.low), abs(found.high)]
        nearest = 0.0 if found.low < 0 < found.high else min(ends)
        low, high = sorted(float(self.side(np.array(end))) for end in (nearest, max(ends)))
        return Interval(float(self.side(np.array(found.mean))), low, high)

    def side(self, values: Array) -> Array:
        """How far differences are on the claimed side of their bound."""
        if self.claim.within is not None:
            return self.claim.within - abs(values)
        return values if self.claim.beyond is None else abs(values) - self.claim.beyond

    def where(self, rhos: Sequence[Rho]) -> str:
        if len(self.axes.rhos) == 1 and not self.brief:
            return ""
        if len(rhos) == 1:
            return at(rhos[0])
        return f", mean over rho {', '.join('none' if rho is None else f'{rho:g}' for rho in rhos)}"

    def detail(self, said: str) -> str:
        return said if self.brief else f"{self.claim.measure}: {said}"

    def apart(self, more: str | None, than: str | None) -> str:
        return more or "0" if than is None else f"{more or '0'} - {than}"

    def bounded(self, apart: str) -> str:
        if self.claim.within is not None:
            return f"{self.claim.within:g} - |{apart}|"
        return apart if self.claim.beyond is None else f"|{apart}| - {self.claim.beyond:g}"


def _weakest(parts: Parts, otherwise: str = "unknown") -> str:
    """The key of the measured part with the lowest bound, if any is measured."""
    lows = {name: part.lowest for name, part in parts.items() if part.status != "not measured"}
    return min(lows, key=lows.__getitem__, default=otherwise)


def claims_table(rows: Sequence[Verdict], console: Console) -> Table | Text:
    """The rows of `judge` for this console: a table on a terminal, else lines of which each says everything.

    By-seed numbers, which the JSON has too, are shown where they leave the other columns room.
    """
    head = ("claim", "detail", "difference", "95 % interval", "by seed", "verdict")
    cells: list[list[str]] = []
    for row in rows:
        numbers = (row["difference"], row["low"], row["high"])
        mean, low, high = ("-" if number is None else f"{number:+.3f}" for number in numbers)
        ends = "-" if row["low"] is None else f"{low} .. {high}"
        seeds = " ".join("-" if x is None else f"{x:+.2f}" for x in row["by_seed"])
        cells.append([row["claim"], row["detail"], mean, ends, seeds, row["status"]])
    if not console.is_terminal:
        return Text(aligned([head, *cells], right=(2,)).removesuffix("\n"), no_wrap=True, overflow="ignore")
    whole = _boxed(head, cells)
    width = console.measure(whole, options=console.options.update(max_width=WIDEST)).maximum
    if width <= console.width:
        return whole
    return _boxed([*head[:4], *head[5:]], [[*row[:4], *row[5:]] for row in cells])


def _boxed(head: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """Each claim once; claim and detail are folded on a narrow terminal, numbers and verdicts never."""
    colours = {"passed": "green", "contradicted": "red", "not significant": "yellow", "not measured": "dim"}
    out = Table()
    for name in head:
        out.add_column(name, no_wrap=name not in ("claim", "detail"))
    previous = ""
    for claim, *middle, status in cells:
        out.add_row(claim if claim != previous else "", *middle, f"[{colours[status]}]{status}[/]")
        previous = claim
    return out
