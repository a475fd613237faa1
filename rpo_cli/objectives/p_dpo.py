"""Pessimistic DPO: DPO kept near the reference (Fisch et al. 2025)."""

from __future__ import annotations

from rpo_cli.objectives.base import Objective
from rpo_cli.objectives.dpo import DPO

P_DPO = Objective(
    name="p-dpo",
    summary="DPO with a forward KL to the reference",
    equation="-log sigmoid(beta dh) + gamma KL",
    source="Fisch et al. 2025",
    loss=DPO.loss,
    pessimistic=True,
)
