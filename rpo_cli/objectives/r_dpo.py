"""Length-regularised DPO (Park et al. 2024)."""

from __future__ import annotations

from rpo_cli.objectives.base import Key, Objective, Tensor


def r_dpo_losses(
    delta_h: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, beta: float, length_alpha: float
) -> Tensor:
    """Length-regularised DPO: −log σ(β Δh + α (|y_w| − |y_l|)).

    `delta_h` [B]; lengths [B] in tokens → losses [B], nats. α > 0 charges α in reward units for a token: the
    optimum is DPO's for the reward r − α|y|. The sign follows from that; with a minus the loss would reward
    length. Source: Park et al. 2024.
    """
    from torch.nn.functional import logsigmoid

    # α times whole numbers would be rounded to float32.
    longer = (chosen_lengths - rejected_lengths).to(delta_h.dtype)
    return -logsigmoid(beta * delta_h + length_alpha * longer)


R_DPO = Objective(
    name="r-dpo",
    summary="DPO that charges for length",
    equation="-log sigmoid(beta dh + length_alpha (|y_w| - |y_l|))",
    source="Park et al. 2024",
    loss=lambda pair, beta, length_alpha: r_dpo_losses(
        pair.delta_h, pair.chosen_lengths, pair.rejected_lengths, beta, length_alpha
    ),
    keys=(Key("length_alpha", float, 0.01, "charge for a token, in reward units", {"ge": 0}),),
)
