"""Ensemble DPO: the reward model that is distilled with the least loss (Fisch et al. 2025)."""

from __future__ import annotations

from rpo_cli.objectives.base import Objective
from rpo_cli.objectives.distill import distill_losses

E_DPO = Objective(
    name="e-dpo",
    summary="distils the nearest reward model of an ensemble",
    equation="min over dr of (dr - beta dh)^2 + gamma KL",
    source="Fisch et al. 2025",
    # Of every member, [k, B]; which of them counts is MemberChoice's to say.
    loss=lambda pair, beta: distill_losses(pair.delta_h, pair.margins, beta),
    teacher="ensemble",
    pessimistic=True,
)
