"""A full disk ends a stage in one line; nothing half-written counts, and the command can be repeated."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import RHO, Tiny, rpo
from safetensors import SafetensorError
from test_pipeline import plan, same_artifact

from rpo_cli.stages.training.loop import STATE

POLICY = f"{RHO}/policies/e-dpo/beta-0.2"
SPLITS = f"{RHO}/splits"
SAVING = ("--set", "save_steps=2")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def when(call: Callable[..., Any], full: Callable[..., bool], error: Exception = FULL) -> Callable[..., Any]:
    """The call, until its arguments say that the disk is full."""

    def write(*args: Any, **kwargs: Any) -> Any:
        if full(*args, **kwargs):
            raise error
        return call(*args, **kwargs)

    return write


def weights(patch: pytest.MonkeyPatch) -> None:
    import transformers.modeling_utils as saving

    def fill(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    # Checkpoints save the model too: the disk is full when the trained one is saved.
    real = saving.safe_save_file
    patch.setattr(
        saving,
        "safe_save_file",
        lambda tensors, file, *a, **k: (real if "checkpoint" in str(file) else fill)(tensors, file, *a, **k),
    )


def optimiser(patch: pytest.MonkeyPatch) -> None:
    room = shutil.disk_usage("/")._replace(free=0)
    patch.setattr("rpo_cli.artifacts.files.shutil.disk_usage", lambda path: room)
    said = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 27264 vs 27152")
    patch.setattr(
        torch, "save", when(torch.save, lambda value, file, *a, **k: "checkpoint-4" in str(file), said)
    )


def whole_files(patch: pytest.MonkeyPatch, name: str) -> None:
    """Files that are published whole: full when the system is asked to put this one on the disk."""
    real = os.fsync
    patch.setattr(os, "fsync", when(real, lambda number: name in os.readlink(f"/proc/self/fd/{number}")))


def journal_line(patch: pytest.MonkeyPatch) -> None:
    import json

    def cut(value: Any, **kwargs: Any) -> str:
        text = real(value, **kwargs)
        if isinstance(value, dict) and value.get("step") == 4:
            # What fits of the line is on the disk, the rest is not.
            with (ROOT[0] / POLICY / "metrics.jsonl").open("a") as file:
                file.write(text[:10])
            raise FULL
        return text

    real = json.dumps
    patch.setattr("rpo_cli.artifacts.report.json.dumps", cut)


def table(patch: pytest.MonkeyPatch) -> None:
    def cut(rows: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        Path(file).write_bytes(b"PAR1")
        raise OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device")

    real = pq.write_table
    patch.setattr(
        pq,
        "write_table",
        lambda rows, file, *a, **k: (cut if "b-0.5" in str(file) else real)(rows, file, *a, **k),
    )


ROOT: list[Path] = []
POINTS: dict[str, tuple[str, tuple[str, ...], str, Callable[[pytest.MonkeyPatch], None]]] = {
    "a table": ("make-biased-splits", (), SPLITS, table),
    "a table's manifest": ("make-biased-splits", (), SPLITS, lambda patch: whole_files(patch,
    "manifest.json")),
    "the mark that a stage has begun": ("make-biased-splits", (), SPLITS, lambda patch: whole_files(patch,
    "started.json")),
    "the trained weights": ("train-policy", SAVING, POLICY, weights),
    "the tokenizer": (
        "train-policy", (), POLICY,
        lambda patch: patch.setattr(
            "transformers.PreTrainedTokenizerFast.save_pretrained", when(lambda: None, lambda *a, **k: True,
            Exception("No space left on device (os error 28)"))
        ),
    ),
    "the optimiser's state": ("train-policy", SAVING, POLICY, optimiser),
    "a checkpoint's last file": ("train-policy", SAVING, POLICY, lambda patch: whole_files(patch, STATE)),
    "a line of metrics": ("train-policy", SAVING, POLICY, journal_line),
    "the policy's manifest": ("train-policy", SAVING, POLICY, lambda patch: whole_files(patch,
    "manifest.json")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_full_disk_is_one_line_and_the_same_command_finishes_later(
    built: Tiny, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    command, settings, path, fill = POINTS[point]
    ROOT[:] = [tiny.root]
    recipe = "splits.yaml" if path == SPLITS else "e-dpo.yaml"
    shutil.rmtree(tiny.root / path)
    with monkeypatch.context() as patch:
        fill(patch)
        result = tiny.run(command, recipe, *settings, code=1)
    last = result.stderr.splitlines()[-1]
    assert last == (
        f"{path}: No space left on device: {tiny.root / path}; make room, then the same command goes on "
        "from here"
    )
    assert (
        result.stderr.count("No space left") == 1
        and "Traceback" not in result.output
        and "Logging error" not in result.output
    )
    assert not (tiny.root / path / "manifest.json").exists() and not list(tiny.root.rglob("*.tmp"))
    assert plan(tiny, command, recipe, *settings)[path] in ("unfinished", "missing")
    tiny.run(command, recipe, *settings)
    same_artifact(tiny.root / path, built.root / path)


def command_line(tiny: Tiny, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "rpo_cli.cli", *arguments, "--workspace", str(tiny.root)]


@pytest.mark.slow
def test_a_file_that_outgrows_what_the_system_allows_is_one_line(built: Tiny, tiny: Tiny) -> None:
    """The libraries' own writers, and the system's own refusal: here a limit to a file's size."""
    resource = pytest.importorskip("resource")
    shutil.rmtree(tiny.root / POLICY)
    largest = (built.root / POLICY / "model.safetensors").stat().st_size // 2
    command = command_line(tiny, "train-policy", "--recipe", str(tiny.suite / "e-dpo.yaml"))
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )
    assert ended.returncode == 1, ended.stderr
    line = (
        f"{POLICY}: File too large: {tiny.root / POLICY}; make room, then the same command goes on from here"
    )
    assert ended.stderr.splitlines()[-1] == line and "Traceback" not in ended.stderr
    assert not (tiny.root / POLICY / "manifest.json").exists()
    rpo(*command[3:])
    same_artifact(tiny.root / POLICY, built.root / POLICY)


@pytest.mark.slow
def test_a_file_system_that_is_full_is_one_line_at_whatever_stage(tiny: Tiny, tmp_path: Path) -> None:
    """A real one of a few hundred kilobytes, where the system lets a test make it."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system lets nobody but root mount a file system")
    small, kept = tmp_path / "small", tmp_path / "kept"
    small.mkdir()
    on_it = Tiny(tiny.suite, small / "runs")
    command = " ".join(command_line(on_it, "train-sft", "--recipe", str(tiny.suite / "sft.yaml"), *SAVING))
    used = sum(file.stat().st_size for file in (tiny.root / "seed-0/data").rglob("*"))
    script = (
        f"mount -t tmpfs -o size={used + 120_000} tmpfs {small} || exit 99\n"
        f"{command}; echo code $? >&2\n"
        f"ls {small}/runs/seed-0/*/manifest.json >&2\n"
        f"cp -r {small}/runs {kept}\n"
    )
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if ended.returncode == 99:
        pytest.skip(f"no file system can be mounted: {ended.stderr}")
    assert ended.returncode == 0, ended.stderr
    *_, line, code, made = ended.stderr.splitlines()
    assert line == (
        f"seed-0/sft: No space left on device: {on_it.root}/seed-0/sft; make room, then the same command "
        "goes on from here"
    )
    assert (
        code == "code 1"
        and made == f"{on_it.root}/seed-0/data/manifest.json"
        and "Traceback" not in ended.stderr
    )
    Tiny(tiny.suite, kept).run("train-sft", "sft.yaml", *SAVING)  # where there is room
    same_artifact(kept / "seed-0/sft", tiny.root / "seed-0/sft")
