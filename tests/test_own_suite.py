"""What `rpo init` writes for any objective, and what commands say of such a file before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import rpo

from rpo_cli.objectives import OBJECTIVES
from rpo_cli.runs.options import OwnSuite
from rpo_cli.runs.own_suite import Fit, Found, Line, Suite
from rpo_cli.statistics import Array

MODEL = "some/model"
Write = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes `mine.yaml` into an empty folder, for so many pairs of 20 tokens; what its recipes say."""
    monkeypatch.chdir(tmp_path)

    def written(
        objectives: Sequence[str] = ("dpo", "d-dpo"),
        pairs: int = 200,
        teachers: Sequence[str] = (),
        scores: Sequence[Sequence[str]] = (),
        margins: Array | None = None,
        epochs: float = 1.0,
    ) -> dict[str, dict[str, Any]]:
        Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
        tokens = np.full(pairs, 20)
        of_scores = [np.ones(pairs) if margins is None else margins] * len(scores)
        held_out = {"validation": 9, "test": 9}
        found = Found(pairs, pairs, held_out, tokens, tokens, margins=of_scores)
        wanted = OwnSuite("mine", "./pairs.jsonl", MODEL, epochs=epochs)
        suite = Suite(wanted, objectives, MODEL, teachers, scores, None, None, found, None)
        data = {"stage": "data", "source": "preference", "dataset": "./pairs.jsonl", "tokenizer": MODEL}
        lines = [Line(key, value) for key, value in data.items()]
        Path("mine.yaml").write_text(suite.text(lines, Fit(4, {}, "by hand")))
        recipes: dict[str, dict[str, Any]] = yaml.safe_load(Path("mine.yaml").read_text())["recipes"]
        return recipes

    return written


@pytest.mark.parametrize(("pairs", "every"), [(200, None), (4000, 22), (16500, 100)])
def test_a_long_training_has_checkpoints_to_go_on_from(pairs: int, every: int | None, write: Write) -> None:
    assert write(pairs=pairs)["training"].get("save_steps") == every
    assert rpo("recipe", "check", "mine.yaml").stdout.endswith("recipes, no problems\n")


@pytest.mark.parametrize(
    ("pairs", "held_out"), [(4, 1), (50, 10), (200, 40), (300, 60), (600, 60), (900, 90), (9000, 500)]
)
def test_a_tenth_of_the_pairs_is_held_out_and_of_few_up_to_a_fifth(
    pairs: int, held_out: int, write: Write
) -> None:
    assert write(pairs=pairs)["splits"]["held_out"] == held_out


@pytest.mark.parametrize(
    ("pairs", "epochs", "passes"),
    [(50, 1, 5), (200, 1, 5), (500, 1, 2), (2000, 1, None), (200, 3, 5), (200, 8, None), (50, 0.5, None)],
)
def test_a_reward_model_makes_the_passes_that_fifty_steps_need(
    pairs: int, epochs: float, passes: int | None, write: Write
) -> None:
    found = write(pairs=pairs, epochs=epochs)
    assert found["rm"].get("num_train_epochs") == passes and found["training"]["num_train_epochs"] == epochs


def test_scores_are_calibrated_where_held_out_pairs_fit_a_temperature_else_the_grid_has_their_scale(
    write: Write,
) -> None:
    def of(margins: Array, *names: str) -> dict[str, Any]:
        names = names or ("d-dpo",)
        return write(names, len(margins), scores=[["a", "b"]], margins=margins)[names[-1]]

    rng = np.random.default_rng(0)
    known, scale = rng.normal(1, 1, 400), 50.0
    assert of(scale * known)["calibrate_one"] is True
    assert of(scale * known)["grid"] == {"beta": [0.03, 0.1, 0.3]}
    right = of(scale * np.abs(known))  # the better score was chosen: no temperature is best
    size = scale * float(np.median(np.abs(known)))
    assert "calibrate_one" not in right
    assert right["grid"]["beta"] == pytest.approx([size * 0.03, size * 0.1, size * 0.3], rel=0.05)
    assert right["beta"] == right["grid"]["beta"][1]
    assert "calibrate_one" not in of(known[:60])  # 12 held-out pairs
    assert "calibrate_one" not in of(known - 1)  # no better than chance
    assert of(scale * np.abs(known), "rm-dpo")["grid"] == {"beta": [0.03, 0.1, 0.3]}  # reads probabilities
    assert of(np.zeros(400))["grid"] == {"beta": [0.03, 0.1, 0.3]}


@pytest.mark.parametrize(("pairs", "known"), [(1000, True), (200, None)])
def test_a_reward_model_that_is_given_is_calibrated_where_most_would_have_some_pairs_wrong(
    pairs: int, known: bool | None, write: Write
) -> None:
    assert write(("d-dpo",), pairs, teachers=["./a"])["d-dpo"].get("calibrate_one") == known
    assert "calibrate_one" not in write(("dpo", "d-dpo"), pairs)["d-dpo"]


@pytest.mark.slow
def test_every_objective_has_a_start_and_a_grid_that_sweep_and_compare_try(write: Write) -> None:
    recipes = write(list(OBJECTIVES))
    assert rpo("recipe", "check", "mine.yaml").stdout.endswith("recipes, no problems\n")
    for name, objective in OBJECTIVES.items():
        assert recipes[name]["grid"] == {objective.strength: list(objective.grid)}
        assert recipes[name][objective.strength] == objective.grid[1] == sorted(objective.grid)[1]
    swept = rpo("sweep", "mine.yaml:dpo", "--dry-run").stdout
    assert all(f"policies/dpo/beta-{value:g} " in swept for value in OBJECTIVES["dpo"].grid)
    compared = rpo("compare", "mine.yaml", "--sweep", "--dry-run").stdout
    assert f"{len(OBJECTIVES)} policies x 1 rho x 1 seed, 3 grid values each" in compared


def test_simpo_starts_where_its_paper_does_and_its_note_promises_no_reference(write: Write) -> None:
    simpo = write(["simpo"])["simpo"]
    assert simpo["beta"] == 2 and 0.3 <= simpo["simpo_gamma"] / simpo["beta"] <= 0.55
    assert "strays" not in Path("mine.yaml").read_text()


@pytest.mark.parametrize(
    ("pairs", "given", "calibration"),
    [
        (200, {}, {"calibration": "none"}),
        (60, {"teachers": ["./a", "./b"]}, {"calibration": "none"}),  # 12 held-out pairs
        (1000, {}, {"calibration": "temperature"}),
        (200, {"teachers": ["./a", "./b"]}, {"calibration": "temperature", "calibration_mix": "data"}),
        (
            200,
            {"scores": [["a", "b"], ["c", "d"]]},
            {"calibration": "temperature", "calibration_mix": "data"},
        ),
    ],
)
def test_members_are_brought_to_one_scale_where_they_are_of_other_origin_or_pairs_suffice(
    pairs: int, given: dict[str, Any], calibration: dict[str, str], write: Write
) -> None:
    found = write(["e-dpo"], pairs, **given)["e-dpo"]
    assert {key: value for key, value in found.items() if key.startswith("calibration")} == calibration
    why = "held-out pairs are too few to fit a temperature"
    assert (why in Path("mine.yaml").read_text()) == (calibration["calibration"] == "none")


def test_an_ensemble_that_nobody_described_is_refused_with_what_to_write(write: Write) -> None:
    write()
    said = rpo("train-policy", "mine.yaml:dpo", "--set", "objective=e-dpo", "--dry-run", code=2).stderr
    assert "ensemble: lists no biases; write `ensemble: [0.2, 0.5, 0.8]` here and in splits.yaml" in said


def test_only_recipes_are_listed_where_a_suite_lacks_the_kind_that_is_asked_for(write: Write) -> None:
    write()
    said = rpo("figure", "figure2", "--recipe", "mine.yaml", code=2).stderr
    names = "data, splits, rm, dpo, d-dpo, evaluate".replace(", ", ", mine.yaml:")
    assert said == f"mine.yaml: has no figure recipe; it has mine.yaml:{names}\n"


def test_status_of_the_file_is_that_of_all_its_recipes_and_what_compares_them(write: Write) -> None:
    write()
    wanted: set[str] = set()
    for recipe in ("mine.yaml:rm", "mine.yaml:dpo", "mine.yaml:d-dpo", "mine.yaml:evaluate"):
        made = json.loads(rpo("status", recipe, "--workspace", "w", "--json").stdout)["would_build"]
        wanted |= {item["path"] for item in made}
    found = json.loads(rpo("status", "mine.yaml", "--workspace", "w", "--json").stdout)
    paths = {item["path"] for item in found["would_build"]}
    assert found["recipe"] == str(Path("mine.yaml").absolute()) and wanted < paths
    compared = rpo("compare", "mine.yaml", "--workspace", "w", "--dry-run").stdout.splitlines()
    assert paths == {line.split()[1] for line in compared if line.endswith("  (missing)")}
    text = Path("mine.yaml").read_text().replace("objective: d-dpo", "objective: d-dop")
    Path("mine.yaml").write_text(text)
    assert "d-dop" in rpo("status", "mine.yaml", code=2).stderr


def test_a_recipe_that_the_file_lacks_is_that_alone_and_none_of_the_packed_ones(write: Write) -> None:
    write()
    text = Path("mine.yaml").read_text()
    Path("mine.yaml").write_text(text.replace(f"baseline: {MODEL}", "baseline: sft.yaml"))
    line = 1 + text[: text.index("baseline:")].count("\n")
    says = f"mine.yaml:{line}: baseline: sft.yaml: no such recipe in mine.yaml\n"
    for command in (("compare", "mine.yaml", "--dry-run"), ("evaluate", "mine.yaml:dpo", "--dry-run")):
        assert rpo(*command, code=2).stderr == says
    checked = rpo("recipe", "check", "mine.yaml", code=2)
    assert checked.stdout + checked.stderr == says


def test_a_dry_export_of_a_model_that_is_not_trained_names_the_command_that_trains_it(write: Write) -> None:
    write()
    done = rpo("export", "mine.yaml:dpo", "--to", "out", "--workspace", "w", "--dry-run")
    assert "(missing)" in done.stdout
    assert done.stderr.splitlines()[-1] == "first: rpo train-policy mine.yaml:dpo --workspace w"
    Path("mine.yaml").rename("my own.yaml")
    done = rpo("export", "my own.yaml:dpo", "--to", "out", "--workspace", "w", "--dry-run")
    assert done.stderr.splitlines()[-1] == "first: rpo train-policy 'my own.yaml:dpo' --workspace w"


@pytest.mark.parametrize("name", ["recipes/accelerate/cpu-2.yaml", "accelerate/cpu-2.yaml", "cpu-2"])
def test_a_preset_is_found_among_the_packed_ones_from_any_folder(name: str, write: Write) -> None:
    write()
    said = rpo("train-policy", "mine.yaml:dpo", "--accelerate", name, "--dry-run").stderr
    assert "2 processes" in said


def test_a_preset_that_is_nowhere_is_a_file_that_is_missing(write: Write) -> None:
    write()
    for name in ("recipes/accelerate/cpu-3.yaml", "elsewhere/cpu-2.yaml"):
        said = rpo("train-policy", "mine.yaml:dpo", "--accelerate", name, "--dry-run", code=2).stderr
        assert said.splitlines()[-1] == f"--accelerate {name}: no such file"


def test_a_dry_run_warns_of_a_judges_key_that_is_not_set(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    asked = ("judge", "mine.yaml:dpo", "--model", "some-judge", "--dry-run")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "warning: judge: OPENAI_API_KEY is not set; export the endpoint's key" in rpo(*asked).stderr
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    assert "warning: judge" not in rpo(*asked).stderr


@pytest.mark.skipif(find_spec("torch_xla") is not None, reason="torch-xla is there")
def test_a_dry_run_on_xla_warns_that_torch_xla_is_not_there(write: Write) -> None:
    write()
    said = rpo("train-policy", "mine.yaml:dpo", "--device", "xla", "--dry-run").stderr
    assert said.count("warning: device: xla was asked for, but torch-xla is not installed") == 1
    assert "warning" not in rpo("train-policy", "mine.yaml:dpo", "--dry-run").stderr


def test_a_model_that_is_nowhere_is_answered_once_and_with_what_to_give(write: Write) -> None:
    write()
    said = rpo("init", "new", "--pairs", "./pairs.jsonl", "--model", "no/such", code=2).stderr
    why = "neither a folder nor in the hub's cache (HF_HUB_OFFLINE is set)"
    cure = "give a folder, or what an earlier run has loaded"
    assert said == f"no/such: no tokenizer can be loaded: {why}; {cure}\n"


def test_shared_options_say_what_holds_for_their_command() -> None:
    def told(*command: str) -> str:
        return " ".join(rpo(*command, "--help").stdout.replace("│", " ").split())

    assert "Default: runs/SUITE-rebuilt" in told("rebuild") and "Default: runs/demo." in told("demo")
    assert "Default: runs/SUITE," in told("train-sft") and "Default: runs/NAME." in told("init")
    assert "recipes' `device:`" in told("train-sft")
    assert "recipes' `device:`" not in told("score") + told("sample")
    assert "profiles" in told("workflow", "snakemake") and "profiles" not in told("workflow", "hf-jobs")
