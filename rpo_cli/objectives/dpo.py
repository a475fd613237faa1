"""Direct preference optimization (Rafailov et al. 2023)."""

from __future__ import annotations

from rpo_cli.objectives.base import Objective, Tensor


def dpo_losses(delta_h: Tensor, beta: float) -> Tensor:
    """Direct preference optimization: −log σ(β Δh).

    `delta_h` [B] → losses [B], nats. Finite for every finite β Δh. Source: Rafailov et al. 2023, eq. 7.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * delta_h)


DPO = Objective(
    name="dpo",
    summary="direct preference optimisation",
    equation="-log sigmoid(beta dh)",
    source="Rafailov et al. 2023",
    loss=lambda pair, beta: dpo_losses(pair.delta_h, beta),
)
