"""Making one artifact: the function of its kind of stage, its log, its failures in a line, its publication."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rpo_cli import __version__, devices
from rpo_cli.artifacts import (
    MANIFEST,
    POINTING,
    TRAINED,
    Job,
    Report,
    Silence,
    Workspace,
    git_revision,
    no_room,
    read_json,
    versions,
)
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.recipes import schema
from rpo_cli.runs import processes

QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "WANDB_SILENT": "true",
}


def stage_function(kind: str) -> Callable[[Job, Report], dict[str, Any]]:
    """The function that makes an artifact of this kind; imports the heavy libraries."""
    if kind == "data":
        from rpo_cli.stages.data.build import run
    elif kind == "warm":
        from rpo_cli.stages.warm import run
    elif kind == "relabel":
        from rpo_cli.stages.relabel import run
    elif kind == "splits":
        from rpo_cli.stages.splits import run
    elif kind == "sft":
        from rpo_cli.stages.sft import run
    elif kind == "reward":
        from rpo_cli.stages.reward import run
    elif kind == "policy":
        from rpo_cli.stages.policy import run
    elif kind == "evaluate":
        from rpo_cli.stages.evaluate import run
    elif kind == "judge":
        from rpo_cli.stages.judge.stage import run
    elif kind == "reference":
        from rpo_cli.stages.reference import run_reference as run
    elif kind == "samples":
        from rpo_cli.stages.samples import run_samples as run
    elif kind == "scores":
        from rpo_cli.stages.scores import run_scores as run
    elif kind == "measure":
        from rpo_cli.stages.measure import run
    else:
        raise ValueError(f"no stage of kind {kind!r}")
    return run


def run_job(job: Job, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Make one artifact and publish it; returns its manifest.

    Raises:
        BadInput, RunFailed: one line; the traceback is in the artifact's log.txt.
    """
    workspace = Workspace(job.root, job.suite)
    if processes.follows(job):
        return _follow(job, workspace, progress)
    try:
        with workspace.building(job.path, job.identity, force=job.force) as directory:
            if directory is None:
                return workspace.manifest(job.path) or {}
            return _build(job, workspace, directory, progress)
    except OSError as error:
        raise failed(job, error) from error


def _follow(job: Job, workspace: Workspace, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Train an artifact together with a pod's first host, which holds its lock and publishes it."""
    while not workspace.is_building(job.path, job.identity):
        if not job.force and workspace.why_stale(job.path, job.identity, weights=True) is None:
            return workspace.manifest(job.path) or {}
        time.sleep(1)
    processes.run(job, progress)
    with workspace.building(job.path, job.identity) as directory:  # when the first host lets go of it
        if directory is not None:
            raise RunFailed(
                f"{job.path}: the first host has not finished it; its log says why: {job.directory / 'log.txt'}"
            )
    return workspace.manifest(job.path) or {}


def failed(job: Job, error: Exception) -> RunFailed:
    """A stage's unexpected end in one line."""
    full = no_room(error, job.root)
    if full is not None:
        return RunFailed(
            f"{job.path}: {full}: {job.directory}; make room, then the same command goes on from here"
        )
    if isinstance(error, OSError):
        return RunFailed(f"{job.path}: {error.strerror or error}: {error.filename or job.directory}")
    line = str(error).strip().splitlines()
    return RunFailed(
        f"{job.path}: {type(error).__name__}: {line[0] if line else ''} (log: {job.directory / 'log.txt'})"
    )


def _build(
    job: Job, workspace: Workspace, directory: Path, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Run the stage in the directory that is held for it, and publish."""
    with logged(directory / "log.txt"):
        started = time.monotonic()
        _check_inputs(job)
        with told_in_a_line(job):
            metrics, device, warnings = (
                run_here(job, progress) if job.launch is None else processes.run(job, progress)
            )
        manifest = {
            **job.identity,
            "suite": job.suite,
            "rpo": __version__,
            "seeds": {
                name: schema.seed_of(job.recipe, name) for name in ("data", "rm", "policy", "sampling")
            },
            "device": device,
            "processes": 1 if job.launch is None or job.kind not in TRAINED else job.launch.processes,
            "threads": job.recipe.threads,
            "versions": versions(),
            "git": git_revision(),
            "seconds": round(time.monotonic() - started, 2),
            "metrics": metrics,
        }
        manifest |= {"warnings": warnings} if warnings else {}
        manifest |= {"rows_of": "data"} if job.kind in POINTING else {}
        _check_inputs(job)
        workspace.publish(job.path, manifest)
    return manifest


def _check_inputs(job: Job) -> None:
    """Raise RunFailed when what is read is no longer what this artifact's key names: another command made it anew meanwhile.

    That is its inputs, and the tables in which the rows' texts are: where an input only names rows, the one that it names.
    """
    wanted = {job.inputs[name]: job.identity["inputs"][name] for name in job.artifacts}
    for directory, key in job.tables.items():
        wanted[directory] = key
        if "rows_of" not in (read_json(directory / MANIFEST) or {}):
            break
    for directory, key in wanted.items():
        if (read_json(directory / MANIFEST) or {}).get("key") != key:
            raise RunFailed(
                f"{job.path}: {directory} was changed by another command meanwhile; run the same command again"
            )


class _LogFile(logging.FileHandler):
    """A log that gives up where the disk is full: what matters is the error itself, in one line."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def run_here(job: Job, progress: Callable[[int, int], None]) -> tuple[dict[str, Any], str, list[str]]:
    """Run the stage's function in this process: its metrics, the device it ran on, and what it warned of."""
    device = devices.choose(job.recipe)
    devices.prepare(job.recipe.threads)
    devices.quiet()
    with (Report if devices.rank() == 0 else Silence)(job, progress) as report:
        run = stage_function(job.kind)
        # Trainers bring their own autocast.
        with contextlib.nullcontext() if job.kind in TRAINED else device.autocast():
            metrics = run(job, report)
        report.summary(metrics)
    return metrics, str(device), report.warnings


@contextlib.contextmanager
def told_in_a_line(job: Job) -> Iterator[None]:
    """Turn whatever goes wrong in a stage into BadInput or RunFailed; the traceback goes to the log."""
    try:
        yield
    except (BadInput, RunFailed):
        raise
    except Exception as error:
        logging.getLogger("rpo").error(traceback.format_exc())
        raise failed(job, error) from error


@contextlib.contextmanager
def logged(file: Path, *, quietly: bool = False) -> Iterator[None]:
    """Send log records and warnings of a stage to its log file; quietly: errors only."""
    handler = _LogFile(file, delay=True)
    handler.setLevel(logging.ERROR if quietly else logging.NOTSET)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("rpo").setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
