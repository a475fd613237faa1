"""DPO with an SFT term on the chosen response (Pang et al. 2024)."""

from __future__ import annotations

from rpo_cli.objectives.base import Key, Objective, Tensor
from rpo_cli.objectives.dpo import dpo_losses


def nll_losses(chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """SFT term on the chosen response: −log π(y_w) / |y_w|.

    `chosen_logps` [B] summed over tokens, `chosen_lengths` [B] → losses [B], nats per token. `dpo-sft` adds
    sft_weight times this to DPO. Each response counts once: TRL's `sft` averages over the tokens of a
    micro-batch instead, and so changes with how a batch is cut. Source: Pang et al. 2024; Liu et al. 2024 do
    not divide by the length.
    """
    return -chosen_logps / chosen_lengths


DPO_SFT = Objective(
    name="dpo-sft",
    summary="DPO with an SFT term",
    equation="-log sigmoid(beta dh) - sft_weight log pi(y_w) / |y_w|",
    source="Pang et al. 2024",
    loss=lambda pair, beta, sft_weight: (
        dpo_losses(pair.delta_h, beta) + sft_weight * nll_losses(pair.chosen_logps, pair.chosen_lengths)
    ),
    keys=(Key("sft_weight", float, 1.0, "weight of -log pi(chosen) / length", {"ge": 0}),),
)
