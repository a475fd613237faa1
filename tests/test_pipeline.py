"""Properties of a workspace: what is built again and why, what a kill leaves, what never gets into it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import RHO, Tiny, journal, manifest, rpo, weights
from typer import Exit

from rpo_cli.artifacts import Workspace, job_from, job_of, versions, walk, write_json
from rpo_cli.errors import RunFailed
from rpo_cli.runs.command import guarded
from rpo_cli.runs.interrupt import heed_interrupts
from rpo_cli.runs.progress import PlanProgress
from rpo_cli.runs.work import run_job
from rpo_cli.stages.policy import PolicyTrainer
from rpo_cli.stages.training.loop import STATE

POLICY = f"{RHO}/policies/e-dpo/beta-0.2"
EVALUATION = f"{RHO}/evaluations/e-dpo/beta-0.2/test"


def plan(tiny: Tiny, command: str, recipe: str, *arguments: object) -> dict[str, str]:
    """Path -> reason of what a command would build."""
    return {
        item["path"]: item["reason"]
        for item in json.loads(tiny.run(command, recipe, "--dry-run", "--json", *arguments).stdout)
    }


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file but locks, with its time of change and its content."""
    return {
        str(file.relative_to(root)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in root.rglob("*")
        if file.is_file() and ".locks" not in file.parts
    }


def changed(before: dict[str, tuple[int, bytes]], after: dict[str, tuple[int, bytes]]) -> set[str]:
    """Artifacts with a file that is new, gone or written again."""
    return {
        str(Path(name).parent) for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    }


def same_artifact(one: Path, other: Path) -> None:
    """Equal in every file, times aside."""
    names = {
        str(file.relative_to(one)) for file in one.rglob("*") if file.is_file() and file.name != "log.txt"
    }
    assert names == {
        str(file.relative_to(other)) for file in other.rglob("*") if file.is_file() and file.name != "log.txt"
    }
    for name in names - {"manifest.json", "metrics.jsonl"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    if "metrics.jsonl" in names:
        assert journal(one) == journal(other)
    manifests: list[dict[str, Any]] = [
        json.loads((folder / "manifest.json").read_text()) for folder in (one, other)
    ]
    assert all(m.pop("seconds") >= 0 for m in manifests)
    assert [m.pop("git", None) for m in manifests]  # someone may commit between two tests
    assert manifests[0] == manifests[1]


# ── What is built, and why ──────────────────────────────────────────────────────────────────────────────────


def test_a_second_run_builds_nothing(tiny: Tiny) -> None:
    before = files(tiny.root)
    assert plan(tiny, "evaluate", "e-dpo.yaml") == {}
    assert "0 stages to build" in tiny.run("evaluate", "e-dpo.yaml").stderr
    assert files(tiny.root) == before


def test_a_dry_run_writes_nothing_and_plans_inputs_first(empty: Tiny) -> None:
    order = list(plan(empty, "evaluate", "e-dpo.yaml"))
    assert order[0] == "seed-0/data" and order[-1] == EVALUATION and len(order) == 16
    assert (
        order.index("seed-0/sft")
        < order.index("seed-0/oracle")
        < order.index("seed-0/relabel")
        < order.index(f"{RHO}/splits")
    )
    assert not empty.root.exists()


def test_another_beta_makes_another_cell_and_leaves_the_first(tiny: Tiny) -> None:
    before = files(tiny.root)
    other = f"{RHO}/policies/e-dpo/beta-0.4"
    assert plan(tiny, "train-policy", "e-dpo.yaml", "--set", "beta=0.4") == {other: "missing"}
    tiny.run("train-policy", "e-dpo.yaml", "--set", "beta=0.4")
    assert changed(before, files(tiny.root)) == {other}
    assert weights(tiny.root / other) != weights(tiny.root / POLICY)


def test_a_changed_recipe_makes_its_artifact_and_all_below_stale(tiny: Tiny) -> None:
    everything = {**plan(Tiny(tiny.suite, tiny.root.parent / "nothing"), "evaluate", "e-dpo.yaml")}
    tiny.edit("sft.yaml", "max_steps: 6")
    found = plan(tiny, "evaluate", "e-dpo.yaml")
    assert found.keys() == everything.keys() - {"seed-0/data"}
    assert found["seed-0/sft"] == "max_steps 5 -> 6"
    assert found["seed-0/oracle"] == "input model changed"
    assert found["seed-0/relabel"] == "input model changed"
    assert found[f"{RHO}/scores/rm/b-0.2"] == "input data changed; input model changed; input policy changed"
    assert all(reason.startswith("input ") for path, reason in found.items() if path != "seed-0/sft")


@pytest.mark.parametrize(
    "line", ["description: other", "per_device_eval_batch_size: 7", "expected_seconds: 3", "save_steps: 2"]
)
def test_keys_that_cannot_change_a_result_make_nothing_stale(tiny: Tiny, line: str) -> None:
    tiny.edit("sft.yaml", line)
    assert plan(tiny, "evaluate", "e-dpo.yaml") == {}


def test_force_builds_the_target_and_nothing_else_again(tiny: Tiny) -> None:
    before = files(tiny.root)
    assert plan(tiny, "train-policy", "e-dpo.yaml", "--force") == {POLICY: "forced"}
    tiny.run("train-policy", "e-dpo.yaml", "--force")
    after = files(tiny.root)
    assert changed(before, after) == {POLICY}
    assert after[f"{POLICY}/model.safetensors"][1] == before[f"{POLICY}/model.safetensors"][1]


@pytest.mark.slow
def test_dropped_weights_are_made_again_only_when_they_are_needed(built: Tiny, tiny: Tiny) -> None:
    Workspace(tiny.root, "tiny").drop_weights(POLICY)
    assert not (tiny.root / POLICY / "model.safetensors").exists()
    assert plan(tiny, "evaluate", "e-dpo.yaml") == {}
    assert plan(tiny, "train-policy", "e-dpo.yaml") == {POLICY: "its weights were dropped"}
    shutil.rmtree(tiny.root / EVALUATION)
    assert plan(tiny, "evaluate", "e-dpo.yaml") == {POLICY: "its weights were dropped", EVALUATION: "missing"}
    tiny.run("evaluate", "e-dpo.yaml")
    same_artifact(tiny.root / POLICY, built.root / POLICY)
    same_artifact(tiny.root / EVALUATION, built.root / EVALUATION)


def test_an_artifact_missing_its_manifest_is_built_again(built: Tiny, tiny: Tiny) -> None:
    (tiny.root / RHO / "splits/manifest.json").unlink()
    assert plan(tiny, "make-biased-splits", "splits.yaml") == {f"{RHO}/splits": "missing"}
    tiny.run("make-biased-splits", "splits.yaml")
    same_artifact(tiny.root / RHO / "splits", built.root / RHO / "splits")


# ── Whose directory it is ───────────────────────────────────────────────────────────────────────────────────


def test_a_workspace_of_another_suite_is_refused(tiny: Tiny) -> None:
    before = files(tiny.root)
    for more in ((), ("--dry-run",)):
        result = tiny.run("train-sft", "sft.yaml", "--set", "suite=other", *more, code=2)
        assert "workspace of suite 'tiny', not 'other'; choose another --workspace" in result.stderr
    assert files(tiny.root) == before


def test_a_foreign_directory_that_is_not_empty_is_refused(empty: Tiny) -> None:
    empty.root.mkdir()
    (empty.root / "thesis.tex").write_text("years of work")
    for more in ((), ("--dry-run",), ("--force",)):
        assert (
            "neither empty nor a workspace of rpo" in empty.run("train-sft", "sft.yaml", *more, code=2).stderr
        )
    assert [file.name for file in empty.root.iterdir()] == ["thesis.tex"]


# ── Failures, interruptions, kills ──────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_stage_that_fails_leaves_no_manifest_and_its_inputs_stay(
    built: Tiny, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("first line\nsecond line")

    shutil.rmtree(tiny.root / POLICY)
    before = files(tiny.root)
    with monkeypatch.context() as patch:
        patch.setattr(PolicyTrainer, "compute_loss", fail)
        result = tiny.run("train-policy", "e-dpo.yaml", code=1)
    assert (
        result.stderr.splitlines()[-1]
        == f"{POLICY}: ValueError: first line (log: {tiny.root / POLICY / 'log.txt'})"
    )
    assert "Traceback" in (tiny.root / POLICY / "log.txt").read_text()
    assert changed(before, files(tiny.root)) == {POLICY}
    assert not (tiny.root / POLICY / "manifest.json").exists()
    assert plan(tiny, "train-policy", "e-dpo.yaml") == {POLICY: "unfinished"}
    tiny.run("train-policy", "e-dpo.yaml")
    same_artifact(tiny.root / POLICY, built.root / POLICY)


def test_ctrl_c_says_how_to_go_on(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(self: PlanProgress, path: str, step: int, of: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PlanProgress, "step", press)
    result = tiny.run("train-policy", "dpo.yaml", code=130)
    assert result.stderr.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert not list((tiny.root / RHO / "policies/dpo").rglob("manifest.json"))


def test_bad_input_found_late_costs_no_finished_artifact(tiny: Tiny) -> None:
    before = files(tiny.root)
    result = tiny.run("train-sft", "sft.yaml", "--set", "max_steps=3", "--set", "pad_token=</s>", code=2)
    assert "EOS" in result.stderr.splitlines()[-1]
    assert files(tiny.root) == before
    assert plan(tiny, "evaluate", "e-dpo.yaml") == {}


def test_what_a_trial_replaced_is_there_until_the_trial_is_finished(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(tiny.root)

    def press(self: PlanProgress, path: str, step: int, of: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PlanProgress, "step", press)
        said = tiny.run("train-sft", "sft.yaml", "--set", "max_steps=9", code=130).stderr
    # Two policies and an evaluation with all they rest on; sft itself and data are not built on it.
    stale = len(list(Workspace(tiny.root, "tiny").artifacts())) - 2
    assert f"note: replaces finished artifacts on which {stale} others in {tiny.root} were built" in said
    assert weights(tiny.root / ".replaced/seed-0/sft") == before["seed-0/sft/model.safetensors"][1]
    assert "note: replaces" not in tiny.run("train-sft", "sft.yaml").stderr
    assert files(tiny.root) == before  # brought back, not trained again
    tiny.run("train-sft", "sft.yaml", "--set", "max_steps=9")
    assert not (tiny.root / ".replaced/seed-0/sft").exists()
    assert weights(tiny.root / "seed-0/sft") != before["seed-0/sft/model.safetensors"][1]


def test_what_was_set_aside_is_no_ruin_after_a_kill_while_it_is_deleted(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(directory: Path, ignore_errors: bool) -> None:
        if ".replaced" in directory.parts and directory.exists():
            (directory / "model.safetensors").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rpo_cli.artifacts.workspace.shutil.rmtree", kill)
        tiny.run("train-sft", "sft.yaml", "--set", "max_steps=3", code=130)
    tiny.run("train-sft", "sft.yaml")
    assert (tiny.root / "seed-0/sft/model.safetensors").exists()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_input_that_another_command_made_anew_is_noticed(tiny: Tiny, when: str) -> None:
    job = job_of(tiny.stage("e-dpo.yaml", "beta=0.7"), Workspace(tiny.root, "tiny"), {})
    file = tiny.root / f"{RHO}/scores/rm/b-0.2/manifest.json"

    def another_command() -> None:
        write_json(file, json.loads(file.read_text()) | {"key": "another"})

    if when == "before":
        another_command()
    with pytest.raises(
        RunFailed,
        match=r"scores/rm/b-0.2 was changed by another command meanwhile; run the same command again",
    ):
        run_job(job, lambda step, of: another_command() if when == "meanwhile" else pytest.fail("it trained"))
    assert not (job.directory / "manifest.json").exists()


def test_the_next_command_is_about_what_this_one_made(tiny: Tiny) -> None:
    said = tiny.run(
        "train-policy", "dpo.yaml", "--set", "max_steps=2", "--set", "beta=0.3", "--rho", "0.5", "--seed", "0"
    ).stderr
    line = said.splitlines()[-1]
    assert line.startswith("next: rpo evaluate ")
    assert line.endswith(
        f"dpo.yaml --rho 0.5 --set max_steps=2 --set beta=0.3 --workspace {tiny.root} --seed 0"
    )


def test_the_next_command_can_be_typed_as_it_stands(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.suite.rename(tiny.suite.with_name("my suite")).parent)
    said = rpo("relabel", "my suite/relabel.yaml", "--workspace", "new runs").stderr.splitlines()[-1]
    command = shlex.split(said.removeprefix("next: rpo "))
    assert command[0] == "make-biased-splits"
    rpo(*command, "--dry-run")


@pytest.mark.slow
def test_after_kill_9_the_same_command_ends_where_the_undisturbed_one_did(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("--set", "max_steps=120", "--set", "save_steps=20")
    cell = f"{RHO}/policies/e-dpo/beta-0.2-max_steps-120"
    undisturbed = Tiny(tiny.suite, Path(shutil.copytree(tiny.root, tmp_path / "undisturbed")))
    undisturbed.run("evaluate", "e-dpo.yaml", *settings)
    command = ["evaluate", "--recipe", tiny.suite / "e-dpo.yaml", "--workspace", tiny.root, *settings]
    process = subprocess.Popen(
        [sys.executable, "-m", "rpo_cli.cli", *map(str, command)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )
    try:
        while not (tiny.root / cell / "checkpoints/checkpoint-20" / STATE).exists():
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tiny.root / cell / "manifest.json").exists()
    assert plan(tiny, "evaluate", "e-dpo.yaml", *settings)[cell] == "unfinished"
    rpo(*command)
    assert len(journal(tiny.root / cell)) == 120
    same_artifact(tiny.root / cell, undisturbed.root / cell)
    cell = cell.replace("policies", "evaluations") + "/test"
    same_artifact(tiny.root / cell, undisturbed.root / cell)


@pytest.mark.parametrize(("error", "code"), [(ModuleNotFoundError("torch"), 130), (RunFailed("no room"), 1)])
def test_what_breaks_after_an_interrupt_that_a_library_caught_is_the_interrupts(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        heed_interrupts()
        with pytest.raises(Exit) as ended, guarded(debug=False):
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            raise error
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.exit_code == code
    assert ("interrupted" in capsys.readouterr().err) == (code == 130)


def test_a_second_sigterm_while_python_takes_itself_down_leaves_the_exit_code() -> None:
    """What a module holds goes when Python has given SIGTERM its default back."""
    program = (
        "import os, signal\n"
        "from rpo_cli.cli import program\n"
        "class Last:\n"
        "    def __del__(self, kill=os.kill, own=os.getpid(), sent=signal.SIGTERM):\n"
        "        print('sent', flush=True)\n"
        "        kill(own, sent)\n"
        "program.app = lambda: signal.raise_signal(signal.SIGTERM)\n"
        "last = Last()\n"
        "program.entry()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (130, "sent\n"), ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_after_sigterm_the_same_command_ends_where_the_undisturbed_one_did(
    tiny: Tiny, tmp_path: Path, jobs: int
) -> None:
    """As after Ctrl-C; with workers the whole group gets the signal, as a cluster sends it, and again."""
    settings = ("--set", "max_steps=60", "--set", "save_steps=20", "--rho", "0.5,0.2")
    cell = f"{RHO}/policies/dpo/beta-0.2-max_steps-60"
    command = ["train-policy", "--recipe", tiny.suite / "dpo.yaml", *settings, "--jobs", jobs]
    interrupted = [*command, "--workspace", tiny.root]
    process = subprocess.Popen(
        [sys.executable, "-m", "rpo_cli.cli", *map(str, interrupted)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 240
        while not (tiny.root / cell / "checkpoints/checkpoint-20" / STATE).exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        children = psutil.Process(process.pid).children(recursive=True)
        for _ in range(4):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(0.005)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert len(children) >= (2 if jobs > 1 else 0)
    assert not (tiny.root / cell / "manifest.json").exists()
    rpo(*interrupted)
    undisturbed = Tiny(tiny.suite, Path(shutil.copytree(tiny.root, tmp_path / "undisturbed")))
    shutil.rmtree(undisturbed.root / cell)
    rpo(*command[:-2], "--workspace", undisturbed.root)  # in this process
    same_artifact(tiny.root / cell, undisturbed.root / cell)


@pytest.mark.parametrize("recipe", ["data", "sft", "oracle", "relabel", "splits", "rm", "e-dpo", "evaluate"])
def test_a_job_is_the_same_after_its_way_to_another_process(tiny: Tiny, recipe: str) -> None:
    tiny.edit("e-dpo.yaml", "by_rho: {0.2: {beta: 0.1}}")
    target = tiny.stage(f"{recipe}.yaml")
    for stage in walk([target]):
        job = job_of(stage, Workspace(tiny.root, "tiny"), {"report_to": "none"}, force=True)
        read = job_from(job.to_json())
        assert read == job and type(read.recipe) is type(job.recipe)
        assert read.recipe.model_fields_set == job.recipe.model_fields_set
        assert json.loads(read.to_json()) == json.loads(job.to_json())


def test_a_job_whose_recipe_is_none_of_its_kind_is_refused(tiny: Tiny) -> None:
    job = job_of(tiny.stage("dpo.yaml"), Workspace(tiny.root, "tiny"), {})
    for change in ({"objective": "dop"}, {"btea": 1.0}, {"max_steps": 0}):
        values = json.loads(job.to_json())
        values["recipe"] |= change
        with pytest.raises(ValueError, match=next(iter(change))):
            job_from(json.dumps(values))


@pytest.mark.slow
def test_two_jobs_give_the_same_bytes_as_one_and_their_libraries_say_nothing(
    built: Tiny, tiny: Tiny, capfd: pytest.CaptureFixture[str]
) -> None:
    members = [f"{RHO}/rm/b-{b}" for b in (0.2, 0.5, 0.8)]
    for member in members:
        shutil.rmtree(tiny.root / member)
    tiny.run("train-rm", "rm.yaml", "--ensemble", "--jobs", 2)
    assert capfd.readouterr().err == ""  # of the workers; this command's own is kept apart
    for member in members:
        same_artifact(tiny.root / member, built.root / member)


# ── What is written down ────────────────────────────────────────────────────────────────────────────────────


def test_manifests_say_where_a_result_comes_from(built: Tiny) -> None:
    found = manifest(built.root, POLICY)
    assert found["seeds"] == {"data": 0, "rm": 0, "policy": 0, "sampling": 0}
    assert found["versions"] == versions() and found["versions"].keys() >= {
        "python",
        "torch",
        "trl",
        "transformers",
        "numpy",
    }
    assert found["device"] == "cpu, float32 (cpu: as the recipe says; dtype: as the recipe says)"
    assert found["threads"] == 1 and found["suite"] == "tiny" and found["seconds"] > 0
    assert found["recipe"]["beta"] == 0.2 and found["recipe"]["objective"] == "e-dpo"
    assert found["inputs"] == {
        "data": manifest(built.root, f"{RHO}/splits")["key"],
        "model": manifest(built.root, "seed-0/sft")["key"],
        "reference": manifest(built.root, "seed-0/reference-logps/relabel")["key"],
        "samples": manifest(built.root, "seed-0/reference-samples/relabel")["key"],
        **{f"scores/{b}": manifest(built.root, f"{RHO}/scores/rm/b-{b}")["key"] for b in (0.2, 0.5, 0.8)},
    }


def test_seeds_for_one_purpose_change_only_what_they_are_for(tiny: Tiny) -> None:
    _, other = tiny.make("e-dpo.yaml", "policy_seed=7")
    assert other["seeds"] == {"data": 0, "rm": 0, "policy": 7, "sampling": 0}


@pytest.mark.slow
def test_wandb_runs_offline_inside_the_workspace_and_no_secret_is_written(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        name: f"{index}eadbeef" * 5
        for index, name in enumerate(("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), 1)
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = set(Path.cwd().iterdir())
    told = tiny.run("train-policy", "dpo.yaml", "--wandb").stderr
    cell = tiny.root / RHO / "policies/dpo/beta-0.2"
    (run,) = (tiny.root / "wandb").glob("offline-run-*")
    place = f"Weights & Biases: runs in {tiny.root / 'wandb'}: 1 offline run; `wandb sync {run}` sends it"
    assert place in told
    assert f"-{manifest(tiny.root, f'{RHO}/policies/dpo/beta-0.2')['key'][:16]}-" in run.name
    assert (next(run.glob("*.wandb"))).stat().st_size > 1000
    assert set(Path.cwd().iterdir()) == before
    with_wandb = journal(cell)
    tiny.run("train-policy", "dpo.yaml", "--force")
    assert journal(cell) == with_wandb and len(with_wandb) == 6
    assert len(list((tiny.root / "wandb").glob("offline-run-*"))) == 1
    for name, secret in secrets.items():
        assert os.environ[name] == secret
        for file in tiny.root.rglob("*"):
            assert not file.is_file() or secret.encode() not in file.read_bytes(), file
