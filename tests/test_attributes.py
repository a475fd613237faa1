"""The ensemble told of another attribute than length, and what a reward model must know to be built on."""

from __future__ import annotations

import re
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import RHO, SEED, Tiny, manifest

from rpo_cli.artifacts import Workspace, job_of
from rpo_cli.objectives.calibration import fit_temperature, mix_weights
from rpo_cli.recipes import RecipeError, load
from rpo_cli.recipes.schema import PolicyRecipe, result_fields
from rpo_cli.stages.data.rows import write_columns
from rpo_cli.stages.splits import LONGER, SHORTER
from rpo_cli.stages.training.teachers import _temperature

POLITE = "ensemble_on: [chosen_polite, rejected_polite]\n"


@pytest.fixture
def polite(empty: Tiny) -> Tiny:
    empty.edit("data.yaml", "polite: 0.5\n")
    empty.edit("splits.yaml", POLITE)
    return empty


@pytest.mark.slow
def test_subsets_differ_in_the_attribute_and_the_pairs_themselves_in_length(polite: Tiny) -> None:
    polite.run("make-biased-splits", "splits.yaml")
    folder = polite.root / RHO / "splits"
    ids = {}
    for file in folder.glob("*.parquet"):
        ids[file.stem] = pq.read_table(file).to_pandas()
    assert ids["train"].longer_preferred.eq(1).mean() == pytest.approx(0.5)
    for b in (0.2, 0.5, 0.8):
        assert ids[f"b-{b:g}"].higher_preferred.eq(1).mean() == pytest.approx(b, abs=0.06)
        assert not ids[f"b-{b:g}"].higher_preferred.eq(0).any()  # equally polite pairs tell nothing
    # Relabelling turned the columns with the responses.
    pairs = pq.read_table(polite.root / SEED / "data/pairs.parquet").to_pandas().set_index("id")
    turned = pq.read_table(polite.root / SEED / "relabel/pairs.parquet").to_pandas().set_index("id").swapped
    train = ids["train"].set_index("id")
    more = pairs.chosen_polite - pairs.rejected_polite
    assert (
        train.higher_preferred == np.where(turned, -more, more)[pairs.index.get_indexer(train.index)]
    ).all()


def test_without_the_key_splits_are_what_they_were(built: Tiny) -> None:
    recipe = load(str(built.suite / "splits.yaml")).recipe
    assert "ensemble_on" not in result_fields(recipe)
    assert "higher_preferred" not in pq.read_schema(built.root / RHO / "splits/train.parquet").names


@pytest.mark.slow
def test_a_member_is_calibrated_to_its_own_bias_of_the_attribute(polite: Tiny) -> None:
    polite.run("train-policy", "e-dpo.yaml")
    stage = polite.stage("e-dpo.yaml")
    job = job_of(stage, Workspace(polite.root, polite.suite.name), {})
    notes = pq.read_table(polite.root / RHO / "splits/held_out.parquet").to_pandas()
    margins = np.where(np.arange(len(notes)) % 3 == 0, -1.0, 2.0)
    write_columns({"id": notes.id, "chosen": margins, "rejected": 0 * margins},
                  job.inputs["scores/0.2"] / "held_out.parquet")  # fmt: skip
    higher, lower = (torch.tensor(notes.higher_preferred.to_numpy() == kind) for kind in (LONGER, SHORTER))
    own = fit_temperature(torch.tensor(margins), mix_weights(higher, lower, 0.2))
    assert _temperature(job, cast(PolicyRecipe, stage.recipe), "0.2") == pytest.approx(own)


def test_an_ensemble_on_another_attribute_than_the_policys_splits_is_refused_before_anything_is_built(
    polite: Tiny,
) -> None:
    (polite.suite / "plain.yaml").write_text((polite.suite / "splits.yaml").read_text().replace(POLITE, ""))
    polite.edit("e-dpo.yaml", "calibration: temperature\ndata: plain.yaml\n")
    said = polite.run("train-policy", "e-dpo.yaml", code=2).stderr
    assert "splits.yaml has another ensemble_on than plain.yaml; set data: splits.yaml" in said
    assert not polite.root.exists()
    polite.run("train-policy", "e-dpo.yaml", "--set", "calibration_mix=data", "--dry-run")


def test_columns_that_the_data_does_not_keep_are_named_with_their_line(empty: Tiny) -> None:
    empty.edit("splits.yaml", POLITE)
    said = empty.run("make-biased-splits", "splits.yaml", code=2).stderr
    assert re.search(r"splits.yaml:\d+: ensemble_on: .*data.yaml keeps no column chosen_polite", said)
    assert not empty.root.exists()


def test_options_of_the_world_are_refused_for_other_data(empty: Tiny) -> None:
    empty.edit("data.yaml", "source: files\nfiles: {}\nrows: {}\npolite: 0.5\n")
    with pytest.raises(RecipeError, match="polite: no effect with source: files"):
        load(str(empty.suite / "data.yaml"))


def test_a_reward_model_below_what_is_required_stops_what_is_built_on_it(tiny: Tiny) -> None:
    tiny.edit("oracle.yaml", "require: {held_out_accuracy: 0.99, held_out_utility_accuracy/longer: 0.01}\n")
    said = tiny.run("train-policy", "dpo.yaml", code=1).stderr
    assert re.search(
        r"seed-0/oracle: held_out_accuracy 0\.\d{3}, required 0\.99: nothing is built on seed 0", said
    )
    assert "utility" not in said.splitlines()[-1] and "needs seed-0/oracle" in said
    assert not (tiny.root / SEED / "oracle/manifest.json").exists() or "require" not in str(
        manifest(tiny.root, f"{SEED}/oracle")["recipe"]
    )


def test_a_reward_model_that_knows_enough_is_published_with_what_was_required(tiny: Tiny) -> None:
    tiny.edit("oracle.yaml", "require: {held_out_accuracy: 0.01, held_out_utility_accuracy/shorter: 0.01}\n")
    _, found = tiny.make("oracle.yaml")
    assert found["recipe"]["require"] == {
        "held_out_accuracy": 0.01,
        "held_out_utility_accuracy/shorter": 0.01,
    }
    metrics = found["metrics"]
    sides = [metrics[f"held_out_utility_rows/{side}"] for side in ("longer", "shorter", "ties")]
    shares = [metrics[f"held_out_utility_accuracy/{side}"] for side in ("longer", "shorter", "ties")]
    assert metrics["held_out_utility_accuracy"] == pytest.approx(np.average(shares, weights=sides))


def test_what_is_required_must_be_measured_on_the_held_out_pairs(tiny: Tiny) -> None:
    tiny.edit("rm.yaml", "require: {held_out_utility_accuracy: 0.5}\n")
    said = tiny.run("train-rm", "rm.yaml", code=2).stderr
    assert "require: held_out_utility_accuracy is not measured on these pairs" in said
