"""Of a policy's checkpoints validation chooses one: which, from what, and the same after an interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
from conftest import RHO, Tiny, journal, manifest, weights
from test_policy_training import Stop

from rpo_cli.artifacts import Stage, Workspace, job_of
from rpo_cli.runs.work import run_job
from rpo_cli.stages.data.miniature import utility
from rpo_cli.stages.selected import score_of

AT = f"{RHO}/policies/dpo/beta-0.2"
SELECT = "select: validation\ncheckpoints: 3\n"


@pytest.fixture(scope="module")
def trained(built: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A workspace in which validation has chosen among three checkpoints of DPO's run: read it."""
    home = tmp_path_factory.mktemp("selected")
    shutil.copytree(built.suite, home / "tiny")
    shutil.copytree(built.root, home / "runs")
    world = Tiny(home / "tiny", home / "runs")
    world.edit("dpo.yaml", SELECT)
    world.run("train-policy", "dpo.yaml")
    return world


@pytest.fixture
def chosen(trained: Tiny, tmp_path: Path) -> Tiny:
    """A copy of it, for one test."""
    shutil.copytree(trained.suite, tmp_path / "tiny")
    shutil.copytree(trained.root, tmp_path / "runs")
    return Tiny(tmp_path / "tiny", tmp_path / "runs")


@pytest.mark.slow
def test_the_best_of_evenly_spaced_checkpoints_is_the_policy_and_its_manifest_has_all_values(
    trained: Tiny,
) -> None:
    found = manifest(trained.root, AT)
    metrics = found["metrics"]
    values = []
    for number, step in enumerate((2, 4, 6), 1):
        assert metrics[f"kept/{number}"] == step
        path = f"{RHO}/evaluations/dpo/beta-0.2-checkpoints/{number}/validation"
        values.append(manifest(trained.root, path)["metrics"]["advantage"])
        assert metrics[f"validation/{number}"] == values[-1]
    best = values.index(max(values)) + 1
    assert metrics["selected/checkpoint"] == best and metrics["selected/step"] == 2 * best
    kept = trained.root / f"{AT}-checkpoints"
    assert weights(trained.root / AT) == weights(kept / f"checkpoint-{best}")
    assert len({weights(kept / f"checkpoint-{n}") for n in (1, 2, 3)}) == 3
    assert (trained.root / AT / "README.md").is_file() and not (kept / "README.md").exists()


def test_keeping_checkpoints_changes_nothing_of_the_training(chosen: Tiny) -> None:
    kept = chosen.root / f"{AT}-checkpoints"
    plain, _ = chosen.make("dpo.yaml", "select=last")
    assert weights(plain) == weights(kept / "checkpoint-3") and journal(plain) == journal(kept)


def test_an_interrupted_training_keeps_the_same_checkpoints(chosen: Tiny) -> None:
    stage = cast(Stage, chosen.stage("dpo.yaml", "save_steps=2").inputs["trained"])
    workspace, directory = Workspace(chosen.root, chosen.suite.name), chosen.root / stage.path
    undisturbed = [weights(directory / f"checkpoint-{number}") for number in (1, 2, 3)]
    job = job_of(stage, workspace, {}, force=True)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, Stop(at=5))
    watch = Stop()
    run_job(job, watch)
    assert watch.steps == [5, 6]
    assert [weights(directory / f"checkpoint-{number}") for number in (1, 2, 3)] == undisturbed


def test_without_an_oracle_held_out_pairs_choose(tiny: Tiny) -> None:
    tiny.edit("dpo.yaml", SELECT)
    tiny.edit("evaluate.yaml", "oracle: null")
    tiny.run("train-policy", "dpo.yaml")
    metrics = manifest(tiny.root, AT)["metrics"]
    ranked = f"{RHO}/held-out/dpo/beta-0.2-checkpoints/3"
    found = manifest(tiny.root, ranked)["metrics"]
    assert metrics["validation/3"] == found["validation/accuracy"]
    assert not (tiny.root / f"{RHO}/evaluations/dpo/beta-0.2-checkpoints").exists()


def test_the_half_of_the_held_out_pairs_that_is_reported_does_not_choose() -> None:
    assert score_of({"accuracy": 0.9, "validation/accuracy": 0.6, "test/accuracy": 0.95}) == 0.6
    assert score_of({"advantage": 0.1, "accuracy": 0.9}) == 0.1


def test_of_checkpoints_that_do_equally_well_the_earlier_is_chosen(chosen: Tiny) -> None:
    for number, advantage in ((1, 0.1), (2, 0.3), (3, 0.3)):
        file = chosen.root / f"{RHO}/evaluations/dpo/beta-0.2-checkpoints/{number}/validation/manifest.json"
        found = json.loads(file.read_text())
        file.write_text(json.dumps(found | {"metrics": found["metrics"] | {"advantage": advantage}}))
    directory, again = chosen.make("dpo.yaml")
    assert again["metrics"]["selected/checkpoint"] == 2
    kept = chosen.root / f"{AT}-checkpoints"
    assert weights(directory) == weights(kept / "checkpoint-2") != weights(kept / "checkpoint-3")


def test_what_was_chosen_is_evaluated_like_any_policy(chosen: Tiny) -> None:
    said = chosen.run("evaluate", "dpo.yaml")
    assert (
        manifest(chosen.root, f"{RHO}/evaluations/dpo/beta-0.2/test")["inputs"]["policy"]
        == (manifest(chosen.root, AT)["key"])
    )
    assert "advantage" in said.output


def test_more_checkpoints_than_steps_are_refused_in_a_line(tiny: Tiny) -> None:
    tiny.edit("dpo.yaml", "select: validation\ncheckpoints: 7\n")
    said = tiny.run("train-policy", "dpo.yaml", "--dry-run", code=2)
    assert "checkpoints: 7 is more than all steps (6)" in said.stderr


@pytest.mark.slow
def test_cells_have_utility_kl_wins_and_what_did_not_end(tiny: Tiny) -> None:
    (tiny.suite / "figure.yaml").write_text(
        "stage: figure\nrhos: [0.5]\nvariants: [{name: e, recipe: e-dpo.yaml}]\n"
        "claims: [{claim: wins, more: e, measure: win}]\n"
    )
    tiny.run("figure figure2", "figure.yaml")
    cells = pd.read_parquet(tiny.root / "figures/figure/cells.parquet").set_index("prompt_id")
    ours, theirs = (
        pd.read_parquet(tiny.root / f"seed-0/{name}/test/samples.parquet")
        for name in ("rho-0.5/evaluations/e-dpo/beta-0.2", "evaluations/sft")
    )
    for prompt, rows in ours.groupby("prompt_id"):
        cell, other = cells.loc[prompt], theirs[theirs["prompt_id"] == prompt]
        worth = [utility(text, said) for text, said in zip(rows["prompt"], rows["response"], strict=True)]
        assert cell["utility"] == pytest.approx(np.mean(worth), abs=1e-4)
        assert cell["kl"] == pytest.approx((rows["logp"] - rows["ref_logp"]).mean(), abs=1e-4)
        assert cell["unfinished"] == pytest.approx(1 - rows["finished"].mean(), abs=1e-4)
        duels = np.sign(np.subtract.outer(rows["reward"].to_numpy(), other["reward"].to_numpy()))
        assert cell["win"] == pytest.approx((duels.mean() + 1) / 2, abs=1e-4)
    table = pd.read_csv(tiny.root / "figures/figure/figure2.csv")
    assert table["utility"][0] == pytest.approx(cells["utility"].mean(), abs=1e-4)
    assert {"kl_low", "win_high", "unfinished"} <= set(table)


def test_an_interrupted_choice_goes_on_in_the_folder_that_it_left(chosen: Tiny) -> None:
    stage = chosen.stage("dpo.yaml")
    job = job_of(stage, Workspace(chosen.root, chosen.suite.name), {}, force=True)
    before = weights(chosen.root / stage.path)

    def stop(step: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, stop)  # when all of it is there but its manifest
    run_job(job, lambda step, of: None)
    assert weights(chosen.root / stage.path) == before
