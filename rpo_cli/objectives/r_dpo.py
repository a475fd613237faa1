"""Length-regularised DPO (Park et al. 2024)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def r_dpo_losses(
    delta_h: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, beta: float, length_alpha: float
) -> Tensor:
    """Length-regularised DPO: −log σ(β Δh + α (|y_w| − |y_l|)).

    `delta_h` [B]; lengths [B] in tokens → losses [B], nats. α > 0 charges α in reward units for a token: the optimum is
    DPO's for the reward r − α|y|. The sign follows from that; with a minus the loss would reward length.
    Source: Park et al. 2024.
    """
    longer = (chosen_lengths - rejected_lengths).to(
        delta_h.dtype
    )  # α times whole numbers would be rounded to float32
    return -F.logsigmoid(beta * delta_h + length_alpha * longer)
