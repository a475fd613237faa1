"""Conservative DPO: where its loss it is least, and that it is TRL's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import Tiny, column
from test_policy_training import SGD, distance, stock

from rpo_cli.objectives.cdpo import cdpo_losses

BETA, FLIPPED = 0.7, 0.2


def test_the_gradient_of_cdpo_is_zero_where_the_label_is_as_likely_as_it_is_believed() -> None:
    best = math.log((1 - FLIPPED) / FLIPPED) / BETA  # sigma(beta dh) = 1 - eps
    delta_h = torch.tensor([best - 1, best, best + 1], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(cdpo_losses(delta_h, BETA, FLIPPED).sum(), delta_h)
    assert slope[0] < 0 and abs(slope[1]) < 1e-15 and slope[2] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # stock TRL's
def test_cdpo_trains_as_trls_aot_one_pair_at_a_time_up_to_rounding(
    built: Tiny, tiny: Tiny, tmp_path: Path
) -> None:
    # `aot` sorts the pairs' log-ratios before it subtracts them: of one pair there is nothing to sort.
    theirs = {"loss_type": ["aot"], "label_smoothing": 0.2, "gradient_accumulation_steps": 8}
    losses, final = stock(built, tmp_path / "trl", 1, beta=0.3, optim="sgd", learning_rate=0.1, **theirs)
    directory, _ = tiny.make("dpo.yaml", "objective=cdpo", "beta=0.3", "label_smoothing=0.2", *SGD)
    assert column(directory, "loss") == pytest.approx(losses, rel=1e-5)
    assert distance(directory, final) < 1e-5
    assert distance(directory, built.root / "seed-0/sft") > 1e-3
