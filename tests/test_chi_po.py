"""Chi-PO: what tells it from DPO, and that it trains."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Tiny, column
from test_policy_training import SGD

from rpo_cli.objectives.chi_po import chi_po_losses
from rpo_cli.objectives.dpo import dpo_losses

H = torch.linspace(-3, 2, 9, dtype=torch.float64)


def test_chi_po_is_dpo_where_every_response_is_far_less_likely_than_under_the_reference() -> None:
    # phi(z) = z + log z, and z vanishes.
    far = H - 60
    assert torch.allclose(chi_po_losses(far, far.flip(0), 0.3, 50.0), dpo_losses(far - far.flip(0), 0.3))


def test_at_the_reference_chi_po_pushes_twice_as_hard_as_dpo() -> None:
    # phi'(log z) = z + 1 = 2 at z = 1.
    both = []
    for losses in (lambda h: chi_po_losses(h, -h, 0.4, 20.0), lambda h: dpo_losses(2 * h, 0.4)):
        h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        both.append(torch.autograd.grad(losses(h).sum(), h)[0].item())
    assert both[0] == pytest.approx(2 * both[1], rel=1e-12)


def test_beyond_the_clip_chi_po_has_no_gradient_and_its_loss_stays_finite() -> None:
    h = torch.tensor([80.0, 5.0, -80.0], dtype=torch.float32, requires_grad=True)
    losses = chi_po_losses(h, torch.zeros(3), 1.0, 10.0)
    (slope,) = torch.autograd.grad(losses.sum(), h)
    assert torch.isfinite(losses).all() and torch.equal(slope, torch.zeros(3))


def test_of_two_responses_beyond_what_exp_is_taken_of_the_likelier_one_is_still_told() -> None:
    chosen, rejected = torch.tensor([[25.0], [23.0]], dtype=torch.float64)
    loss = chi_po_losses(chosen, rejected, 0.5, 20.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)))


def test_chi_po_starts_at_log_two_and_learns(tiny: Tiny) -> None:
    directory, _ = tiny.make("dpo.yaml", "objective=chi-po", "beta=0.3", *SGD)
    losses = column(directory, "loss")
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5) and min(losses) < losses[0]
