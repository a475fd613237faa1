"""Identity preference optimization (Azar et al. 2023), on summed log-ratios or, as in TRL, on mean ones."""

from __future__ import annotations

from torch import Tensor


def ipo_losses(delta_h: Tensor, tau: float) -> Tensor:
    """Identity preference optimization: (Δh − 1/(2τ))².

    `delta_h` [B] → losses [B], nats². For `ipo` pass summed log-ratios; for `ipo-norm` (TRL's `ipo`) pass the
    difference of log-ratios each divided by its own response length. Source: Azar et al. 2023, eq. 17.
    """
    return (delta_h - 1 / (2 * tau)) ** 2
