"""γ·KL(π_ref ‖ π_θ): its schedule, its weight, its estimators."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rpo_cli.objectives.logps import at_least_float32

KlCoefficient = Literal["gamma", "gamma_beta"]


def gamma_at(step: int, total_steps: int, gamma: float, gamma_end: float | None) -> float:
    """γ of an optimiser step: linear from `gamma` at step 0 to `gamma_end` at the last step, total_steps − 1.

    Constant when `gamma_end` is None; stays at `gamma_end` beyond the last step. Source: the paper anneals
    1e-4 → 1e-2.
    """
    if gamma_end is None:
        return gamma
    done = min(step / max(total_steps - 1, 1), 1.0)
    return (1 - done) * gamma + done * gamma_end


def kl_weight(gamma: float, beta: float, kl_coefficient: KlCoefficient) -> float:
    """Factor of KL(π_ref ‖ π_θ) beside the loss in reward units: γ, or α = γβ.

    Source: the paper's objectives add γ·KL with γ = α/β, so as written the factor is `gamma`; `gamma_beta` is
    its α, and Theorem 2 carries β·KL. Which one it ran is unknown.
    """
    return gamma * beta if kl_coefficient == "gamma_beta" else gamma


def kl_full(policy_logits: Tensor, ref_logits: Tensor, mask: Tensor) -> Tensor:
    """KL(π_ref ‖ π_θ) along samples of π_ref, exact at every position.

    Σ_t Σ_v π_ref(v|t) [log π_ref − log π_θ](v|t); `policy_logits`, `ref_logits` [B, T, V], finite; `mask` [B,
    T], true where logits predict a response token → [B], nats, a sum over tokens. Its mean is an unbiased KL
    only over responses drawn from π_ref; at π_θ = π_ref the value is 0 and the gradient 0 up to rounding,
    sample by sample. Source: chain rule of the KL; estimator `full`.
    """
    policy = at_least_float32(policy_logits).log_softmax(-1)
    ref = at_least_float32(ref_logits).log_softmax(-1)
    per_position = (ref.exp() * (ref - policy)).sum(-1)
    return per_position.masked_fill(~mask.bool(), 0).sum(-1)


def kl_sample(policy_logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Log-ratio estimator of KL(π_ref ‖ π_θ): log π_ref(y) − log π_θ(y).

    `policy_logps`, `ref_logps` [B], summed over tokens → [B], nats; single values may be negative. The
    gradient is that of −log π_θ(y); the constant log π_ref(y) makes the mean a KL. Estimator `sample`: y
    drawn from π_ref, unbiased but noisier than `kl_full`. Estimator `data`: the same function on the data
    set's own responses, free of sampling, but unbiased only if they came from π_ref; otherwise its mean may
    be negative and its gradient at π_ref is not 0.
    """
    return ref_logps - policy_logps
