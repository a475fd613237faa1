"""Losses, ensemble reductions, KL estimators and calibration as pure tensor functions.

Equations are those of "Robust Preference Optimization through Reward Model Distillation" (Fisch et al., TMLR 2025)
unless another source is named. Throughout: B pairs, k reward models, T response tokens, V vocabulary entries;
h(y) = log π_θ(y|x) − log π_ref(y|x) in nats, summed over the response's tokens, EOS included;
delta_h = h(y_w) − h(y_l); delta_r = r(x, y_w) − r(x, y_l) in raw Bradley–Terry logits.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EnsembleScope = Literal["example", "batch", "dataset"]
KlCoefficient = Literal["gamma", "gamma_beta"]


# ── Losses of a pair ────────────────────────────────────────────────────────────────────────────────────────────────


def dpo_losses(delta_h: Tensor, beta: float) -> Tensor:
    """Direct preference optimization: −log σ(β Δh).

    `delta_h` [B] → losses [B], nats. Finite for every finite β Δh. Source: Rafailov et al. 2023, eq. 7.
    """
    return -F.logsigmoid(beta * delta_h)


def ipo_losses(delta_h: Tensor, tau: float) -> Tensor:
    """Identity preference optimization: (Δh − 1/(2τ))².

    `delta_h` [B] → losses [B], nats². For `ipo` pass summed log-ratios; for `ipo-norm` (TRL's `ipo`) pass the
    difference of log-ratios each divided by its own response length. Source: Azar et al. 2023, eq. 17.
    """
    return (delta_h - 1 / (2 * tau)) ** 2


def distill_losses(delta_h: Tensor, delta_r: Tensor, beta: float) -> Tensor:
    """Reward model distillation: (Δr − β Δh)², the d-DPO loss of every reward model in `delta_r`.

    `delta_h` [B], `delta_r` [k, B] or [B] → losses of `delta_r`'s shape, in squared reward units. Raises ValueError
    when the pairs of the two do not line up. Source: L_distill.
    """
    if delta_h.dim() != 1 or delta_r.shape[-1:] != delta_h.shape:
        # [B, 1] against [B] would broadcast to [B, B] and train on rewards of other pairs.
        raise ValueError(f"delta_r {tuple(delta_r.shape)} is not [k, B] or [B] for delta_h {tuple(delta_h.shape)}")
    # Not divided by β²: reward units fix the weight of the KL term relative to this one.
    return (delta_r - beta * delta_h) ** 2


# ── Rivals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def r_dpo_losses(delta_h: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, beta: float, length_alpha: float) -> Tensor:
    """Length-regularised DPO: −log σ(β Δh + α (|y_w| − |y_l|)).

    `delta_h` [B]; lengths [B] in tokens → losses [B], nats. α > 0 charges α in reward units for a token: the optimum is
    DPO's for the reward r − α|y|. The sign follows from that; with a minus the loss would reward length.
    Source: Park et al. 2024.
    """
    longer = (chosen_lengths - rejected_lengths).to(delta_h.dtype)  # α times whole numbers would be rounded to float32
    return -F.logsigmoid(beta * delta_h + length_alpha * longer)


def nll_losses(chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """SFT term on the chosen response: −log π(y_w) / |y_w|.

    `chosen_logps` [B] summed over tokens, `chosen_lengths` [B] → losses [B], nats per token. `dpo-sft` adds sft_weight
    times this to DPO. Each response counts once: TRL's `sft` averages over the tokens of a micro-batch instead, and so
    changes with how a batch is cut. Source: Pang et al. 2024; Liu et al. 2024 do not divide by the length.
    """
    return -chosen_logps / chosen_lengths


def robust_dpo_losses(delta_h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """DPO unbiased under labels flipped with probability ε: [(1−ε) ℓ(Δh) − ε ℓ(−Δh)] / (1−2ε), ℓ(Δh) = −log σ(β Δh).

    `delta_h` [B] → losses [B], nats; ε = `label_smoothing` in [0, ½). Falls without bound as Δh grows when ε > 0.
    Source: Chowdhury et al. 2024; TRL's `robust`.
    """
    kept, flipped = dpo_losses(delta_h, beta), dpo_losses(-delta_h, beta)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def simpo_losses(
    chosen_logps: Tensor, rejected_logps: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, beta: float, simpo_gamma: float
) -> Tensor:
    """Simple preference optimisation: −log σ(β log π(y_w)/|y_w| − β log π(y_l)/|y_l| − γ); no reference.

    log-probs [B] summed over tokens, lengths [B] → losses [B], nats. γ = `simpo_gamma`, a margin in reward units (the
    weight of the KL is another γ). Source: Meng et al. 2024; TRL's CPOTrainer with loss_type `simpo`.
    """
    return -F.logsigmoid(beta * (chosen_logps / chosen_lengths - rejected_logps / rejected_lengths) - simpo_gamma)


# ── Teachers made of an ensemble ────────────────────────────────────────────────────────────────────────────────────


def mean_margins(delta_r: Tensor) -> Tensor:
    """Mean of the members' margins: `delta_r` [k, B] → [B], reward units. Source: Coste et al. 2024, mean optimisation."""
    return delta_r.mean(0)


def lcb_margins(delta_r: Tensor, lcb_lambda: float) -> Tensor:
    """Mean margin drawn towards 0 by λ standard deviations over the members: sign(m) · max(|m| − λ s, 0).

    `delta_r` [k, B] → [B], reward units; s is the deviation of a population, 0 for one member. The literature's bound
    mean − λ·std is on the reward of one response, which Bradley–Terry leaves open up to a shift for each member and
    prompt, and the deviation with it. Here each response is measured against the other one of its pair, so such shifts
    cancel: the bound of y_w against y_l is m − λs, that of y_l against y_w is −m − λs. If one is positive it is the
    margin; if none is, the members do not say who wins and the margin is 0. (Centred on the pair's mean both responses
    would have the same deviation and nothing would change.) Source: Eisenstein et al. 2024, mean − std, for single rewards (Coste
    et al. 2024 subtract the variance); on pairs ours.
    """
    mean, deviation = delta_r.mean(0), delta_r.std(0, correction=0)
    return mean.sign() * (mean.abs() - lcb_lambda * deviation).clamp(min=0)


# ── min_i over the ensemble (e-DPO) ─────────────────────────────────────────────────────────────────────────────────


def select_member(member_losses: Tensor) -> Tensor:
    """Index of the member with the least loss; the first of equals.

    `member_losses` [k] → index, a 0-dimensional int64 tensor that carries no gradient. Source: e-DPO, the min.
    """
    return member_losses.argmin()


def ensemble_losses(
    losses: Tensor,
    scope: EnsembleScope,
    *,
    choice: Tensor | int | None = None,
) -> tuple[Tensor, Tensor]:
    """The losses that e-DPO's min_i keeps, and the member it chose for every pair.

    `losses` [k, B] → (losses [B], chosen [B] int64). `example`: each pair takes its own least member. `batch`,
    `dataset`: every pair takes member `choice`, decided over the whole optimiser batch or by `MemberEma`. Without
    `choice`, `batch` decides over `losses`, which is right only when they *are* the whole optimiser batch. Raises
    ValueError when `dataset` has no choice or `example` has one. Source: e-DPO; the paper's min is outside the
    expectation (`dataset`).
    """
    if scope == "example":
        if choice is not None:
            raise ValueError("scope 'example' lets every pair choose its member: pass no choice")
        chosen = losses.argmin(0)
    else:
        if choice is None:
            if scope == "dataset":
                raise ValueError("scope 'dataset' needs the member chosen over the data set: pass choice")
            # A min per micro-batch would change with micro-batch size, accumulation and world size.
            choice = select_member(losses.mean(1))
        chosen = torch.as_tensor(choice, device=losses.device).expand(losses.shape[1])
    # gather, because losses[choice] with a 0-dimensional tensor reads the index back to the host.
    return losses.gather(0, chosen.unsqueeze(0)).squeeze(0), chosen


class MemberEma:
    """Exponential moving average of every member's data-set loss, which decides the `dataset` scope.

    `losses` [k] float64, squared reward units, per optimiser step decay·old + (1 − decay)·batch. They stay on the device
    of the batches: neither an update nor a choice is read back to the host. Source: ours; the paper does not say how the
    min over the data set is followed during training.
    """

    def __init__(self, losses: Tensor, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        self.losses = losses.double()
        self.decay = decay

    @classmethod
    def from_rewards(cls, delta_r: Tensor, decay: float) -> "MemberEma":
        """The average at step 0: exact losses over the data set, since Δh = 0 makes them E[Δr²].

        `delta_r` [k, N] over the whole training set. Raises ValueError for another shape, a margin that is not finite (the
        average would never forget it) or a decay outside [0, 1).
        """
        if delta_r.dim() != 2 or delta_r.shape[1] == 0:
            raise ValueError(f"delta_r must be [members, pairs] with at least one pair, not {tuple(delta_r.shape)}")
        if not bool(delta_r.isfinite().all()):
            raise ValueError("delta_r must be finite")
        return cls(delta_r.double().square().mean(1), decay)

    def update(self, batch_losses: Tensor) -> None:
        """Moves the average towards `batch_losses` [k], the members' means over one whole optimiser batch.

        Raises ValueError when their number is not k. That they are finite cannot be asked without waiting for the device:
        with finite margins they are whenever the policy's log-probs are, and so the loss that is logged.
        """
        if batch_losses.shape != self.losses.shape:
            raise ValueError(f"expected {len(self.losses)} member losses, got {tuple(batch_losses.shape)}")
        old = self.losses.to(batch_losses.device)
        self.losses = self.decay * old + (1 - self.decay) * batch_losses.double()

    def choice(self) -> Tensor:
        """Index of the member with the least average, as `select_member` gives it."""
        return select_member(self.losses)

    def state_dict(self) -> dict[str, list[float]]:
        """What a checkpoint must hold; the decay belongs to the recipe."""
        return {"losses": self.losses.tolist()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restores `state_dict`. Raises ValueError when it was made by another number of members."""
        if len(state["losses"]) != len(self.losses):
            raise ValueError(f"the checkpoint has {len(state['losses'])} members, this run {len(self.losses)}")
        self.losses = torch.tensor(state["losses"], dtype=torch.float64)


# ── γ·KL(π_ref ‖ π_θ) ───────────────────────────────────────────────────────────────────────────────────────────────


def gamma_at(step: int, total_steps: int, gamma: float, gamma_end: float | None) -> float:
    """γ of an optimiser step: linear from `gamma` at step 0 to `gamma_end` at the last step, total_steps − 1.

    Constant when `gamma_end` is None; stays at `gamma_end` beyond the last step. Source: the paper anneals 1e-4 → 1e-2.
    """
    if gamma_end is None:
        return gamma
    done = min(step / max(total_steps - 1, 1), 1.0)
    return (1 - done) * gamma + done * gamma_end


def kl_weight(gamma: float, beta: float, kl_coefficient: KlCoefficient) -> float:
    """Factor of KL(π_ref ‖ π_θ) beside the loss in reward units: γ, or α = γβ.

    Source: the paper writes γ = α/β in the objectives, Theorem 2 carries β·KL; which one it ran is unknown.
    """
    return gamma * beta if kl_coefficient == "gamma_beta" else gamma


def kl_full(policy_logits: Tensor, ref_logits: Tensor, mask: Tensor) -> Tensor:
    """KL(π_ref ‖ π_θ) along samples of π_ref, exact at every position: Σ_t Σ_v π_ref(v|t) [log π_ref − log π_θ](v|t).

    `policy_logits`, `ref_logits` [B, T, V], finite; `mask` [B, T], true where logits predict a response token → [B],
    nats, a sum over tokens. Its mean is an unbiased KL only over responses drawn from π_ref; at π_θ = π_ref
    the value is 0 and the gradient 0 up to rounding, sample by sample. Source: chain rule of the KL; estimator `full`.
    """
    policy = _at_least_float32(policy_logits).log_softmax(-1)
    ref = _at_least_float32(ref_logits).log_softmax(-1)
    per_position = (ref.exp() * (ref - policy)).sum(-1)
    return per_position.masked_fill(~mask.bool(), 0).sum(-1)


def kl_sample(policy_logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Log-ratio estimator of KL(π_ref ‖ π_θ): log π_ref(y) − log π_θ(y).

    `policy_logps`, `ref_logps` [B], summed over tokens → [B], nats; single values may be negative. The gradient is that
    of −log π_θ(y); the constant log π_ref(y) makes the mean a KL. Estimator `sample`: y drawn from π_ref, unbiased but
    noisier than `kl_full`. Estimator `data`: the same function on the data set's own responses, free of sampling, but
    unbiased only if they came from π_ref; otherwise its mean may be negative and its gradient at π_ref is not 0.
    """
    return ref_logps - policy_logps


def sequence_logps(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x), summed over the response's tokens.

    `logits` [B, T, V]; `tokens`, `mask` [B, T] → [B], nats, float32 or wider. Position t's logits predict tokens[t]:
    the caller shifts. Where the mask is false the tokens may be anything (−100, pad).
    """
    outside = ~mask.bool()
    logps = _at_least_float32(logits).log_softmax(-1)
    picked = logps.gather(-1, tokens.masked_fill(outside, 0).unsqueeze(-1)).squeeze(-1)
    return picked.masked_fill(outside, 0).sum(-1)


def token_logps(logits: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    """log π of single tokens: the log-softmax at `positions` of `tokens`.

    `logits` [B, S, V]; `tokens`, `positions` [B, T] int64, positions in [0, S), one position may predict several tokens
    (responses that share a prompt) → [B, T], nats, float32 or wider. The terms of `sequence_logps`, with no copy of the
    logits but their gradient; differentiable once.
    """
    values: Tensor = _TokenLogps.apply(logits, tokens, positions)  # type: ignore[no-untyped-call]
    return values


class _TokenLogps(torch.autograd.Function):
    """A log-softmax of which only some entries are wanted, piece by piece: autograd's own keeps it whole, in float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        flat = logits.reshape(-1, logits.shape[-1])
        totals = torch.cat([_at_least_float32(piece).logsumexp(-1) for piece in torch.split(flat, _rows_of(flat))]).view(logits.shape[:2])
        ctx.save_for_backward(logits, totals, tokens, positions)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        return logits[rows, positions, tokens].to(totals.dtype) - totals.gather(1, positions)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, totals, tokens, positions = ctx.saved_tensors
        wanted = torch.zeros_like(totals).scatter_add_(1, positions, grads[0]).view(-1, 1)
        result = torch.empty_like(logits, memory_format=torch.contiguous_format)
        flat, into, totals = logits.reshape(-1, logits.shape[-1]), result.view(-1, logits.shape[-1]), totals.view(-1, 1)
        size = _rows_of(flat)
        for start in range(0, len(flat), size):
            part = slice(start, start + size)
            into[part] = (_at_least_float32(flat[part]) - totals[part]).exp_().mul_(-wanted[part])
        rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
        result.index_put_((rows, positions, tokens), grads[0].to(result.dtype), accumulate=True)
        return result, None, None


def _rows_of(flat: Tensor) -> int:
    """Rows of a [n, V] tensor in a piece of some 16 MB of float32."""
    return max(1, 2**22 // flat.shape[-1])


def _at_least_float32(logits: Tensor) -> Tensor:
    """bfloat16 log-probabilities lose the differences that Δh consists of; float64 stays float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


# ── Calibration of reward models ────────────────────────────────────────────────────────────────────────────────────


def fit_temperature(delta_r: Tensor, weights: Tensor | None = None) -> float:
    """T > 0 minimising the weighted Bradley–Terry loss mean(−w log σ(Δr / T)) on held-out pairs.

    `delta_r` [n], chosen − rejected, raw logits; `weights` [n] ≥ 0, None for equal. Raises ValueError for unusable
    input and when no finite T > 0 is best: margins against the labels on average, or no margin against them at all.
    Source: Guo et al. 2017, temperature scaling; computed on the CPU in float64.
    """
    margins = delta_r.detach().double().cpu()
    weight = torch.ones_like(margins) if weights is None else weights.detach().double().cpu()
    if margins.dim() != 1 or weight.shape != margins.shape:
        raise ValueError(f"margins {tuple(margins.shape)} and weights {tuple(weight.shape)} must both be [pairs]")
    if not bool(margins.isfinite().all() and weight.isfinite().all() and (weight >= 0).all()):
        raise ValueError("margins must be finite, weights finite and not negative")
    counted = (weight > 0) & (margins != 0)  # the others add a constant to the loss
    if not bool(counted.any()):
        raise ValueError("no held-out pair with a positive weight and a margin other than 0: nothing to calibrate on")
    weight = weight[counted] / weight[counted].sum()
    scale = float(margins[counted].abs().max())
    margins = margins[counted] / scale  # s below is then of the order of 1, whatever the reward's units
    # The loss is convex in s = 1/T: its slope is −½ Σ wΔr at s = 0 and turns positive only if some margin is negative.
    if not float((weight * margins).sum()) > 0:
        raise ValueError("held-out margins disagree with the labels on average: best temperature infinite (1/T = 0)")
    if bool((margins > 0).all()):
        raise ValueError("every held-out pair is ranked correctly (separable), so T → 0 is best: hold out more pairs")
    return scale / _zero_of_slope(margins, weight)


def _zero_of_slope(margins: Tensor, weight: Tensor) -> float:
    """The s > 0 where d/ds Σ −w log σ(s·margin) changes from negative to positive, by Newton inside a bracket."""

    def slope_curvature_noise(s: float) -> tuple[float, float, float]:
        wrong = torch.sigmoid(-s * margins)
        terms = weight * margins * wrong
        curvature = (terms * margins * (1 - wrong)).sum()
        return -float(terms.sum()), float(curvature), 1e-16 * float(terms.abs().sum())

    low, high = 0.0, 1.0
    while slope_curvature_noise(high)[0] < 0:
        low, high = high, 2 * high
    s, last_step = (low + high) / 2, high - low
    for _ in range(200):
        slope, curvature, noise = slope_curvature_noise(s)
        if abs(slope) <= noise:  # rounding decides the sign from here on
            break
        low, high = (s, high) if slope < 0 else (low, s)
        following = s - slope / curvature if curvature > 0 else math.inf
        if abs(following - s) <= 1e-14 * s:
            return following
        # Newton may leave the bracket or creep; half the bracket is always progress.
        if not low < following < high or abs(following - s) > last_step / 2:
            following = (low + high) / 2
        last_step = abs(following - s)
        s = following
    return s


def mix_weights(longer_wins: Tensor, shorter_wins: Tensor, mix: float) -> Tensor:
    """Importance weights under which the longer response wins in a `mix` fraction of the pairs.

    `longer_wins`, `shorter_wins` [n] bool; a pair that is neither is a length tie and gets weight 0 → [n] float64 of
    mean 1 (ties counted), so that mean(weights · loss) is the weighted average. Raises ValueError when a pair is both,
    `mix` is outside [0, 1], or the side that must carry weight has no pair. Source: D_ρ of the length-bias experiment,
    by weights instead of resampling.
    """
    if bool((longer_wins & shorter_wins).any()):
        raise ValueError("a pair is marked both longer_wins and shorter_wins")
    if not 0 <= mix <= 1:
        raise ValueError(f"mix must be in [0, 1], not {mix}")
    weights = torch.zeros(longer_wins.shape, dtype=torch.float64, device=longer_wins.device)
    for name, wins, share in (("longer", longer_wins, mix), ("shorter", shorter_wins, 1 - mix)):
        count = int(wins.sum())
        if share > 0 and count == 0:
            raise ValueError(f"mix {mix} needs pairs in which the {name} response wins: there are none")
        if share > 0:
            weights[wins] = share * len(wins) / count
    return weights
