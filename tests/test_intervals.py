"""Intervals and verdicts over few seeds hold what they promise; one unit for oracles of different scales."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import Tiny

from rpo_cli.figures.claims import judge
from rpo_cli.figures.table import Axes, Bootstrap, summary
from rpo_cli.recipes.schema import Claim
from rpo_cli.statistics import holm, student_quantile, t_interval, t_test

# Measured on seeds 21 to 25 of the miniature, in oracle reward: a difference of two policies' advantages
# varies by about so much from seed to seed, and by so much from prompt to prompt.
BETWEEN, WITHIN, PROMPTS = 0.12, 1.5, 1000
STUDENT = Bootstrap(40, 0, student=True)


@pytest.mark.parametrize(
    ("freedom", "wanted"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_quantiles_of_students_t_are_those_of_the_tables(freedom: int, wanted: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(wanted, abs=2e-4)
    assert student_quantile(0.025, freedom) == pytest.approx(-wanted, abs=2e-4)
    assert student_quantile(0.5, freedom) == pytest.approx(0, abs=1e-6)


def simulated(seeds: int, experiments: int, truth: float) -> np.ndarray:
    """Means of each seed [experiments, seeds], at the variances that were measured."""
    rng = np.random.default_rng(seeds)
    return truth + rng.normal(0, np.hypot(BETWEEN, WITHIN / PROMPTS**0.5), (experiments, seeds))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_t_intervals_hold_the_truth_in_93_to_97_of_100_experiments(seeds: int) -> None:
    found = [t_interval(values) for values in simulated(seeds, 4000, 0.3)]
    assert 0.93 <= np.mean([low <= 0.3 <= high for _, low, high in found]) <= 0.97


def test_a_t_test_rejects_where_the_interval_leaves_out_zero() -> None:
    for values in simulated(5, 300, 0.1):
        _, low, high = t_interval(values)
        assert (t_test(values) < 0.05) == (not low <= 0 <= high)
    assert t_test(np.zeros(3)) == 1.0 and t_test(np.ones(3)) == 0.0


def test_holm_corrects_as_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_among_eight_true_nulls_any_verdict_is_as_rare_as_one_alone() -> None:
    tests = np.array([t_test(values) for values in simulated(10, 8000, 0.0)]).reshape(1000, 8)
    any_plain = np.mean((tests < 0.05).any(1))
    any_corrected = np.mean([min(holm(row.tolist())) < 0.05 for row in tests])
    assert any_plain > 0.25 and 0.03 <= any_corrected <= 0.07


def table(by_seed: dict[str, list[float]], rho: float = 0.2, prompts: int = 3) -> pd.DataFrame:
    """Cells of which every prompt of a seed has that seed's value."""
    return pd.DataFrame(
        {"policy": name, "rho": rho, "seed": seed, "prompt_id": f"{seed}-{prompt}", "x": value}
        for name, values in by_seed.items()
        for seed, value in enumerate(values)
        for prompt in range(prompts)
    )


AXES = Axes(["a", "b"], [0.2], [0, 1, 2, 3], ("x",))


@pytest.mark.slow
def test_verdicts_without_a_difference_are_rare_through_the_claims_themselves() -> None:
    claims = [Claim(claim="c", more="a", than="b", measure="x", primary=True)]
    wrong = 0
    for first, second in zip(simulated(4, 1000, 0.0), simulated(40, 1000, 0.0), strict=True):
        cells = table({"a": first.tolist(), "b": second[:4].tolist()}, prompts=1)
        (row,) = judge(cells, AXES, claims, STUDENT._replace(resamples=2))
        wrong += row["status"] != "not significant"
    assert 0.03 <= wrong / 1000 <= 0.07


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
