"""DPO that is unbiased under flipped labels (Chowdhury et al. 2024)."""

from __future__ import annotations

from rpo_cli.objectives.base import Key, Objective, Tensor
from rpo_cli.objectives.dpo import dpo_losses

LABEL_SMOOTHING = Key(
    "label_smoothing", float, 0.1, "share of labels assumed to be flipped", {"ge": 0, "lt": 0.5}
)


def robust_dpo_losses(delta_h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """DPO unbiased under labels flipped with probability ε: [(1−ε) ℓ(Δh) − ε ℓ(−Δh)] / (1−2ε).

    ℓ(Δh) = −log σ(β Δh); `delta_h` [B] → losses [B], nats; ε = `label_smoothing` in [0, ½). Falls without
    bound as Δh grows when ε > 0. Source: Chowdhury et al. 2024; TRL's `robust`.
    """
    kept, flipped = dpo_losses(delta_h, beta), dpo_losses(-delta_h, beta)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


ROBUST_DPO = Objective(
    name="robust-dpo",
    summary="DPO unbiased under flipped labels",
    equation="((1 - e) l(dh) - e l(-dh)) / (1 - 2 e), l = -log sigmoid(beta dh), e = label_smoothing",
    source="Chowdhury et al. 2024",
    loss=lambda pair, beta, label_smoothing: robust_dpo_losses(pair.delta_h, beta, label_smoothing),
    keys=(LABEL_SMOOTHING,),
)
