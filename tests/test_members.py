"""Reward models learn from their own table: a member from its subset, the one model from D_rho."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import RHO, Tiny, journal, manifest, rpo, weights
from safetensors.torch import load_file
from worlds import BIASES, Plain, reward

SPLITS = f"{RHO}/splits"


def shorten(file: Path) -> None:
    """Take the last eight rows from a table."""
    pd.read_parquet(file).iloc[:-8].to_parquet(file, index=False)


def margins(plain: Plain, path: Path, table: str) -> np.ndarray:
    """r(chosen) - r(rejected) of every row of a table of D_rho."""
    model = plain.reward_model(path)
    return np.array(
        [reward(model, p.prompt, p.chosen) - reward(model, p.prompt, p.rejected) for p in plain.pairs(table)]
    )


def test_members_were_trained_on_as_many_rows_as_their_subsets_have(learnt: Tiny) -> None:
    sizes = {
        name: len(Plain(learnt.root).table(f"{SPLITS}/{name}.parquet"))
        for name in ("train", *(f"b-{b:g}" for b in BIASES))
    }
    assert sizes["train"] > max(sizes[f"b-{b:g}"] for b in BIASES)
    for b in BIASES:
        assert manifest(learnt.root, f"{RHO}/rm/b-{b:g}")["metrics"]["rows"] == sizes[f"b-{b:g}"]


@pytest.mark.slow
@pytest.mark.parametrize("member", [0.2, 0.8])
def test_a_members_loss_is_that_of_its_own_subset(pupil: Tiny, member: float) -> None:
    """The second step over a whole subset, under the weights of the first, against the text of its rows."""
    settings = ("per_device_train_batch_size=40", "learning_rate=0.01")
    line = journal(pupil.make("rm.yaml", *settings, "max_steps=2", member=member)[0])[1]
    directory, made = pupil.make("rm.yaml", *settings, "max_steps=1", member=member)
    plain = Plain(pupil.root)
    own = margins(plain, directory, f"b-{member:g}")
    assert line["loss"] == pytest.approx(np.logaddexp(0, -own).mean(), rel=1e-4)
    assert line["accuracy"] == pytest.approx((own > 0).mean(), abs=1e-6)
    assert line["margin"] == pytest.approx(own.mean(), rel=1e-3, abs=1e-5)
    other = margins(plain, directory, f"b-{1 - member:g}")
    assert abs(np.logaddexp(0, -other).mean() - line["loss"]) > 2e-4
    held_out = margins(plain, directory, "held_out")
    assert made["metrics"]["held_out_loss"] == pytest.approx(np.logaddexp(0, -held_out).mean(), rel=1e-4)
    assert made["metrics"]["held_out_accuracy"] == (held_out > 0).mean()


@pytest.mark.slow
@pytest.mark.parametrize("member", [0.2, None])
def test_a_reward_model_depends_on_its_own_table_and_no_other(pupil: Tiny, member: float | None) -> None:
    own = "train" if member is None else f"b-{member:g}"
    first = weights(pupil.make("rm.yaml", "max_steps=3", member=member)[0])
    tables = sorted((pupil.root / SPLITS).glob("*.parquet"))
    assert {table.stem for table in tables} == {"train", "held_out", "b-0.2", "b-0.5", "b-0.8"}
    for table in tables:
        if table.stem != own:
            shorten(table)
    assert weights(pupil.make("rm.yaml", "max_steps=3", member=member)[0]) == first
    shorten(pupil.root / SPLITS / f"{own}.parquet")
    assert weights(pupil.make("rm.yaml", "max_steps=3", member=member)[0]) != first


def test_scores_are_those_of_the_member_that_they_are_named_for(learnt: Tiny) -> None:
    plain = Plain(learnt.root)
    for b in (0.2, 0.8):
        model = plain.reward_model(f"{RHO}/rm/b-{b:g}")
        for table in ("train", "held_out"):
            scores = plain.scores(b, table).set_index("id")
            for pair in plain.pairs(table)[:4]:
                for side in ("chosen", "rejected"):
                    expected = reward(model, pair.prompt, getattr(pair, side))
                    assert scores.loc[pair.id, side] == pytest.approx(expected, abs=1e-5)
            metrics = manifest(learnt.root, f"{RHO}/scores/rm/b-{b:g}")["metrics"]
            assert metrics[f"{table}/accuracy"] == (scores["margin"] > 0).mean()
            assert metrics[f"{table}/margin_rms"] == pytest.approx(
                np.sqrt((scores["margin"] ** 2).mean()), rel=1e-5
            )


def test_the_weight_averaged_model_is_the_mean_of_its_members(pupil: Tiny) -> None:
    pupil.make("d-dpo.yaml", "teacher=warm", "max_steps=1")
    found = load_file(pupil.root / RHO / "rm/warm/model.safetensors")
    card = pupil.root / RHO / "rm/warm/README.md"
    assert "mean weights of an ensemble" in card.read_text() and "| mean of | " in card.read_text()
    planned = rpo("rebuild", card, "--workspace", pupil.root.parent / "again", "--dry-run").stdout
    assert planned.splitlines()[-1].split()[1] == f"{RHO}/rm/warm"
    members = [load_file(pupil.root / RHO / f"rm/b-{b:g}/model.safetensors") for b in BIASES]
    for name, tensor in found.items():
        assert np.allclose(tensor, sum(member[name].double() for member in members) / 3, atol=1e-6), name
    assert not np.allclose(found["score.weight"], members[0]["score.weight"], atol=1e-3)


def test_members_are_trained_beyond_one_epoch(learnt: Tiny) -> None:
    for b in BIASES:
        lines = journal(learnt.root / RHO / f"rm/b-{b:g}")
        assert lines[-1]["epoch"] > 2 and len(lines) == 12
