"""Distilled pessimistic DPO: one reward model, kept near the reference (Fisch et al. 2025)."""

from __future__ import annotations

from rpo_cli.objectives.base import Objective
from rpo_cli.objectives.d_dpo import D_DPO

DP_DPO = Objective(
    name="dp-dpo",
    summary="d-dpo with a forward KL to the reference",
    equation="(dr - beta dh)^2 + gamma KL",
    source="Fisch et al. 2025",
    loss=D_DPO.loss,
    teacher="one",
    pessimistic=True,
)
