"""What the samples of one evaluated cell say about its policy, with intervals over prompts."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from rpo_cli.statistics import Array, Interval, interval, resample_means

Truncated = Literal["score", "drop"]
COLUMNS = ("prompt_id", "sample", "prompt", "response", "tokens", "finished", "logp", "ref_logp")


def check_samples(samples: pd.DataFrame, name: str) -> None:
    """Refuse a table of samples that cannot be summarised: ValueError naming it and its first bad row.

    Without an oracle there is no column `reward`.
    """
    absent = [column for column in COLUMNS if column not in samples.columns]
    if absent:
        raise ValueError(f"{name}: no column {', '.join(absent)}")
    if samples.empty:
        raise ValueError(f"{name}: no samples")
    for column in (name for name in ("reward", "logp", "ref_logp") if name in samples):
        bad = samples[~np.isfinite(samples[column].to_numpy(np.float64))]
        if len(bad):
            row = bad.iloc[0]
            raise ValueError(
                f"{name}: {column} is {row[column]} for prompt {row['prompt_id']}, sample {row['sample']} "
                f"({len(bad)} of {len(samples)} samples)"
            )
    twice = samples[samples.duplicated(["prompt_id", "sample"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(f"{name}: prompt {row['prompt_id']}, sample {row['sample']} occurs twice")


def per_prompt(samples: pd.DataFrame, truncated: Truncated) -> pd.DataFrame:
    """Means over each prompt's samples: tokens, finished (share), kl, and reward where samples have one.

    Indexed by prompt_id, sorted. kl is logp - ref_logp in nats per response: for samples at temperature 1 and
    top_p 1, an unbiased estimate of KL(pi_theta || pi_ref). With truncated="drop" samples without EOS are
    left out, and so are prompts that have no other.
    """
    if truncated not in ("score", "drop"):
        raise ValueError(f"truncated: must be score or drop, not {truncated!r}")
    kept = samples[samples["finished"].astype(bool)] if truncated == "drop" else samples
    names = [name for name in ("reward", "tokens", "finished") if name in kept]
    table = kept[["prompt_id", *names]].assign(kl=kept["logp"] - kept["ref_logp"])
    return table.astype(dict.fromkeys((*names, "kl"), float)).groupby("prompt_id").mean()


def win_shares(policy: pd.DataFrame, baseline: pd.DataFrame) -> pd.Series:
    """Share of each prompt's pairs (policy sample, baseline sample) that the policy wins; ties count half."""
    columns = ["prompt_id", "reward"]
    pairs = policy[columns].merge(baseline[columns], on="prompt_id", suffixes=("", "_baseline"))
    wins = (np.sign(pairs["reward"] - pairs["reward_baseline"]) + 1) / 2
    return wins.groupby(pairs["prompt_id"]).mean()


def at_equal_length(means: Array) -> Array:
    """Intercept of the least squares line of reward difference d on length difference l.

    means [..., 4]: E[d], E[l], E[l d], E[l l]. The line's slope is cov(l, d) / var(l); without variance in l
    nothing can be controlled for, and the intercept is E[d].
    """
    d, length, product, square = np.moveaxis(means, -1, 0)
    variance = square - length * length
    varies = variance > 1e-9 * (1 + square)
    slope = np.divide(product - length * d, variance, out=np.zeros_like(d), where=varies)
    intercept: Array = d - slope * length
    return intercept


def summarise(
    policy_samples: pd.DataFrame,
    baseline_samples: pd.DataFrame,
    *,
    truncated: Truncated,
    resamples: int,
    seed: int,
) -> dict[str, float]:
    """Advantage of a policy over pi_SFT on the same prompts, and what else its samples tell; pairs by prompt.

    Rewards in oracle units, lengths in tokens with EOS, KL in nats per response; `x`, `x_low`, `x_high` for
    the advantage, tokens, kl_to_reference, length_controlled_advantage (at_equal_length, per-prompt
    differences) and win_rate. One bootstrap over prompts serves all of them. `dropped` counts samples left
    out by truncated="drop", `dropped_prompts` the prompts that therefore lack a pair. Samples without rewards
    (no oracle) leave out what rests on rewards. ValueError: other prompts, missing rewards, nothing left.
    """
    tables = {"policy": policy_samples, "baseline": baseline_samples}
    for name, samples in tables.items():
        check_samples(samples, name)
    _check_same_prompts(policy_samples, baseline_samples)
    policy, baseline = (per_prompt(samples, truncated) for samples in tables.values())
    kept = policy.index.intersection(baseline.index).sort_values()
    if kept.empty:
        raise ValueError("no prompt has a finished sample of both the policy and the baseline")
    policy, baseline = policy.loc[kept], baseline.loc[kept]
    finished = {name: samples["finished"].astype(bool) for name, samples in tables.items()}
    scored = [t[finished[name]] if truncated == "drop" else t for name, t in tables.items()]
    rewarded = all("reward" in samples for samples in tables.values())
    columns = {"tokens": policy["tokens"], "kl_to_reference": policy["kl"]}
    if rewarded:
        reward, length = (policy[name] - baseline[name] for name in ("reward", "tokens"))
        moments = {"length": length, "product": length * reward, "square": length * length}
        columns = {"advantage": reward, **moments, **columns, "win_rate": win_shares(*scored).loc[kept]}
    values = np.column_stack([column.to_numpy(np.float64) for column in columns.values()])
    draws = resample_means([values], resamples, seed)[:, 0]
    means, places = values.mean(0), list(columns)
    told = [name for name in ("advantage", "tokens", "kl_to_reference", "win_rate") if name in columns]
    whole = {"win_rate": 1.0}
    intervals: dict[str, Interval] = {
        name: interval(means[place], draws[:, place], len(kept), whole.get(name))
        for name in told
        for place in [places.index(name)]
    }
    if rewarded:
        controlled = interval(float(at_equal_length(means[:4])), at_equal_length(draws[:, :4]), len(kept))
        intervals["length_controlled_advantage"] = controlled
    out: dict[str, float] = {"prompts": len(kept), "samples": len(policy_samples)}
    for name, value in intervals.items():
        key = "tokens_mean" if name == "tokens" else name
        out |= {key: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
    if rewarded:
        out["reward_mean"] = float(policy["reward"].mean())
        out["baseline_reward_mean"] = float(baseline["reward"].mean())
    out["baseline_tokens_mean"] = float(baseline["tokens"].mean())
    for prefix, name in (("", "policy"), ("baseline_", "baseline")):
        unfinished = int((~finished[name]).sum())
        out[f"{prefix}unfinished_share"] = unfinished / len(tables[name])
        out[f"{prefix}dropped"] = unfinished if truncated == "drop" else 0
    out["dropped_prompts"] = policy_samples["prompt_id"].nunique() - len(kept)
    return out


def _check_same_prompts(policy: pd.DataFrame, baseline: pd.DataFrame) -> None:
    """Refuse samples for other prompts, by id or by text: ValueError naming the first."""
    both, tables = "policy and baseline", (policy, baseline)
    ours, theirs = (t.drop_duplicates("prompt_id").set_index("prompt_id")["prompt"] for t in tables)
    alone = ours.index.symmetric_difference(theirs.index)
    if len(alone):
        raise ValueError(f"{both}: {len(alone)} prompts occur on one side only, such as {alone[0]}")
    other = ours.index[ours != theirs.loc[ours.index]]
    if len(other):
        raise ValueError(f"{both}: {len(other)} prompts have different texts, such as {other[0]}")
