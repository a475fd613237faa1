"""Simple preference optimisation, without a reference (Meng et al. 2024)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def simpo_losses(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    simpo_gamma: float,
) -> Tensor:
    """Simple preference optimisation: −log σ(β log π(y_w)/|y_w| − β log π(y_l)/|y_l| − γ); no reference.

    log-probs [B] summed over tokens, lengths [B] → losses [B], nats. γ = `simpo_gamma`, a margin in reward units (the
    weight of the KL is another γ). Source: Meng et al. 2024; TRL's CPOTrainer with loss_type `simpo`.
    """
    return -F.logsigmoid(
        beta * (chosen_logps / chosen_lengths - rejected_logps / rejected_lengths) - simpo_gamma
    )
