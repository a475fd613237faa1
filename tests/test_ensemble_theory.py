"""What e-DPO's min over members of different length bias selects, and what calibration changes.

At the reference; see docs/ensemble.md.

A world of finitely many kinds of pairs, counted exactly: what a Bayes-optimal reward model of a biased subset
says, and what the objectives' own functions make of it.
"""

from __future__ import annotations

import math

import pytest
import torch

from rpo_cli.objectives.calibration import fit_temperature, mix_weights
from rpo_cli.objectives.distill import distill_losses
from rpo_cli.objectives.members import MemberChoice, ensemble_losses

BIASES = (0.2, 0.4, 0.5, 0.6, 0.8)
RHOS = (0.2, 0.3, 0.4, 0.6, 0.7, 0.8)
# Kinds of pairs: how often the longer response wins and loses, in whole pairs; it wins half of all.
WINS = torch.tensor([95, 80, 60, 40, 20, 5])
LOSSES = 100 - WINS


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def evidence() -> torch.Tensor:
    """Log-odds that the longer response wins, for each kind, where pairs are as they are."""
    return (WINS.double() / LOSSES).log()


def pairs(kinds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of the world: the number of its kind, and whether the longer response wins."""
    longer = torch.cat(
        [torch.ones(int(WINS.sum()), dtype=torch.bool), torch.zeros(int(LOSSES.sum()), dtype=torch.bool)]
    )
    return torch.cat([kinds.repeat_interleave(WINS), kinds.repeat_interleave(LOSSES)]), longer


def member(bias: float, scale: float = 1.0) -> torch.Tensor:
    """Margins chosen − rejected of the Bayes-optimal reward model of D_b, on every pair of the world."""
    log_odds, longer = pairs(evidence() + logit(bias) - logit(0.5))
    return scale * torch.where(longer, log_odds, -log_odds)


def in_data(values: torch.Tensor, rho: float) -> torch.Tensor:
    """Weighted mean [...] over the pairs of D_rho of values [..., pairs]."""
    _, longer = pairs(evidence())
    return (values * mix_weights(longer, ~longer, rho)).mean(-1)


@pytest.mark.parametrize("bias", BIASES)
def test_a_bias_shifts_the_log_odds_of_every_pair_by_the_same_constant(bias: float) -> None:
    kinds, longer = pairs(torch.arange(len(WINS)))
    weights = mix_weights(longer, ~longer, bias)
    for kind, natural in enumerate(evidence().tolist()):
        won, lost = (weights[(kinds == kind) & side].sum() for side in (longer, ~longer))
        assert float((won / lost).log()) == pytest.approx(natural + logit(bias) - logit(0.5), abs=1e-12)


@pytest.mark.parametrize("scale", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("bias", BIASES)
def test_the_temperature_of_the_own_mix_undoes_any_scale_of_a_members_margins(
    bias: float, scale: float
) -> None:
    _, longer = pairs(evidence())
    assert fit_temperature(member(bias, scale), mix_weights(longer, ~longer, bias)) == pytest.approx(
        scale, rel=1e-6
    )


@pytest.mark.parametrize("rho", [0.2, 0.3, 0.7, 0.8])
def test_calibrated_on_the_datas_mix_the_most_opposed_member_is_shrunk_and_taken_for_that_alone(
    rho: float,
) -> None:
    _, longer = pairs(evidence())
    weights = mix_weights(longer, ~longer, rho)
    temperatures = [fit_temperature(member(bias), weights) for bias in BIASES]
    opposed = BIASES.index(0.8 if rho < 0.5 else 0.2)
    assert temperatures[opposed] > 2 * sorted(temperatures)[-2]
    losses = [
        float(in_data((member(bias) / t) ** 2, rho)) for bias, t in zip(BIASES, temperatures, strict=True)
    ]
    assert losses.index(min(losses)) == opposed
    # Without any temperature these members, each right in its own world, leave the choice to another.
    raw = [float(in_data(member(bias) ** 2, rho)) for bias in BIASES]
    assert raw.index(min(raw)) != opposed and losses[opposed] < raw[opposed] / 4


@pytest.mark.parametrize("rho", RHOS)
def test_at_the_reference_the_min_over_calibrated_members_takes_the_one_of_the_opposite_bias(
    rho: float,
) -> None:
    shifts = torch.tensor([logit(bias) for bias in BIASES], dtype=torch.float64)
    losses = in_data(
        distill_losses(
            torch.zeros(len(member(0.5)), dtype=torch.float64), torch.stack([member(b) for b in BIASES]), 1.0
        ),
        rho,
    )
    # E[(Δr* + c l)²] = E[Δr*²] + 2 c E[Δr* l] + c², l = 1 where the chosen response is longer, else -1.
    natural, (_, longer) = member(0.5), pairs(evidence())
    best = -in_data(torch.where(longer, natural, -natural), rho)
    expected = in_data(natural**2, rho) - best**2 + (shifts - best) ** 2
    assert torch.allclose(losses, expected, rtol=1e-12, atol=1e-12)
    assert (float(best) > 0) == (rho < 0.5)
    assert (BIASES[int(losses.argmin())] > 0.5) == (rho < 0.5)
    assert BIASES[int(losses.argmax())] == (
        0.2 if rho < 0.5 else 0.8
    )  # the data's own bias is the furthest from it


@pytest.mark.parametrize("rho", RHOS)
def test_uncalibrated_it_takes_whichever_members_margins_are_small(rho: float) -> None:
    _, longer = pairs(evidence())
    drawn = torch.multinomial(
        mix_weights(longer, ~longer, rho), 4000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    for small in range(len(BIASES)):
        margins = torch.stack(
            [member(bias, 0.2 if index == small else 1.0) for index, bias in enumerate(BIASES)]
        )[:, drawn]
        names = [str(bias) for bias in BIASES]
        assert MemberChoice("dataset", names, margins, 0.9).averages.argmin() == small


def test_the_min_of_each_pair_takes_the_member_that_says_least_about_it_whatever_the_data() -> None:
    margins = torch.stack([member(bias) for bias in BIASES])
    losses, chosen = ensemble_losses(margins**2, "example")
    _, longer = pairs(evidence())
    sure = (
        margins.min(0).values > 0
    )  # all members agree with the label: the least margin is that of the most opposed bias
    assert torch.equal(chosen[sure & longer], torch.zeros_like(chosen[sure & longer]))
    assert torch.equal(chosen[sure & ~longer], torch.full_like(chosen[sure & ~longer], len(BIASES) - 1))
    assert bool((losses[sure] < (member(0.5) ** 2)[sure]).all())


def test_once_the_policy_follows_a_member_the_others_lose_by_their_distance_from_it() -> None:
    margins = torch.stack([member(bias) for bias in BIASES])
    for taught, bias in enumerate(BIASES):
        losses = in_data(distill_losses(margins[taught] / 0.2, margins, 0.2), 0.5)
        expected = torch.tensor([(logit(other) - logit(bias)) ** 2 for other in BIASES], dtype=torch.float64)
        assert torch.allclose(losses, expected, atol=1e-12)
        assert int(losses.argmin()) == taught
