"""Intervals, tests and resampling of means over prompts and seeds; numpy only.

Every interval over prompts is the 95 % percentile bootstrap (Efron and Tibshirani, 1993, chapter 13), of few
prompts Student's t or, of shares, Wilson's. The unit of resampling is the prompt, never the single sample:
samples of one prompt are not independent. Over seeds, of which there are few, there is Student's t beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
FEW_PROMPTS = 50  # of fewer a percentile bootstrap is too narrow
NEXT_TO_NONE = 30  # pairs: an accuracy on fewer may be 17 points off or more, either way
FEW_PAIRS = 100  # an accuracy on fewer is known to 10 points at best
COUNTS_AT_A_TIME = 2_000_000  # resamples x prompts held in memory: 16 MB


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval, all in the unit of the values."""

    mean: float
    low: float
    high: float


def wilson(hits: float, count: int) -> Interval:
    """A share of counted things with its 95 % score interval (Wilson 1927); NaN where nothing was counted."""
    if count == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    share, square = hits / count, 1.959964**2
    middle = (hits + square / 2) / (count + square)
    half = (square * (share * (1 - share) + square / (4 * count)) * count) ** 0.5 / (count + square)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def too_few(pairs: float) -> str | None:
    """How little the accuracy on so many pairs says, in words; None: they are FEW_PAIRS or more."""
    if pairs >= FEW_PAIRS:
        return None
    apart = 98 / (pairs + 3.84) ** 0.5  # half of Wilson's interval at a half
    what = "are few" if pairs >= NEXT_TO_NONE else "are too few to tell policies apart"
    return f"{pairs:.0f} held-out pairs {what}: an accuracy on them may be {apart:.0f} points off"


def interval(mean: float, draws: Array, prompts: int | None = None, whole: float | None = None) -> Interval:
    """An estimate with the 2.5 and 97.5 percentiles of its bootstrap draws [resamples] that are not NaN.

    prompts: how many were drawn again; None: seeds were, too. Of fewer than FEW_PROMPTS the interval is
    Student's t with the draws' standard deviation. whole: the values are shares of it, such as 100. A share
    then has Wilson's interval where prompts are few, or where it is 0 or whole in every draw.
    """
    draws = draws[np.isfinite(draws)]
    if not draws.size or not np.isfinite(mean):
        return Interval(float("nan"), float("nan"), float("nan"))
    few = prompts is not None and prompts < FEW_PROMPTS
    on_edge = whole is not None and (np.isclose(draws, 0).all() or np.isclose(draws, whole).all())
    if prompts is not None and whole is not None and (few or on_edge):
        _, low, high = wilson(prompts * min(1.0, max(0.0, mean / whole)), prompts)
        return Interval(float(mean), whole * low, whole * high)
    if few and prompts is not None and prompts > 1:
        error = float(np.std(draws)) * (prompts / (prompts - 1)) ** 0.5
        reach = student_quantile(0.975, prompts - 1) * error
        return Interval(float(mean), float(mean) - reach, float(mean) + reach)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(mean), float(low), float(high))


class Spread(NamedTuple):
    """Standard error of a mean over seeds, and the degrees of freedom that it is known with."""

    error: float
    freedom: float


def spread_of_seeds(values: Array) -> Spread:
    """Of the mean of one value for each seed [S], S at least 2, where nothing but the seed is common."""
    return Spread(float(np.std(values, ddof=1)) / len(values) ** 0.5, len(values) - 1)


def spread_of_seeds_and_prompts(values: Array, together: Array, prompts: int) -> Spread:
    """Of the mean of one value for each seed [S], S at least 2, measured on prompts that seeds share.

    together [S, S]: covariance of the seeds' values over draws of these prompts. The luck of shared prompts
    does not show in how seeds differ: the variance is that over seeds plus that over prompts less what both
    count, the noise of a prompt in one seed; at least the larger of the first two. Where all seeds have all
    n prompts these are s2(seed means) / S + s2(prompt means) / n - s2(residuals) / (S n). Degrees of freedom
    by Satterthwaite (1946), at least 1.
    """
    count = len(values)
    of_seeds, of_prompts = float(np.var(values, ddof=1)) / count, float(together.mean())
    common = float(together.sum() - np.trace(together)) / (count * (count - 1))
    noise = max(0.0, of_prompts - common)
    total = of_seeds + of_prompts - noise
    doubt = of_seeds**2 / (count - 1)
    doubt += of_prompts**2 / max(1, prompts - 1) + noise**2 / max(1, (count - 1) * (prompts - 1))
    freedom = max(1.0, total**2 / doubt) if doubt > 0 else count - 1.0
    return Spread(max(total, of_seeds, of_prompts, 0.0) ** 0.5, freedom)


@lru_cache(maxsize=32)
def student_angles(freedom: float) -> tuple[Array, Array]:
    """Distribution function of Student's t: angles θ and P(t ≤ √freedom · tan θ) at each.

    freedom: at least 1.

    With t = √freedom · tan θ the density is proportional to cos(θ)^(freedom − 1): bounded, and summed by the
    trapezoid rule it is right to 1e-8.
    """
    angles = np.linspace(-np.pi / 2, np.pi / 2, 40_001)
    density = np.cos(angles) ** (freedom - 1)
    steps = (density[1:] + density[:-1]) / 2
    return angles, np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()


def student_quantile(share: float, freedom: float) -> float:
    """The value below which this share of Student's t distribution lies."""
    angles, shares = student_angles(freedom)
    return float(np.sqrt(freedom) * np.tan(np.interp(share, shares, angles)))


def t_interval(values: Array, level: float = 0.95, spread: Spread | None = None) -> Interval:
    """Mean of one value for each seed [S], S at least 2, with its interval by Student's t.

    spread: of the mean; None: that of `spread_of_seeds`. Equal values other than zero say nothing of how
    seeds differ: ends NaN.
    """
    mean, (error, freedom) = float(np.mean(values)), spread or spread_of_seeds(values)
    if _nothing(error, mean):
        return Interval(mean, float("nan"), float("nan"))
    reach = student_quantile((1 + level) / 2, freedom) * error
    return Interval(mean, mean - reach, mean + reach)


def t_test(values: Array, spread: Spread | None = None) -> float:
    """Two-sided p-value of a mean of zero, of one value for each seed [S], S at least 2; NaN: not known.

    spread: as for `t_interval`, and so are equal values.
    """
    mean, (error, freedom) = float(np.mean(values)), spread or spread_of_seeds(values)
    if error == 0 and mean == 0:
        return 1.0
    if _nothing(error, mean):
        return float("nan")
    angles, shares = student_angles(freedom)
    return float(2 * np.interp(np.arctan(-abs(mean) / error / freedom**0.5), angles, shares))


def _nothing(error: float, mean: float) -> bool:
    """Whether an error is that of equal values other than zero, to rounding."""
    return mean != 0 and error <= 1e-12 * abs(mean)


def break_even(known: Array, leads: Array) -> Interval:
    """Where leads cross zero: the point of lines of leads [S, T] on what is known [S, T], one for each seed.

    Of S seeds, at least 2, with T teachers, at least 2. The estimate is where the mean of the seeds' least
    squares lines is zero; in the interval are the points at which Student's interval of the lines' values
    holds zero (Fieller 1954). Ends NaN: the mean slope is not known to differ from zero, so that nothing
    bounds the points. ValueError: a number is missing, or in some seed nothing differs in what is known.
    """
    if not (np.isfinite(known).all() and np.isfinite(leads).all()):
        raise ValueError("break-even: a teacher without a number")
    middle = known.mean(1, keepdims=True)
    spread = ((known - middle) ** 2).sum(1)
    if not (spread > 0).all():
        raise ValueError("break-even: in some seed all teachers know the same")
    slopes = ((known - middle) * leads).sum(1) / spread
    starts = leads.mean(1) - slopes * middle[:, 0]
    reach = student_quantile(0.975, len(leads) - 1) ** 2 * np.cov(starts, slopes) / len(leads)
    start, slope = float(starts.mean()), float(slopes.mean())
    # Zeros of (start + slope x)^2 less the squared reach of the lines' mean at x.
    square, twice, rest = slope**2 - reach[1, 1], start * slope - reach[0, 1], start**2 - reach[0, 0]
    if square <= 0:
        return Interval(-start / slope if slope else float("nan"), float("nan"), float("nan"))
    root = max(0.0, twice**2 - square * rest) ** 0.5
    return Interval(-start / slope, (-twice - root) / square, (-twice + root) / square)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: that of any false rejection stays what it was (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    raised = np.minimum(1, np.maximum.accumulate(np.asarray(p_values, float)[order] * factors))
    out = np.empty(len(p_values))
    out[order] = raised
    return [float(p) for p in out]


def weighted_means(weights: Array, values: Array) -> Array:
    """Means [m, k] of the columns of values [n, k] under weights [m, n]; a NaN value weighs nothing.

    A column without any weight gives NaN.
    """
    present = np.isfinite(values)
    totals = weights @ np.where(present, values, 0.0)
    whole = weights.sum(1, keepdims=True)
    mass = np.broadcast_to(whole, totals.shape) if present.all() else weights @ present
    return np.asarray(np.divide(totals, mass, out=np.full(totals.shape, np.nan), where=mass > 0))


def resample_means(
    per_seed: Sequence[Array],
    resamples: int,
    seed: int,
    *,
    same_prompts: bool = False,
    resample_seeds: bool = True,
) -> Array:
    """Two-level bootstrap of column means: seeds with replacement, then prompts within each seed drawn.

    per_seed: S arrays [n_s, k]; row = prompt, columns = whatever shares those prompts, so that every
    comparison of two columns is paired. Returns [resamples, S, k]: the means of the S seeds drawn; average
    over axis 1. With same_prompts row i is one prompt in all seeds, and one draw of prompts serves all of
    them: their common luck must not average out. With resample_seeds=False every seed is drawn once, which
    leaves the interval over prompts. ValueError: no seeds, no prompts, resamples < 1, unequal n_s with
    same_prompts.
    """
    sizes = [len(values) for values in per_seed]
    if not sizes or min(sizes) == 0:
        raise ValueError("bootstrap: no prompts to resample")
    if resamples < 1:
        raise ValueError(f"bootstrap: resamples must be at least 1, not {resamples}")
    if same_prompts and len(set(sizes)) > 1:
        raise ValueError(f"bootstrap: the seeds have {sizes} prompts, so they cannot share one draw")
    rng = np.random.default_rng(seed)
    count, columns = len(sizes), per_seed[0].shape[1]
    picks = np.tile(np.arange(count), (resamples, 1))
    if resample_seeds and count > 1:
        picks = rng.integers(count, size=picks.shape)
    out = np.empty((resamples, count, columns))
    if same_prompts:
        for rows, weights in prompt_weights(rng, np.arange(resamples), sizes[0]):
            means = np.stack([weighted_means(weights, values) for values in per_seed], axis=1)
            out[rows] = np.take_along_axis(means, picks[rows][:, :, None], axis=1)
        return out
    for slot in range(count):
        for chosen, values in enumerate(per_seed):
            for rows, weights in prompt_weights(rng, np.flatnonzero(picks[:, slot] == chosen), sizes[chosen]):
                out[rows, slot] = weighted_means(weights, values)
    return out


def prompt_weights(rng: np.random.Generator, rows: Rows, size: int) -> Iterator[tuple[Rows, Array]]:
    """How often each of `size` prompts is drawn, [m, size], for some m of the rows at a time."""
    step = max(1, COUNTS_AT_A_TIME // size)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        cells = rng.integers(size, size=(len(some), size)) + size * np.arange(len(some))[:, None]
        counts = np.bincount(cells.ravel(), minlength=len(some) * size)
        yield some, counts.reshape(len(some), size).astype(np.float64)
