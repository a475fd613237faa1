"""The ensemble told of another attribute than length, and what a reward model must know to be built on."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import RHO, SEED, Tiny, manifest

from rpo_cli.artifacts import Workspace, job_of, read_json, scores_of
from rpo_cli.figures.gather import polite_share
from rpo_cli.objectives.calibration import fit_temperature, mix_weights
from rpo_cli.recipes import RecipeError, load
from rpo_cli.recipes.schema import SplitsRecipe, preferred, result_fields
from rpo_cli.stages.data.rows import write_columns
from rpo_cli.stages.reward import check
from rpo_cli.stages.splits import LONGER, SHORTER
from rpo_cli.stages.training.teachers import _temperature

COLUMNS = "[chosen_polite, rejected_polite]"
POLITE = f"ensemble_on: {COLUMNS}\n"


@pytest.fixture
def polite(empty: Tiny) -> Tiny:
    empty.edit("data.yaml", "polite: 0.5\n")
    empty.edit("splits.yaml", POLITE)
    return empty


@pytest.fixture
def biased(empty: Tiny) -> Tiny:
    empty.edit("data.yaml", "polite: 0.5\n")
    empty.edit("splits.yaml", f"bias_on: {COLUMNS}\n")
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


@pytest.mark.slow
def test_pairs_are_biased_in_the_attribute_that_is_named_and_so_are_their_subsets(biased: Tiny) -> None:
    said = biased.run("make-biased-splits", "splits.yaml", "--rho", "0.25").output
    folder, metrics = (
        biased.root / "seed-0/rho-0.25/splits",
        manifest(biased.root, "seed-0/rho-0.25/splits")["metrics"],
    )
    pairs, turned = (
        pq.read_table(biased.root / SEED / name / "pairs.parquet").to_pandas().set_index("id")
        for name in ("data", "relabel")
    )
    more = (pairs.chosen_polite - pairs.rejected_polite) * np.where(turned.swapped[pairs.index], -1, 1)
    for name, share in {"train": 0.25, "held_out": 0.25, "b-0.2": 0.2, "b-0.5": 0.5, "b-0.8": 0.8}.items():
        rows = pq.read_table(folder / f"{name}.parquet").to_pandas()
        politer = more[rows.id].to_numpy()
        assert (politer == rows.higher_preferred).all() and not (politer == 0).any()
        assert (politer > 0).mean() == pytest.approx(share, abs=0.06)
        assert metrics[f"{name}/biased_share"] == (politer > 0).mean()
    assert "train: 64 pairs, the higher won in 25.0 % by bias_on's columns, the longer won in" in said
    # Lengths are as they are: neither bias is the other.
    lengths = pq.read_table(folder / "train.parquet").to_pandas().longer_preferred
    assert lengths.eq(1).sum() != lengths.eq(-1).sum() * 3 or lengths.eq(0).any()


@pytest.mark.slow
def test_a_figure_says_what_rho_is_and_how_many_samples_are_polite(biased: Tiny) -> None:
    (biased.suite / "figure.yaml").write_text(
        "stage: figure\nrhos: [0.5]\nvariants: [{name: d, recipe: dpo.yaml}]\n"
        "claims: [{claim: politer, more: d, measure: polite}]\n"
    )
    biased.run("figure figure2", "figure.yaml")
    folder = biased.root / "figures/figure"
    cells = pq.read_table(folder / "cells.parquet").to_pandas().set_index("prompt_id")
    assert cells.polite.between(0, 1).all()
    assert read_json(folder / "provenance.json")["biased_to"] == "the one of higher polite"
    assert "ρ, share of training pairs in which the one of higher polite is preferred" in (
        folder / "figure2.svg"
    ).read_text("utf-8")


def test_samples_that_begin_politely_are_counted() -> None:
    said = pd.Series([" Please note: the yard is closed", " In short: the yard is closed", " Please", ""])
    assert polite_share(said) == 0.25


def test_pairs_of_an_attribute_that_are_too_few_are_counted_by_its_name(biased: Tiny) -> None:
    biased.edit("splits.yaml", "num_pairs: 100000\n")
    said = biased.run("make-biased-splits", "splits.yaml", "--rho", "0.25", code=2).stderr
    assert "needs 25006 pairs whose higher response by polite is preferred, " in said


def test_what_rho_is_stands_in_a_card_and_along_an_axis() -> None:
    columns = ["chosen_polite", "rejected_polite"]
    assert preferred(columns) == "the one of higher polite"
    assert preferred(["a", "b"]) == "the one of higher a"
    assert preferred(None) == "the longer one"


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
    assert _temperature(job, "0.2") == pytest.approx(own)


@pytest.fixture
def suspects(polite: Tiny) -> Tiny:
    """Length and politeness both suspected: members of either, on subsets of one length-biased D_rho."""
    plain = (polite.suite / "splits.yaml").read_text().replace(POLITE, "")
    (polite.suite / "plain.yaml").write_text(plain)
    (polite.suite / "rm-plain.yaml").write_text("extends: rm.yaml\nstage: reward\ndata: plain.yaml\n")
    listed = "ensemble: [{members: rm-plain.yaml}, {members: rm.yaml}]"
    polite.edit("e-dpo.yaml", f"calibration: temperature\ndata: plain.yaml\n{listed}\n")
    return polite


def test_members_on_subsets_of_other_pairs_than_the_policys_are_refused_before_anything_is_built(
    suspects: Tiny,
) -> None:
    suspects.edit("splits.yaml", "held_out: 16\n")
    said = suspects.run("train-policy", "e-dpo.yaml", code=2).stderr
    assert (
        "differ in another attribute than plain.yaml's, and are of other pairs (held_out); let both" in said
    )
    assert not suspects.root.exists()
    suspects.run("train-policy", "e-dpo.yaml", "--set", "calibration_mix=data", "--dry-run")


@pytest.mark.slow
def test_members_of_several_suspects_are_calibrated_each_to_its_own_bias_of_its_own_attribute(
    suspects: Tiny,
) -> None:
    suspects.run("train-policy", "e-dpo.yaml")
    job = job_of(suspects.stage("e-dpo.yaml"), Workspace(suspects.root, suspects.suite.name), {})
    names = [f"{recipe}:{b}" for recipe in ("rm-plain", "rm") for b in ("0.2", "0.5", "0.8")]
    assert list(scores_of(job.inputs)) == names
    cell = next((suspects.root / RHO / "policies/e-dpo").iterdir())
    metrics = read_json(cell / "manifest.json")["metrics"]
    assert "members of `rm-plain.yaml`, members of `rm.yaml`" in (cell / "README.md").read_text()
    assert sum(metrics[f"members/{name}"] for name in names) == pytest.approx(1)
    notes = {each: pq.read_table(suspects.root / RHO / each / "held_out.parquet").to_pandas() for each in
             ("plain", "splits")}  # fmt: skip
    assert notes["plain"].id.tolist() == notes["splits"].id.tolist()
    margins = np.where(np.arange(len(notes["plain"])) % 3 == 0, -1.0, 2.0)
    for name in names:
        file = job.inputs[f"scores/{name}"] / "held_out.parquet"
        write_columns({"id": notes["plain"].id, "chosen": margins, "rejected": 0 * margins}, file)
    for name, kinds in {
        "rm-plain:0.2": notes["plain"].longer_preferred,
        "rm:0.2": notes["splits"].higher_preferred,
    }.items():
        higher, lower = (torch.tensor(kinds.to_numpy() == kind) for kind in (LONGER, SHORTER))
        own = fit_temperature(torch.tensor(margins), mix_weights(higher, lower, 0.2))
        assert _temperature(job, name) == pytest.approx(own)
    assert _temperature(job, "rm-plain:0.2") != pytest.approx(_temperature(job, "rm:0.2"))


def test_a_policys_folder_names_the_recipes_of_its_members(suspects: Tiny) -> None:
    turned = "ensemble=[{members: rm.yaml}, {members: rm-plain.yaml}]"
    plan = suspects.run("train-policy", "e-dpo.yaml", "--set", turned, "--dry-run").stdout
    assert "policies/e-dpo/beta-0.2-ensemble-rm.yaml+rm-plain.yaml  (missing)" in plan


def test_what_stands_for_members_in_a_list_must_be_a_recipe(suspects: Tiny) -> None:
    suspects.edit("e-dpo.yaml", "ensemble: [{members: ./judge}]\n")
    said = suspects.run("train-policy", "e-dpo.yaml", code=2).stderr
    assert re.search(r"e-dpo.yaml:\d+: ensemble\[0\].members: '.*judge' is no recipe \(x.yaml\)", said)
    suspects.edit("e-dpo.yaml", "ensemble: [{members: rm.yaml}, {members: none.yaml}]\n")
    said = suspects.run("train-policy", "e-dpo.yaml", code=2).stderr
    assert re.search(r"e-dpo.yaml:\d+: ensemble: none.yaml: no such recipe", said)
    suspects.edit("e-dpo.yaml", "ensemble: [{members: rm.yaml}, ./judge]\n")
    said = suspects.run("train-policy", "e-dpo.yaml", code=2).stderr
    assert "models and columns in a list have no bias b of their own; set calibration_mix: data" in said


def test_two_recipes_of_one_name_are_refused_as_their_members_could_not_be_told_apart(suspects: Tiny) -> None:
    (suspects.suite / "sub").mkdir()
    (suspects.suite / "sub/rm.yaml").write_text("extends: ../rm.yaml\nstage: reward\n")
    suspects.edit("e-dpo.yaml", "ensemble: [{members: rm.yaml}, {members: ./sub/rm.yaml}]\n")
    said = suspects.run("train-policy", "e-dpo.yaml", code=2).stderr
    assert re.search(r"e-dpo.yaml:\d+: .*two recipes are called rm, by which their members", said)


def test_subsets_may_differ_in_length_where_the_pairs_are_biased_in_something_else(biased: Tiny) -> None:
    biased.edit("splits.yaml", "ensemble_on: length\n")
    recipe = load(str(biased.suite / "splits.yaml")).recipe
    assert isinstance(recipe, SplitsRecipe)
    assert recipe.told is None and recipe.bias_on is not None


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


def test_a_reward_model_that_is_exactly_as_accurate_as_required_is_accurate_enough() -> None:
    check({"held_out_accuracy": 0.75}, {"held_out_accuracy": 0.75}, seed=0)


def test_what_is_required_must_be_measured_on_the_held_out_pairs(tiny: Tiny) -> None:
    tiny.edit("rm.yaml", "require: {held_out_utility_accuracy: 0.5}\n")
    said = tiny.run("train-rm", "rm.yaml", code=2).stderr
    assert "require: held_out_utility_accuracy is not measured on these pairs" in said
