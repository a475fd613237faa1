"""Run what is missing: stages in order, in this process or in workers that import once."""

from __future__ import annotations

import gc
import heapq
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from rpo_cli import devices, snapshots
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.job import Job, Launch, job_of
from rpo_cli.plan import Stage, walk
from rpo_cli.progress import PlanProgress, clock
from rpo_cli.stages import QUIET_ENVIRONMENT, run_job
from rpo_cli.workspace import Workspace

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
    # On import it says, to nobody but the terminal, that QLoRA on a CPU could be faster; what it says later goes to a stage's log.
    unheard = logging.getLogger("bitsandbytes")
    unheard.setLevel(logging.ERROR)
    import rpo_cli.heavy  # noqa: F401

    unheard.setLevel(logging.NOTSET)
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
    launch: Launch | None = None,
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
