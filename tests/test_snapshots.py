"""What comes from the hub: recorded once, used again, fetched ahead, and missed by name when offline.

The hub is a server of this machine with tiny repositories; rpo runs as users run it, in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import published
import pytest
from conftest import PLAIN, Tiny, manifest, rpo
from huggingface_hub import constants
from transformers import LlamaConfig, LlamaForCausalLM

from rpo_cli.artifacts import External, Stage, Workspace, snapshots
from rpo_cli.recipes.schema import ScoringRecipe

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "refs/convert/parquet"


class Hub:
    """Repositories as folders; `commits` of (kind, name, revision); `asked`: every path requested."""

    def __init__(self) -> None:
        self.folders: dict[tuple[str, str], Path] = {}
        self.commits: dict[tuple[str, str, str], str] = {}
        self.asked: list[str] = []

    def add(self, kind: str, name: str, folder: Path, revision: str = "main") -> None:
        self.folders[kind, name] = folder
        self.move(kind, name, revision, "first")

    def move(self, kind: str, name: str, revision: str, what: str) -> None:
        """Another commit, as if somebody had pushed."""
        self.commits[kind, name, revision] = hashlib.sha1(f"{kind} {name} {what}".encode()).hexdigest()

    def answer(self, url: str) -> tuple[int, dict[str, str], bytes]:
        path = urlsplit(url).path
        if path == "/":  # is anybody there?
            return 200, {}, b""
        self.asked.append(url)
        if path.startswith("/api/"):
            kind, owner, name, what, rest = (*path.removeprefix("/api/").split("/", 4), "")[:5]
            repository, revision = f"{owner}/{name}", unquote(rest)
            if what == "tree" and "/" in rest:  # a folder of it: transformers looks for more chat templates
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            known = {commit for (k, n, _), commit in self.commits.items() if (k, n) == (kind, repository)}
            commit = self.commits.get((kind, repository, revision)) or (
                revision if revision in known else None
            )
            if commit is None:
                return (
                    404,
                    {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"},
                    b'{"error": "not there"}',
                )
            folder = self.folders[kind, repository]
            files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            if what == "tree":
                listing = [
                    {
                        "type": "file",
                        "path": f,
                        "size": (folder / f).stat().st_size,
                        "oid": self.oid(folder / f),
                    }
                    for f in files
                ]
                return 200, {}, json.dumps(listing).encode()
            return (
                200,
                {},
                json.dumps(
                    {"id": repository, "sha": commit, "siblings": [{"rfilename": f} for f in files]}
                ).encode(),
            )
        kind, path = (
            ("datasets", path.removeprefix("/datasets"))
            if path.startswith("/datasets/")
            else ("models", path)
        )
        owner, name, _, commit, file = path.removeprefix("/").split("/", 4)
        content = self.folders[kind, f"{owner}/{name}"] / unquote(file)
        if name == "gated":  # anybody may list it
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        if not content.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{self.oid(content)}"', "X-Repo-Commit": commit}, content.read_bytes()

    @staticmethod
    def oid(file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    made = Hub()
    made.add(
        "datasets", "o/comparisons", published.comparisons_parquet(tmp_path / "hub/comparisons"), REFERENCE
    )
    made.add("datasets", "o/tldr", published.tldr(tmp_path / "hub/tldr"))
    model = tmp_path / "hub/model"
    tokenizer = published.word_tokenizer(model)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    (model / "pytorch_model.bin").write_bytes(b"a pickle")
    made.add("models", "o/model", model)
    made.add("models", "o/gated", model)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = made.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "hubsuite"
    folder.mkdir()
    (folder / "data.yaml").write_text(
        PLAIN + f"stage: data\nsource: tldr-comparisons\ndataset: o/comparisons@{REFERENCE}\n"
        "data_dir: comparisons\nsft_dataset: o/tldr\n"
        "tokenizer: o/model\n"
    )
    (folder / "sft.yaml").write_text(
        PLAIN + "stage: sft\nmodel_name_or_path: o/model\nmax_steps: 1\nper_device_train_batch_size: 2\n"
    )
    return folder


def run(hub: Any, home: Path, *arguments: object, code: int = 0) -> str:
    """rpo in a process of its own with this hub and this home; what it printed."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
        "NO_COLOR": "1",
    }
    command = [sys.executable, "-m", "rpo_cli.cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_fetch_records_commits_takes_what_is_needed_and_offline_runs_use_it(
    hub: Any, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, home, lock = tmp_path / "runs", tmp_path / "home", tmp_path / "runs.lock.json"
    said = run(hub, home, "data", "fetch", "--recipe", suite / "sft.yaml", "--workspace", root)
    recorded = json.loads(lock.read_text())
    assert recorded == {
        "datasets": {
            f"o/comparisons@{REFERENCE}": hub.commits["datasets", "o/comparisons", REFERENCE],
            "o/tldr@main": hub.commits["datasets", "o/tldr", "main"],
        },
        "models": {"o/model@main": hub.commits["models", "o/model", "main"]},
    }
    assert all(commit in said for commits in recorded.values() for commit in commits.values())
    got = {file.name for file in (home / "hub").rglob("*") if file.is_symlink()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "0000.parquet",
        "test-00000-of-00001.parquet",
    } <= got
    assert "pytorch_model.bin" not in got and not list((home / "hub").rglob("axis"))
    # Somebody pushes; the run goes by what was recorded, and this process is offline.
    hub.move("datasets", "o/tldr", "main", "second")
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    said = rpo("train-sft", "--recipe", suite / "sft.yaml", "--workspace", root).output
    assert f"hub: 3 of 3 names at the commits recorded in {lock}" in said
    inputs = manifest(root, "seed-0/data")["inputs"]
    assert inputs["sft_dataset"] == f"hub:o/tldr@{recorded['datasets']['o/tldr@main']}"
    # Another commit in the lock is another input, and one that is not here.
    recorded["datasets"]["o/tldr@main"] = hub.commits["datasets", "o/tldr", "main"]
    lock.write_text(json.dumps(recorded))
    said = rpo("train-sft", "--recipe", suite / "sft.yaml", "--workspace", root, "--dry-run").output
    assert "seed-0/data  (input sft_dataset changed)" in said
    said = rpo("train-sft", "--recipe", suite / "sft.yaml", "--workspace", root, code=2).output
    assert "dataset o/tldr@main at " in said and "o/model" not in said.split("lacks")[1].split(". Where")[0]
    assert hub.asked == []


@pytest.mark.slow
def test_a_plan_asks_the_hub_nothing(hub: Any, suite: Path, tmp_path: Path) -> None:
    for arguments in (("train-sft", "--dry-run"), ("data", "fetch", "--dry-run")):
        run(
            hub,
            tmp_path / "home",
            *arguments,
            "--recipe",
            suite / "sft.yaml",
            "--workspace",
            tmp_path / "runs",
        )
    run(hub, tmp_path / "home", "recipe", "check", suite)
    assert hub.asked == []
    assert not (tmp_path / "runs.lock.json").exists()


@pytest.mark.slow
def test_the_first_online_run_records_and_downloads(hub: Any, suite: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    said = run(
        hub, tmp_path / "home", "data", "inspect", "--recipe", suite / "data.yaml", "--workspace", root
    )
    commit = hub.commits["datasets", "o/tldr", "main"]
    assert f"o/tldr@main is {commit}, recorded in {tmp_path / 'runs.lock.json'}" in said
    assert manifest(root, "seed-0/data")["inputs"]["sft_dataset"] == f"hub:o/tldr@{commit}"


@pytest.mark.parametrize("content", ["[]", '{"models": null}', '{"models": {"o/m@main": 5}}', '{"models'])
def test_a_lock_file_that_records_no_commit_stops_no_plan(empty: Tiny, content: str) -> None:
    empty.root.with_name("runs.lock.json").write_text(content)
    recipe = (empty.suite / "sft.yaml").read_text().split("model_config_kwargs")[0]
    (empty.suite / "sft.yaml").write_text(f"{recipe}model_name_or_path: o/m\n")
    assert "sft" in empty.run("train-sft", "sft.yaml", "--dry-run").stdout


@pytest.mark.slow
def test_a_moved_branch_is_not_followed(hub: Any, suite: Path, tmp_path: Path) -> None:
    fetch = ("data", "fetch", "--recipe", suite / "data.yaml", "--workspace", tmp_path / "runs")
    run(hub, tmp_path / "home", *fetch)
    before = (tmp_path / "runs.lock.json").read_text()
    hub.move("datasets", "o/tldr", "main", "second")
    assert "hub: 3 of 3 names" in run(hub, tmp_path / "home", *fetch)
    assert (tmp_path / "runs.lock.json").read_text() == before


def test_an_offline_machine_is_told_all_that_is_missing(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    said = rpo("train-sft", "--recipe", suite / "sft.yaml", "--workspace", tmp_path / "runs", code=2).output
    for name in (f"dataset o/comparisons@{REFERENCE}", "dataset o/tldr@main", "model o/model@main"):
        assert name in said
    assert "rpo data fetch --recipe" in said
    assert not (tmp_path / "runs").exists() or not (tmp_path / "runs/seed-0").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "o/none",
            "o/none@main: the hub has no model of this name, or it is private: see huggingface.co/o/none",
        ),
        ("o/model@v2", "o/model@v2: the hub has o/model, but no branch, tag or commit 'v2' of it"),
        (
            "o/gated",
            "o/gated@main: is gated: accept its terms at huggingface.co/o/gated, then log in (`hf auth "
            "login`, or HF_TOKEN)",
        ),
        ("no such", "neither a directory here"),
    ],
)
def test_a_name_the_hub_does_not_have_is_one_line(
    hub: Any, suite: Path, tmp_path: Path, name: str, says: str
) -> None:
    arguments = (
        "--recipe",
        suite / "sft.yaml",
        "--set",
        f"model_name_or_path={name}",
        "--workspace",
        tmp_path / "runs",
    )
    assert says in run(hub, tmp_path / "home", "data", "fetch", *arguments, code=2)


def test_a_model_without_safetensors_is_refused(hub: Any, suite: Path, tmp_path: Path) -> None:
    (tmp_path / "hub/model/model.safetensors").unlink()
    said = run(
        hub,
        tmp_path / "home",
        "data",
        "fetch",
        "--recipe",
        suite / "sft.yaml",
        "--workspace",
        tmp_path / "runs",
        code=2,
    )
    assert "o/model@main: has no config.json or safetensors weights" in said


def test_what_another_command_recorded_meanwhile_stays_in_the_lock_file(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "runs", "tiny")
    snapshots.remember(workspace, {"models": {"o/a@main": "1" * 40}})
    snapshots.remember(workspace, {"models": {"o/a@main": "2" * 40, "o/b@main": "3" * 40}, "datasets": {}})
    assert snapshots.commits(workspace) == {
        "models": {"o/a@main": "1" * 40, "o/b@main": "3" * 40}, "datasets": {}
    }  # fmt: skip


@pytest.mark.parametrize("which", ["o/first", "o/last"])
def test_keys_follow_the_commit_of_any_hub_name_whatever_its_place(tmp_path: Path, which: str) -> None:
    workspace = Workspace(tmp_path / "runs", "tiny")
    recipe = ScoringRecipe(stage="scores", device="cpu", dtype="float32")
    inputs = {name: External.named(f"o/{name}") for name in ("first", "last")}
    below = Stage("scores", "seed-0/scores", recipe, tmp_path, inputs)
    stage = Stage("scores", "seed-0/above", recipe, tmp_path, {"data": below})
    before = stage.key
    snapshots.remember(workspace, {"models": {f"{which}@main": "1" * 40}})
    snapshots.pin([stage], workspace)
    assert stage.key != before
