"""Calibration of reward models: the temperature, and the weights under which it is fitted."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fit_temperature(delta_r: Tensor, weights: Tensor | None = None) -> float:
    """T > 0 minimising the weighted Bradley–Terry loss mean(−w log σ(Δr / T)) on held-out pairs.

    `delta_r` [n], chosen − rejected, raw logits; `weights` [n] ≥ 0, None for equal. Raises ValueError for
    unusable input and when no finite T > 0 is best: margins against the labels on average, or no margin
    against them at all. Source: Guo et al. 2017, temperature scaling; computed on the CPU in float64.
    """
    margins = delta_r.detach().double().cpu()
    weight = torch.ones_like(margins) if weights is None else weights.detach().double().cpu()
    if margins.dim() != 1 or weight.shape != margins.shape:
        shapes = f"margins {tuple(margins.shape)} and weights {tuple(weight.shape)}"
        raise ValueError(f"{shapes} must both be [pairs]")
    if not bool(margins.isfinite().all() and weight.isfinite().all() and (weight >= 0).all()):
        raise ValueError("margins must be finite, weights finite and not negative")
    counted = (weight > 0) & (margins != 0)  # the others add a constant to the loss
    if not bool(counted.any()):
        raise ValueError(
            "no held-out pair with a positive weight and a margin other than 0: nothing to calibrate on"
        )
    weight = weight[counted] / weight[counted].sum()
    scale = float(margins[counted].abs().max())
    margins = margins[counted] / scale  # s below is then of the order of 1, whatever the reward's units
    # The loss is convex in s = 1/T: its slope is −½ Σ wΔr at s = 0 and ends positive only if a margin is < 0.
    if not float((weight * margins).sum()) > 0:
        raise ValueError(
            "held-out margins disagree with the labels on average: best temperature infinite (1/T = 0)"
        )
    if bool((margins > 0).all()):
        raise ValueError(
            "every held-out pair is ranked correctly (separable), so T → 0 is best: hold out more pairs"
        )
    return scale / _zero_of_slope(margins, weight)


def _zero_of_slope(margins: Tensor, weight: Tensor) -> float:
    """The s > 0 where d/ds Σ −w log σ(s·margin) turns positive, by Newton inside a bracket."""

    def slope_curvature_noise(s: float) -> tuple[float, float, float]:
        wrong = torch.sigmoid(-s * margins)
        terms = weight * margins * wrong
        curvature = (terms * margins * (1 - wrong)).sum()
        return -float(terms.sum()), float(curvature), 1e-16 * float(terms.abs().sum())

    low, high = 0.0, 1.0
    while slope_curvature_noise(high)[0] < 0:
        low, high = high, 2 * high
    s, last_step = (low + high) / 2, high - low
    for _ in range(200):
        slope, curvature, noise = slope_curvature_noise(s)
        if abs(slope) <= noise:  # rounding decides the sign from here on
            break
        low, high = (s, high) if slope < 0 else (low, s)
        following = s - slope / curvature if curvature > 0 else math.inf
        if abs(following - s) <= 1e-14 * s:
            return following
        # Newton may leave the bracket or creep; half the bracket is always progress.
        if not low < following < high or abs(following - s) > last_step / 2:
            following = (low + high) / 2
        last_step = abs(following - s)
        s = following
    return s


def mix_weights(longer_wins: Tensor, shorter_wins: Tensor, mix: float) -> Tensor:
    """Importance weights under which the longer response wins in a `mix` fraction of the pairs.

    `longer_wins`, `shorter_wins` [n] bool; a pair that is neither is a length tie and gets weight 0 → [n]
    float64 of mean 1 (ties counted), so that mean(weights · loss) is the weighted average. Raises ValueError
    when a pair is both, `mix` is outside [0, 1], or the side that must carry weight has no pair. Source: D_ρ
    of the length-bias experiment, by weights instead of resampling.
    """
    if bool((longer_wins & shorter_wins).any()):
        raise ValueError("a pair is marked both longer_wins and shorter_wins")
    if not 0 <= mix <= 1:
        raise ValueError(f"mix must be in [0, 1], not {mix}")
    weights = torch.zeros(longer_wins.shape, dtype=torch.float64, device=longer_wins.device)
    for name, wins, share in (("longer", longer_wins, mix), ("shorter", shorter_wins, 1 - mix)):
        count = int(wins.sum())
        if share > 0 and count == 0:
            raise ValueError(f"mix {mix} needs pairs in which the {name} response wins: there are none")
        if share > 0:
            weights[wins] = share * len(wins) / count
    return weights
