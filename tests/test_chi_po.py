"""Chi-PO: its loss, what tells it from DPO, and that it trains."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Tiny, column
from test_policy_training import SGD

from rpo_cli.objectives.chi_po import chi_po_losses
from rpo_cli.objectives.dpo import dpo_losses
from rpo_cli.recipes import load

H = torch.linspace(-3, 2, 9, dtype=torch.float64)


def test_chi_po_has_the_value_computed_by_hand() -> None:
    loss = chi_po_losses(torch.tensor([1.0]).double(), torch.tensor([-1.0]).double(), 0.5, 20.0).item()
    difference = 0.5 * (math.e + 1 - (1 / math.e - 1))
    assert loss == pytest.approx(math.log1p(math.exp(-difference)), abs=1e-15)


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


def test_the_gradient_of_chi_po_equals_finite_differences() -> None:
    chosen, rejected = H.clone().requires_grad_(), H.flip(0).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *h: chi_po_losses(*h, 0.3, 20.0), (chosen, rejected))


def test_chi_po_starts_at_log_two_and_learns(tiny: Tiny) -> None:
    directory, _ = tiny.make("dpo.yaml", "objective=chi-po", "beta=0.3", *SGD)
    losses = column(directory, "loss")
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5) and min(losses) < losses[0]


def test_the_recipe_of_chi_po_is_one_of_the_miniature() -> None:
    recipe = load("miniature/chi-po.yaml").recipe
    assert (recipe.objective, recipe.chi_po_clip, len(recipe.grid["beta"])) == ("chi-po", 20.0, 7)
