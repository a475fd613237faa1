"""What W&B gets: whole curves, runs of their own, by rho and objective; where they are said to lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RHO, Tiny, manifest, rpo
from repository import ROOT

from rpo_cli.artifacts import Report, Stage, Workspace, job_of, log_images, told_where, versions
from rpo_cli.artifacts.graph import subject_of
from rpo_cli.artifacts.tracker import FEW
from rpo_cli.recipes import load
from rpo_cli.runs.planner import Planner

BLOCK = 2**15


def records(run: Path) -> list[Any]:
    """What a run's folder holds when its last record is written, which is after the run was left."""
    while True:
        found = list(written(run))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.02)


def written(run: Path) -> Iterator[Any]:
    """Records in the blocks of LevelDB's log, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, parts = next(run.glob("*.wandb")).read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last of its parts
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def curve(run: Path) -> list[dict[str, Any]]:
    """The lines of a run as those of metrics.jsonl."""
    found = []
    for record in records(run):
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
            }
            found.append(
                {name: value for name, value in items.items() if not name.startswith("_")}
                | {"step": items["_step"]}
            )
    return found


def runs(root: Path) -> list[Path]:
    return sorted(
        (root / "wandb").glob("offline-run-*"), key=lambda run: next(run.glob("*.wandb")).stat().st_mtime_ns
    )


def id_of(run: Path) -> str:
    return next(run.glob("*.wandb")).stem.removeprefix("run-")


# ── Runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def reporting(tiny: Tiny) -> Report:
    """The voice of the training of a policy that begins, or that is taken up again."""
    workspace = Workspace(tiny.root, "tiny")
    workspace.open()
    job = job_of(tiny.stage("dpo.yaml"), workspace, {"report_to": "wandb"})
    with workspace.building(job.path, job.identity):
        return Report(job, lambda step, of: None)


def log(report: Report, first: int, last: int) -> None:
    for step in range(first, last + 1):
        report.log({"loss": 1 / step}, step)
        report.log({"monitor/tokens": step}, step)


def lines(last: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 1 / step, "monitor/tokens": step} for step in range(1, last + 1)]


def test_a_run_taken_up_again_is_the_same_and_has_the_whole_curve(
    empty: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(KeyboardInterrupt), reporting(empty) as report:
        log(report, 1, 5)
        raise KeyboardInterrupt
    with report.file.open("a") as file:
        file.write('{"step": 6, "lo')  # as a kill leaves it
    with reporting(empty) as report:
        report.rewind(4)
        log(report, 5, 6)
    first, resumed = runs(empty.root)
    assert id_of(first) == id_of(resumed) and report.told == []
    assert (curve(first), curve(resumed)) == (lines(5), lines(6))


def test_a_run_is_told_again_only_what_it_lacks(empty: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with reporting(empty) as report:
        log(report, 1, 4)
        report.rewind(4)  # as where memory ended, and the same process goes on in smaller pieces
        log(report, 5, 6)
    (run,) = runs(empty.root)
    assert curve(run) == lines(6)


def test_another_workspace_has_another_run_and_a_run_says_what_it_is_of(
    empty: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    other = Tiny(empty.suite, tmp_path / "other")
    for tiny in (empty, other):
        with reporting(tiny):
            pass
    (one,), (two,) = runs(empty.root), runs(other.root)
    assert id_of(one) != id_of(two) and id_of(one)[:16] == id_of(two)[:16]
    (begun,) = (record.run for record in records(one) if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert begun.run_group == "tiny/rho-0.5/dpo"
    assert (config["rho"], config["objective"], config["beta"], config["seed"]) == (0.5, "dpo", 0.2, 0)
    assert (config["processes"], config["effective_batch"]) == (1, 8)
    assert config["device"].startswith("cpu") and config["versions"] == versions()


def test_what_is_found_of_a_policy_is_filed_under_its_rho_objective_and_strength(empty: Tiny) -> None:
    loaded = load(str(empty.suite / "e-dpo.yaml"))
    planner = Planner(None)
    policy = {
        "rho": 0.5,
        "seed": 0,
        "policy": f"{RHO}/policies/e-dpo/beta-0.2",
        "objective": "e-dpo",
        "beta": 0.2,
    }
    evaluation = planner.evaluation(loaded, "test")
    for stage in (planner.build(loaded), evaluation, planner.held_out(loaded), planner.measure(loaded)):
        assert subject_of(stage) == policy
    for taught in planner.taught(loaded, evaluation):
        assert subject_of(taught).items() >= policy.items()
    scores = planner.build(loaded).inputs["scores/0.2"]
    assert isinstance(scores, Stage)
    assert subject_of(scores) == {"rho": 0.5, "seed": 0, "member": 0.2}
    assert subject_of(empty.stage("rm.yaml", member=0.8)) == {"rho": 0.5, "seed": 0, "member": 0.8}
    assert subject_of(empty.stage("sft.yaml")) == {"rho": None, "seed": 0}
    assert subject_of(empty.stage("ipo.yaml", "rho=null"))["rho"] is None


def test_each_figure_has_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    said: list[str] = []
    for name in ("figure2", "figure2", "kl, 5%"):
        log_images("rpo", "tiny", name, [], tmp_path, said.append)
    ids = [id_of(run) for run in runs(tmp_path)]
    assert len(set(ids)) == 3 and [name.rpartition("-")[0] for name in ids] == ["figure2", "figure2", "kl-5-"]
    assert len(said) == 3 and all("1 offline run; `wandb sync" in line for line in said)


# ── What is said ────────────────────────────────────────────────────────────────────────────────────────────


def place(root: Path, *names: str) -> str:
    """What is said at the end of a command that began these runs, beside an older one."""
    (root / "wandb/offline-run-20200101_000000-old").mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    with told_where(root, True, said.append):
        for name in names:
            (root / "wandb" / name).mkdir()
    (line,) = said
    return line


def test_where_runs_went_is_what_is_on_disk_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")  # as the command was begun
    folder = tmp_path / "1/wandb"
    said = place(tmp_path / "1", "offline-run-20260101_000000-a-1", "run-20260101_000000-a-1")
    sync = f"`wandb sync {folder}/offline-run-20260101_000000-a-1` sends it"
    assert said == f"Weights & Biases: runs in {folder}: 1 offline run; {sync}"
    said = place(tmp_path / "2", "run-20260101_000000-a", "latest-run", "offline-run-20260101_000001-b")
    assert "1 run sent to https://api.wandb.ai, 1 offline run; " in said
    said = place(tmp_path / "3", *(f"offline-run-20260101_000000-{n}" for n in range(FEW + 1)))
    assert said.endswith(
        f"{FEW + 1} offline runs; `wandb sync {tmp_path / '3/wandb'}/offline-run-*` sends them"
    )
    assert place(tmp_path / "4").endswith("nothing was written (no run was begun)")
    quiet: list[str] = []
    with told_where(tmp_path, False, quiet.append):
        pass
    assert quiet == []


@pytest.mark.slow
def test_workers_that_find_no_server_are_told_of_as_offline_and_a_planned_stage_says_so_too(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    again = ("dpo.yaml", "--set", "learning_rate=0.002", "--wandb")
    said = tiny.run("train-policy", *again, "--rho", "0.5,0.6", "--jobs", 2).stderr
    lines = [line for line in said.splitlines() if line.startswith("Weights & Biases: runs in")]
    assert len(lines) == 1 and "offline run" in lines[0] and "sent to" not in lines[0]
    plan, path = tiny.root.with_name("plan.json"), f"{RHO}/policies/dpo/beta-0.3"
    tiny.run("plan", "dpo.yaml", "--set", "beta=0.3", "--out", plan)
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = rpo("stage", path, "--plan", plan, "--wandb").stderr
    (run,) = [run for run in runs(tiny.root) if manifest(tiny.root, path)["key"][:16] in run.name]
    assert "note: Weights & Biases: offline, WANDB_MODE says so" in said
    assert f"1 offline run; `wandb sync {run}` sends it" in said


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_stdout_is_data_though_libraries_print_that_runs_are_offline(tiny: Tiny, jobs: int) -> None:
    command = ["train-policy", "--recipe", tiny.suite / "dpo.yaml", "--workspace", tiny.root, "--json"]
    command += ["--rho", "0.5,0.6", "--set", "learning_rate=0.002", "--jobs", jobs]
    ran = subprocess.run(
        [sys.executable, "-m", "rpo_cli.cli", *map(str, command)],
        capture_output=True,
        env=os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)},
        check=True,
        text=True,
    )
    assert len(json.loads(ran.stdout)) == 2
