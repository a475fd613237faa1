"""DPO with an SFT term on the chosen response (Pang et al. 2024)."""

from __future__ import annotations

from torch import Tensor


def nll_losses(chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """SFT term on the chosen response: −log π(y_w) / |y_w|.

    `chosen_logps` [B] summed over tokens, `chosen_lengths` [B] → losses [B], nats per token. `dpo-sft` adds sft_weight
    times this to DPO. Each response counts once: TRL's `sft` averages over the tokens of a micro-batch instead, and so
    changes with how a batch is cut. Source: Pang et al. 2024; Liu et al. 2024 do not divide by the length.
    """
    return -chosen_logps / chosen_lengths
