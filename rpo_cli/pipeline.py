"""Run what is missing: stages in order, in this process or in workers that import once."""

from __future__ import annotations

import contextlib
import gc
import heapq
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rpo_cli import __version__, devices, processes, schema, snapshots
from rpo_cli.disk import no_room
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.plan import External, Stage, walk
from rpo_cli.progress import PlanProgress, clock
from rpo_cli.tracking import Report, Silence
from rpo_cli.workspace import Workspace, git_revision, versions

GUESS_SECONDS = {
    "data": 5.0,
    "splits": 1.0,
    "relabel": 5.0,
    "reference": 5.0,
    "samples": 5.0,
    "scores": 2.0,
    "evaluate": 4.0,
    "measure": 8.0,
    "judge": 300.0,
}
QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "WANDB_SILENT": "true",
}


@dataclass(frozen=True)
class Job:
    """A stage ready to run: everything a worker process needs, by value."""

    kind: str
    path: str
    recipe: Any
    identity: dict[str, Any]
    inputs: dict[str, Path]
    revisions: dict[str, str | None]
    options: dict[str, Any]
    files: dict[str, str]
    root: Path
    suite: str
    inherited: dict[str, Any]
    force: bool = False
    launch: processes.Launch | None = None

    @property
    def directory(self) -> Path:
        return self.root / self.path


@dataclass(frozen=True)
class Todo:
    """One line of a plan."""

    stage: Stage
    reason: str

    @property
    def seconds(self) -> float:
        recipe = self.stage.recipe
        return recipe.expected_seconds or GUESS_SECONDS.get(self.stage.kind, 10.0)


def what_to_run(targets: Sequence[Stage], workspace: Workspace, force: Iterable[str] = ()) -> list[Todo]:
    """The stages that must run for the targets, inputs first, each with the reason.

    What is up to date is not looked behind: its inputs may be gone.
    """
    snapshots.pin(targets, workspace)
    forced = set(force)
    reasons: dict[str, str] = {}
    settled: set[str] = set()

    def visit(stage: Stage, weights: bool) -> None:
        # A dropped policy is enough as long as nobody wants to load it.
        if stage.path in reasons or (stage.path in settled and not weights):
            return
        settled.add(stage.path)
        # What is absent is missing whatever its key: the machine is not asked for it.
        wanted = stage.identity if workspace.manifest(stage.path) is not None else {}
        stale = "forced" if stage.path in forced else workspace.why_stale(stage.path, wanted, weights=weights)
        if stale is None:
            return
        for needed in stage.stages():
            visit(needed, weights=True)
        reasons[stage.path] = stale

    for target in targets:
        visit(target, weights=target.kind in ("sft", "reward", "policy"))
    stages = {stage.path: stage for stage in walk(targets)}
    return [Todo(stages[path], reason) for path, reason in reasons.items()]


def job_of(
    stage: Stage, workspace: Workspace, inherited: dict[str, Any], *, force: bool = False, launch: processes.Launch | None = None
) -> Job:
    """The picklable form of a stage."""
    inputs = {}
    revisions: dict[str, str | None] = {}
    for name, needed in stage.inputs.items():
        if isinstance(needed, External):
            inputs[name] = Path(needed.reference)
            revisions[name] = needed.commit or needed.revision
        else:
            inputs[name] = workspace.root / needed.path
    return Job(
        stage.kind, stage.path, stage.recipe, stage.identity, inputs, revisions, dict(stage.options), dict(stage.files),
        workspace.root, workspace.suite, inherited, force, launch if processes.leaves(stage.kind, launch) else None,
    )  # fmt: skip


def stage_function(kind: str) -> Callable[[Job, Report], dict[str, Any]]:
    """The function that makes an artifact of this kind; imports the heavy libraries."""
    if kind == "data":
        from rpo_cli.data.build import run
    elif kind == "warm":
        from rpo_cli.training.warm import run
    elif kind == "relabel":
        from rpo_cli.data.relabel import run
    elif kind == "splits":
        from rpo_cli.data.bias import run
    elif kind == "sft":
        from rpo_cli.training.sft import run
    elif kind == "reward":
        from rpo_cli.training.reward import run
    elif kind == "policy":
        from rpo_cli.training.policy import run
    elif kind == "evaluate":
        from rpo_cli.evaluation import run
    elif kind == "judge":
        from rpo_cli.judging import run
    elif kind == "reference":
        from rpo_cli.scoring import run_reference as run
    elif kind == "samples":
        from rpo_cli.scoring import run_samples as run
    elif kind == "scores":
        from rpo_cli.scoring import run_scores as run
    elif kind == "measure":
        from rpo_cli.measure import run
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
            raise RunFailed(f"{job.path}: the first host has not finished it; its log says why: {job.directory / 'log.txt'}")
    return workspace.manifest(job.path) or {}


def failed(job: Job, error: Exception) -> RunFailed:
    """A stage's unexpected end in one line."""
    full = no_room(error, job.root)
    if full is not None:
        return RunFailed(f"{job.path}: {full}: {job.directory}; make room, then the same command goes on from here")
    if isinstance(error, OSError):
        return RunFailed(f"{job.path}: {error.strerror or error}: {error.filename or job.directory}")
    line = str(error).strip().splitlines()
    return RunFailed(f"{job.path}: {type(error).__name__}: {line[0] if line else ''} (log: {job.directory / 'log.txt'})")


def _build(job: Job, workspace: Workspace, directory: Path, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Run the stage in the directory that is held for it, and publish."""
    with logged(directory / "log.txt"):
        started = time.monotonic()
        with told_in_a_line(job):
            metrics, device, warnings = run_here(job, progress) if job.launch is None else processes.run(job, progress)
        manifest = {
            **job.identity,
            "suite": job.suite,
            "rpo": __version__,
            "seeds": {name: schema.seed_of(job.recipe, name) for name in ("data", "rm", "policy", "sampling")},
            "device": device,
            "processes": 1 if job.launch is None or job.kind not in processes.TRAINED else job.launch.processes,
            "threads": job.recipe.threads,
            "versions": versions(),
            "git": git_revision(),
            "seconds": round(time.monotonic() - started, 2),
            "metrics": metrics,
        } | ({"warnings": warnings} if warnings else {})
        workspace.publish(job.path, manifest)
    return manifest


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
        with contextlib.nullcontext() if job.kind in processes.TRAINED else device.autocast():
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


_events: Any = None


def _start_worker(events: Any) -> None:
    """Import the heavy libraries once; thread counts are set for each stage."""
    global _events
    _events = events
    os.environ.update(QUIET_ENVIRONMENT)
    import signal

    # Ctrl-C reaches the whole process group: the parent decides, workers are then terminated.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    import rpo_cli.heavy  # noqa: F401

    # What was imported stays: a training's own garbage collection need not look through it again.
    gc.freeze()


def _end_with_parent(parent: int) -> None:
    """Leave when the parent was killed: an orphan would go on building behind the next command's back."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(job: Job) -> dict[str, Any]:
    return run_job(job, lambda step, of: _events.put((job.path, step, of)))


def execute(
    todo: Sequence[Todo],
    workspace: Workspace,
    console: Console,
    *,
    jobs: int = 1,
    inherited: dict[str, Any] | None = None,
    finished: Callable[[Stage, dict[str, Any]], None] = lambda stage, manifest: None,
    launch: processes.Launch | None = None,
) -> None:
    """Run a plan; what is done stays done when something fails or the user interrupts.

    `finished` is called in this process after each stage. `inherited` goes to the tracker (reporting, group). Stages that
    train run in the processes of `launch`, one stage after another.

    Raises:
        BadInput, RunFailed: of the first stage that failed, after the ones already running have ended.
        KeyboardInterrupt: after workers were stopped.
    """
    if not todo:
        return
    os.environ.update(QUIET_ENVIRONMENT | devices.environment([item.stage.recipe for item in todo]))
    workspace.open()
    kinds = {item.stage.path: item.stage.kind for item in todo}
    progress = PlanProgress(console, {item.stage.path: item.seconds for item in todo}, min(jobs, len(todo)), kinds)
    try:
        if jobs == 1:
            for item in todo:
                path = item.stage.path
                progress.start(path)
                job = job_of(item.stage, workspace, inherited or {}, force=item.reason == "forced", launch=launch)
                manifest = run_job(job, partial(progress.step, path))
                progress.finish(path, summary(manifest), manifest.get("warnings", ()))
                finished(item.stage, manifest)
        else:
            _execute_parallel(todo, workspace, progress, jobs, inherited or {}, finished)
    finally:
        progress.close()


def _execute_parallel(
    todo: Sequence[Todo],
    workspace: Workspace,
    progress: PlanProgress,
    jobs: int,
    inherited: dict[str, Any],
    finished: Callable[[Stage, dict[str, Any]], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    line = _Line(todo)
    running: dict[Future[dict[str, Any]], Stage] = {}
    error: Exception | None = None
    forced = {item.stage.path for item in todo if item.reason == "forced"}
    events = context.Queue()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(events,))
    try:
        while True:
            while error is None and len(running) < jobs and (stage := line.next()) is not None:
                running[pool.submit(_work, job_of(stage, workspace, inherited, force=stage.path in forced))] = stage
                progress.start(stage.path)
            if not running:
                break
            done, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
            while not events.empty():
                progress.step(*events.get())
            for future in done:
                stage = running.pop(future)
                try:
                    manifest = future.result()
                except (BadInput, RunFailed) as failure:
                    error = error or failure
                    continue
                except BrokenProcessPool:
                    raise RunFailed(f"{stage.path}: a worker process died (out of memory?); run the same command again") from None
                line.done(stage)
                progress.finish(stage.path, summary(manifest), manifest.get("warnings", ()))
                finished(stage, manifest)
        if error is not None:
            raise error
    except BaseException:
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Line:
    """Stages in the order in which workers take them: those whose inputs are there, the longest chain first.

    So no worker is left waiting for a long chain at the end.
    """

    def __init__(self, todo: Sequence[Todo]) -> None:
        self._urgency = _urgency(todo)
        self._stages = {item.stage.path: item.stage for item in todo}
        needs = {path: {needed.path for needed in stage.stages()} & self._stages.keys() for path, stage in self._stages.items()}
        self._missing = {path: len(found) for path, found in needs.items()}
        self._followers: dict[str, list[str]] = {}
        for path, found in needs.items():
            for needed in found:
                self._followers.setdefault(needed, []).append(path)
        self._order = {path: index for index, path in enumerate(self._stages)}
        self._ready: list[tuple[float, int, str]] = []
        for path, count in self._missing.items():
            if count == 0:
                self._push(path)

    def _push(self, path: str) -> None:
        heapq.heappush(self._ready, (-self._urgency[path], self._order[path], path))

    def next(self) -> Stage | None:
        """The most urgent stage that can run; None as long as there is none."""
        return self._stages[heapq.heappop(self._ready)[2]] if self._ready else None

    def done(self, stage: Stage) -> None:
        """The stage was made: what waited for it alone can run."""
        for path in self._followers.get(stage.path, []):
            self._missing[path] -= 1
            if self._missing[path] == 0:
                self._push(path)


def _urgency(todo: Sequence[Todo]) -> dict[str, float]:
    """Seconds of the longest chain that starts at each stage."""
    chain: dict[str, float] = {}
    for item in reversed(todo):
        chain[item.stage.path] = chain.get(item.stage.path, 0.0) + item.seconds
        for needed in item.stage.stages():
            chain[needed.path] = max(chain.get(needed.path, 0.0), chain[item.stage.path])
    return chain


def summary(manifest: dict[str, Any]) -> str:
    """A finished stage in a line: its headline metrics and its time."""
    shown = [f"{name} {value:.4g}" for name, value in manifest["metrics"].items() if isinstance(value, float)][:4]
    return "  ".join([*shown, f"({clock(manifest['seconds'])})"])
