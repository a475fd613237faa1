"""Reward model distillation: the loss of d-dpo, dp-dpo and e-dpo (Fisch et al. 2025)."""

from __future__ import annotations

from rpo_cli.objectives.base import Tensor


def distill_losses(delta_h: Tensor, delta_r: Tensor, beta: float) -> Tensor:
    """Reward model distillation: (Δr − β Δh)², the d-DPO loss of every reward model in `delta_r`.

    `delta_h` [B], `delta_r` [k, B] or [B] → losses of `delta_r`'s shape, in squared reward units. Raises
    ValueError when the pairs of the two do not line up. Source: L_distill.
    """
    if delta_h.dim() != 1 or delta_r.shape[-1:] != delta_h.shape:
        # [B, 1] against [B] would broadcast to [B, B] and train on rewards of other pairs.
        shapes = tuple(delta_r.shape), tuple(delta_h.shape)
        raise ValueError(f"delta_r {shapes[0]} is not [k, B] or [B] for delta_h {shapes[1]}")
    # Not divided by β²: reward units fix the weight of the KL term relative to this one.
    return (delta_r - beta * delta_h) ** 2
