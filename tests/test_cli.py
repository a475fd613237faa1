"""The command line: what each command says, what it refuses, and that looking changes nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from repository import copy_tracked
from typer.testing import CliRunner, Result

from rpo_cli.artifacts import STARTED, Workspace, difference, walk, write_json
from rpo_cli.cli import app
from rpo_cli.objectives import OBJECTIVES
from rpo_cli.recipes import find, load
from rpo_cli.recipes.schema import KINDS
from rpo_cli.runs import doctor
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.work import stage_function

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "trl", "pandas", "datasets", "wandb", "matplotlib")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in an empty directory, so that whatever a command leaves behind shows."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rpo(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def done(*arguments: str) -> str:
    """Stdout of a command that must succeed."""
    result = rpo(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def write(folder: str, **recipes: str) -> None:
    Path(folder).mkdir(exist_ok=True)
    for name, text in recipes.items():
        Path(folder, f"{name}.yaml").write_text(text)


def commands() -> list[tuple[str, ...]]:
    def below(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, command in group.commands.items():
            yield from below(command, (*words, name)) if hasattr(command, "commands") else [(*words, name)]

    return list(below(typer.main.get_command(app), ()))


@pytest.mark.slow
def test_every_command_shows_an_example_of_itself() -> None:
    assert len(commands()) >= 14
    for words in commands():
        text = " ".join(done(*words, "--help").split())
        assert "Example" in text
        assert f"rpo {' '.join(words)}" in text.split("Example")[1]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train-policy", "--help"], 0),
        (["train-policy", "--recipe", "nope.yaml"], 2),
        (["train-policy", "--recipe", "e-dpo.yaml", "--set", "bta=1"], 2),
        (["train-policy", "--recipe", "e-dpo.yaml", "--dry-run"], 0),
        (["recipe", "check", str(REPOSITORY / "recipes" / "miniature" / "figure2.yaml")], 0),
        (["status"], 0),
    ],
)
def test_what_needs_no_model_imports_no_library_of_models(arguments: list[str], code: int) -> None:
    program = (
        "import sys\nfrom rpo_cli.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert end.code == {code}, end.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout.endswith("HEAVY []\n"), ended.stdout + ended.stderr


def test_advice_for_qlora_on_a_cpu_is_kept_from_the_terminal_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = util.find_spec("bitsandbytes")
    if found is None or found.origin is None:
        pytest.skip("bitsandbytes is not installed")
    said = Path(found.origin).parent / "backends/cpu/ops.py"  # by which it is told from other lines
    assert said.read_text().count("from kernels-community: %s") == 1
    rpo("doctor")
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please", "No module")
    logger.warning("something else")
    logger.warning(ValueError("no text"))
    heard = [record.message for record in caplog.records if record.name == logger.name]
    assert heard == ["something else", "no text"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "bta=1"], "--set bta: unknown key, did you mean beta?"),
        (["--set", "beta"], "--set beta: expected key=value"),
        (["--set", "beta=-1"], "beta: must be greater than 0"),
        (["--rho", "2"], "--rho 2: 2 is not between 0 and 1"),
        (["--rho", "some"], "--rho some: expected a number"),
        (["--recipe", "e-dop.yaml"], "packed recipe of this name, did you mean e-dpo.yaml?"),
        (["--recipe", "nofile.yaml:dpo"], "nofile.yaml:dpo: no file nofile.yaml here, and no packed recipe"),
        (["--recipe", "sft.yaml"], "is an sft recipe; use rpo train-sft"),
        (["--recipe", "typo.yaml"], "typo.yaml:3: bta: unknown key, did you mean beta?"),
    ],
)
def test_wrong_input_is_one_line_on_stderr_and_exit_code_2(arguments: list[str], says: str) -> None:
    write(".", typo="extends: e-dpo.yaml\nstage: policy\nbta: 1\n")
    recipe = [] if "--recipe" in arguments else ["--recipe", "e-dpo.yaml"]
    result = rpo("train-policy", *recipe, *arguments, "--dry-run")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_traceback_is_shown_only_on_request() -> None:
    arguments = ("train-policy", "--recipe", "nope.yaml")
    assert "Traceback" not in rpo(*arguments).output
    debugged = rpo(*arguments, "--debug")
    assert "Traceback" in debugged.output
    assert debugged.exit_code == 2


def test_a_dry_run_lists_the_stages_and_leaves_nothing_on_disk(here: Path) -> None:
    result = rpo("train-policy", "--recipe", "e-dpo.yaml", "--rho", "0.2", "--dry-run")
    assert result.exit_code == 0
    for stage in (
        "data",
        "sft",
        "oracle",
        "relabel",
        "rho-0.2/splits",
        "rho-0.2/rm/b-0.8",
        "rho-0.2/policies/e-dpo/",
    ):
        assert f"seed-0/{stage}" in result.stdout and f"seed-0/{stage}" not in result.stderr
    assert list(here.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "train-policy --recipe e-dpo.yaml --rho all",
        "sweep --recipe dpo.yaml",
        "figure figure2",
        "figure gamma",
        "evaluate --recipe e-dpo.yaml --rho all",
    ],
)
def test_a_dry_run_has_every_stage_on_stdout_on_a_line_of_its_own(command: str) -> None:
    todo = json.loads(done(*command.split(), "--dry-run", "--json"))
    stages = todo["todo"] if isinstance(todo, dict) else todo
    lines = done(*command.split(), "--dry-run").splitlines()
    assert len(stages) > 25
    assert lines[: len(stages)] == [f"{s['kind']:9} {s['path']}  (missing)" for s in stages]


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_is_no_failure_to_report() -> None:
    program = "from rpo_cli.cli import entry; entry()"
    command = [sys.executable, "-c", program, "figure", "figure2", "--dry-run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() != 2
    assert "pipe" not in said.lower() and "Traceback" not in said


def test_a_dry_run_as_json_is_the_plan_inputs_first(here: Path) -> None:
    plan = json.loads(
        done("train-policy", "--recipe", "d-dpo.yaml", "--rho", "0.5", "--seed", "3", "--dry-run", "--json")
    )
    loaded = load("d-dpo.yaml", rho=0.5, seed=3)
    assert [item["path"] for item in plan] == [stage.path for stage in walk([Planner(3).build(loaded)])]
    assert {item["reason"] for item in plan} == {"missing"}
    assert list(here.iterdir()) == []


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


def test_a_rho_for_which_nothing_was_chosen_is_noted_where_for_others_something_was() -> None:
    recipe = "stage: policy\nobjective: dpo\nmodel_name_or_path: gpt\nbeta: 0.3\ndata: splits.yaml\n"
    write(
        "suite",
        data="stage: data\nsource: miniature\n",
        splits="stage: splits\ndata: data.yaml\ntokenizer: gpt\nnum_pairs: 5\n",
    )
    write("suite", dpo=recipe + "by_rho:\n  0.2: {beta: 0.4}\n", plain=recipe)

    def notes(name: str, *arguments: str) -> list[str]:
        result = rpo("train-policy", "--recipe", f"suite/{name}.yaml", *arguments, "--dry-run")
        assert result.exit_code == 0, result.output
        return [line for line in result.stderr.splitlines() if line.startswith(f"note: {name}")]

    assert notes("dpo", "--rho", "0.2,0.25") == [
        "note: dpo.yaml chose nothing for rho 0.25; beta 0.3 from suite/dpo.yaml:4"
    ]
    assert (
        notes("dpo", "--rho", "0.25", "--set", "beta=1")
        == notes("plain", "--rho", "0.25")
        == notes("dpo", "--rho", "none")
        == []
    )


def test_the_help_names_every_objective() -> None:
    text = done("train-policy", "--help")
    words = text.replace(":", " ").split()
    assert [objective for objective in OBJECTIVES if objective not in words] == []


def test_a_stale_artifact_says_what_changed_in_a_mapping_key_by_key() -> None:
    one, other = "0" * 64, "1" * 64
    old = {
        "options": {"files": {"pairs": one, "sft_train": one, "warmup": one}},
        "recipe": {"model_config_kwargs": {"hidden_size": 8}},
    }
    new = {
        "options": {"files": {"pairs": other, "sft_train": one}},
        "recipe": {"model_config_kwargs": {"hidden_size": 16}},
    }
    assert (
        difference(old, new)
        == "model_config_kwargs.hidden_size 8 -> 16; files.pairs changed; files.warmup removed"
    )
    assert difference(new, old).endswith("files.warmup added")


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


def test_status_without_a_workspace_says_so_and_makes_none(here: Path) -> None:
    text = done("status", "--recipe", "dpo.yaml")
    assert text.startswith("workspace runs/miniature: not there yet\n")
    assert "seed-0/rho-0.2/policies/dpo" in text
    assert json.loads(done("status", "--json"))["exists"] is False
    assert list(here.iterdir()) == []


def test_status_tells_up_to_date_stale_unfinished_and_unwanted_apart() -> None:
    workspace = Workspace(Path("runs/miniature"), "miniature")
    workspace.open()
    stages = {stage.path: stage for stage in walk([Planner(0).build(load("dpo.yaml"))])}

    def publish(path: str, identity: dict[str, Any]) -> None:
        (workspace.root / path).mkdir(parents=True)
        workspace.publish(path, {**identity, "seconds": 61.0, "metrics": {}})

    publish("seed-0/data", stages["seed-0/data"].identity)
    old = json.loads(json.dumps(stages["seed-0/pretrain"].identity))
    old["recipe"]["max_steps"] = 7
    publish("seed-0/pretrain", {**old, "key": "old"})
    publish("seed-9/data", {**stages["seed-0/data"].identity, "key": "other"})
    (workspace.root / "seed-0/sft").mkdir(parents=True)
    write_json(workspace.root / "seed-0/sft" / STARTED, {"key": "x"})
    (workspace.root / "seed-0/data" / "pairs.parquet").write_bytes(b"x" * 5000)
    found = json.loads(done("status", "--recipe", "dpo.yaml", "--json"))
    artifacts = {artifact["path"]: artifact for artifact in found["artifacts"]}
    assert {path: artifact["state"] for path, artifact in artifacts.items()} == {
        "seed-0/data": "up to date",
        "seed-0/pretrain": "stale",
        "seed-0/sft": "unfinished",
        "seed-9/data": "not wanted by this recipe",
    }
    assert artifacts["seed-0/pretrain"]["reason"] == "max_steps 7 -> 600"
    assert 5000 < artifacts["seed-0/data"]["bytes"] < 10_000
    assert artifacts["seed-0/data"]["seconds"] == 61.0
    assert 0 <= artifacts["seed-0/data"]["age_seconds"] < 60
    assert [item["path"] for item in found["would_build"]] == [
        path for path in stages if path != "seed-0/data"
    ]
    text = done("status", "--recipe", "dpo.yaml")
    assert "stale: max_steps 7 -> 600" in text
    assert "1m01s" in text
    assert "data.yaml: up to date, nothing to build" in done("status", "--recipe", "data.yaml")


def test_status_says_where_the_time_of_the_recipe_went() -> None:
    workspace = Workspace(Path("runs/miniature"), "miniature")
    workspace.open()
    stages = {stage.path: stage for stage in walk([Planner(0).build(load("dpo.yaml"))])}
    took = {"seed-0/data": 10.0, "seed-0/pretrain": 50.0, "seed-0/sft": 20.4}
    for path, seconds in took.items():
        (workspace.root / path).mkdir(parents=True)
        workspace.publish(path, {**stages[path].identity, "seconds": seconds, "metrics": {}})
    (workspace.root / "seed-9/data").mkdir(parents=True)  # another seed's does not count
    workspace.publish(
        "seed-9/data", {**stages["seed-0/data"].identity, "key": "other", "seconds": 1000.0, "metrics": {}}
    )
    lines = [line.split() for line in done("status", "--recipe", "dpo.yaml").splitlines()[-4:]]
    assert lines[0] == ["kind", "of", "stage", "up", "to", "date", "took", "share", "each"]
    assert lines[1:] == [
        ["sft", "2", "1m10s", "87.6", "%", "35.2s"],
        ["data", "1", "10s", "12.4", "%", "10.0s"],
        ["all", "3", "1m20s"],
    ]


def test_status_refuses_a_directory_that_is_no_workspace() -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("")
    result = rpo("status", "--workspace", "thesis")
    assert result.exit_code == 2
    assert "neither empty nor a workspace" in result.stderr


def test_doctor_prints_versions_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_notforprint")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789notforprint")
    text = done("doctor")
    for name in ("torch", "transformers", "trl"):
        assert f"version {name}" in text and metadata.version(name) in text
    assert "notforprint" not in text
    found = json.loads(done("doctor", "--json"))
    assert found["hub"]["token"] is True
    assert found["device"]["dtype"] in ("float32", "bfloat16") and found["device"]["why"]
    assert found["wandb"]["mode"] == "online"
    assert found["problems"] == []


def test_doctor_fails_on_a_missing_library_and_warns_of_an_untested_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == missing:
            raise metadata.PackageNotFoundError(name)
        return "1.99.0" if name == "trl" else real(name)

    monkeypatch.setattr(doctor, "_device", lambda found: {})
    monkeypatch.setattr(metadata, "version", version)
    missing = "peft"
    warned = rpo("doctor")
    assert warned.exit_code == 0
    assert "warning: trl 1.99.0 is outside the tested range" in warned.stdout
    assert "not installed" in warned.stdout
    missing = "transformers"
    failed = rpo("doctor")
    assert failed.exit_code == 1
    assert "problem: transformers is not installed" in failed.stdout
    assert failed.stderr.count("\n") == 1


def test_doctor_tests_trl_against_the_range_that_is_installed() -> None:
    assert f'"trl{doctor.TESTED_TRL}"' in (REPOSITORY / "pyproject.toml").read_text()


PAIRS = [("a a", " a", " a a a"), ("a a", " a a", "a a a"), ("a a", "b", " a"), ("a", " a a", " a")]


def prepare_letters() -> None:
    """A suite on four pairs, and a tokenizer of single letters that has a token for `ab` too."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(("<pad>", "</s>", "\u2581", "a", "b", "ab"))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained("letters/model")
    write(
        "letters",
        data="stage: data\nfiles: {pairs: pairs.jsonl, prompts_test: prompts.jsonl}\n",
        sft="stage: sft\nmodel_name_or_path: ./model\nmax_length: 9\n",
        splits="stage: splits\ndata: data.yaml\ntokenizer: ./model\n"
        "held_out: 1\nensemble: []\nlength_margin: 0.3\n",
    )
    Path("letters/prompts.jsonl").write_text('{"prompt": "a b"}\n')
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    Path("letters/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_data_inspect_counts_in_the_tokens_that_training_sees() -> None:
    prepare_letters()
    result = rpo("data", "inspect", "--recipe", "letters/data.yaml", "--json", "--rows", "3")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout).values()
    pairs = found["tables"]["pairs"]
    assert (pairs["rows"], pairs["duplicate_prompts"]) == (4, 2)
    # Tokens with EOS: chosen 3, 5, 2, 5; rejected 7, 6, 3, 3; prompts 3, 3, 3, 1.
    assert pairs["tokens"]["prompt"] == {"min": 1, "median": 3, "p95": 3, "max": 3}
    assert pairs["tokens"]["chosen"] == {"min": 2, "median": 4, "p95": 5, "max": 5}
    assert found["max_length"] == {"9": ["sft.yaml"]}
    assert pairs["over"] == {"9": 0.25}  # rows of 10, 9, 6 and 6
    assert (pairs["longer_preferred"], pairs["ties"]) == (0.25, 0)
    assert pairs["boundary_differs"] == 0.25  # `a a` + `b` ends in `ab`
    assert found["samples"]["pairs"][2]["chosen"] == ["b", "</s>"]
    assert len(found["samples"]["pairs"]) == 3
    assert "base model of sft.yaml" in found["tokenizer"]
    prompts = found["tables"]["prompts_test"]
    assert prompts["tokens"] == {"prompt": {"min": 3, "median": 3, "p95": 3, "max": 3}}
    assert prompts["longer_preferred"] is prompts["ties"] is prompts["boundary_differs"] is None


def test_data_inspect_asks_no_hub_for_a_directory_that_is_not_there(here: Path) -> None:
    prepare_letters()
    write("letters", sft="stage: sft\nmodel_name_or_path: ./nope\n")
    result = rpo("data", "inspect", "--recipe", "letters/data.yaml")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"{here}/letters/nope: no such model directory"


def test_data_inspect_counts_ties_with_the_margin_and_tokenizer_of_the_splits() -> None:
    prepare_letters()
    rows = [{"prompt": "a" * number, "chosen": c, "rejected": r} for number, (_, c, r) in enumerate(PAIRS, 1)]
    Path("letters/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(done("data", "inspect", "--recipe", "letters/splits.yaml", "--rho", "none", "--json"))
    assert list(found) == ["seed-0/unbiased/splits"]
    (splits,) = found.values()
    tables = splits["tables"]
    assert {name: table["rows"] for name, table in tables.items()} == {"train": 3, "held_out": 1}
    # Of the lengths 3:7, 5:6, 2:3, 5:3 only the second is within 30 %.
    assert sum(table["ties"] * table["rows"] for table in tables.values()) == pytest.approx(1)
    assert "tokenizer: of splits.yaml" in splits["tokenizer"]


def test_pairs_whose_prompt_is_held_out_are_counted() -> None:
    prepare_letters()
    (splits,) = json.loads(
        done("make-biased-splits", "--recipe", "letters/splits.yaml", "--rho", "none", "--json")
    ).values()
    metrics = splits["metrics"]  # three of the four pairs share a prompt
    assert metrics["barred_by_prompt"] + metrics["train/size"] + metrics["held_out/size"] == 4
    assert metrics["barred_by_prompt"] in (0, 2) and metrics["held_out/size"] == 1


def test_data_inspect_for_people_warns_of_tokens_over_the_boundary() -> None:
    prepare_letters()
    result = rpo("data", "inspect", "--recipe", "letters/data.yaml", "--rows", "1", "--max-length", "5")
    assert result.exit_code == 0, result.output
    assert "over 5" in result.stdout
    assert "100.0 %" in result.stdout
    assert "warning: pairs: in 25.0 % of 4 rows" in result.stderr
    assert "a|" in result.stdout


def test_data_inspect_looks_at_no_model() -> None:
    result = rpo("data", "inspect", "--recipe", "sft.yaml")
    assert result.exit_code == 2
    assert "is an sft recipe" in result.stderr


def test_a_sweep_without_resampling_plans_the_pairs_as_they_are() -> None:
    result = rpo("sweep", "--recipe", "dpo.yaml", "--rho", "none", "--dry-run")
    assert result.exit_code == 0
    assert "unbiased/policies/dpo/beta-0.2" in result.stdout
    assert "rho-0.2" not in result.output


def test_a_variant_with_changes_of_its_own_is_swept_and_nothing_is_written() -> None:
    sweep = [
        "sweep",
        "miniature/information.yaml",
        "--rho",
        "0.2",
        "--objectives",
        "dpo balanced",
        "--dry-run",
    ]
    written = rpo(*sweep)
    assert written.exit_code == 2
    assert "variants: dpo: has changes of its own (set)" in written.stderr
    assert "use --no-write" in written.stderr
    result = rpo(*sweep, "--no-write")
    assert result.exit_code == 0, result.stderr
    assert "rho-0.2/policies/dpo/beta-3.2-subset-0.5 " in result.stdout


def test_the_figure_needs_a_rho() -> None:
    result = rpo("figure", "figure2", "--rho", "none", "--dry-run")
    assert result.exit_code == 2
    assert "Figure 2 has an axis of rho" in result.stderr


def test_several_processes_are_refused_before_they_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = rpo("train-sft", "--recipe", "sft.yaml")
    assert result.exit_code == 2
    assert "WORLD_SIZE is above 1" in result.stderr
    assert not Path("runs").exists()


def test_a_listed_ensemble_has_no_bias_of_its_own_to_calibrate_for() -> None:
    arguments = (
        "train-policy",
        "--recipe",
        "e-dpo.yaml",
        "--set",
        "ensemble=[some/rm-a, some/rm-b]",
        "--dry-run",
    )
    refused = rpo(*arguments)
    assert refused.exit_code == 2
    assert "calibration_mix: data or calibration: none" in refused.stderr
    assert rpo(*arguments, "--set", "calibration=none").exit_code == 0


def test_every_kind_of_stage_has_a_function_and_every_kind_of_recipe_a_command() -> None:
    typed = {" ".join(("rpo", *words)) for words in commands()}
    for name, kind in KINDS.items():
        assert (kind.run is None) == (name == "figure")
        assert kind.run is None or callable(stage_function(name))
        derived = kind.recipe.model_fields.get("stage")
        assert derived is None or kind.derives or name in get_args(stage_of(kind.recipe))
        if kind.command is not None and name != "figure":
            assert kind.command in typed
    assert [name for name, kind in KINDS.items() if kind.trains] == ["sft", "reward", "policy"]


def stage_of(recipe: type[Any]) -> Any:
    return recipe.model_fields["stage"].annotation


def test_make_starts_a_job_for_each_core_whatever_openmp_is_told() -> None:
    def jobs(threads: str) -> str:
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        said = subprocess.run(
            ["make", "-n", "figure2"],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return said.split("figure2.yaml --jobs ")[1].split()[0]

    assert jobs("1") == jobs("64") == str(min(4, len(os.sched_getaffinity(0))))
