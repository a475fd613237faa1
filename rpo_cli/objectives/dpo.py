"""Direct preference optimization (Rafailov et al. 2023)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo_losses(delta_h: Tensor, beta: float) -> Tensor:
    """Direct preference optimization: −log σ(β Δh).

    `delta_h` [B] → losses [B], nats. Finite for every finite β Δh. Source: Rafailov et al. 2023, eq. 7.
    """
    return -F.logsigmoid(beta * delta_h)
