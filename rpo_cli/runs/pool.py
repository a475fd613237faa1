"""Run what is missing: stages in order, in this process or in workers that import once."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from rich.console import Console

from rpo_cli import devices
from rpo_cli.artifacts import Job, Launch, Stage, Workspace, job_of
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.runs.progress import PlanProgress
from rpo_cli.runs.todo import Todo, _Line
from rpo_cli.runs.work import QUIET_ENVIRONMENT, run_job
from rpo_cli.text import clock

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
    import rpo_cli.stages.evaluate
    import rpo_cli.stages.policy
    import rpo_cli.stages.reward
    import rpo_cli.stages.sft  # noqa: F401

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
    progress = PlanProgress(
        console, {item.stage.path: item.seconds for item in todo}, min(jobs, len(todo)), kinds
    )
    try:
        if jobs == 1:
            for item in todo:
                path = item.stage.path
                progress.start(path)
                job = job_of(
                    item.stage, workspace, inherited or {}, force=item.reason == "forced", launch=launch
                )
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
                running[
                    pool.submit(_work, job_of(stage, workspace, inherited, force=stage.path in forced))
                ] = stage
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
                    raise RunFailed(
                        f"{stage.path}: a worker process died (out of memory?); run the same command again"
                    ) from None
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


def summary(manifest: dict[str, Any]) -> str:
    """A finished stage in a line: its headline metrics and its time."""
    shown = [
        f"{name} {value:.4g}" for name, value in manifest["metrics"].items() if isinstance(value, float)
    ][:4]
    return "  ".join([*shown, f"({clock(manifest['seconds'])})"])
