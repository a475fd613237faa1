"""`rpo recipe`: what it lists, shows and finds wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from repository import copy_tracked
from test_cli import done, rpo, write

from rpo_cli.recipes import find, load

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.slow
def test_every_listed_name_means_the_file_it_is_listed_for() -> None:
    write(
        "recipes", base="seed: 1\n", broken="stage: data\nlr: 1\n", mine="extends: base.yaml\nstage: data\n"
    )
    entries = {entry["name"]: entry for entry in json.loads(done("recipe", "list", "--json"))}
    assert all(find(name) == Path(entry["path"]) for name, entry in entries.items())
    assert entries["e-dpo.yaml"]["objective"] == "e-dpo"
    assert entries["mine.yaml"]["stage"] == "data"
    assert "lr: unknown key" in entries["broken.yaml"]["description"]
    assert not entries.keys() & {"base.yaml", "policy.yaml"}
    table = done("recipe", "list").splitlines()
    assert len(table) == len(entries) + 1
    assert max(len(line) for line in table) > 0 and table[0].split() == [
        "suite",
        "name",
        "stage",
        "objective",
        "description",
    ]


def test_what_recipe_show_prints_is_a_recipe_with_the_same_values() -> None:
    Path("shown.yaml").write_text(done("recipe", "show", "e-dpo.yaml", "--rho", "0.5", "--set", "beta=0.37"))
    shown, meant = load("shown.yaml").recipe, load("e-dpo.yaml", rho=0.5, overrides=["beta=0.37"]).recipe
    # by_rho's entry for this rho is left out: read again, it would undo --set.
    assert shown.model_copy(update={"by_rho": {}}) == meant.model_copy(update={"by_rho": {}})
    assert "beta: 0.37  # --set" in Path("shown.yaml").read_text()


def test_recipe_show_is_of_one_rho_and_says_which_option_set_it() -> None:
    assert "rho: null  # --rho\n" in done("recipe", "show", "e-dpo.yaml", "--rho", "none")
    for rho in ("0.3,0.2", "all"):
        result = rpo("recipe", "show", "e-dpo.yaml", "--rho", rho)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"--rho {rho}: a recipe is shown at one rho: a number, or none\n"


@pytest.mark.slow
def test_the_shipped_recipes_have_no_problems(here: Path) -> None:
    copy_tracked("recipes", here)
    line = done("recipe", "check", "recipes")
    assert line.endswith(" recipes, no problems\n")
    assert int(line.split()[0]) >= 17


def test_recipe_check_names_every_problem_of_a_folder_with_file_and_line() -> None:
    write(
        "suite",
        data="stage: data\nsource: miniature\n",
        sft="stage: sft\nmodel_name_or_path: missing.yaml\n",
        dpo="stage: policy\nobjective: dpo\nbta: 1\n",
        ipo="stage: policy\nobjective: ipo\nmodel_name_or_path: gpt\n"
        "data: data.yaml\nevaluate: evaluate.yaml\n",
        figure="stage: figure\npolicies: [ipo.yaml, none.yaml]\n",
    )
    write("suite/deeper", sft="stage: stf\n")
    result = rpo("recipe", "check", "suite", "nowhere.yaml")
    assert result.exit_code == 2
    assert result.stdout == ""
    problems = result.stderr.splitlines()
    for start in (
        "suite/sft.yaml:2: model_name_or_path: missing.yaml: no such recipe",
        "suite/dpo.yaml:3: bta: unknown key",
        "suite/ipo.yaml:5: evaluate: evaluate.yaml: no such recipe",
        "suite/ipo.yaml:4: data: a policy is trained on the pairs of a splits recipe",
        "suite/figure.yaml:2: policies: none.yaml: no such recipe",
        "suite/deeper/sft.yaml:1: stage: expected one of",
        "nowhere.yaml: no such file",
    ):
        assert [line.startswith(start) for line in problems].count(True) == 1, start
    assert len(problems) == 7


def test_recipe_check_of_one_recipe_leaves_its_neighbours_alone() -> None:
    write("suite", data="stage: data\nsource: miniature\n", dpo="stage: policy\nobjective: dpo\nbta: 1\n")
    assert done("recipe", "check", "suite/data.yaml") == "1 recipe, no problems\n"


def test_recipe_check_finds_what_only_the_plan_shows() -> None:
    """An ensemble on data that has no subsets: each recipe is right, together they are not."""
    write("suite", data="stage: data\nsource: miniature\n")
    write("suite", rm="stage: reward\nmodel_name_or_path: gpt\nensemble: [0.2, 0.8]\n")
    result = rpo("recipe", "check", "suite")
    assert result.exit_code == 2
    assert result.stderr.startswith("suite/rm.yaml:1: data: an ensemble needs a splits recipe")


def test_a_model_that_is_not_there_is_one_mistake_on_the_line_that_names_it() -> None:
    """Whatever rests on that recipe, and in a recipe that extends another on the other's line."""
    write(
        "suite",
        data="stage: data\nsource: miniature\n",
        base="seed: 1\nmodel_name_or_path: ./nope\n",
        sft="extends: base.yaml\nstage: sft\n",
    )
    write(
        "suite",
        oracle="stage: reward\nmodel_name_or_path: sft.yaml\n",
        splits="stage: splits\ntokenizer: sft.yaml\ndata: data.yaml\n",
    )
    write("suite", rm="stage: reward\nmodel_name_or_path: sft.yaml\ndata: splits.yaml\n")
    result = rpo("recipe", "check", "suite")
    assert (result.exit_code, result.stderr) == (
        2,
        "suite/base.yaml:2: model_name_or_path: no such model directory: suite/nope\n",
    )
    result = rpo("train-sft", "--recipe", "suite/sft.yaml", "--set", "model_name_or_path=./no-other")
    assert (result.exit_code, result.stderr) == (
        2,
        "--set model_name_or_path: no such model directory: no-other\n",
    )


def test_data_that_is_not_there_yet_is_no_mistake_in_a_recipe() -> None:
    write(
        "suite",
        data="stage: data\nfiles:\n  pairs: later.jsonl\n",
        sft="stage: sft\nmodel_name_or_path: gpt\n",
    )
    result = rpo("recipe", "check", "suite")
    assert (result.exit_code, result.stdout) == (0, "2 recipes, no problems, 1 note\n")
    assert result.stderr == "note: suite/data.yaml:3: files.pairs: no such file: suite/later.jsonl\n"


def test_the_schema_is_the_same_on_stdout_and_in_a_file() -> None:
    assert done("recipe", "schema", "--out", "schema.json") == ""
    text = done("recipe", "schema")
    assert Path("schema.json").read_text() == text
    assert "policy" in json.loads(text)["properties"]["stage"]["enum"]
    assert rpo("recipe", "schema", "--out", "no/such/folder.json").exit_code == 2
