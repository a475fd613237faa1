"""Properties of the bootstrap and of the summary of one evaluated cell."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rpo_cli.stages.summary import at_equal_length, per_prompt, summarise
from rpo_cli.statistics import Array, Interval, interval, resample_means

OPTIONS = {"truncated": "score", "resamples": 500, "seed": 0}


def made_samples(
    rewards: Array, tokens: Array | None = None, finished: Array | None = None, kl: float = 0.5
) -> pd.DataFrame:
    """Samples with the given rewards [prompts, samples per prompt]."""
    prompts, each = rewards.shape
    size = prompts * each
    ids = [f"p{i:04d}" for i in np.repeat(np.arange(prompts), each)]
    return pd.DataFrame(
        {
            "prompt_id": ids,
            "sample": np.tile(np.arange(each), prompts),
            "prompt": [f"text of {name}" for name in ids],
            "response": "r",
            "tokens": np.full(size, 5) if tokens is None else tokens.ravel(),
            "finished": np.full(size, True) if finished is None else finished.ravel(),
            "reward": rewards.ravel(),
            "logp": np.full(size, -3.0 + kl),
            "ref_logp": np.full(size, -3.0),
        }
    )


def coverage(same_prompts: bool) -> float:
    """How often the interval holds the true mean 0 of three seeds, in 300 simulated experiments."""
    rng, hits = np.random.default_rng(1), 0
    for trial in range(300):
        common = 2 * rng.normal(size=(120, 1))
        per_seed = [common + rng.normal(size=(120, 1)) for _ in range(3)]
        draws = resample_means(per_seed, 300, trial, same_prompts=same_prompts)
        found = interval(0.0, draws[:, :, 0].mean(1))
        hits += found.low <= 0 <= found.high
    return hits / 300


def over_prompts(values: Array) -> Interval:
    """The interval over prompts of the mean of values [n]."""
    return interval(float(values.mean()), resample_means([values[:, None]], 1000, 0)[:, 0, 0])


def test_luck_of_prompts_shared_by_all_seeds_does_not_average_out() -> None:
    """Drawn apart in each seed, prompts that are easy in every seed would make the interval too short."""
    assert coverage(same_prompts=True) >= 0.91
    assert coverage(same_prompts=False) <= 0.88


def test_seeds_that_differ_widen_the_interval_and_fixed_seeds_do_not() -> None:
    per_seed = [np.random.default_rng(s).normal(loc=s, size=(200, 1)) for s in range(3)]
    both = resample_means(per_seed, 400, 0)[:, :, 0].mean(1)
    prompts = resample_means(per_seed, 400, 0, resample_seeds=False)[:, :, 0].mean(1)
    assert both.std() > 5 * prompts.std()
    assert prompts.std() == pytest.approx(1 / np.sqrt(600), rel=0.15)


def test_memory_limit_does_not_change_the_kind_of_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=300)
    whole = over_prompts(values)
    monkeypatch.setattr("rpo_cli.statistics.COUNTS_AT_A_TIME", 301)
    assert over_prompts(values) == pytest.approx(whole, abs=0.03)


def test_columns_share_their_draws_so_comparisons_are_paired() -> None:
    values = np.random.default_rng(0).normal(size=(100, 1))
    draws = resample_means([np.hstack([values, values + 1])], 50, 0)[:, 0]
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 1, atol=1e-12)


def test_prompts_without_a_value_weigh_nothing() -> None:
    values = np.array([[1.0, np.nan], [1.0, 2.0], [1.0, 2.0], [1.0, np.nan]])
    draws = resample_means([values], 100, 0)[:, 0]
    assert set(np.unique(draws[:, 0])) == {1.0}
    assert set(np.unique(draws[np.isfinite(draws[:, 1]), 1])) == {2.0}


def test_pairing_by_prompt_removes_the_variance_prompts_have_in_common() -> None:
    rng = np.random.default_rng(0)
    hard = 5 * rng.normal(size=(200, 1))
    policy, baseline = made_samples(hard + 0.3 + 0.1 * rng.normal(size=(200, 2))), made_samples(hard)
    result = summarise(policy, baseline.sample(frac=1, random_state=0), **OPTIONS)  # type: ignore[arg-type]
    assert 0.28 < result["advantage_low"] < result["advantage"] < result["advantage_high"] < 0.32
    unpaired = over_prompts(policy["reward"].to_numpy())
    assert unpaired.high - unpaired.low > 20 * (result["advantage_high"] - result["advantage_low"])
    assert result["reward_mean"] - result["baseline_reward_mean"] == pytest.approx(result["advantage"])


def test_length_control_recovers_a_planted_effect() -> None:
    """Policy writes 4 tokens more on average, each worth 0.5, and is 0.7 better at equal length."""
    rng = np.random.default_rng(0)
    gap = rng.integers(0, 9, size=(400, 1)).astype(float)
    policy = made_samples(0.7 + 0.5 * gap + 0.2 * rng.normal(size=(400, 1)), tokens=5 + gap)
    result = summarise(policy, made_samples(np.zeros((400, 1))), **OPTIONS)  # type: ignore[arg-type]
    assert result["advantage"] == pytest.approx(2.7, abs=0.2)
    assert result["length_controlled_advantage_low"] < 0.7 < result["length_controlled_advantage_high"]
    assert result["length_controlled_advantage"] == pytest.approx(0.7, abs=0.05)


def test_length_control_agrees_with_numpy_and_equals_the_advantage_without_variance_in_length() -> None:
    rng = np.random.default_rng(0)
    d, gap = rng.normal(size=30), rng.normal(size=30)
    moments = np.array([d.mean(), gap.mean(), (gap * d).mean(), (gap * gap).mean()])
    assert at_equal_length(moments) == pytest.approx(np.polyfit(gap, d, 1)[1])
    rewards = rng.normal(size=(30, 1))
    policy = made_samples(rewards + 1, tokens=np.full((30, 1), 9))
    result = summarise(policy, made_samples(rewards), **OPTIONS)  # type: ignore[arg-type]
    for end in ("", "_low", "_high"):
        assert result["length_controlled_advantage" + end] == pytest.approx(result["advantage" + end])


def test_win_rate_compares_every_pair_of_samples_and_halves_ties() -> None:
    policy = made_samples(np.array([[1.0, 0.0], [2.0, 2.0]]))
    baseline = made_samples(np.array([[0.0, 0.0], [1.0, 1.0]]))
    result = summarise(policy, baseline, **OPTIONS)  # type: ignore[arg-type]
    assert result["win_rate"] == pytest.approx((0.75 + 1.0) / 2)


def test_a_policy_compared_with_itself_gains_nothing() -> None:
    samples = made_samples(np.random.default_rng(0).normal(size=(20, 1)), kl=0.0)
    result = summarise(samples, samples, **OPTIONS)  # type: ignore[arg-type]
    assert result["advantage"] == result["advantage_low"] == result["advantage_high"] == 0
    assert result["win_rate"] == 0.5 and result["kl_to_reference"] == 0


def test_unfinished_samples_are_scored_or_dropped_and_always_counted() -> None:
    rewards = np.array([[1.0, 9.0], [3.0, 5.0], [9.0, 9.0]])
    policy = made_samples(rewards, finished=np.array([[True, False], [True, True], [False, False]]))
    baseline = made_samples(np.zeros((3, 2)))
    assert per_prompt(policy, "score")["reward"].tolist() == [5, 4, 9]
    assert per_prompt(policy, "score")["finished"].tolist() == [0.5, 1, 0]
    assert per_prompt(policy, "drop")["reward"].tolist() == [1, 4]
    scored = summarise(policy, baseline, truncated="score", resamples=50, seed=0)
    dropped = summarise(policy, baseline, truncated="drop", resamples=50, seed=0)
    assert scored["unfinished_share"] == dropped["unfinished_share"] == 0.5
    assert (scored["dropped"], scored["dropped_prompts"], scored["advantage"]) == (0, 0, 6)
    assert (dropped["dropped"], dropped["dropped_prompts"], dropped["advantage"]) == (3, 1, 2.5)


def test_what_cannot_be_summarised_is_refused_by_name() -> None:
    samples = made_samples(np.zeros((4, 1)))
    broken = samples.assign(reward=[0.0, np.nan, 0.0, 0.0])
    none_finished = samples.assign(finished=False)
    for policy, baseline, message in (
        (broken, samples, "policy: reward is nan for prompt p0001, sample 0 .1 of 4"),
        (samples, samples.iloc[:0], "baseline: no samples"),
        (samples.drop(columns="logp"), samples, "policy: no column logp"),
        (samples, samples.iloc[:3], "1 prompts occur on one side only, such as p0003"),
        (samples, samples.assign(prompt="other"), "4 prompts have different texts, such as p0000"),
        (pd.concat([samples, samples]), samples, "prompt p0000, sample 0 occurs twice"),
        (none_finished, samples, "no prompt has a finished sample"),
    ):
        with pytest.raises(ValueError, match=message):
            summarise(policy, baseline, truncated="drop", resamples=10, seed=0)
    with pytest.raises(ValueError, match="no prompts"):
        resample_means([np.empty((0, 1))], 10, 0)
    with pytest.raises(ValueError, match="resamples"):
        resample_means([np.ones((3, 1))], 0, 0)
    with pytest.raises(ValueError, match="score or drop"):
        per_prompt(samples, "keep")  # type: ignore[arg-type]


def test_the_seed_of_a_summary_draws_its_intervals_and_nothing_else() -> None:
    policy, baseline = (made_samples(np.random.default_rng(s).normal(size=(40, 2))) for s in (0, 1))
    one, again, other = (summarise(policy, baseline, **OPTIONS | {"seed": seed}) for seed in (3, 3, 4))
    assert one == again and one["advantage"] == other["advantage"]
    assert one["advantage_low"] != other["advantage_low"]
