"""The theory of Fisch et al. 2025 as executable statements, through the functions that training runs.

One prompt, a handful of responses, a tabular soft-max policy in float64. Tolerances are what rounding leaves,
so a loss that is only nearly right fails. Two statements need care: the least-KL member of a finite ensemble
is rarely its max–min policy, and descent on the min of e-DPO from π_ref may end with another member than
the least-KL one.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from logps import sequence_logps
from torch import Tensor
from torch.nn.functional import logsigmoid

from rpo_cli.objectives.distill import distill_losses
from rpo_cli.objectives.dpo import dpo_losses
from rpo_cli.objectives.ipo import ipo_losses
from rpo_cli.objectives.kl import kl_full, kl_sample
from rpo_cli.objectives.members import ensemble_losses
from rpo_cli.objectives.rm_dpo import labelled_losses

PAPER_BETAS = [0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0]


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of 6×6 problems: threads only wait for each other (70 s instead of 8 s on two busy cores)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def doubles(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_policy(theta: Tensor) -> Tensor:
    """log π of every response, each a sequence of one token: `theta` [n] logits → [n]."""
    n = theta.numel()
    return sequence_logps(theta.expand(n, 1, n), torch.arange(n).unsqueeze(1), torch.ones(n, 1))


def forward_kl(ref: Tensor, policy: Tensor) -> Tensor:
    """KL(π_ref ‖ π) of two logit vectors [n] → scalar."""
    return kl_full(policy.view(1, 1, -1), ref.view(1, 1, -1), torch.ones(1, 1))[0]


def differences(values: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """values(y_w) − values(y_l): `values` [..., n] → [..., pairs]."""
    winners, losers = map(list, zip(*pairs, strict=True))
    return values[..., winners] - values[..., losers]


def margins(theta: Tensor, ref: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """Δh of every pair: logits [n] → [pairs]."""
    return differences(log_policy(theta) - log_policy(ref), pairs)


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Newton with backtracking, to the floor of float64; flat directions are left alone."""
    gradient_of, hessian_of = torch.func.grad(loss), torch.func.jacrev(torch.func.grad(loss))
    theta = start.clone()
    for _ in range(100):
        gradient, value = gradient_of(theta), loss(theta)
        curvature, axes = torch.linalg.eigh(hessian_of(theta))
        inverse = torch.where(curvature > 1e-13 * curvature.max(), 1 / curvature, 0.0)
        step = -axes @ (inverse * (axes.T @ gradient))
        # Near the minimum values no longer tell points apart, gradients still do.
        if gradient_of(theta + step).norm() < gradient.norm() / 2 and loss(theta + step) <= value + 1e-13:
            theta = theta + step
            continue
        length, slope = 1.0, gradient @ step
        while loss(theta + length * step) > value + 1e-4 * length * slope and length > 1e-6:
            length /= 2
        if length <= 1e-6 or -length * slope < 1e-15 * (1 + value.abs()):
            return theta
        theta = theta + length * step
    raise AssertionError("Newton did not converge")


# ── 1. Theorem 1 ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("beta", PAPER_BETAS)
def test_distillation_on_all_pairs_gives_the_optimal_policy_of_the_reward(beta: float):
    ref, reward, pairs = doubles(6, seed=0), doubles(6, seed=1), list(itertools.combinations(range(6), 2))
    weights = doubles(len(pairs), seed=2).exp()  # any distribution that covers the pairs
    delta_r = differences(reward, pairs)

    def loss(theta: Tensor) -> Tensor:
        return (weights * distill_losses(margins(theta, ref, pairs), delta_r, beta)).mean()

    optimal = log_policy(ref + reward / beta)  # π_ref e^{r/β} / Z
    for start in (ref, 3 * doubles(6, seed=3)):
        found = log_policy(minimise(loss, start))
        torch.testing.assert_close(found.exp(), optimal.exp(), rtol=0, atol=1e-14)
        torch.testing.assert_close(found, optimal, rtol=1e-13, atol=1e-13)  # tails down to e^−300 at β = 0.01


def test_distillation_on_a_spanning_tree_of_pairs_is_enough_for_one_prompt():
    ref, reward, pairs = doubles(6, seed=0), doubles(6, seed=1), [(0, 1), (1, 2), (1, 3), (3, 4), (5, 4)]
    delta_r = differences(reward, pairs)
    found = minimise(lambda theta: distill_losses(margins(theta, ref, pairs), delta_r, 0.5).mean(), ref)
    torch.testing.assert_close(log_policy(found), log_policy(ref + reward / 0.5), rtol=0, atol=1e-13)


# ── 2. and 3. What pairs alone leave open ───────────────────────────────────────────────────────────────────

DISJOINT = [(0, 1), (2, 3)]  # of six responses: 4 and 5 are in no pair


def test_distillation_on_disjoint_pairs_is_solved_while_every_pair_loses_all_its_mass():
    ref, reward, beta = doubles(6, seed=0), doubles(6, seed=1), 0.5
    delta_r, masses = differences(reward, DISJOINT), []
    for drop in (0.0, 1.0, 10.0, 100.0):
        theta = ref + reward / beta
        theta[:4] -= drop
        delta_h = margins(theta, ref, DISJOINT)
        assert distill_losses(delta_h, delta_r, beta).max() < 1e-26
        masses.append(log_policy(theta).exp()[:4])
    for more, less in itertools.pairwise(masses):
        assert (less < more).all()
    assert masses[0].sum() > 0.1 and masses[-1].sum() < 1e-40


def test_distillation_on_disjoint_pairs_lets_one_pair_take_the_mass_of_another():
    ref, reward, beta = doubles(6, seed=0), doubles(6, seed=1), 0.5
    for winner, loser in ((0, 2), (2, 0)):
        theta = ref + reward / beta
        theta[winner : winner + 2] += 50
        theta[loser : loser + 2] -= 50
        delta_h = margins(theta, ref, DISJOINT)
        assert distill_losses(delta_h, differences(reward, DISJOINT), beta).max() < 1e-26
        assert log_policy(theta).exp()[winner : winner + 2].sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("beta", PAPER_BETAS)
def test_dpo_is_minimised_while_the_preferred_response_loses_all_its_mass(beta: float):
    ref, direction = (
        doubles(4, seed=0),
        torch.tensor([-1.0, -1.0 - 1.39 / beta, 0.0, 0.0], dtype=torch.float64),
    )
    losses, preferred = [], []
    for t in (0.0, 1.0, 10.0, 80.0):
        logps = log_policy(ref + t * direction)
        losses.append(dpo_losses(differences(logps - log_policy(ref), [(0, 1)]), beta).item())
        preferred.append(logps[0].exp().item())
    for sequence in (losses, preferred):
        assert all(later < earlier for earlier, later in itertools.pairwise(sequence))
    # The infimum is 0 and is approached where the response that should win has probability 0.
    assert 0 < losses[-1] < 1e-48 and 0 < preferred[-1] < 1e-34


# ── 4. What γ·KL(π_ref ‖ π) restores ────────────────────────────────────────────────────────────────────────

DELTA_R = torch.tensor([1.3, -0.4], dtype=torch.float64)
PAIRWISE_LOSSES = {
    "dpo": lambda delta_h: dpo_losses(delta_h, 0.5),
    "ipo": lambda delta_h: ipo_losses(delta_h, 0.4),
    "d-dpo": lambda delta_h: distill_losses(delta_h, DELTA_R, 0.5),
}


@pytest.mark.parametrize("gamma", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("name", PAIRWISE_LOSSES)
def test_forward_kl_pins_off_pair_probabilities_and_the_mass_of_every_pair(name: str, gamma: float):
    ref = doubles(6, seed=0)

    def loss(theta: Tensor) -> Tensor:
        delta_h = margins(theta, ref, DISJOINT)
        return PAIRWISE_LOSSES[name](delta_h).sum() + gamma * forward_kl(ref, theta)

    found, start = log_policy(minimise(loss, ref)).exp(), log_policy(ref).exp()
    tolerance = max(
        1e-15 / gamma, 1e-14
    )  # the gradient is γ(π − π_ref) off the pairs: rounding is divided by γ
    torch.testing.assert_close(found[4:], start[4:], rtol=0, atol=tolerance)
    for pair in map(list, DISJOINT):
        assert found[pair].sum().item() == pytest.approx(start[pair].sum().item(), abs=tolerance)
        assert (found[pair] - start[pair]).abs().min() > 1e-3  # the split inside the pair is what moves


def test_forward_kl_pins_the_mass_of_every_connected_component_when_pairs_overlap():
    ref, pairs, gamma = doubles(6, seed=0), [(0, 1), (1, 2), (3, 4)], 1e-2

    def loss(theta: Tensor) -> Tensor:
        return dpo_losses(margins(theta, ref, pairs), 0.5).sum() + gamma * forward_kl(ref, theta)

    found = minimise(loss, ref)
    after, before = log_policy(found).exp(), log_policy(ref).exp()
    for component in ([0, 1, 2], [3, 4], [5]):
        torch.testing.assert_close(after[component].sum(), before[component].sum(), rtol=0, atol=1e-13)
    assert (after[:5] - before[:5]).abs().min() > 1e-3


def test_reverse_kl_would_not_pin_the_mass_of_a_pair():
    """The statement is about the direction of the KL, not about any regulariser."""
    ref = doubles(6, seed=0)

    def loss(theta: Tensor) -> Tensor:
        return ipo_losses(margins(theta, ref, DISJOINT), 0.4).sum() + forward_kl(theta, ref)

    found = minimise(loss, ref)
    assert (log_policy(found).exp()[4:] - log_policy(ref).exp()[4:]).abs().max() > 1e-3


# ── 5. Theorem 2: pessimism ─────────────────────────────────────────────────────────────────────────────────


def advantage(theta: Tensor, ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """J(π, r) = E_π[r] − E_ref[r] − β·KL(π ‖ π_ref); the identity below needs the baseline E_ref[r]."""
    policy, base = log_policy(theta).exp(), log_policy(ref).exp()
    return (policy - base) @ reward - beta * forward_kl(theta, ref)


@pytest.mark.parametrize("beta", PAPER_BETAS)
def test_best_advantage_of_a_reward_is_beta_times_forward_kl_to_its_policy(beta: float):
    ref, reward = doubles(6, seed=0), doubles(6, seed=1)
    optimal = ref + reward / beta
    best = advantage(optimal, ref, reward, beta)
    assert best.item() == pytest.approx((beta * forward_kl(ref, optimal)).item(), rel=1e-13, abs=1e-14)
    for seed in range(100):
        other = ref + 2 * doubles(6, seed=100 + seed)
        # The gap to any other policy is β·KL(π ‖ π_r) > 0: this is the maximum, not merely stationary.
        gap = beta * forward_kl(other, optimal)
        assert gap > 0
        assert (best - advantage(other, ref, reward, beta)).item() == pytest.approx(
            gap.item(), rel=1e-12, abs=1e-12
        )


def least_kl_mixture(ref: Tensor, rewards: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(weights [k], KL) of the reward in the members' hull with least KL(π_ref ‖ π_r), by Newton."""
    k, candidates = len(rewards), []
    for size in range(1, k + 1):
        for face in map(list, itertools.combinations(range(k), size)):

            def weights_of(free: Tensor, face: list[int] = face) -> Tensor:
                on_face = torch.cat([1 - free.sum(0, keepdim=True), free])
                return torch.zeros(k, dtype=torch.float64).index_copy(0, torch.tensor(face), on_face)

            def kl_of(free: Tensor, weights_of: Callable[[Tensor], Tensor] = weights_of) -> Tensor:
                return forward_kl(ref, ref + weights_of(free) @ rewards / beta)

            free = torch.full((size - 1,), 1 / size, dtype=torch.float64)
            free = minimise(kl_of, free) if size > 1 else free
            # The KL is convex in r, so the least of the face minima that lie inside the hull is its minimum.
            if (weights_of(free) >= 0).all():
                candidates.append((kl_of(free).item(), weights_of(free)))
    kl, weights = min(candidates, key=lambda candidate: candidate[0])
    return weights, torch.tensor(kl, dtype=torch.float64)


@pytest.mark.slow
def test_max_min_policy_over_a_convex_reward_set_belongs_to_its_least_kl_member():
    beta, inside = 0.7, 0
    for seed in range(12):
        ref, rewards = doubles(6, seed=seed), doubles(3, 6, seed=100 + seed)
        weights, kl = least_kl_mixture(ref, rewards, beta)
        pessimistic = ref + weights @ rewards / beta
        # J is affine in r, so its min over the hull is that over the members. Both sides of the saddle point:
        worst = min(advantage(pessimistic, ref, reward, beta).item() for reward in rewards)
        assert worst == pytest.approx((beta * kl).item(), rel=0, abs=1e-13)
        for other in doubles(40, 6, seed=200 + seed):
            other = pessimistic + 0.3 * other
            assert min(advantage(other, ref, reward, beta).item() for reward in rewards) < worst
        inside += int((weights > 1e-6).sum() > 1)
    assert inside > 6  # the mixtures tested are not all single members


@pytest.mark.slow
def test_least_kl_member_of_a_finite_ensemble_is_rarely_the_max_min_policy():
    """Max–min over a finite set is max–min over its hull, and the hull's least KL seldom sits at a member."""
    beta, optimal = 0.7, 0
    for seed in range(200):
        ref, rewards = doubles(6, seed=seed), doubles(3, 6, seed=1000 + seed)
        member = int(torch.stack([forward_kl(ref, ref + reward / beta) for reward in rewards]).argmin())
        under = [advantage(ref + rewards[member] / beta, ref, reward, beta).item() for reward in rewards]
        # A member's policy is the max–min policy exactly when its own reward is the worst for it.
        is_saddle = under[member] <= min(under) + 1e-12
        if seed < 12:
            at_vertex = least_kl_mixture(ref, rewards, beta)[0][member].item() == pytest.approx(1, abs=1e-9)
            assert is_saddle == at_vertex
        optimal += is_saddle
    assert 0 < optimal < 20


# ── 6. and 7. e-DPO's min ───────────────────────────────────────────────────────────────────────────────────

ALL_PAIRS = list(itertools.combinations(range(5), 2))


def ensemble_optimum(ref: Tensor, rewards: Tensor, beta: float, gamma: float) -> tuple[int, float, Tensor]:
    """(member, value, logits) of the least min_i L_distill(r_i) + γ·KL(π_ref ‖ π) on all pairs."""
    delta_r, optima = differences(rewards, ALL_PAIRS), []

    def loss(theta: Tensor, member: int) -> Tensor:
        losses = distill_losses(margins(theta, ref, ALL_PAIRS), delta_r, beta)
        kept, _ = ensemble_losses(losses, "dataset", choice=member)
        return kept.mean() + gamma * forward_kl(ref, theta)

    # The loss is the least of k convex ones, so its minimum is the least of their minima.
    for i, reward in enumerate(rewards):
        theta = minimise(lambda theta, i=i: loss(theta, i), ref + reward / beta)
        optima.append((loss(theta, i).item(), theta))
    value, theta = min(optima, key=lambda optimum: optimum[0])
    losses = distill_losses(margins(theta, ref, ALL_PAIRS), delta_r, beta)
    return int(ensemble_losses(losses, "batch")[1][0]), value, theta


@pytest.mark.slow
def test_ensemble_distillation_selects_the_least_forward_kl_member_as_gamma_vanishes():
    beta, seen = 0.5, set()
    for seed in range(10):
        ref, rewards = doubles(5, seed=seed), doubles(3, 5, seed=100 + seed)
        kls = torch.stack([forward_kl(ref, ref + reward / beta) for reward in rewards])
        least = int(kls.argmin())
        errors = []
        for gamma in (1e-3, 1e-4, 1e-5):
            member, value, theta = ensemble_optimum(ref, rewards, beta, gamma)
            errors.append(abs(value / gamma - kls[least].item()))
        assert member == least
        # First order in γ: value = γ·KL_least + O(γ²), and π → π_ref e^{r/β}/Z of that member.
        for larger, smaller in itertools.pairwise(errors):
            assert larger / smaller == pytest.approx(10, rel=0.1)
        optimal = log_policy(ref + rewards[least] / beta).exp()
        torch.testing.assert_close(log_policy(theta).exp(), optimal, rtol=0, atol=1e-4)
        seen.add(least)
    assert seen == {0, 1, 2}


def test_ensemble_distillation_started_at_the_reference_can_stay_with_another_member():
    """At Δh = 0 the min is a contest of margin scale E[Δr²], not of KL, and descent keeps the winner."""
    beta, gamma = 0.5, 1e-4
    ref = torch.log(torch.tensor([0.9, 0.025, 0.025, 0.025, 0.025], dtype=torch.float64))
    # Member 0 moves much unlikely mass; member 1 has smaller margins but takes mass from the likely response.
    rewards = torch.tensor([[0.0, 1.0, -1.0, 1.0, -1.0], [-0.8, 0.8, 0.8, 0.8, 0.8]], dtype=torch.float64)
    delta_r = differences(rewards, ALL_PAIRS)
    kls = [forward_kl(ref, ref + reward / beta).item() for reward in rewards]
    assert kls[0] < kls[1] / 2 and delta_r[0].square().mean() > delta_r[1].square().mean()
    assert ensemble_optimum(ref, rewards, beta, gamma)[0] == 0

    theta, chosen = ref.clone().requires_grad_(), torch.tensor([-1])
    optimizer = torch.optim.SGD([theta], lr=0.5)
    for _ in range(500):
        losses = distill_losses(margins(theta, ref, ALL_PAIRS), delta_r, beta)
        kept, chosen = ensemble_losses(losses, "batch")
        optimizer.zero_grad()
        (kept.mean() + gamma * forward_kl(ref, theta)).backward()
        optimizer.step()
    assert chosen.unique().tolist() == [1]
    found, optimal = log_policy(theta.detach()).exp(), log_policy(ref + rewards[1] / beta).exp()
    torch.testing.assert_close(found, optimal, rtol=0, atol=1e-3)


def test_min_per_example_batch_and_dataset_are_ordered_and_differ_without_bound():
    for scale in (1.0, 1e6):
        losses = scale * torch.tensor([[0.0, 4.0], [4.0, 0.0]], dtype=torch.float64)
        dataset_choice = losses.mean(1).argmin()
        one_by_one = losses.split(1, dim=1)
        example = ensemble_losses(losses, "example")[0].mean()
        batch_of_one = torch.cat([ensemble_losses(part, "batch")[0] for part in one_by_one]).mean()
        dataset = torch.cat(
            [ensemble_losses(part, "dataset", choice=dataset_choice)[0] for part in one_by_one]
        ).mean()
        assert (example, batch_of_one, dataset) == (0, 0, 2 * scale)
        assert ensemble_losses(losses, "batch")[0].mean() == 2 * scale
    for seed in range(50):
        losses = doubles(3, 12, seed=seed).square()
        dataset_choice = losses.mean(1).argmin()
        example, batch, dataset = (
            torch.cat(
                [ensemble_losses(part, scope, choice=choice)[0] for part in losses.split(4, dim=1)]
            ).mean()
            for scope, choice in (("example", None), ("batch", None), ("dataset", dataset_choice))
        )
        assert example <= batch <= dataset


# ── 8. Estimators of the forward KL ─────────────────────────────────────────────────────────────────────────

# Vocabulary {EOS, a, b}; at most two tokens: every sequence of a two-token autoregressive model.
SEQUENCES = [[0, 0], *([first, second] for first in (1, 2) for second in (0, 1, 2))]
TOKENS, MASK = torch.tensor(SEQUENCES), torch.tensor([[1, 0]] + [[1, 1]] * 6)


def two_token_logits(parameters: Tensor) -> Tensor:
    """[4, 3] logits of the first token, and of the second given each first → [sequences, 2, 3]."""
    return torch.stack([parameters[0].expand(len(TOKENS), 3), parameters[1:][TOKENS[:, 0]]], 1)


def two_token_logps(parameters: Tensor) -> Tensor:
    return sequence_logps(two_token_logits(parameters), TOKENS, MASK)


def test_full_and_sample_estimators_are_the_exact_kl_on_average_and_so_are_their_gradients():
    ref = doubles(4, 3, seed=1)
    weights = two_token_logps(ref).exp()  # expectations over π_ref by enumeration, not by sampling
    assert weights.sum().item() == pytest.approx(1, abs=1e-15)

    def exact(policy: Tensor) -> Tensor:
        # torch's own KL of the two distributions over whole sequences.
        return F.kl_div(two_token_logps(policy), two_token_logps(ref), log_target=True, reduction="sum")

    def full(policy: Tensor) -> Tensor:
        return kl_full(two_token_logits(policy), two_token_logits(ref), MASK)

    def sample(policy: Tensor) -> Tensor:
        return kl_sample(two_token_logps(policy), two_token_logps(ref))

    for policy in (doubles(4, 3, seed=2), 5 * doubles(4, 3, seed=3), ref):
        for estimator in (full, sample):
            mean = torch.func.grad_and_value(lambda p, estimator=estimator: weights @ estimator(p))(policy)
            torch.testing.assert_close(mean, torch.func.grad_and_value(exact)(policy), rtol=1e-13, atol=1e-15)
    policy = doubles(4, 3, seed=2)
    full_values, sample_values = full(policy), sample(policy)
    full_variance, sample_variance = (
        weights @ (v - weights @ v).square() for v in (full_values, sample_values)
    )
    assert full_variance < sample_variance / 2  # Rao–Blackwell: the next token is summed out


def test_data_estimator_is_biased_and_pushes_the_policy_away_from_the_reference():
    ref, data = (
        doubles(4, 3, seed=1),
        two_token_logps(doubles(4, 3, seed=4)).exp(),
    )  # responses that π_ref did not write
    policy = doubles(4, 3, seed=2)

    def estimate(parameters: Tensor) -> Tensor:
        return data @ kl_sample(two_token_logps(parameters), two_token_logps(ref))

    exact = two_token_logps(ref).exp() @ kl_sample(two_token_logps(policy), two_token_logps(ref))
    assert abs(estimate(policy) - exact) > 0.1
    assert torch.func.grad(estimate)(ref).abs().max() > 0.1  # a KL would have no gradient here
    lower = minimise(lambda flat: estimate(flat.view(4, 3)), ref.flatten()).view(4, 3)
    assert estimate(lower) < -0.1  # so the logged "KL" goes below 0, at the distribution of the data
    torch.testing.assert_close(two_token_logps(lower).exp(), data, rtol=0, atol=1e-14)


# ── Equivalences with other losses ──────────────────────────────────────────────────────────────────────────


def test_rebel_is_distillation_with_eta_one_over_beta():
    """REBEL (Gao et al. 2024, eq. 1) is (Δh/η − Δr)²; written (Δh − η Δr)² it differs by the constant β²."""
    delta_h, delta_r = doubles(8, seed=0), doubles(8, seed=1)
    for beta in PAPER_BETAS:
        eta = 1 / beta
        ours = distill_losses(delta_h, delta_r, beta)
        torch.testing.assert_close((delta_h / eta - delta_r).square(), ours, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(beta**2 * (delta_h - eta * delta_r).square(), ours, rtol=1e-13, atol=1e-15)


def test_the_squared_loss_of_reward_aware_preference_optimization_is_distillation_with_scaled_rewards():
    """NeMo's (Sun et al. 2025): squared difference of β(h_w − h_l) and η(r_w − r_l); ours at Δr·η."""
    chosen, rejected, good, bad = (doubles(8, seed=seed) for seed in range(4))
    for beta in PAPER_BETAS:
        for eta in (0.1, 1.0, 30.0):
            theirs = (beta * (chosen - rejected) - eta * (good - bad)).square()
            torch.testing.assert_close(
                distill_losses(chosen - rejected, eta * (good - bad), beta), theirs, rtol=1e-12, atol=1e-12
            )


def test_dpo_on_soft_labels_is_reward_aware_preference_optimization_with_the_backward_kl():
    """NeMo's (Sun et al. 2025): KL of the teacher's Bernoulli σ(Δr) to σ(β Δh); ours less its entropy."""
    delta_r = doubles(8, seed=1)
    teacher = [logsigmoid(delta_r), logsigmoid(-delta_r)]
    entropy = -sum(each.exp() * each for each in teacher)
    for beta in PAPER_BETAS:
        delta_h = doubles(8, seed=0).requires_grad_()
        policy = [logsigmoid(beta * delta_h), logsigmoid(-beta * delta_h)]
        theirs = sum(each.exp() * (each - other) for each, other in zip(teacher, policy, strict=True))
        ours = labelled_losses(delta_h, delta_r, beta, "soft")
        torch.testing.assert_close(ours - entropy, theirs, rtol=1e-12, atol=1e-12)
        slopes = [torch.autograd.grad(loss.sum(), delta_h)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


def test_soft_labels_and_distillation_have_the_same_minimiser_and_only_soft_labels_a_bounded_pull():
    delta_r = torch.tensor([-40.0, -1.0, 0.0, 2.0, 40.0], dtype=torch.float64)
    for beta in PAPER_BETAS:
        there = (delta_r / beta).requires_grad_()
        for losses in (labelled_losses(there, delta_r, beta, "soft"), distill_losses(there, delta_r, beta)):
            assert torch.autograd.grad(losses.sum(), there)[0].abs().max() <= 1e-12
        start = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        (pull,) = torch.autograd.grad(labelled_losses(start, delta_r, beta, "soft").sum(), start)
        assert (pull.abs() <= beta / 2).all()
        (pull,) = torch.autograd.grad(distill_losses(start, delta_r, beta).sum(), start)
        torch.testing.assert_close(pull, -2 * beta * delta_r, rtol=1e-13, atol=0)


def trl_loss(
    loss_type: str, logits: Tensor, ref_logits: Tensor, tokens: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """The loss of TRL's DPOTrainer for rows [chosen…, rejected…]; logits at t predict tokens[:, t]."""
    from trl import DPOTrainer

    def log_probs(of: Tensor) -> Tensor:
        return (of.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)) * mask

    def model(**_: object) -> SimpleNamespace:
        unused = torch.zeros_like(mask, dtype=torch.float64)  # logged, not part of the loss
        return SimpleNamespace(
            log_probs=log_probs(logits), entropy=unused, mean_logits=unused, is_top1=unused.bool()
        )

    ref_chosen, ref_rejected = log_probs(ref_logits).sum(1).chunk(2)
    prompt = torch.zeros(len(tokens), 1, dtype=torch.long)
    inputs = {
        "input_ids": torch.cat([prompt, tokens], 1),
        "attention_mask": torch.cat([prompt + 1, mask], 1),
        "completion_mask": torch.cat([prompt, mask], 1),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    trainer = SimpleNamespace(
        model=torch.nn.Identity(),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        use_weighting=False,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    return DPOTrainer._compute_loss(trainer, model, inputs, False)


def test_trl_sigmoid_is_dpo_and_trl_ipo_is_ipo_norm():
    batch, length = 5, 7
    tokens = torch.randint(0, 4, (2 * batch, length), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([7, 1, 3, 4, 2, 2, 6, 5, 4, 1])
    mask = (torch.arange(length) < lengths.unsqueeze(1)).long()
    logits, ref_logits = doubles(2 * batch, length, 4, seed=1), doubles(2 * batch, length, 4, seed=2)
    h = sequence_logps(logits, tokens, mask) - sequence_logps(ref_logits, tokens, mask)
    summed, (chosen, rejected) = h[:batch] - h[batch:], (h / lengths).chunk(2)
    for value in (0.1, 1.0, 5.0):
        trl = {
            kind: trl_loss(kind, logits, ref_logits, tokens, mask, value).item()
            for kind in ("sigmoid", "ipo")
        }
        assert dpo_losses(summed, value).mean().item() == pytest.approx(trl["sigmoid"], rel=1e-14)
        assert ipo_losses(chosen - rejected, value).mean().item() == pytest.approx(trl["ipo"], rel=1e-14)
        assert not math.isclose(
            ipo_losses(summed, value).mean().item(), trl["ipo"], rel_tol=0.1
        )  # hence two names
