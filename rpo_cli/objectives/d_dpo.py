"""Distilled DPO: the policy's implicit reward is fitted to one reward model (Fisch et al. 2025)."""

from __future__ import annotations

from rpo_cli.objectives.base import Objective
from rpo_cli.objectives.distill import distill_losses

D_DPO = Objective(
    name="d-dpo",
    summary="distils one reward model",
    equation="(dr - beta dh)^2",
    source="Fisch et al. 2025",
    loss=lambda pair, beta: distill_losses(pair.delta_h, pair.margins, beta)[0],
    teacher="one",
)
