"""Teachers made of an ensemble: the mean of its margins, their lower bound."""

from __future__ import annotations

from torch import Tensor


def mean_margins(delta_r: Tensor) -> Tensor:
    """Mean of the members' margins: `delta_r` [k, B] → [B], reward units. Source: Coste et al. 2024, mean optimisation."""
    return delta_r.mean(0)


def lcb_margins(delta_r: Tensor, lcb_lambda: float) -> Tensor:
    """Mean margin drawn towards 0 by λ standard deviations over the members: sign(m) · max(|m| − λ s, 0).

    `delta_r` [k, B] → [B], reward units; s is the deviation of a population, 0 for one member. The literature's bound
    mean − λ·std is on the reward of one response, which Bradley–Terry leaves open up to a shift for each member and
    prompt, and the deviation with it. Here each response is measured against the other one of its pair, so such shifts
    cancel: the bound of y_w against y_l is m − λs, that of y_l against y_w is −m − λs. If one is positive it is the
    margin; if none is, the members do not say who wins and the margin is 0. (Centred on the pair's mean both responses
    would have the same deviation and nothing would change.) Source: Eisenstein et al. 2024, mean − std, for single rewards (Coste
    et al. 2024 subtract the variance); on pairs ours.
    """
    mean, deviation = delta_r.mean(0), delta_r.std(0, correction=0)
    return mean.sign() * (mean.abs() - lcb_lambda * deviation).clamp(min=0)
