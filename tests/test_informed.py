"""Who is told of the bias: balanced pairs, one balanced member, ensembles that know nothing of length."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import cast

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import Tiny, column, manifest, weights

from rpo_cli.artifacts import Stage, Workspace, job_of, origin_of
from rpo_cli.artifacts.origin import as_yaml
from rpo_cli.recipes import load
from rpo_cli.recipes.schema import SplitsRecipe
from rpo_cli.runs.planner import Planner
from rpo_cli.stages.reward import training_rows
from rpo_cli.stages.splits import LONGER, SHORTER, _subsets, draw, preference_of_length
from rpo_cli.stages.training.teachers import calibrated_margins

RHO = "seed-0/rho-0.5"


def splits(draw: str, **more: object) -> SplitsRecipe:
    asked = {"stage": "splits", "rho": 0.4, "num_pairs": 100, "held_out": 20, "subset_draw": draw, **more}
    return SplitsRecipe.model_validate(asked)


KINDS = np.array([LONGER, SHORTER] * 200, dtype=np.int8)


def test_independent_subsets_have_the_sizes_and_biases_of_nested_ones_and_other_pairs() -> None:
    nested, independent = (draw(KINDS, splits(how), 7) for how in ("nested", "independent"))
    assert np.array_equal(nested.train, independent.train)
    assert np.array_equal(nested.held_out, independent.held_out)
    for b, rows in independent.subsets.items():
        assert len(rows) == len(nested.subsets[b]) == len(set(rows.tolist()))
        assert (KINDS[rows] == LONGER).sum() == (KINDS[nested.subsets[b]] == LONGER).sum()
        assert set(rows.tolist()) <= set(independent.train.tolist())
        assert set(rows.tolist()) != set(nested.subsets[b].tolist())


def test_two_independent_subsets_share_as_many_pairs_as_chance_lets_them() -> None:
    # Of 40 longer-preferred pairs b .2 takes 5 and b .8 takes 20: they share 2.5 on average, nested ones 5.
    asked = splits("independent", subset_size=25)
    shared = []
    for seed in range(200):
        small, large = (draw(KINDS, asked, seed).subsets[b] for b in (0.2, 0.8))
        shared.append(len({row for row in small if KINDS[row] == LONGER} & set(large.tolist())))
    assert np.mean(shared) == pytest.approx(2.5, abs=4 * np.std(shared) / 200**0.5) and max(shared) > 3


def test_an_independent_subset_is_drawn_for_its_own_b_and_rho() -> None:
    """Of the same D_rho: else two members, or two rho, would share what chance tells apart."""

    def longer(b: float, rho: float = 0.4, seed: int = 7) -> set[int]:
        asked = splits("independent", rho=rho, ensemble=[b], subset_size=60)
        rows = _subsets(np.arange(len(KINDS)), KINDS, asked, seed)[b]
        return {row for row in rows.tolist() if KINDS[row] == LONGER}

    assert longer(0.4) == longer(0.4)
    assert not longer(0.4) <= longer(0.6)
    assert longer(0.4) != longer(0.4, rho=0.6) and longer(0.4) != longer(0.4, seed=8)


@pytest.mark.parametrize("how", ["nested", "independent"])
def test_the_first_pairs_of_a_subset_have_its_bias(how: str) -> None:
    """What reads no more than some of them reads no block of one kind."""
    for b, rows in draw(KINDS, splits(how, num_pairs=300), 7).subsets.items():
        some = KINDS[rows[: len(rows) // 2]]
        assert (some == LONGER).mean() == pytest.approx(b, abs=0.2) and {*some} == {LONGER, SHORTER}


def test_without_the_eos_more_pairs_differ_in_length(tiny: Tiny) -> None:
    # 33 words against 30 are 10 % more; with an EOS each they are 34 against 31.
    assert preference_of_length(np.array([34]), np.array([31]), 0.1)[0] == 0
    assert preference_of_length(np.array([33]), np.array([30]), 0.1)[0] == LONGER
    directory, _ = tiny.make("splits.yaml", "length_counts_eos=false")
    drawn = pq.read_table(directory / "train.parquet").to_pydict()
    for chosen, rejected, kind in zip(
        drawn["chosen_tokens"], drawn["rejected_tokens"], drawn["longer_preferred"], strict=True
    ):
        assert kind == preference_of_length(np.array([chosen - 1]), np.array([rejected - 1]), 0.1)[0]


def test_a_policy_learns_from_the_pairs_of_a_subset(tiny: Tiny) -> None:
    directory, found = tiny.make("dpo.yaml", "subset=0.8")
    subset = pq.read_table(tiny.root / RHO / "splits/b-0.8.parquet")
    assert found["metrics"]["rows"] == len(subset) < 64
    assert found["metrics"]["longer_share"] == pytest.approx(0.8, abs=0.05)
    assert directory.name == "beta-0.2-subset-0.8"


@pytest.mark.slow
def test_the_member_of_a_bias_teaches_as_its_folder_does(tiny: Tiny) -> None:
    member, _ = tiny.make("rm.yaml", member=0.2)
    named, found = tiny.make("d-dpo.yaml", "reward_member=0.2")
    assert "scores/0.2" in found["inputs"]
    bytes_named, loss_named = weights(named), column(named, "loss")
    copy = tiny.suite / "member"
    member.rename(copy)
    listed, _ = tiny.make("d-dpo.yaml", f"reward_model={copy}")
    assert weights(listed) == bytes_named and column(listed, "loss") == loss_named


@pytest.mark.slow
def test_one_model_is_calibrated_where_it_is_asked_for(pupil: Tiny) -> None:
    plain, before = pupil.make("d-dpo.yaml")
    kept = weights(plain)
    calibrated, found = pupil.make("d-dpo.yaml", "calibrate_one=true")
    assert before["metrics"]["temperature/rm"] == 1.0 != found["metrics"]["temperature/rm"]
    assert weights(calibrated) != kept


@pytest.mark.slow
@pytest.mark.parametrize("how", ["halves", "seeds"])
def test_an_ensemble_told_nothing_of_length_is_trained_and_distilled(tiny: Tiny, how: str) -> None:
    tiny.edit("rm.yaml", f"ensemble_of: {how}\nensemble_size: 2")
    tiny.edit("e-dpo.yaml", "calibration: none")
    tiny.run("train-policy", "e-dpo.yaml")
    found = manifest(tiny.root, tiny.stage("e-dpo.yaml").path)
    names = {"halves": {"half-0", "half-1"}, "seeds": {"all", "seed-1"}}[how]
    assert {name.removeprefix("members/") for name in found["metrics"] if "members/" in name} == names
    rows = [manifest(tiny.root, f"{RHO}/rm/{name}")["metrics"]["rows"] for name in sorted(names)]
    assert rows == ([32, 32] if how == "halves" else [64, 64])
    one, other = (weights(tiny.root / RHO / "rm" / name) for name in sorted(names))
    assert one != other


def fold(prompt: str, folds: int) -> int:
    return int.from_bytes(blake2b(prompt.encode(), digest_size=8).digest(), "big") % folds


@pytest.mark.slow
@pytest.mark.parametrize("calibration", ["none", "temperature"])
def test_a_cross_fitted_margin_is_of_the_member_that_was_not_trained_on_the_pairs_prompt(
    pupil: Tiny, calibration: str
) -> None:
    pupil.edit("rm.yaml", "ensemble_of: folds\nensemble_size: 3")
    settings = ("teacher=cross-fitted", "ensemble=rm.yaml", f"calibration={calibration}", "max_steps=1")
    directory, made = pupil.make("d-dpo.yaml", *settings, "per_device_train_batch_size=64")
    stage, workspace = pupil.stage("d-dpo.yaml", *settings), Workspace(pupil.root, "tiny")
    splits = job_of(stage, workspace, {}).inputs["data"]
    drawn = pq.read_table(splits / "train.parquet")["id"].to_pylist()
    pairs = pd.read_parquet(pupil.root / "seed-0/data/pairs.parquet").set_index("id")
    of = {name: fold(pairs.loc[name, "prompt"], 3) for name in drawn}
    assert sorted(set(of.values())) == [0, 1, 2]
    tables = {}
    for number in range(3):
        scores = cast(Stage, stage.inputs[f"scores/fold-{number}"])
        learnt, held_out = training_rows(job_of(cast(Stage, scores.inputs["model"]), workspace, {}))
        assert sorted(learnt.ids) == sorted(name for name in drawn if of[name] != number)
        assert held_out is not None and len(held_out) == 64
        table = pq.read_table(pupil.root / scores.path / "train.parquet").to_pandas().set_index("id")
        tables[number] = (table["chosen"] - table["rejected"]) / made["metrics"][f"temperature/fold-{number}"]
    job = job_of(stage, workspace, {})
    backwards = replace(job, inputs=dict(reversed(job.inputs.items())))  # a plan may name them in any order
    for each in (job, backwards):
        found = calibrated_margins(each).margins
        assert {name: [pytest.approx(tables[of[name]][name], rel=1e-6)] for name in drawn} == found
    assert len({tuple(table[drawn]) for table in tables.values()}) == 3
    assert column(directory, "loss")[0] > 0


def test_cross_fitting_needs_folds_and_something_that_is_left(empty: Tiny) -> None:
    asked = ("train-policy", "d-dpo.yaml", "--dry-run", "--set", "teacher=cross-fitted", "--set")
    for members in ("ensemble=rm.yaml", "ensemble=[rm.yaml, oracle.yaml]"):
        done = empty.run(*asked, members, "--set", "calibration=none", code=2)
        assert "teacher: cross-fitted needs a reward recipe with `ensemble_of: folds`" in done.stderr
    empty.edit("rm.yaml", "ensemble_of: folds")
    (empty.suite / "other.yaml").write_text((empty.suite / "splits.yaml").read_text())
    asked_others = ("ensemble=rm.yaml", "--set", "data=other.yaml", "--set", "calibration=none")
    done = empty.run(*asked, *asked_others, code=2)
    assert "needs members of the pairs of other.yaml" in done.stderr
    empty.edit("rm.yaml", "ensemble_of: folds\nensemble_size: 1")
    done = empty.run(*asked, "ensemble=rm.yaml", code=2)
    assert "rm.yaml" in done.stderr and "without the only fold nothing is left" in done.stderr


@pytest.mark.parametrize("how", ["subsets", "halves", "folds", "seeds"])
def test_what_a_card_says_of_a_policy_plans_the_same_ensemble(empty: Tiny, how: str) -> None:
    empty.edit("rm.yaml", f"ensemble_of: {how}")
    stage = empty.stage("e-dpo.yaml")
    origin = origin_of(stage)
    file = empty.suite.parent / "rpo_recipe.yaml"
    file.write_text(as_yaml(origin))
    again = Planner().build(load(f"{file}:{origin['target']}"))
    assert again.key == stage.key
    members = [name for name in again.inputs if name.startswith("scores/")]
    assert len({again.inputs[name].key for name in members}) == len(members) == (3 if how == "subsets" else 5)


@pytest.mark.slow
def test_a_member_of_another_seed_is_calibrated_on_the_pairs_as_they_are(pupil: Tiny) -> None:
    pupil.edit("rm.yaml", "ensemble_of: seeds\nensemble_size: 2")
    own, found = pupil.make("e-dpo.yaml", "calibration=temperature", "calibration_mix=own")
    data, same = pupil.make("e-dpo.yaml", "calibration=temperature", "calibration_mix=data")
    temperatures = [
        {name: value for name, value in each["metrics"].items() if "temperature" in name}
        for each in (found, same)
    ]
    assert temperatures[0] == temperatures[1] and all(value != 1 for value in temperatures[0].values())
    assert weights(own) == weights(data)


def test_a_subset_or_a_member_that_is_not_there_is_refused_with_its_line(empty: Tiny) -> None:
    for setting, said in (
        ("subset=0.3", "subset: 0.3 is no subset of splits.yaml (0.2, 0.5, 0.8)"),
        ("reward_member=0.3", "reward_member: 0.3 is no member of rm.yaml (0.2, 0.5, 0.8)"),
    ):
        result = empty.run("train-policy", "d-dpo.yaml", "--set", setting, code=2)
        assert said in " ".join(result.output.split())
