"""rm-dpo: DPO on a reward model's labels."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Tiny, column, weights
from test_policy_training import SGD

from rpo_cli.objectives.dpo import dpo_losses
from rpo_cli.objectives.rm_dpo import labelled_losses

H = torch.linspace(-3, 2, 5, dtype=torch.float64)
MARGINS = torch.tensor([2.0, -0.5, 0.0, -3.0, 0.1], dtype=torch.float64)


def test_argmax_labels_are_dpo_on_the_pairs_as_the_teacher_orders_them() -> None:
    turned = torch.where(MARGINS < 0, -H, H)
    expected = dpo_losses(turned, 0.3)
    expected[2] = (expected[2] + dpo_losses(-H, 0.3)[2]) / 2  # a tie is a label of one half
    torch.testing.assert_close(labelled_losses(H, MARGINS, 0.3, "argmax"), expected, rtol=1e-15, atol=0)


def test_soft_labels_of_a_teacher_who_is_sure_are_its_argmax_labels_and_of_one_who_is_not_a_half() -> None:
    sure = labelled_losses(H, 1e3 * MARGINS, 0.3, "soft")
    torch.testing.assert_close(sure, labelled_losses(H, MARGINS, 0.3, "argmax"), rtol=1e-14, atol=0)
    unsure = labelled_losses(H, 0 * MARGINS, 0.3, "soft")
    torch.testing.assert_close(unsure, (dpo_losses(H, 0.3) + dpo_losses(-H, 0.3)) / 2, rtol=1e-15, atol=0)


def test_margins_of_other_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"delta_r \(5, 1\) is not \[B\] for delta_h \(5,\)"):
        labelled_losses(H, MARGINS[:, None], 0.3, "soft")


def test_rm_dpo_starts_at_log_two_learns_and_its_two_kinds_of_labels_teach_differently(tiny: Tiny) -> None:
    trained = {}
    for labels in ("soft", "argmax"):
        asked = f"teacher_labels={labels}"
        directory, _ = tiny.make("d-dpo.yaml", "objective=rm-dpo", "beta=0.3", asked, *SGD)
        losses = column(directory, "loss")
        assert losses[0] == pytest.approx(math.log(2), rel=1e-5) and min(losses) < losses[0]
        trained[labels] = weights(directory)
    assert trained["soft"] != trained["argmax"]
