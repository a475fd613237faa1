"""Identity preference optimization (Azar et al. 2023), on summed log-ratios or, as in TRL, on mean ones."""

from __future__ import annotations

from rpo_cli.objectives.base import Objective, Pair, Tensor


def ipo_losses(delta_h: Tensor, tau: float) -> Tensor:
    """Identity preference optimization: (Δh − 1/(2τ))².

    `delta_h` [B] → losses [B], nats². For `ipo` pass summed log-ratios; for `ipo-norm` (TRL's `ipo`) pass the
    difference of log-ratios each divided by its own response length. Source: Azar et al. 2023, eq. 17.
    """
    return (delta_h - 1 / (2 * tau)) ** 2


def _per_token(pair: Pair) -> Tensor:
    return pair.h_chosen / pair.chosen_lengths - pair.h_rejected / pair.rejected_lengths


IPO = Objective(
    name="ipo",
    summary="identity preference optimisation",
    equation="(dh - 1 / (2 tau))^2 on summed log-ratios",
    source="Azar et al. 2023",
    loss=lambda pair, tau: ipo_losses(pair.delta_h, tau),
    strength="tau",
    weight="dh is to become 1 / (2 tau): smaller strays further from the reference",
)
IPO_NORM = Objective(
    name="ipo-norm",
    summary="TRL's ipo",
    equation="the same on log-ratios divided by the length",
    source="Azar et al. 2023",
    loss=lambda pair, tau: ipo_losses(_per_token(pair), tau),
    strength="tau",
    grid=(0.1, 0.3, 1.0),
    weight="dh of a token is to become 1 / (2 tau): smaller strays further from the reference",
)
