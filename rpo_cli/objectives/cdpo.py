"""Conservative DPO: targets smoothed for flipped labels (Mitchell 2023)."""

from __future__ import annotations

from rpo_cli.objectives.base import Objective, Tensor
from rpo_cli.objectives.dpo import dpo_losses
from rpo_cli.objectives.robust_dpo import LABEL_SMOOTHING


def cdpo_losses(delta_h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """DPO on labels believed with probability 1 − ε: (1−ε) ℓ(Δh) + ε ℓ(−Δh), ℓ(Δh) = −log σ(β Δh).

    `delta_h` [B] → losses [B], nats; ε = `label_smoothing` in [0, ½). Least where σ(β Δh) = 1 − ε: margins do
    not grow without bound. Source: Mitchell 2023, a note on DPO with noisy preferences. TRL's `sigmoid` no
    longer reads `label_smoothing` (1.16); its `aot` is this loss where a batch is one pair.
    """
    kept, flipped = dpo_losses(delta_h, beta), dpo_losses(-delta_h, beta)
    return (1 - label_smoothing) * kept + label_smoothing * flipped


CDPO = Objective(
    name="cdpo",
    summary="conservative DPO, with smoothed labels",
    equation="(1 - e) l(dh) + e l(-dh), l = -log sigmoid(beta dh), e = label_smoothing",
    source="Mitchell 2023",
    loss=lambda pair, beta, label_smoothing: cdpo_losses(pair.delta_h, beta, label_smoothing),
    keys=(LABEL_SMOOTHING,),
)
