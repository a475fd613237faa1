"""The command line: what each command says, what it refuses, and that looking changes nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner, Result

from rpo_cli.artifacts import difference, walk
from rpo_cli.cli import app
from rpo_cli.objectives import OBJECTIVES
from rpo_cli.recipes import load
from rpo_cli.recipes.schema import KINDS
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.work import stage_function

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "trl", "pandas", "datasets", "wandb", "matplotlib")


pytestmark = pytest.mark.usefixtures("here")


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
