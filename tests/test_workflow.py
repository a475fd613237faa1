"""Workflows: the jobs of a plan, what Snakemake and Hugging Face Jobs are given, and what they make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SEED, Tiny, manifest, rpo
from engines import ENVIRONMENT, SNAKEMAKE, add_figure, run
from fake_jobs import FakeJobs
from repository import ROOT

from rpo_cli.runs.workflow.jobs import jobs_of

needs_snakemake = pytest.mark.skipif(SNAKEMAKE is None, reason="Snakemake is not installed: make test-slurm")
ADAPTERS = ROOT / "rpo_cli/runs/workflow"
SFT, DATA = f"{SEED}/sft", f"{SEED}/data"


def entry(
    path: str, group: str, *needs: str, state: str = "build", minutes: float | None = 1
) -> dict[str, Any]:
    """A stage of a plan, as far as jobs are made of it."""
    return {
        "path": path,
        "key": f"key of {path}",
        "group": group,
        "state": state,
        "manifest": f"{path}/manifest.json",
        "inputs": [{"path": needed} for needed in needs],
        "resources": {"gpus": 1, "memory_mb": None, "disk_mb": 10, "minutes": minutes},
    }


def written(folder: Path, *stages: dict[str, Any]) -> Path:
    (folder / "plan.json").write_text(json.dumps({"stages": stages}))
    return folder / "plan.json"


def test_a_job_makes_the_stages_of_one_group_and_needs_the_jobs_of_its_inputs(tmp_path: Path) -> None:
    plan = written(
        tmp_path,
        entry("a", "first"),
        entry("done", "first", state="up to date"),
        entry("b", "second", "a", "done"),
        entry("c", "second", "b", minutes=2.5),
        entry("d", "third", "c", minutes=None),
    )
    first, second, third = jobs_of(plan).values()
    assert first.stages == ("a",) and first.needs == () and first.name.startswith("first-")
    assert second.stages == ("b", "c") and second.needs == (first.name,) and third.needs == (second.name,)
    assert (second.gpus, second.memory_mb, second.disk_mb) == (1, 0, 10)
    assert second.minutes == 21  # three times what is expected, rounded up, and ten
    assert third.minutes == 0  # nobody knows: the engine's default
    for file, key in second.manifests.items():
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(json.dumps({"key": key}))
    assert second.done(tmp_path) and not first.done(tmp_path)
    (tmp_path / "b/manifest.json").write_text(json.dumps({"key": "another"}))
    assert not second.done(tmp_path)


def test_what_is_made_of_other_recipes_is_another_job(tmp_path: Path) -> None:
    stage = entry("a", "first")
    (before,) = jobs_of(written(tmp_path, stage))
    (after,) = jobs_of(written(tmp_path, stage | {"key": "another"}))
    assert before != after and before.split("-")[0] == after.split("-")[0]


def test_all_adapters_together_are_few_lines() -> None:
    assert sum(len(file.read_text().splitlines()) for file in ADAPTERS.iterdir() if file.is_file()) <= 360


def workflow(tiny: Tiny, engine: str, recipe: str, *more: object) -> Path:
    """A workflow for a recipe of the suite, written by the real command line beside the suite; its folder."""
    folder = tiny.suite.parent / "flow"
    tiny.run(f"workflow {engine}", recipe, "--out", folder, *more)
    return folder


def test_a_workflow_of_snakemake_is_a_plan_a_snakefile_and_a_profile_for_each_place(tiny: Tiny) -> None:
    folder = workflow(tiny, "snakemake", "dpo.yaml", "--rho", "0.2")
    assert {file.name for file in folder.iterdir()} == {
        *("plan.json", "Snakefile", "jobs.py", "local", "gpus", "slurm")
    }
    profiles = {
        name: yaml.safe_load((folder / name / "config.yaml").read_text()) for name in ("local", "slurm")
    }
    assert profiles["slurm"]["executor"] == "slurm" and profiles["slurm"]["default-resources"]["tasks"] == 0
    assert all(profile["keep-going"] and profile["retries"] for profile in profiles.values())
    made = [path for job in jobs_of(folder / "plan.json").values() for path in job.stages]
    assert made[-1] == f"{SEED}/rho-0.2/policies/dpo/beta-0.2" and DATA not in made  # that one is there


def test_a_profile_that_its_user_changed_is_kept_when_the_workflow_is_written_again(tiny: Tiny) -> None:
    profile = workflow(tiny, "snakemake", "sft.yaml") / "slurm/config.yaml"
    profile.write_text(profile.read_text() + "# our account\n")
    workflow(tiny, "snakemake", "dpo.yaml")
    assert profile.read_text().endswith("# our account\n")


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tiny: Tiny) -> None:
    (tiny.suite.parent / "file").touch()
    said = tiny.run("workflow snakemake", "sft.yaml", "--out", tiny.suite.parent / "file", code=2)
    assert "file" in said.stderr.splitlines()[-1]


@needs_snakemake
@pytest.mark.slow
def test_snakemake_draws_the_same_figure_and_makes_again_only_what_is_missing(tiny: Tiny) -> None:
    add_figure(tiny.suite)
    there = (tiny.root / DATA / "manifest.json").stat()
    folder = workflow(tiny, "snakemake", "figure2.yaml")
    command: list[str | Path] = [str(SNAKEMAKE), "--profile", folder / "local", "--cores", "2"]
    run(command, tiny.suite.parent)
    drawn = tiny.root / "figures/figure2/figure2.json"
    by_snakemake = drawn.read_bytes()
    assert (tiny.root / DATA / "manifest.json").stat() == there
    tiny.run("figure figure2", "figure2.yaml")
    assert drawn.read_bytes() == by_snakemake


# The hub's client sends files by a protocol of its own: here they go into the folder that is the bucket.
HERE = """
import os, runpy, shutil, sys
from pathlib import Path
from huggingface_hub import HfApi

def add(api, bucket, add):
    for source, place in add:
        file = Path(os.environ["BUCKET"], place)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, file)

HfApi.create_bucket = lambda api, bucket, *, private, exist_ok: None
HfApi.batch_bucket_files = add
sys.argv[0] = "flow/hf_jobs.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJobs]:
    """The stand-in of the Jobs API with an empty folder as its bucket, and the one where the plan is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bucket").mkdir()
    with FakeJobs(tmp_path / "bucket") as fake:
        yield fake


@pytest.mark.slow
def test_hf_jobs_makes_what_can_be_made_from_what_it_uploads_names_the_rest_and_the_same_command_finishes(
    empty: Tiny, jobs: FakeJobs
) -> None:
    rpo("workflow", "hf-jobs", "tiny/sft.yaml", "--workspace", "runs", "--out", "flow")
    data, sft = jobs_of(Path("flow/plan.json")).values()
    assert (data.stages, sft.stages) == ((DATA,), (SFT,)) and sft.needs == (data.name,)

    def go(what: str, *more: str, code: int = 0) -> list[str]:
        command = [sys.executable, "-c", HERE, what, "anna/bucket", *more]
        environment = {"HF_ENDPOINT": jobs.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret"}
        env = os.environ | ENVIRONMENT | environment | {"BUCKET": str(jobs.bucket)}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout.splitlines()

    def run(code: int) -> list[str]:
        return go("run", "--install=true", "--poll=0.2", code=code)

    assert go("upload")[-1].endswith("files are in hf://buckets/anna/bucket")
    made = jobs.bucket / "runs"
    (made / SEED).mkdir(parents=True)
    (made / DATA).write_text("in the way")
    assert run(1)[-2] == f"failed: {data.name}; not tried: {sft.name}"
    (made / DATA).unlink()
    assert run(0)[-1] == "finish: completed; the results are in hf://buckets/anna/bucket"
    assert manifest(made, SFT)["key"] == sft.manifests[f"{SFT}/manifest.json"]
    assert not empty.root.exists()
    posted = [job["labels"]["name"] for job in jobs.started]
    assert posted == [data.name, data.name, sft.name, "finish"]
    assert jobs.started[0]["volumes"] == [{"type": "bucket", "source": "anna/bucket", "mountPath": "/rpo"}]
    assert "hf_secret" not in json.dumps(jobs.started)
