"""Simple preference optimisation, without a reference (Meng et al. 2024)."""

from __future__ import annotations

from rpo_cli.objectives.base import Key, Objective, Tensor


def simpo_losses(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    simpo_gamma: float,
) -> Tensor:
    """Simple preference optimisation: −log σ(β log π(y_w)/|y_w| − β log π(y_l)/|y_l| − γ); no reference.

    log-probs [B] summed over tokens, lengths [B] → losses [B], nats. γ = `simpo_gamma`, a margin in reward
    units (the weight of the KL is another γ). Source: Meng et al. 2024; TRL's CPOTrainer with loss_type
    `simpo`.
    """
    from torch.nn.functional import logsigmoid

    per_token = chosen_logps / chosen_lengths - rejected_logps / rejected_lengths
    return -logsigmoid(beta * per_token - simpo_gamma)


SIMPO = Objective(
    name="simpo",
    summary="simple preference optimisation, without a reference",
    equation="-log sigmoid(beta log pi(y_w) / |y_w| - beta log pi(y_l) / |y_l| - simpo_gamma)",
    source="Meng et al. 2024",
    loss=lambda pair, beta, simpo_gamma: simpo_losses(
        pair.chosen_logps, pair.rejected_logps, pair.chosen_lengths, pair.rejected_lengths, beta, simpo_gamma
    ),
    grid=(1.0, 2.0, 4.0),
    weight="reward of a nat of mean log-prob; there is no reference; 2 to 2.5 in its paper",
    reference_free=True,
    keys=(Key("simpo_gamma", float, 0.5, "margin, in reward units", {"ge": 0}, start=1.0),),
)
