"""What a policy's training says against its teacher, and where a comparison repeats it."""

from __future__ import annotations

import numpy as np
import pytest

from rpo_cli.stages.diagnosis import agreement
from rpo_cli.stages.training.doubts import doubts
from rpo_cli.statistics import Array


def column(right: int, wrong: int, equal: int = 0, size: float = 1.0) -> Array:
    """Margins [n, 1] of a teacher that has so many pairs right, wrong and as ties."""
    return size * np.repeat([1.0, -1.0, 0.0], [right, wrong, equal])[:, None]


def test_margins_that_ask_for_more_than_a_policy_will_go_are_told_of() -> None:
    margins = np.array([[4.0, -6.0]] * 9)
    assert list(doubts(margins, 0.2)) == [] == list(doubts(np.empty(0), 0.1))
    (said,) = doubts(margins, 0.1)
    assert "ask for 50 nats of log-ratio" in said


@pytest.mark.parametrize(
    ("margins", "says"),
    [
        (column(45, 55), "45 % [36, 55] of 100 training pairs, not shown to be more than chance"),
        (column(7, 38), "16 % [8, 29] of 45 training pairs, less than by chance"),
        (column(59, 41, 900), "59 % [49, 68] of 100 training pairs"),  # equal rewards aside
        (column(0, 0, 9), "the rewards of both responses are equal in every training pair"),
        (column(65, 35), None),
    ],
)
def test_a_teacher_no_better_than_chance_on_its_own_pairs_is_told_of(
    margins: Array, says: str | None
) -> None:
    said = list(doubts(margins, 0.1, by_size=False))
    assert said == [] if says is None else len(said) == 1 and says in said[0]


def test_of_several_columns_one_that_beats_chance_is_enough() -> None:
    both = np.hstack([column(50, 50), column(65, 35)])
    assert list(doubts(both, 0.1)) == []
    (said,) = doubts(np.hstack([column(50, 50), column(45, 55)]), 0.1)
    assert "the best of 2 prefers what the labels prefer in 50 %" in said


def test_margins_near_zero_are_told_of_where_the_loss_reads_their_size() -> None:
    (said,) = doubts(column(90, 10, size=0.01), 0.1)
    assert "ask for 0.1 nats of log-ratio" in said and "next to nothing to learn" in said
    assert list(doubts(column(90, 10, size=0.01), 0.1, by_size=False)) == []
    assert list(doubts(column(90, 10, size=0.1), 0.1)) == []


def test_small_scores_with_a_beta_of_their_scale_are_not_near_zero() -> None:
    scores, untrained = column(90, 10, size=0.055), column(90, 10, size=0.0065)
    assert list(doubts(scores, 0.1 * 0.055)) == []  # as `rpo init` scales beta by their median
    (said,) = doubts(untrained, 0.1)
    assert "ask for 0.065 nats" in said


@pytest.mark.parametrize(("apart", "told"), [(0.001, True), (0.5, False)])
def test_members_that_are_nearly_one_model_are_told_of(apart: float, told: bool) -> None:
    rng = np.random.default_rng(0)
    members = np.abs(rng.normal(2, 0.5, 100)) * (1 + apart * rng.normal(size=(3, 100)))
    said = list(doubts(members.T, 0.1, agreement(members, np.zeros(100))))
    assert any("nearly one model" in line for line in said) == told
