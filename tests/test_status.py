"""`rpo status` and `rpo doctor`: what is there, and with what it works."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from test_cli import REPOSITORY, done, rpo

from rpo_cli.artifacts import STARTED, Workspace, walk, write_json
from rpo_cli.recipes import load
from rpo_cli.runs import doctor
from rpo_cli.runs.planner import Planner

pytestmark = pytest.mark.usefixtures("here")


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
