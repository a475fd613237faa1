"""Temperatures of an ensemble's members: fitted on which pairs, how weighted, and what is divided by them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from conftest import RHO, Tiny, journal, manifest
from worlds import BIASES, Plain

POLICY = f"{RHO}/policies/e-dpo/beta-0.2"
LONGER, SHORTER = 1, -1
WHOLE = ("per_device_train_batch_size=64", "max_steps=1", "kl_estimator=data")


def slope(plain: Plain, member: float, mix: float | None, temperature: float) -> tuple[float, float]:
    """d/ds of the mean loss log(1 + exp(-s margin)) on held-out pairs at s = 1/T, and its terms' mean size.

    `mix`: the weighted share of pairs whose longer response is preferred; None: every pair counts once.
    """
    margins = plain.scores(member, "held_out").set_index("id")["margin"]
    kinds = (
        plain.table(f"{RHO}/splits/held_out.parquet")
        .set_index("id")["longer_preferred"]
        .loc[margins.index]
        .to_numpy()
    )
    weights = np.ones(len(margins))
    if mix is not None:
        weights = np.where(
            kinds == LONGER, mix / (kinds == LONGER).sum(), (1 - mix) / (kinds == SHORTER).sum()
        ) * (kinds != 0)
    terms = weights * margins.to_numpy() / (1 + np.exp(margins.to_numpy() / temperature))
    return float(-terms.sum()), float(np.abs(terms).sum())


def temperatures(metrics: dict[str, Any]) -> list[float]:
    return [metrics[f"temperature/{b:g}"] for b in BIASES]


def test_at_its_temperature_a_members_loss_is_stationary_under_its_own_mix(learnt: Tiny) -> None:
    plain, found = Plain(learnt.root), temperatures(manifest(learnt.root, POLICY)["metrics"])
    assert max(found) > 1.5 * min(found)
    for member, temperature in zip(BIASES, found, strict=True):
        at, size = slope(plain, member, member, temperature)
        assert abs(at) < 1e-6 * size, member
        for other in set(BIASES) - {member}:
            at, size = slope(plain, member, other, temperature)
            assert abs(at) > 1e-3 * size, (member, other)


def test_on_the_datas_mix_every_held_out_pair_counts_once(pupil: Tiny) -> None:
    _, made = pupil.make("e-dpo.yaml", "calibration_mix=data", *WHOLE)
    plain = Plain(pupil.root)
    for member, temperature in zip(BIASES, temperatures(made["metrics"]), strict=True):
        at, size = slope(plain, member, None, temperature)
        assert abs(at) < 1e-6 * size, member


@pytest.mark.parametrize("calibration", ["temperature", "none"])
def test_the_first_loss_is_that_of_margins_divided_by_the_temperatures(pupil: Tiny, calibration: str) -> None:
    """At the reference the residual of a pair is its teacher's margin alone."""
    directory, made = pupil.make("e-dpo.yaml", f"calibration={calibration}", *WHOLE)
    found = temperatures(made["metrics"])
    assert found == [1.0] * 3 if calibration == "none" else 1.0 not in found
    losses = np.stack(
        [(Plain(pupil.root).scores(b)["margin"] / t) ** 2 for b, t in zip(BIASES, found, strict=True)]
    )
    (line,) = journal(directory)
    assert line["losses/preference"] == pytest.approx(losses.min(0).mean(), rel=1e-5)
    shares = [(losses.argmin(0) == index).mean() for index in range(3)]
    assert [line[f"members/{b:g}"] for b in BIASES] == pytest.approx(shares) and min(shares) > 0


@pytest.mark.parametrize("teacher", ["mean", "lcb"])
def test_one_teacher_of_several_members_is_made_of_calibrated_margins(pupil: Tiny, teacher: str) -> None:
    settings = (
        (f"teacher={teacher}", "lcb_lambda=0.5", "ensemble=rm.yaml")
        if teacher == "lcb"
        else (f"teacher={teacher}",)
    )
    directory, made = pupil.make("d-dpo.yaml", *settings, *WHOLE[:2])
    found = temperatures(made["metrics"])
    assert len({*found, 1.0}) == 4
    margins = np.stack(
        [Plain(pupil.root).scores(b)["margin"] / t for b, t in zip(BIASES, found, strict=True)]
    )
    mean, spread = margins.mean(0), np.sqrt(((margins - margins.mean(0)) ** 2).mean(0))
    one = mean if teacher == "mean" else np.sign(mean) * np.maximum(np.abs(mean) - 0.5 * spread, 0)
    (line,) = journal(directory)
    assert line["loss"] == pytest.approx((one**2).mean(), rel=1e-5)


def test_margins_belong_to_their_rows_whatever_the_order_of_the_scores(pupil: Tiny) -> None:
    """A teacher's table is joined to the pairs by id: in another order it teaches the same."""
    settings = ("max_steps=3", "learning_rate=0.01")
    before = journal(pupil.make("d-dpo.yaml", *settings)[0])
    file = pupil.root / RHO / "scores/rm/all/train.parquet"
    Plain(pupil.root).table(str(file.relative_to(pupil.root))).iloc[::-1].to_parquet(file, index=False)
    assert json.dumps(journal(pupil.make("d-dpo.yaml", *settings)[0])) == json.dumps(before)
