"""χ²-preference optimisation: pessimism by the divergence that holds the policy (Huang et al. 2024)."""

from __future__ import annotations

from rpo_cli.objectives.base import Key, Objective, Tensor

LARGEST_RATIO = 20.0  # exp of it is 4.9e8 and finite in every dtype that losses are summed in


def chi_po_losses(h_chosen: Tensor, h_rejected: Tensor, beta: float, chi_po_clip: float) -> Tensor:
    """DPO with φ(z) = z + log z of the ratio z = π_θ/π_ref in place of log z: −log σ(clip(β Δφ)).

    `h_chosen`, `h_rejected` [B], log z in nats → losses [B], nats. The policy is held by KL plus χ²: a
    response that becomes many times as likely as under the reference pays in proportion. clip: to
    ±`chi_po_clip`, the paper's 2·R_max, in reward units; outside of it the gradient is 0. exp is taken of
    at most 20 nats. At the reference d(z + log z)/d log z is 2: the first gradient is that of DPO with 2 β.
    Source: Huang et al. 2024, "Correcting the Mythos of KL-Regularization", algorithm 1.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = (h.clamp(max=LARGEST_RATIO).exp() + h for h in (h_chosen, h_rejected))
    return -logsigmoid((beta * (chosen - rejected)).clamp(-chi_po_clip, chi_po_clip))


CHI_PO = Objective(
    name="chi-po",
    summary="chi-squared preference optimisation, pessimistic without a teacher",
    equation="-log sigmoid(clip(beta (phi(y_w) - phi(y_l)))), phi = z + log z, z = pi_theta / pi_ref",
    source="Huang et al. 2024",
    grid=(0.015, 0.05, 0.15),
    weight="at the reference its pull is that of dpo with twice this; smaller strays further from it",
    loss=lambda pair, beta, chi_po_clip: chi_po_losses(pair.h_chosen, pair.h_rejected, beta, chi_po_clip),
    keys=(Key("chi_po_clip", float, 20.0, "bound of the reward margin: 2 R_max", {"gt": 0}),),
)
