"""A figure by `--jobs`, by Snakemake here and by Snakemake on a real Slurm: `make test-slurm`.

RPO_SLURM_FIGURE names another figure recipe and its options, such as "miniature/figure2.yaml --rho 0.2,0.5".
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_suite
from engines import ENVIRONMENT, SNAKEMAKE, add_figure, run

from rpo_cli.runs.workflow.jobs import jobs_of
from tools.slurm import Slurm, missing, one_node

FIGURE = os.environ.get("RPO_SLURM_FIGURE", "tiny/figure2.yaml")
ON_SLURM = (
    "--profile",
    "flow/slurm",
    "--slurm-init-seconds-before-status-checks",
    "2",
    "--set-resources",
    "stages:gpu=1",
)
HERE = ("--profile", "flow/local", "--cores", "2")

pytestmark = pytest.mark.skipif(
    SNAKEMAKE is None or bool(missing()) or os.geteuid() != 0,
    reason="needs root, Snakemake, and slurm-wlm and munge of the distribution",
)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with one_node(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def prepared(folder: Path) -> Path:
    """A folder with a suite, its workspace beside, and a workflow for its figure."""
    add_figure(write_suite(folder / "tiny"))
    run([*rpo("workflow snakemake"), "--workspace", "runs", "--out", "flow"], folder)
    return folder


def rpo(command: str) -> list[str]:
    return ["rpo", *command.split(), *shlex.split(FIGURE)]


def drawn(folder: Path) -> bytes:
    (file,) = folder.glob("runs/figures/*/figure2.json")
    return file.read_bytes()


def snakemake(*arguments: str) -> list[str | Path]:
    return [str(SNAKEMAKE), *arguments]


def logs(folder: Path) -> str:
    """What all jobs printed."""
    return "".join(file.read_text() for file in (folder / "flow/logs").iterdir())


@pytest.fixture(scope="session")
def by_jobs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The figure as `rpo figure --jobs 2` draws it, which all others must be."""
    folder = tmp_path_factory.mktemp("jobs")
    add_figure(write_suite(folder / "tiny"))
    start = time.monotonic()
    run([*rpo("figure figure2"), "--workspace", "runs", "--jobs", "2"], folder)
    print(f"--jobs 2: {time.monotonic() - start:.0f} s, load {os.getloadavg()[0]:.1f}")
    return drawn(folder)


def test_snakemake_on_this_machine_draws_the_same_figure(by_jobs: bytes, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    start = time.monotonic()
    run(snakemake(*HERE), folder)
    print(f"Snakemake here: {time.monotonic() - start:.0f} s, load {os.getloadavg()[0]:.1f}")
    assert drawn(folder) == by_jobs


def test_snakemake_on_slurm_draws_the_same_figure(slurm: Slurm, by_jobs: bytes, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    run(snakemake(*ON_SLURM), folder, environment=slurm.environment)
    assert drawn(folder) == by_jobs


def test_a_node_that_dies_in_the_middle_costs_no_result(slurm: Slurm, by_jobs: bytes, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    *_, last = jobs_of(folder / "flow/plan.json")
    with (folder / "said.txt").open("w") as said:
        environment = {**slurm.environment, **ENVIRONMENT}
        going = subprocess.Popen(snakemake(*ON_SLURM), cwd=folder, env=environment, stdout=said, stderr=said)
        while not list((folder / "runs").glob("seed-0/rho-*/**/started.json")):
            assert going.poll() is None, (folder / "said.txt").read_text()
            time.sleep(0.1)
        slurm.kill_node()
        time.sleep(3)
        assert not (folder / "flow/done" / last).exists()
        slurm.start_node()
        code = going.wait()
    assert code in (0, 1), (folder / "said.txt").read_text()
    if code:
        run(snakemake(*ON_SLURM), folder, environment=slurm.environment)
    assert drawn(folder) == by_jobs


def test_a_failed_stage_stops_only_what_needs_it_and_the_same_command_finishes(
    slurm: Slurm, by_jobs: bytes, tmp_path: Path
) -> None:
    folder = prepared(tmp_path)
    stages = json.loads((folder / "flow/plan.json").read_text())["stages"]
    failing = next(stage["path"] for stage in stages if "/policies/dpo/" in stage["path"])
    needing = {failing}
    for stage in stages:
        needing |= {stage["path"]} if needing & {needed["path"] for needed in stage["inputs"]} else set()
    (folder / "runs" / failing).parent.mkdir(parents=True)
    (folder / "runs" / failing).write_text("in the way")
    run(snakemake(*ON_SLURM), folder, code=1, environment=slurm.environment)
    assert failing in logs(folder)
    there = {stage["path"] for stage in stages if (folder / "runs" / stage["manifest"]).exists()}
    assert there == {stage["path"] for stage in stages} - needing
    (folder / "runs" / failing).unlink()
    run(snakemake(*ON_SLURM), folder, environment=slurm.environment)
    assert drawn(folder) == by_jobs


def test_two_workflows_that_start_every_stage_at_once_make_each_once(by_jobs: bytes, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    run([*rpo("workflow snakemake"), "--workspace", "runs", "--out", "other"], folder)
    going = [
        subprocess.Popen(
            snakemake("--profile", f"{name}/local", "--cores", "1"),
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
        )
        for name in ("flow", "other")
    ]
    assert [each.wait() for each in going] == [0, 0]
    assert drawn(folder) == by_jobs
