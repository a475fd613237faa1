"""DPO on the labels that a reward model gives the pairs: its probability, or its verdict alone."""

from __future__ import annotations

from typing import Literal

from rpo_cli.objectives.base import Key, Objective, Tensor
from rpo_cli.objectives.dpo import dpo_losses

TeacherLabels = Literal["soft", "argmax"]


def labelled_losses(delta_h: Tensor, delta_r: Tensor, beta: float, teacher_labels: TeacherLabels) -> Tensor:
    """DPO's loss in the mean over a label that the teacher draws: p ℓ(Δh) + (1−p) ℓ(−Δh).

    ℓ(Δh) = −log σ(β Δh); `delta_h`, `delta_r` [B] → losses [B], nats. p is σ(Δr), the teacher's
    probability that y_w is better (`soft`), or 1, ½ and 0 where Δr is positive, 0 and negative
    (`argmax`: DPO on pairs that the teacher relabelled). Soft labels have the minimiser of
    distillation, β Δh = Δr, but no pair pulls with more than β. Raises ValueError when the two do not
    line up. Source: Reward-aware Preference Optimization with the backward KL (Adler et al. 2024,
    Nemotron-4 340B; Sun et al. 2025), which is this less the labels' entropy, which has no gradient.
    """
    if delta_h.dim() != 1 or delta_r.shape != delta_h.shape:
        raise ValueError(f"delta_r {tuple(delta_r.shape)} is not [B] for delta_h {tuple(delta_h.shape)}")
    share = delta_r.sigmoid() if teacher_labels == "soft" else (delta_r.sign() + 1) / 2
    return share * dpo_losses(delta_h, beta) + (1 - share) * dpo_losses(-delta_h, beta)


RM_DPO = Objective(
    name="rm-dpo",
    summary="DPO on one reward model's labels",
    equation="p l(dh) + (1 - p) l(-dh), l = -log sigmoid(beta dh), p = sigmoid(dr) or [dr > 0]",
    source="Adler et al. 2024",
    loss=lambda pair, beta, teacher_labels: labelled_losses(
        pair.delta_h, pair.margins[0], beta, teacher_labels
    ),
    teacher="one",
    keys=(
        Key(
            "teacher_labels",
            TeacherLabels,
            "soft",
            "labels: soft, the reward model's probability that a response is the better one; argmax, the "
            "better one by it",
        ),
    ),
)
