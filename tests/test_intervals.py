"""Intervals and verdicts over few seeds hold what they promise; one unit for oracles of different scales."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
from conftest import Tiny

from rpo_cli.figures.claims import judge, range_difference
from rpo_cli.figures.frames import Frame
from rpo_cli.figures.kinds.curves import FLAT, verdicts
from rpo_cli.figures.numbers import _rows
from rpo_cli.figures.results import load_results
from rpo_cli.figures.selection import Selection
from rpo_cli.figures.table import Axes, Basis, Bootstrap, summary
from rpo_cli.recipes import load
from rpo_cli.recipes.schema import Claim, FigureRecipe
from rpo_cli.stages.diagnosis import price_of_tokens
from rpo_cli.stages.judge.winrates import length_controlled
from rpo_cli.stages.summary import at_equal_length
from rpo_cli.statistics import (
    Spread,
    break_even,
    holm,
    interval,
    prompt_weights,
    resample_means,
    spread_of_seeds_and_prompts,
    student_quantile,
    t_interval,
    t_test,
    weighted_means,
    wilson,
)

RESULTS = Path(__file__).resolve().parent.parent / "results/miniature"
# e-dpo - dpo on the ten committed seeds, in oracle reward: sd of what a seed has at every rho, of what it has
# at one, and between prompts; `components` measures them.
SHARED, OWN, WITHIN, PROMPTS = 0.046, 0.106, 2.05, 1000
SECOND = {"information": (0.056, 0.0653, 1.128), "figure2-seeds": (0.068, 0.1195, 1.162)}  # in sd
RHOS = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
EXPERIMENTS = 1000
STUDENT = Bootstrap(40, 0, student=True)
DRAWN = Basis(student=False, prompts=None)


@cache
def committed() -> pd.DataFrame:
    """Numbers of every prompt of Figure 2's ten seeds, two of its policies: columns measure, policy, rho."""
    cells = pd.concat([pd.read_parquet(RESULTS / name / "cells.parquet") for name in (".", "confirmation")])
    cells = cells[cells["policy"].isin(["dpo", "e-dpo"])].astype({"policy": str, "prompt_id": str})
    wide = cells.round({"rho": 6}).pivot(index=["seed", "prompt_id"], columns=["policy", "rho"])
    return cast(pd.DataFrame, wide.astype(float))


@cache
def second_edition(name: str) -> pd.DataFrame:
    """The same of a committed experiment of the second edition, in standard deviations of a seed's unit."""
    cells = load_results(RESULTS / name).cells
    cells = cells[cells["policy"].isin(["dpo", "e-dpo"])].astype({"policy": str, "prompt_id": str})
    wide = cells.round({"rho": 6}).pivot(
        index=["seed", "prompt_id"], columns=["policy", "rho"], values="advantage"
    )
    return cast(pd.DataFrame, wide.astype(float))


def components(apart: pd.DataFrame) -> tuple[float, float, float]:
    """SHARED, OWN and WITHIN of differences [seed and prompt, rho], by the analysis of variance."""
    of_prompts = apart.groupby("seed").var().to_numpy().mean()
    together = np.cov(apart.groupby("seed").mean().to_numpy().T)
    shared = together[~np.eye(len(together), dtype=bool)].mean()
    own = np.diag(together).mean() - shared - of_prompts / PROMPTS
    return float(shared**0.5), float(own**0.5), float(of_prompts**0.5)


def test_simulated_experiments_vary_as_the_committed_ones() -> None:
    first = committed()["advantage"]
    assert components(first["e-dpo"] - first["dpo"]) == pytest.approx((SHARED, OWN, WITHIN), rel=0.03)
    for name, wanted in SECOND.items():
        there = second_edition(name)
        assert components(there["e-dpo"] - there["dpo"]) == pytest.approx(wanted, rel=0.03)


def held(low: object, high: object, truth: object) -> float:
    """In what share of experiments the interval holds the truth."""
    return float(np.mean((np.asarray(low) <= truth) & (truth <= np.asarray(high))))


@pytest.mark.parametrize(
    ("freedom", "wanted"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_quantiles_of_students_t_are_those_of_the_tables(freedom: int, wanted: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(wanted, abs=2e-4)
    assert student_quantile(0.025, freedom) == pytest.approx(-wanted, abs=2e-4)
    assert student_quantile(0.5, freedom) == pytest.approx(0, abs=1e-6)


def simulated(
    experiments: int,
    seeds: int,
    rhos: int = 1,
    spread: float = 1.0,
    parts: tuple[float, float, float] = (SHARED, OWN, WITHIN),
) -> np.ndarray:
    """A difference's deviations from its truth, [experiments, seeds, rhos], as they vary over seeds."""
    rng = np.random.default_rng(seeds)
    shared, own, within = parts
    common = rng.normal(0, shared, (experiments, seeds, 1))
    alone = rng.normal(0, np.hypot(own, within / PROMPTS**0.5), (experiments, seeds, rhos))
    return spread * (common + alone)


def of_experiments(values: dict[str, np.ndarray]) -> tuple[pd.DataFrame, Axes]:
    """Cells of which policy `a7` is the seventh experiment of `a`: [experiments, seeds, rhos] each."""
    (count, seeds, rhos) = next(iter(values.values())).shape
    names = [f"{name}{number}" for name in values for number in range(count)]
    index = pd.MultiIndex.from_product([names, range(seeds), RHOS[:rhos]], names=["policy", "seed", "rho"])
    stacked = np.concatenate(list(values.values())).ravel()
    cells = pd.DataFrame({"x": stacked}, index=index).reset_index()
    cells["prompt_id"] = cells["seed"].astype(str)
    return cells, Axes(names, list(RHOS[:rhos]), list(range(seeds)), ("x",))


def judged(values: dict[str, np.ndarray], how: Bootstrap = STUDENT, **claim: object) -> pd.DataFrame:
    """The verdict on each experiment, through the claims themselves; a side named `a` is that of `a7`."""
    cells, axes = of_experiments(values)
    sides = {side: claim.pop(side) for side in ("more", "than") if side in claim}
    claims = [
        Claim.model_validate(
            {"claim": "c", "measure": "x", "primary": True, **claim}
            | {side: f"{name}{number}" for side, name in sides.items()}
        )
        for number in range(len(next(iter(values.values()))))
    ]
    return pd.DataFrame(judge(cells, axes, claims, how))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("where", [{"rhos": [0.2]}, {"mean_over_rho": True}])
@pytest.mark.parametrize("parts", [(SHARED, OWN, WITHIN), *SECOND.values()])
def test_intervals_over_seeds_hold_the_truth_and_verdicts_without_a_difference_are_rare(
    seeds: int, where: dict[str, object], parts: tuple[float, float, float]
) -> None:
    rows = judged({"a": simulated(EXPERIMENTS, seeds, 4, parts=parts)}, more="a", **where)
    assert 0.93 <= held(rows["low"], rows["high"], 0) <= 0.97
    assert 0.93 <= np.mean(rows["status"] == "not significant") <= 0.97


@pytest.mark.parametrize("seeds", [5])
def test_intervals_of_differences_of_ranges_hold_the_truth(seeds: int) -> None:
    """The range is that of a seed's curve, mean over seeds: one that is steep and one that is flat."""
    steep, noise = np.linspace(0, 0.9, 7), {"a": 1.0, "b": 0.5}
    curves = {
        name: simulated(EXPERIMENTS, seeds + place, 7, sd)[:, :seeds]
        for place, (name, sd) in enumerate(noise.items())
    }
    curves["a"] = curves["a"] + steep
    many = {name: simulated(100_000, 1, 7, sd)[:, 0] for name, sd in noise.items()}
    truth = float(np.ptp(many["a"] + steep, axis=1).mean() - np.ptp(many["b"], axis=1).mean())
    rows = judged(curves, more="a", than="b", range=True)
    assert 0.93 <= held(rows["low"], rows["high"], truth) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["within", "beyond"])
@pytest.mark.parametrize("truth", [0.05, 0.2])
def test_intervals_of_bounded_claims_hold_the_truth_and_verdicts_at_the_bound_are_rare(
    bound: str, truth: float
) -> None:
    """Where a difference and its opposite are both in reach, the interval of its size holds it more often."""
    rows = judged({"a": truth + simulated(EXPERIMENTS, 5)}, more="a", **{bound: 0.2})
    side = 0.2 - truth if bound == "within" else truth - 0.2
    assert 0.93 <= held(rows["low"], rows["high"], side) <= (0.99 if truth == 0.05 else 0.97)
    if truth == 0.2:
        assert (
            np.mean(rows["status"] == "passed") <= 0.04 and np.mean(rows["status"] == "contradicted") <= 0.04
        )


@pytest.mark.slow
@pytest.mark.parametrize("steep", [0.0, 0.5])
def test_the_interval_of_the_weakest_of_several_holds_the_least_of_them(steep: float) -> None:
    truth = np.linspace(0, steep, 4)
    rows = judged({"a": truth + simulated(EXPERIMENTS, 5, 4)}, more="a", every_rho=True)
    assert 0.93 <= held(rows["low"], rows["high"], 0) <= 0.99
    assert np.mean(rows["status"] == "passed") <= 0.04 and np.mean(rows["status"] == "contradicted") <= 0.04


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_bootstrap_over_few_seeds_is_too_narrow_as_documented(seeds: int) -> None:
    rows = judged({"a": simulated(EXPERIMENTS, seeds)}, Bootstrap(1000), more="a")
    assert (
        {3: 0.68, 5: 0.8, 10: 0.87}[seeds]
        <= held(rows["low"], rows["high"], 0)
        <= {3: 0.8, 5: 0.88, 10: 0.93}[seeds]
    )


def test_win_rates_over_seeds_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    shares = 0.63 + rng.normal(0, 0.03, (EXPERIMENTS, 5, 1))
    rows = judged({"a": rng.binomial(PROMPTS, shares) / PROMPTS}, more="a")
    assert 0.93 <= held(rows["low"], rows["high"], 0.63) <= 0.97


@pytest.mark.parametrize("prompts", [400])
@pytest.mark.parametrize("measure", ["advantage", "tokens", "win", "kl", "equal length"])
def test_the_bootstrap_over_prompts_of_one_seed_holds_the_truth(measure: str, prompts: int) -> None:
    """Prompts are drawn from the committed ones; experiments are columns, under the same draws."""
    cells = committed().xs(0.2, axis=1, level="rho")
    apart = (cells["advantage"]["e-dpo"] - cells["advantage"]["dpo"]).to_numpy()
    longer = (cells["tokens"]["e-dpo"] - cells["baseline_tokens"]["e-dpo"]).to_numpy()
    kl = pd.read_parquet(RESULTS / "kl/cells.parquet").query("policy == 'sample'")["kl"].to_numpy(float)
    known = {
        "advantage": apart, "tokens": cells["tokens"]["e-dpo"].to_numpy(), "kl": kl,
        "win": (np.sign(cells["advantage"]["e-dpo"].to_numpy()) + 1) / 2,
        "equal length": np.stack([apart, longer, longer * apart, longer**2], -1),
    }[measure]  # fmt: skip
    drawn = known[np.random.default_rng(prompts).integers(len(known), size=(prompts, EXPERIMENTS))]
    means = resample_means([drawn.reshape(prompts, -1)], 400, 0)[:, 0].reshape(400, *drawn.shape[1:])
    truth = known.mean(0)
    if measure == "equal length":
        means, truth = at_equal_length(means), at_equal_length(truth)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    assert 0.93 <= held(low, high, truth) <= 0.97


def test_intervals_over_the_prompts_of_these_seeds_hold_their_mean() -> None:
    rng = np.random.default_rng(0)
    of_seeds = [rng.normal(mean, WITHIN, (400, EXPERIMENTS)) for mean in (0.1, 0.3, 0.5)]
    means = resample_means(of_seeds, 400, 0, resample_seeds=False).mean(1)
    assert 0.93 <= held(*np.percentile(means, [2.5, 97.5], axis=0), 0.3) <= 0.97


@pytest.mark.parametrize("pairs", [24, 50, 400])
def test_intervals_of_an_accuracy_hold_the_truth(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    truth = rng.uniform(0.5, 0.97, 4 * EXPERIMENTS)
    found = np.array([wilson(int(hits), pairs) for hits in rng.binomial(pairs, truth)])
    assert 0.93 <= held(found[:, 1], found[:, 2], truth) <= 0.97


@pytest.mark.parametrize("pairs", [50, 400])
def test_intervals_of_the_price_of_a_token_hold_the_truth(pairs: int) -> None:
    """Lengths and margins as held-out pairs have them; the price is in deviations of the reward."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(EXPERIMENTS):
        tokens = np.rint(rng.normal(0, 4, pairs))
        price = price_of_tokens(0.05 * tokens + rng.normal(0, 1, pairs), tokens)
        assert price is not None
        found.append(price)
    truth = 10 * 0.05 / ((0.2**2 + 1) / 2) ** 0.5
    assert 0.93 <= held(*np.array(found).T[1:], truth) <= 0.97


@pytest.mark.slow
def test_intervals_of_a_judges_win_rate_hold_the_truth_also_at_equal_length() -> None:
    rng, prompts, found = np.random.default_rng(0), 100, []
    _, every = next(prompt_weights(rng, np.arange(400), prompts))
    for _ in range(EXPERIMENTS):
        lengths = rng.normal(0, 1, prompts)
        wins = (rng.random(prompts) < 1 / (1 + np.exp(-0.4 - 0.8 * np.tanh(lengths)))).astype(float)
        draws = weighted_means(every, wins[:, None])[:, 0], length_controlled(np.tanh(lengths), wins, every)
        found.append([np.percentile(each, [2.5, 97.5]) for each in draws])
    plain, controlled = np.moveaxis(np.array(found), 1, 0)
    mean = 1 / (1 + np.exp(-0.4 - 0.8 * np.tanh(rng.normal(0, 1, 1_000_000))))
    assert 0.93 <= held(*plain.T, mean.mean()) <= 0.97
    assert 0.93 <= held(*controlled.T, 1 / (1 + np.exp(-0.4))) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_a_comparison_hold_the_truth(seeds: int) -> None:
    """Accuracy on held-out pairs, two for each of 200 prompts: policies are experiments."""
    rng = np.random.default_rng(seeds)
    shares = 0.7 + (seeds > 1) * rng.normal(0, 0.03, (EXPERIMENTS, seeds, 1))
    easy = rng.normal(0, 0.1, (EXPERIMENTS, seeds, 200))
    right = rng.binomial(2, np.clip(shares + easy, 0, 1))
    names = [f"a{number}" for number in range(EXPERIMENTS)]
    index = pd.MultiIndex.from_product(
        [names, range(seeds), range(200)], names=["policy", "seed", "prompt_id"]
    )
    cells = pd.DataFrame({"accuracy": 100.0 * right.ravel(), "pairs": 2.0, "rho": 0.2}, index=index)
    cells = cells.reset_index()
    cells["prompt_id"] = cells["seed"].astype(str) + "-" + cells["prompt_id"].astype(str)
    frame = Frame("held_out", ("accuracy",), cells, pairs=True)
    selection = Selection(names, [0.2], list(range(seeds)))
    rows = pd.DataFrame(_rows(frame, names, selection, "none", Bootstrap(400)))
    assert 0.93 <= held(rows["low"], rows["high"], 70) <= 0.97


def measured(
    experiments: int, seeds: int, prompts: int, sds: tuple[float, float, float], truth: float = 0.0
) -> np.ndarray:
    """A difference on prompts that all seeds have, [experiments, seeds, prompts].

    sds: of a seed, of a prompt in all seeds, and of a prompt in one seed.
    """
    rng = np.random.default_rng(seeds * prompts)
    sizes = ((experiments, seeds, 1), (experiments, 1, prompts), (experiments, seeds, prompts))
    parts = [rng.normal(0, sd, size) for sd, size in zip(sds, sizes, strict=True)]
    return truth + parts[0] + parts[1] + parts[2]


def together(values: np.ndarray) -> np.ndarray:
    """Covariance of the means over prompts of values [seeds, prompts], over draws of prompts."""
    return np.cov(values) / values.shape[1]


def quantiles(freedom: np.ndarray) -> np.ndarray:
    """97.5 percentiles of Student's t, from a table."""
    known = np.geomspace(1, 2000, 100)
    return np.interp(freedom, known, [student_quantile(0.975, each) for each in known])


@pytest.mark.parametrize(
    ("seeds", "prompts", "sds"),
    [
        (3, 50, (0.1, 1.0, 0.5)),
        (10, 50, (0.1, 1.0, 0.5)),
        pytest.param(5, 50, (0.0, 1.0, 1.0), marks=pytest.mark.slow),
        pytest.param(3, 400, (0.1, 1.0, 0.5), marks=pytest.mark.slow),
        pytest.param(3, 50, (0.3, 0.3, 1.0), marks=pytest.mark.slow),
        pytest.param(5, 20, (0.5, 0.1, 0.3), marks=pytest.mark.slow),
    ],
)
def test_intervals_over_seeds_that_share_prompts_hold_the_truth(
    seeds: int, prompts: int, sds: tuple[float, float, float]
) -> None:
    values = measured(2 * EXPERIMENTS, seeds, prompts, sds)
    means = values.mean(2)
    error, freedom = np.array(
        [
            spread_of_seeds_and_prompts(of_seeds, together(each), prompts)
            for of_seeds, each in zip(means, values, strict=True)
        ]
    ).T
    reach = quantiles(freedom) * error
    assert 0.925 <= held(means.mean(1) - reach, means.mean(1) + reach, 0) <= 0.985
    if sds[1] == 1.0 and prompts == 50:  # what the seeds alone would say
        reach = student_quantile(0.975, seeds - 1) * means.std(1, ddof=1) / seeds**0.5
        assert held(means.mean(1) - reach, means.mean(1) + reach, 0) <= 0.88


def test_the_variance_over_seeds_and_prompts_is_that_of_two_way_analysis() -> None:
    (values,) = measured(1, 4, 30, (0.5, 1.0, 0.7))
    means, prompts = values.mean(1), values.mean(0)
    rest = values - means[:, None] - prompts + values.mean()
    of_seeds, of_prompts = means.var(ddof=1) / 4, prompts.var(ddof=1) / 30
    noise = (rest**2).sum() / (3 * 29) / (4 * 30)
    error, freedom = spread_of_seeds_and_prompts(means, together(values), 30)
    total = of_seeds + of_prompts - noise
    assert error**2 == pytest.approx(total)
    doubt = of_seeds**2 / 3 + of_prompts**2 / 29 + noise**2 / (3 * 29)
    assert freedom == pytest.approx(total**2 / doubt)
    for alike in (np.repeat(means[:1], 4), means):  # never below either of the two
        error, freedom = spread_of_seeds_and_prompts(alike, together(values), 30)
        assert error**2 >= max(alike.var(ddof=1) / 4, of_prompts) * (1 - 1e-9) and freedom >= 1


def shared_cells(names: list[str], values: np.ndarray, prompts: list[list[str]]) -> pd.DataFrame:
    """Cells of values [policies, seeds, prompts]; prompts: of each seed."""
    index = pd.MultiIndex.from_product(
        [names, range(values.shape[1]), range(values.shape[2])], names=["policy", "seed", "place"]
    )
    cells = pd.DataFrame({"tokens": values.ravel(), "rho": 0.2}, index=index).reset_index()
    named = [prompts[seed][place] for seed, place in zip(cells["seed"], cells["place"], strict=True)]
    return cells.assign(prompt_id=named)


@pytest.mark.slow
@pytest.mark.parametrize("moved", [0, 20])
def test_a_comparison_over_seeds_holds_the_truth_whether_all_prompts_are_shared_or_some(moved: int) -> None:
    """moved: so many of 40 prompts each seed has for itself. Policies are experiments."""
    seeds, names = 4, [f"a{number}" for number in range(EXPERIMENTS)]
    wide = measured(EXPERIMENTS, seeds, 40 + seeds * moved, (0.1, 1.0, 0.5), 7.0)
    places = [[*range(moved, 40), *range(40 + s * moved, 40 + (s + 1) * moved)] for s in range(seeds)]
    values = np.stack([wide[:, seed, where] for seed, where in enumerate(places)], 1)
    cells = shared_cells(names, values, [[f"p{place:03d}" for place in where] for where in places])
    frame = Frame("evaluation", ("tokens",), cells)
    rows = pd.DataFrame(
        _rows(frame, names, Selection(names, [0.2], list(range(seeds))), "none", Bootstrap(400))
    )
    assert 0.92 <= held(rows["low"], rows["high"], 7.0) <= 0.98


def test_a_claim_over_seeds_that_share_prompts_counts_the_prompts_once() -> None:
    """Seeds agree on a difference that rests on few prompts: t over the seeds would be sure of it."""
    names = ["a", "b"]
    rng = np.random.default_rng(7)
    apart = 0.3 + rng.normal(0, 2, 50) + rng.normal(0, 0.1, (4, 50))
    values = np.stack([apart, np.zeros((4, 50))])
    claims = [Claim(claim="c", more="a", than="b", measure="tokens", primary=True)]
    claims += [claims[0].model_copy(update={"range": True})]
    own = [[f"{seed}-{number:02d}" for number in range(50)] for seed in range(4)]
    axes = Axes(names, [0.2], list(range(4)), ("tokens",))
    (shared, _), (alone, _) = (
        judge(shared_cells(names, values, prompts), axes, claims, Bootstrap(400, 0, student=True))
        for prompts in ([own[0]] * 4, own)
    )
    assert shared["by_seed"] == alone["by_seed"] and shared["difference"] == alone["difference"]
    means = apart.mean(1)
    assert (alone["low"], alone["high"]) == pytest.approx(tuple(t_interval(means))[1:], abs=1e-3)
    wanted = t_interval(means, spread=spread_of_seeds_and_prompts(means, together(apart), 50))
    assert (shared["low"], shared["high"]) == pytest.approx(tuple(wanted)[1:], abs=0.06)
    assert (alone["status"], shared["status"]) == ("contradicted", "not significant")
    assert 0 < alone["p"] < 0.05 < shared["p"] < 1


@pytest.mark.parametrize("prompts", [5, 20])
def test_the_interval_over_few_prompts_of_one_seed_holds_the_truth(prompts: int) -> None:
    rng = np.random.default_rng(prompts)
    values = rng.normal(0, 1, (prompts, EXPERIMENTS))
    draws = resample_means([values], 400, 0)[:, 0]
    means = values.mean(0)
    found = np.array([interval(means[i], draws[:, i], prompts) for i in range(EXPERIMENTS)])
    assert 0.93 <= held(found[:, 1], found[:, 2], 0) <= 0.97


def test_a_share_that_every_draw_finds_whole_is_not_certain() -> None:
    """20 wins of 20, and 400 of 400, where a bootstrap draws nothing else."""
    for count in (20, 400):
        for hits, whole in ((count, 1.0), (0, 100.0)):
            share = whole * hits / count
            found = interval(share, np.full(200, share), count, whole)
            expected = wilson(hits, count)
            assert (found.low, found.high) == pytest.approx((whole * expected.low, whole * expected.high))
            assert found.high - found.low > 0.009 * whole
    assert interval(0.5, np.full(200, 0.5), 400, 1.0)[1:] == (0.5, 0.5)


def test_slopes_of_learning_curves_are_called_flat_or_steep_as_rarely_as_promised_where_neither_is_so() -> (
    None
):
    found = np.array([t_interval(FLAT + values[:, 0]) for values in simulated(EXPERIMENTS, 3, spread=0.05)])
    assert 0.93 <= held(found[:, 1], found[:, 2], FLAT) <= 0.97
    said = verdicts(pd.DataFrame({"slope_low": found[:, 1], "slope_high": found[:, 2]}), {})["plateau"]
    assert 0.93 <= np.mean(said == "not known") <= 0.99
    sure = verdicts(pd.DataFrame({"slope_low": [-0.01, -0.03, 0.01], "slope_high": [0.02, -0.021, 0.03]}), {})
    assert sure["plateau"].tolist() == ["at its plateau", "not at its plateau", "not known"]


@pytest.mark.parametrize("slope", [1.0, -0.5])
def test_the_point_at_which_teachers_break_even_is_held_as_often_as_promised(slope: float) -> None:
    rng, held = np.random.default_rng(11), 0
    for _ in range(EXPERIMENTS):
        known = np.linspace(0.2, 0.9, 8) + rng.normal(0, 0.05, (10, 8))
        own = slope + rng.normal(0, 0.2, (10, 1))
        leads = own * known - slope * 0.7 + rng.normal(0, 0.08, (10, 1)) + rng.normal(0, 0.05, (10, 8))
        found = break_even(known, leads)
        held += found.low <= 0.7 <= found.high
    assert 930 <= held <= 970


def test_where_teachers_break_even_is_where_their_lines_cross_zero_and_unbounded_without_a_slope() -> None:
    known = np.tile([0.2, 0.4, 0.9], (4, 1))
    lifted = np.array([[-0.01], [0.01], [0.02], [-0.02]])
    found = break_even(known, 0.5 * (known - 0.6) + lifted)
    assert found.mean == pytest.approx(0.6)
    reach = student_quantile(0.975, 3) * np.std(lifted, ddof=1) / 2 / 0.5  # all lines are parallel
    assert found[1:] == pytest.approx((0.6 - reach, 0.6 + reach))
    turned = np.array([[1.0], [-1.0], [1.1], [-0.9]])
    assert np.isnan(break_even(known, turned * known - 0.1)[1:]).all()
    with pytest.raises(ValueError, match="without a number"):
        break_even(known, np.full((4, 3), np.nan))
    with pytest.raises(ValueError, match="know the same"):
        break_even(np.full((4, 3), 0.5), known)


def test_a_t_test_rejects_where_the_interval_leaves_out_zero() -> None:
    for values in 0.1 + simulated(300, 5)[..., 0]:
        _, low, high = t_interval(values)
        assert (t_test(values) < 0.05) == (not low <= 0 <= high)
    assert t_test(np.zeros(3)) == 1.0 and t_interval(np.zeros(3)) == (0, 0, 0)


def test_equal_differences_in_all_seeds_are_no_proof() -> None:
    """No spread, as rounded numbers may have none by chance, is no standard error of zero."""
    for value in (1.0, 0.1):
        mean, low, high = t_interval(np.full(3, value))
        assert mean == pytest.approx(value) and np.isnan([low, high, t_test(np.full(3, value))]).all()
    values = {"a": [1.0] * 4, "b": [0.5] * 4}
    claims = [Claim(claim=f"c{i}", more="a", than="b", measure="x", primary=i == 0) for i in range(2)]
    for row in judge(table(values), AXES, claims, STUDENT):
        assert (row["status"], row["p"], row["low"]) == ("not significant", None, None)
        assert row["difference"] == 0.5
    assert t_test(np.ones(3), Spread(0.1, 5.0)) < 0.01


def test_holm_corrects_as_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_among_all_secondary_claims_of_an_experiment_a_verdict_without_a_difference_is_rare() -> None:
    """The claims of information.yaml, whose variants share their rivals: ten seeds, nothing differs."""
    recipe = cast(FigureRecipe, load("miniature/information.yaml").recipe)
    names = [variant.name for variant in recipe.variants]
    sides = [(names.index(str(c.more)), names.index(str(c.than))) for c in recipe.claims if not c.primary]
    means = simulated(50 * EXPERIMENTS, 10, len(names))
    apart = np.stack([means[..., more] - means[..., than] for more, than in sides], -1)
    t = np.abs(apart.mean(1)) / (apart.std(1, ddof=1) / 10**0.5)
    plain, corrected = (
        (t > student_quantile(1 - 0.05 / (2 * number), 9)).any(1) for number in (1, len(sides))
    )
    assert plain.mean() > 0.25 and 0.03 <= corrected.mean() <= 0.05
    for seeds, rejected in zip(apart[:200], corrected, strict=False):
        assert (min(holm([t_test(of_one) for of_one in seeds.T])) < 0.05) == rejected


def table(by_seed: dict[str, list[float]], rho: float = 0.2, prompts: int = 3) -> pd.DataFrame:
    """Cells of which every prompt of a seed has that seed's value."""
    return pd.DataFrame(
        {"policy": name, "rho": rho, "seed": seed, "prompt_id": f"{seed}-{prompt}", "x": value}
        for name, values in by_seed.items()
        for seed, value in enumerate(values)
        for prompt in range(prompts)
    )


AXES = Axes(["a", "b"], [0.2], [0, 1, 2, 3], ("x",))


def test_a_claim_over_seeds_is_a_paired_t_interval() -> None:
    values = {"a": [1.0, 2.0, 3.5, 5.0], "b": [0.5, 1.4, 3.2, 4.1]}
    apart = np.array(values["a"]) - np.array(values["b"])
    (row,) = judge(table(values), AXES, [Claim(claim="c", more="a", than="b", measure="x")], STUDENT)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(t_interval(apart), abs=1e-6)
    assert row["p"] == pytest.approx(t_test(apart), abs=1e-6) and row["passed"]
    curve = summary(table(values), AXES, STUDENT).set_index("policy").loc["a"]
    wanted = t_interval(np.array(values["a"]))
    assert (curve["x"], curve["x_low"], curve["x_high"]) == pytest.approx(wanted, abs=1e-6)


def test_only_the_primary_claim_is_spared_the_correction() -> None:
    values = {"a": [1.0, 0.2, 0.9, 0.5], "b": [0.0, 0.0, 0.0, 0.0]}
    claims = [
        Claim(claim=f"c{number}", more="a", than="b", measure="x", primary=number == 0) for number in range(6)
    ]
    rows = judge(table(values), AXES, claims, STUDENT)
    assert [row["status"] for row in rows] == ["passed"] + ["not significant"] * 5
    assert all(row["low"] > 0 for row in rows) and rows[1]["p"] == pytest.approx(5 * rows[0]["p"], abs=1e-5)


def test_a_claim_above_a_rho_leaves_it_out_and_one_up_to_it_takes_it_in() -> None:
    rhos: list[float | None] = [0.2, 0.5, 0.8]
    values = {"a": [1.0, 2.0, 3.5, 5.0], "b": [0.5, 1.4, 3.2, 4.1]}
    cells = pd.concat([table(values, rho) for rho in (0.2, 0.5, 0.8)])
    for side, wanted in (({"above": 0.5}, ["0.8"]), ({"up_to": 0.5}, ["0.2", "0.5"])):
        claim = Claim(claim="c", more="a", than="b", measure="x", **side)
        rows = judge(cells, AXES._replace(rhos=rhos), [claim], STUDENT)
        assert [row["detail"].split(" at rho ")[1] for row in rows] == wanted


@pytest.mark.parametrize("rival", [[0.4, 0.9, 2.4, 3.6], [1.3, 2.6, 3.8, 5.9]])
def test_the_p_value_of_a_lead_over_each_is_that_of_all_leads_and_of_a_deficit_that_of_any(
    rival: list[float],
) -> None:
    """All leads at once: the largest of them. Any deficit: the smallest, times the number of rivals."""
    values = {"a": [1.0, 2.0, 3.5, 5.0], "b": [0.1, 1.2, 2.9, 4.0], "c": rival}
    claim = Claim(claim="c", more="a", each=["b", "c"], measure="x", primary=True)
    whole, over_b, over_c = judge(table(values), AXES._replace(policies=["a", "b", "c"]), [claim], STUDENT)
    both = [row["p"] for row in (over_b, over_c)]
    assert None not in both and both[0] != pytest.approx(both[1], rel=0.2)
    assert whole["p"] == pytest.approx(max(both) if over_c["difference"] > 0 else 2 * both[1], abs=1e-5)


def test_the_interval_of_the_least_of_several_ends_where_any_of_them_may_end() -> None:
    """Each of two may be the least: their upper ends are taken at 97.5 %."""
    apart = {0.2: [0.1, 0.3, -0.2, 0.4], 0.5: [0.2, 0.1, 0.3, 0.5]}
    cells = pd.concat([table({"a": values, "b": [0.0] * 4}, rho) for rho, values in apart.items()])
    claim = Claim(claim="c", more="a", than="b", measure="x", every_rho=True)
    (row,) = judge(cells, AXES._replace(rhos=[0.2, 0.5]), [claim], STUDENT)
    both = [np.array(values) for values in apart.values()]
    assert row["low"] == pytest.approx(min(t_interval(values).low for values in both), abs=1e-5)
    assert row["high"] == pytest.approx(min(t_interval(values, 0.975).high for values in both), abs=1e-5)


def test_a_seed_that_lacks_a_point_of_either_curve_is_left_out_of_the_difference_of_ranges() -> None:
    whole, holed = np.array([[0.0, 1.0], [0.0, 5.0]]), np.array([[0.0, 0.4], [np.nan, 2.0]])
    for first, second, wanted in ((whole, holed, 0.6), (holed, whole, -0.6)):
        found = range_difference([first, second], [np.stack([x, x]) for x in (first, second)], DRAWN)
        assert found.interval == pytest.approx((wanted,) * 3)


def test_a_bound_holds_where_the_whole_interval_is_within_it() -> None:
    values = {"a": [0.01, -0.02, 0.02, 0.0], "b": [0.0, 0.0, 0.0, 0.0]}
    _, low, high = t_interval(np.array(values["a"]))
    claims = [Claim(claim="c", more="a", than="b", measure="x", within=width) for width in (0.02, 0.5)]
    tight, wide = judge(table(values), AXES, claims, STUDENT)
    assert (tight["status"], wide["status"]) == ("not significant", "passed")
    assert (wide["low"], wide["high"]) == pytest.approx((0.5 - max(-low, high), 0.5), abs=1e-6)


def test_one_seed_has_the_bootstrap_over_prompts_whatever_is_asked() -> None:
    cells = table({"a": [1.0]}).assign(x=[1.0, 2.0, 4.0])
    axes = Axes(["a"], [0.2], [0], ("x",))
    assert summary(cells, axes, STUDENT).equals(summary(cells, axes, STUDENT._replace(student=False)))


@pytest.mark.slow
def test_advantages_in_sd_are_those_of_the_oracle_over_the_spread_of_the_baselines_rewards(
    tiny: Tiny,
) -> None:
    for name, unit in (("raw", "oracle"), ("even", "sd")):
        (tiny.suite / f"{name}.yaml").write_text(
            f"stage: figure\nrhos: [0.5]\nunit: {unit}\nvariants: [{{name: e, recipe: e-dpo.yaml}}]\n"
            "claims: [{claim: more, more: e}]\n"
        )
        tiny.run("figure figure2", f"{name}.yaml", "--allow-missing")
    raw, even = (pd.read_parquet(tiny.root / f"figures/{name}/cells.parquet") for name in ("raw", "even"))
    samples = pd.read_parquet(tiny.root / "seed-0/evaluations/sft/test/samples.parquet")
    spread = samples["reward"].std(ddof=1)
    assert spread != pytest.approx(1, abs=0.01)
    assert even["advantage"].to_numpy() == pytest.approx(
        raw["advantage"].to_numpy() / spread, abs=1e-4 / spread + 1e-4
    )
    meta = [
        json.loads((tiny.root / f"figures/{name}/provenance.json").read_text()) for name in ("raw", "even")
    ]
    assert "unit" not in meta[0] and meta[1]["unit"] == "sd"
