"""What a judge's verdicts say: win rate, also at equal length, position bias, agreement with the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rpo_cli.statistics import Array, interval, prompt_weights, weighted_means

# On theta and phi, on the scale of the summed log-likelihood: a Gaussian prior of standard deviation 10.
RIDGE = 0.01
STEPS = 60
LONGEST_STEP = 2.0
CLASSES = (-1, 0, 1)  # loss, tie, win


def length_feature(differences: Array) -> Array:
    """tanh(d / sd(d)) of length differences d [n], as in AlpacaEval 2; zeros where all lengths are equal."""
    spread = differences.std(ddof=1) if len(differences) > 1 else 0.0
    return np.tanh(differences / spread) if spread > 0 else np.zeros_like(differences)


def fit_win_rate(feature: Array, wins: Array, weights: Array) -> Array:
    """theta and phi [m, 2] of P(win) = sigmoid(theta + phi * feature), each under its own weights [m, n].

    feature, wins: [n], a win in [0, 1]. Maximises sum of weight * log-likelihood - RIDGE / 2 * (theta^2 +
    phi^2) by Newton's method; the ridge keeps the maximum finite where one side always wins. ArithmeticError
    if it is not found.

    This is AlpacaEval 2's regression (Dubois et al., 2024, arXiv 2404.04475, equation 1) for one pair of
    models. Its term for the difficulty of an instruction, which needs the verdicts of many models, is left
    out.
    """
    x = np.column_stack([np.ones_like(feature), feature])
    parameters = np.zeros((len(weights), 2))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(parameters @ x.T)))
        gradient = (weights * (wins - p)) @ x - RIDGE * parameters
        curvature = weights * p * (1 - p)
        a, b, c = (curvature @ column for column in (x[:, 0], x[:, 1], x[:, 1] ** 2))
        a, c = a + RIDGE, c + RIDGE
        step = np.column_stack(
            [c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]]
        )
        step /= (a * c - b * b)[:, None]
        length = np.abs(step).max(1, keepdims=True)
        parameters += step * np.minimum(1.0, LONGEST_STEP / np.maximum(length, 1e-300))
        if length.max(initial=0.0) < 1e-9:
            return parameters
    raise ArithmeticError(f"the length regression did not converge in {STEPS} steps")


def length_controlled(feature: Array, wins: Array, weights: Array) -> Array:
    """Win rate at equal length, sigmoid(theta), for each row of weights: [m]."""
    return np.asarray(1 / (1 + np.exp(-fit_win_rate(feature, wins, weights)[:, 0])))


def kappa(one: Sequence[int], other: Sequence[int]) -> float | None:
    """Cohen's kappa of two raters over loss, tie and win; None where chance alone would agree always."""
    table = np.array(
        [[sum(a == i and b == j for a, b in zip(one, other, strict=True)) for j in CLASSES] for i in CLASSES],
        dtype=float,
    )
    table /= table.sum()
    chance = float(table.sum(0) @ table.sum(1))
    return None if chance > 1 - 1e-12 else (float(np.trace(table)) - chance) / (1 - chance)


def value(verdict: object, position: str) -> float:
    """1 for the response in this position, 0 for the other, 0.5 for a tie, NaN without a verdict.

    No verdict is None or NaN: a column of text may hold either.
    """
    if not isinstance(verdict, str):
        return float("nan")
    return 0.5 if verdict == "tie" else float(verdict == position)


def scored(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The comparisons with `score`, the mean of both orders; NaN where either lacks a verdict."""
    scores = [
        0.5 if same else (value(first, "A") + value(second, "B")) / 2
        for same, first, second in zip(
            comparisons["identical"], comparisons["first"], comparisons["second"], strict=True
        )
    ]
    return comparisons.assign(score=scores)


def judged(comparisons: pd.DataFrame, resamples: int, seed: int) -> dict[str, object]:
    """Metrics of one opponent's comparisons; shares in [0, 1], intervals over prompts.

    comparisons: prompt_id, first, second (verdicts with the policy as A and as B), identical,
    length_difference (characters, policy minus opponent), and oracle (sign of the reward difference, or NaN).
    A comparison's score is the mean of both orders; one that lacks a verdict in either order is left out and
    counted. ValueError: none is left.
    """
    table = scored(comparisons)
    kept = table[table["score"].notna()]
    if kept.empty:
        raise ValueError("no comparison has a verdict in both orders")
    asked = kept[~kept["identical"]]
    outcome = np.sign(kept["score"].to_numpy() - 0.5).astype(int)
    out: dict[str, object] = {
        "comparisons": len(kept),
        "unread": len(table) - len(kept),
        "identical": len(kept) - len(asked),
    }
    out |= {
        name: float((outcome == sign).mean()) for name, sign in (("wins", 1), ("ties", 0), ("losses", -1))
    }

    # One row per prompt: samples of one prompt are not independent.
    by_prompt = kept.groupby("prompt_id")[["score", "length_difference"]].mean()
    wins = by_prompt["score"].to_numpy(np.float64)
    lengths = by_prompt["length_difference"].to_numpy(np.float64)
    feature = length_feature(lengths)
    everyone = np.ones((1, len(wins)))
    rates, controlled = np.empty(resamples), np.empty(resamples)
    for rows, weights in prompt_weights(np.random.default_rng(seed), np.arange(resamples), len(wins)):
        rates[rows] = weighted_means(weights, wins[:, None])[:, 0]
        controlled[rows] = length_controlled(feature, wins, weights)
    theta, phi = fit_win_rate(feature, wins, everyone)[0]
    one_side = np.isin(wins, (0, 1)).all() and wins.std() == 0  # then lengths explain nothing either
    for name, mean, draws in (
        ("win_rate", wins.mean(), rates),
        ("length_controlled_win_rate", 1 / (1 + np.exp(-theta)), rates if one_side else controlled),
    ):
        found = interval(float(mean), draws, len(wins), whole=1.0)
        out |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    out |= {
        "length_coefficient": float(phi),
        "length_difference_mean": float(lengths.mean()),
        "prompts": len(wins),
    }

    # A judge that ignores the position names A and B equally often, and swapping never changes the winner.
    verdicts = pd.concat([asked["first"], asked["second"]])
    decided = verdicts[verdicts != "tie"]
    out["first_position_share"] = float((decided == "A").mean()) if len(decided) else None
    flipped = ((asked["first"] != "tie") & (asked["first"] == asked["second"])).mean()
    out["position_decided_share"] = float(flipped) if len(asked) else None

    with_oracle = kept["oracle"].notna().to_numpy() & ~kept["identical"].to_numpy()
    if with_oracle.any():
        theirs = kept["oracle"].to_numpy()[with_oracle].astype(int)
        ours = outcome[with_oracle]
        both = (ours != 0) & (theirs != 0)
        out["oracle_agreement"] = float((ours == theirs).mean())
        out["oracle_kappa"] = kappa(ours.tolist(), theirs.tolist())
        out["oracle_agreement_decided"] = float((ours == theirs)[both].mean()) if both.any() else None
    return out
