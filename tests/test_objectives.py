"""Properties of the functions in rpo_cli.objectives, one by one; what follows is in test_theory.py."""

import math

import pytest
import torch
from logps import sequence_logps
from torch import Tensor

from rpo_cli.objectives.calibration import fit_temperature, mix_weights
from rpo_cli.objectives.distill import distill_losses
from rpo_cli.objectives.dpo import dpo_losses
from rpo_cli.objectives.ipo import ipo_losses
from rpo_cli.objectives.kl import gamma_at, kl_full, kl_sample, kl_weight
from rpo_cli.objectives.logps import token_logps
from rpo_cli.objectives.members import MemberChoice, ensemble_losses


def doubles(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


# ── Losses of a pair ────────────────────────────────────────────────────────────────────────────────────────


def test_pair_losses_have_the_values_computed_by_hand():
    delta_h = torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert dpo_losses(delta_h, 0.5).tolist() == pytest.approx(
        [math.log(2), math.log(1 + math.exp(-1))], abs=1e-15
    )
    assert ipo_losses(delta_h, 0.25).tolist() == [4.0, 0.0]
    delta_r = torch.tensor([[1.0, 1.0], [3.0, 0.0]], dtype=torch.float64)
    assert distill_losses(delta_h, delta_r, 0.5).tolist() == [[1.0, 0.0], [9.0, 1.0]]


def test_gradients_of_pair_losses_equal_finite_differences():
    delta_h, delta_r = doubles(5, grad=True), doubles(3, 5, seed=1)
    for loss in (
        lambda h: dpo_losses(h, 0.7),
        lambda h: ipo_losses(h, 0.3),
        lambda h: distill_losses(h, delta_r, 0.7),
        lambda h: ensemble_losses(distill_losses(h, delta_r, 0.7), "example")[0],
        lambda h: ensemble_losses(distill_losses(h, delta_r, 0.7), "batch")[0],
        lambda h: ensemble_losses(distill_losses(h, delta_r, 0.7), "dataset", choice=2)[0],
    ):
        assert torch.autograd.gradcheck(loss, (delta_h,))


def test_gradient_of_dpo_is_the_closed_form():
    delta_h = doubles(6, grad=True)
    (gradient,) = torch.autograd.grad(dpo_losses(delta_h, 0.7).sum(), delta_h)
    torch.testing.assert_close(gradient, -0.7 * torch.sigmoid(-0.7 * delta_h.detach()), rtol=1e-15, atol=0)


def test_distillation_sees_only_the_residual_in_reward_units():
    delta_h, delta_r = doubles(5), doubles(3, 5, seed=1)
    losses = distill_losses(delta_h, delta_r, 0.7)
    # A shift of y_w's reward is undone by the policy's answer, pair by pair: no batch statistics take part.
    shift = doubles(5, seed=2)
    torch.testing.assert_close(
        distill_losses(delta_h + shift / 0.7, delta_r + shift, 0.7), losses, rtol=0, atol=1e-13
    )
    # Rewards and β in other units only change the unit of the loss: nothing normalises raw logits.
    torch.testing.assert_close(distill_losses(delta_h, 3 * delta_r, 3 * 0.7), 9 * losses, rtol=1e-13, atol=0)


def test_swapping_a_pair_keeps_distillation_and_turns_preference_losses_round():
    delta_h, delta_r = doubles(5), doubles(3, 5, seed=1)
    assert torch.equal(distill_losses(-delta_h, -delta_r, 0.7), distill_losses(delta_h, delta_r, 0.7))
    # log σ(z) − log σ(−z) = z: only the margin separates the two orders.
    margin = dpo_losses(-delta_h, 0.7) - dpo_losses(delta_h, 0.7)
    torch.testing.assert_close(margin, 0.7 * delta_h, rtol=0, atol=1e-15)
    margin = ipo_losses(-delta_h, 0.3) - ipo_losses(delta_h, 0.3)
    torch.testing.assert_close(margin, 2 * delta_h / 0.3, rtol=0, atol=1e-13)


@pytest.mark.parametrize("beta", [0.01, 100.0, 1e4])
@pytest.mark.parametrize("delta", [-1e6, -1e3, 0.0, 1e3, 1e6])
def test_extreme_margins_keep_losses_and_gradients_finite_in_float32(beta: float, delta: float):
    delta_h = torch.tensor([delta], requires_grad=True)
    for losses in (
        dpo_losses(delta_h, beta),
        ipo_losses(delta_h, 1 / beta),
        distill_losses(delta_h, -delta_h, beta),
    ):
        (gradient,) = torch.autograd.grad(losses.sum(), delta_h)
        assert losses.isfinite().all() and gradient.isfinite().all()
        assert losses.item() >= 0
    if beta * delta <= -100:  # the wrong order costs its margin, however large
        assert dpo_losses(delta_h, beta).item() == pytest.approx(-beta * delta)


def test_distillation_of_one_teacher_equals_its_row_of_the_ensemble():
    delta_h, delta_r = doubles(5), doubles(3, 5, seed=1)
    assert torch.equal(distill_losses(delta_h, delta_r[1], 0.7), distill_losses(delta_h, delta_r, 0.7)[1])


@pytest.mark.parametrize("shape", [(3, 1), (5, 3), (1,), (5, 1)])
def test_distillation_refuses_rewards_of_other_pairs(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="delta_r"):
        distill_losses(doubles(5), doubles(*shape), 0.7)
    with pytest.raises(ValueError, match="delta_h"):
        distill_losses(doubles(5, 1), doubles(3, 5), 0.7)


# ── min_i over the ensemble ─────────────────────────────────────────────────────────────────────────────────


def test_given_choice_rules_over_the_batch_whatever_its_type():
    losses = torch.tensor([[0.0, 1.0], [5.0, 6.0]])
    for scope in ("batch", "dataset"):
        for choice in (1, torch.tensor(1)):
            kept, chosen = ensemble_losses(losses, scope, choice=choice)
            assert kept.tolist() == [5, 6] and chosen.tolist() == [1, 1]


def test_loss_of_an_optimiser_batch_does_not_depend_on_how_it_is_cut():
    losses = doubles(4, 8).square()
    choice = losses.mean(1).argmin()
    whole = ensemble_losses(losses, "batch")[0]
    for size in (1, 2, 4):
        parts = [ensemble_losses(part, "batch", choice=choice)[0] for part in losses.split(size, dim=1)]
        assert torch.equal(torch.cat(parts), whole)
    assert (
        torch.cat([ensemble_losses(part, "batch")[0] for part in losses.split(1, dim=1)]).mean()
        < whole.mean()
    )


def test_only_the_chosen_member_receives_a_gradient():
    losses = torch.tensor([[0.0, 4.0, 1.0], [4.0, 0.0, 2.0]], requires_grad=True)
    for scope, expected in (("example", [[1, 0, 1], [0, 1, 0]]), ("batch", [[1, 1, 1], [0, 0, 0]])):
        kept, chosen = ensemble_losses(losses, scope)
        (gradient,) = torch.autograd.grad(kept.sum(), losses)
        assert gradient.tolist() == expected and not chosen.requires_grad


def test_the_first_of_equal_members_is_chosen():
    assert ensemble_losses(torch.tensor([[2.0], [1.0], [1.0]]), "batch")[1].tolist() == [1]
    assert averages_of(2, 1, 1).averages.argmin() == 1


def test_scopes_refuse_a_choice_that_is_missing_or_has_no_effect():
    with pytest.raises(ValueError, match="needs the member"):
        ensemble_losses(torch.zeros(2, 3), "dataset")
    with pytest.raises(ValueError, match="pass no choice"):
        ensemble_losses(torch.zeros(2, 3), "example", choice=0)


def averages_of(*losses: float, decay: float = 0.9) -> MemberChoice:
    """A choice over the data set that has followed it to these losses."""
    choice = MemberChoice("dataset", [str(i) for i in range(len(losses))], doubles(len(losses), 1), decay)
    choice.averages = torch.tensor(losses, dtype=torch.float64)
    return choice


def step(choice: MemberChoice, losses: Tensor) -> int:
    """The member that is chosen for an optimiser step in which the members' losses are these [k]."""
    choice.begin_step(None)
    choice.reduce(losses[:, None], lambda values: values)
    choice.end_step(lambda values: values, lambda values: values)
    assert choice.choice is not None
    return int(choice.choice)


def test_averages_start_at_the_exact_losses_of_an_untrained_policy():
    delta_r = doubles(3, 100) * torch.tensor([[2.0], [1.0], [3.0]], dtype=torch.float64)
    choice = MemberChoice("dataset", ["a", "b", "c"], delta_r, 0.9)
    exact = distill_losses(torch.zeros(100, dtype=torch.float64), delta_r, 0.7).mean(1)
    assert choice.averages.tolist() == pytest.approx(exact.tolist(), rel=1e-14)
    assert step(choice, torch.ones(3)) == 1


def test_averages_forget_at_the_rate_of_their_decay_and_then_change_the_choice():
    choice = averages_of(1, 2, decay=0.5)
    assert step(choice, torch.tensor([3.0, 1.0])) == 0
    assert choice.averages.tolist() == [2.0, 1.5]
    assert [step(choice, torch.tensor([0.25, 1.0])) for _ in range(60)][:2] == [1, 0]
    assert choice.averages.tolist() == pytest.approx([0.25, 1.0], rel=1e-12)


def test_averages_on_the_device_have_the_bits_of_those_kept_in_python():
    batches = doubles(50, 4, seed=3).square().float()
    choice, expected = averages_of(0.3, 0.2, 0.9, 0.4), [0.3, 0.2, 0.9, 0.4]
    chosen = set()
    for batch in batches:
        least = expected.index(min(expected))
        assert step(choice, batch) == least
        chosen.add(least)
        expected = [0.9 * old + (1 - 0.9) * new for old, new in zip(expected, batch.tolist(), strict=True)]
        assert choice.averages.tolist() == expected
    assert len(chosen) > 1


def test_a_restored_choice_continues_as_if_never_stopped():
    kept, restored = averages_of(1, 2, 0.5), averages_of(0, 0, 0)
    step(kept, torch.tensor([3.0, 1.0, 0.1]))
    state = kept.state()
    restored.restore(state)
    for choice in (kept, restored):
        step(choice, torch.tensor([0.3, 0.2, 0.7]))
    assert restored.state() == kept.state() != state  # a snapshot, not a view


# ── γ·KL ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_gamma_is_exact_at_both_ends_linear_between_and_stays():
    assert gamma_at(0, 10_000, 1e-4, 1e-2) == 1e-4
    assert gamma_at(9_999, 10_000, 1e-4, 1e-2) == 1e-2
    assert gamma_at(20_000, 10_000, 1e-4, 1e-2) == 1e-2
    assert gamma_at(5, 11, 1e-4, 1e-2) == pytest.approx((1e-4 + 1e-2) / 2)
    assert {gamma_at(step, 11, 3e-3, None) for step in range(20)} == {3e-3}
    assert gamma_at(0, 1, 1e-4, 1e-2) == 1e-4


def test_kl_coefficient_is_gamma_or_alpha():
    assert kl_weight(1e-2, 30.0, "gamma") == 1e-2
    assert kl_weight(1e-2, 30.0, "gamma_beta") == pytest.approx(0.3)


def test_full_kl_equals_torch_distributions_and_skips_masked_positions():
    policy, ref = doubles(4, 6, 7), doubles(4, 6, 7, seed=1)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [0]])
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=ref), torch.distributions.Categorical(logits=policy)
    )
    torch.testing.assert_close(kl_full(policy, ref, mask), (expected * mask).sum(1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(kl_full(policy, ref, mask.long()), kl_full(policy, ref, mask), rtol=0, atol=0)


def test_gradients_of_kl_estimators_equal_finite_differences():
    ref, tokens = doubles(2, 3, 4, seed=1), torch.tensor([[0, 3, 1], [2, 2, -100]])
    mask = tokens >= 0
    policy = doubles(2, 3, 4, grad=True)
    assert torch.autograd.gradcheck(lambda logits: kl_full(logits, ref, mask), (policy,))
    assert torch.autograd.gradcheck(
        lambda logits: kl_sample(sequence_logps(logits, tokens, mask), sequence_logps(ref, tokens, mask)),
        (policy,),
    )


def test_full_kl_and_its_gradient_vanish_at_the_reference_but_those_of_a_sample_do_not():
    policy, ref = doubles(3, 4, 5, grad=True), doubles(3, 4, 5)
    mask, tokens = torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.long)
    full = kl_full(policy, ref, mask)
    (gradient,) = torch.autograd.grad(full.sum(), policy)
    assert full.abs().max() == 0 and gradient.abs().max() < 1e-15
    logps = sequence_logps(policy, tokens, mask)
    (gradient,) = torch.autograd.grad(kl_sample(logps, logps.detach()).sum(), policy)
    assert gradient.abs().max() > 0.1
    (of_logps,) = torch.autograd.grad(-sequence_logps(policy, tokens, mask).sum(), policy)
    assert torch.equal(gradient, of_logps)


def test_half_precision_logits_are_normalised_in_float32():
    logits = doubles(2, 30, 500, seed=3).to(torch.bfloat16)
    tokens, mask = torch.zeros(2, 30, dtype=torch.long), torch.ones(2, 30, dtype=torch.bool)
    straight = torch.arange(30).expand(2, 30)
    logps, exact = (token_logps(each, tokens, straight) for each in (logits, logits.double()))
    assert logps.dtype == torch.float32 and exact.dtype == torch.float64
    torch.testing.assert_close(logps.double(), exact, rtol=1e-6, atol=0)
    kl = kl_full(logits, logits.flip(-1), mask)
    exact = kl_full(logits.double(), logits.flip(-1).double(), mask)
    assert kl.dtype == torch.float32 and exact.dtype == torch.float64
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("sharp", [1.0, 7.0, 12.0])
def test_the_gradient_of_half_precision_logits_is_that_of_float32_rounded_once(sharp: float) -> None:
    logits = doubles(2, 5, 40, seed=4).to(torch.bfloat16)
    tokens = torch.tensor([[3, 3, 9, 11, 3, 0], [1, 2, 2, 1, 5, 6]])
    positions = torch.tensor(
        [[0, 0, 1, 2, 4, 4], [0, 1, 1, 1, 2, 3]]
    )  # some twice: responses that share them
    rows = torch.arange(2)[:, None]
    logits[rows, positions, tokens] = sharp  # at 12 nearly certain
    weights = torch.tensor([[1.0, 0.5, -2.0, 1.0, 0.3, 1.0], [1.0, -1.0, 0.25, 2.0, 1.0, 1.0]])
    found = logits.clone().requires_grad_()
    (token_logps(found, tokens, positions) * weights).sum().backward()
    exact = logits.double().requires_grad_()
    (exact.log_softmax(-1)[rows, positions, tokens] * weights).sum().backward()
    assert found.grad is not None and exact.grad is not None
    # Half a step of bfloat16, and what float32 leaves of a difference of numbers near one.
    torch.testing.assert_close(found.grad.double(), exact.grad, rtol=2**-8, atol=1e-6)


def test_extreme_logits_keep_log_probabilities_and_kl_finite_in_float32():
    policy = torch.tensor([[[1e4, -1e4, 0.0]]], requires_grad=True)
    mask, tokens = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.long)
    for value in (token_logps(policy, tokens, tokens * 0), kl_full(policy, -policy.detach(), mask)):
        (gradient,) = torch.autograd.grad(value.sum(), policy)
        assert abs(value.item()) == pytest.approx(2e4) and gradient.isfinite().all()


# ── Calibration ─────────────────────────────────────────────────────────────────────────────────────────────


def weighted_nll(delta_r: Tensor, weights: Tensor, temperature: float) -> float:
    return float((weights * dpo_losses(delta_r, 1 / temperature)).mean())


@pytest.mark.parametrize("temperature", [0.02, 1.0, 7.5, 3e4])
def test_temperature_of_synthetic_logits_is_recovered(temperature: float):
    # Weights equal to the label probabilities stand for infinitely many labels, so T is the exact optimum.
    logits = doubles(200) * 2
    both_orders = torch.cat([logits, -logits])
    assert fit_temperature(both_orders * temperature, both_orders.sigmoid()) == pytest.approx(
        temperature, rel=1e-12
    )


def test_temperature_of_sampled_labels_is_recovered_to_sampling_error():
    logits = doubles(100_000) * 2
    labels = torch.rand(100_000, generator=torch.Generator().manual_seed(1)) < logits.sigmoid()
    fitted = fit_temperature(torch.where(labels, logits, -logits).float() * 3)
    assert fitted == pytest.approx(3.0, rel=0.03) and fitted != 3.0


def test_fitted_temperature_is_a_minimum_of_the_weighted_loss():
    for seed in range(20):
        delta_r, weights = doubles(30, seed=seed), doubles(30, seed=seed + 100).square()
        delta_r *= (weights * delta_r).sum().sign()  # right on average, wrong on many
        best = fit_temperature(delta_r, weights)
        inverse = torch.tensor(1 / best, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad((weights * dpo_losses(delta_r * inverse, 1.0)).sum(), inverse)
        assert abs(slope) < 1e-13 * (weights * delta_r.abs()).sum()
        for worse in (best * 0.97, best * 1.03):
            assert weighted_nll(delta_r, weights, best) < weighted_nll(delta_r, weights, worse)


def test_temperature_scales_with_the_reward_and_repeats_equal_weights():
    delta_r = torch.tensor([2.0, 1.0, -0.5, 3.0], dtype=torch.float64)
    base = fit_temperature(delta_r)
    for factor in (1e-9, 1e9):
        assert fit_temperature(delta_r * factor) == pytest.approx(base * factor, rel=1e-13)
    weighted = fit_temperature(delta_r, torch.tensor([1.0, 2.0, 3.0, 0.0]))
    assert weighted == pytest.approx(fit_temperature(delta_r[[0, 1, 1, 2, 2, 2]]), rel=1e-13)


def test_temperature_of_one_wrong_pair_in_ten_thousand_is_found():
    # σ(−1/T)·n_right = σ(1/T): T = 1 / log(n_right)
    delta_r = torch.ones(10_001)
    delta_r[0] = -1
    assert fit_temperature(delta_r) == pytest.approx(1 / math.log(10_000), rel=1e-12)


@pytest.mark.parametrize(
    ("delta_r", "weights", "message"),
    [
        ([1.0, 2.0, 0.5], None, "separable"),
        ([1.0, 0.0, 0.5], None, "separable"),
        ([1.0, -2.0, 0.5], [1.0, 0.0, 1.0], "separable"),
        ([-1.0, -2.0], None, "disagree"),
        ([1.0, -2.0, 0.5], None, "disagree"),
        ([1.0, -1.0], None, "disagree"),
        ([0.0, 0.0], None, "nothing to calibrate"),
        ([], None, "nothing to calibrate"),
        ([1.0, -0.5], [0.0, 0.0], "nothing to calibrate"),
        ([1.0, math.nan], None, "finite"),
        ([1.0, -0.5], [1.0, -1.0], "negative"),
        ([1.0, -0.5], [1.0], "pairs"),
    ],
)
def test_temperature_that_does_not_exist_is_explained_in_one_line(delta_r, weights, message: str):
    with pytest.raises(ValueError, match=message) as error:
        fit_temperature(torch.tensor(delta_r), None if weights is None else torch.tensor(weights))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mix", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_mix_weights_give_longer_preferred_pairs_their_share(mix: float):
    longer = torch.tensor([True, True, True, False, False, False, True])
    shorter = torch.tensor([False, False, False, True, True, False, False])
    weights = mix_weights(longer, shorter, mix)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-15)
    assert (weights[longer].sum() / weights.sum()).item() == pytest.approx(mix, abs=1e-15)
    assert weights[~longer & ~shorter].tolist() == [0.0]
    for group in (longer, shorter):
        assert len(set(weights[group].tolist())) == 1


def test_mix_weights_reproduce_the_average_over_resampled_pairs():
    longer = torch.arange(10) < 8
    values = doubles(10)
    expected = 0.2 * values[longer].mean() + 0.8 * values[~longer].mean()
    torch.testing.assert_close(
        (mix_weights(longer, ~longer, 0.2) * values).mean(), expected, rtol=0, atol=1e-15
    )


def test_mix_weights_refuse_impossible_mixtures():
    longer = torch.tensor([True, True])
    with pytest.raises(ValueError, match="shorter response wins"):
        mix_weights(longer, ~longer, 0.5)
    with pytest.raises(ValueError, match="longer response wins"):
        mix_weights(~longer, longer, 0.5)
    with pytest.raises(ValueError, match="both"):
        mix_weights(longer, longer, 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        mix_weights(longer, ~longer, 1.5)
    assert mix_weights(longer, ~longer, 1.0).tolist() == [1.0, 1.0]
