"""Learning curves: what is drawn is what the samples of checkpoints say; a plateau is judged by its slope."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import RHO, Tiny, rpo
from test_figures import contents

from rpo_cli.figures.kinds.curves import VERDICTS, passed
from rpo_cli.recipes.schema import PolicyRecipe

FIGURE = (
    "stage: figure\nkind: curves\nrhos: [0.5]\nbootstrap_samples: 100\n"
    "variants: [{name: dpo, recipe: dpo.yaml, set: {select: validation, checkpoints: 3}}]\n"
    "claims: [{claim: flat, more: '*', measure: slope, within: 0.02}]\n"
)


@pytest.mark.slow
def test_curves_are_what_the_checkpoints_samples_say_and_are_drawn_again_to_the_byte(
    tiny: Tiny, tmp_path: Path
) -> None:
    (tiny.suite / "curves.yaml").write_text(FIGURE)
    tiny.run("figure curves", "curves.yaml")
    folder = tiny.root / "figures/curves"
    curves = pd.read_csv(folder / "checkpoints.csv")
    looks = tiny.root / f"{RHO}/evaluations/dpo/beta-0.2-checkpoints-3-select-validation-checkpoints"
    base = pd.read_parquet(tiny.root / "seed-0/evaluations/sft/validation/samples.parquet")
    found = [pd.read_parquet(looks / f"{n}/validation/samples.parquet") for n in (1, 2, 3)]
    gains = [samples["reward"].mean() - base["reward"].mean() for samples in found]
    assert curves["advantage"].to_numpy() == pytest.approx(gains, abs=1e-4)
    assert curves["step"].tolist() == [2, 4, 6] and curves["epoch"].tolist() == [0.25, 0.5, 0.75]
    assert curves["kl"].iloc[-1] == pytest.approx((found[2]["logp"] - found[2]["ref_logp"]).mean(), abs=1e-4)
    cells = pd.read_parquet(folder / "cells.parquet")
    slope = (gains[2] - gains[1]) / np.std(base["reward"], ddof=1) / 0.25
    assert cells["slope"].mean() == pytest.approx(slope, abs=1e-3)
    (row,) = json.loads((folder / "curves.json").read_text())["claims"]
    assert row["status"] == "passed" or row["low"] <= 0
    table = pd.read_csv(folder / "curves.csv")
    assert table["plateau"].isin(VERDICTS).all() and (table["plateau"][0] == VERDICTS[1]) == row["passed"]
    again = tmp_path / "again"
    rpo("figure", "curves", "--from", folder, "--out", again)
    drawn = contents(again)
    assert drawn and all(contents(folder)[name] == content for name, content in drawn.items())


def test_a_learning_curve_without_checkpoints_is_refused_in_a_line(tiny: Tiny) -> None:
    (tiny.suite / "curves.yaml").write_text(FIGURE.replace(", set: {select: validation, checkpoints: 3}", ""))
    said = tiny.run("figure curves", "curves.yaml", code=2)
    assert "a learning curve needs checkpoints; set select: validation" in said.stderr


def test_an_epoch_is_one_pass_over_the_pairs_however_many_processes_shared_its_batches() -> None:
    cut = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    recipe = PolicyRecipe.model_validate({"stage": "policy", "objective": "dpo", **cut})
    cell: Any = SimpleNamespace(policy_path="p", loaded=SimpleNamespace(recipe=recipe), looks=[None, None])
    metrics = {"kept/1": 50, "kept/2": 100, "rows": 1600}
    for processes in (1, 4):
        manifest = {"metrics": metrics, "processes": processes}
        workspace: Any = SimpleNamespace(finished={"p": manifest}.__getitem__)
        assert passed(cell, workspace) == ([50, 100], [0.5, 1.0])
