"""Run what is missing: stages in order, in this process or in workers that import once."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from rpo_cli import devices
from rpo_cli.artifacts import Job, Launch, Manifest, Stage, Workspace, job_from, job_of
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.recipes.schema import KINDS, Recipe
from rpo_cli.runs.progress import PlanProgress
from rpo_cli.runs.todo import Todo, _Line
from rpo_cli.runs.work import QUIET_ENVIRONMENT, run_job, stage_function
from rpo_cli.text import clock

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

    Events = Queue[tuple[str, int, int]]  # a stage's path, and how many of how many steps it has done
Finished = Callable[[Stage, Manifest], None]
_events: Events


def _start_worker(events: Events) -> None:
    """Import the heavy libraries once; thread counts are set for each stage."""
    global _events
    _events = events
    os.environ.update(QUIET_ENVIRONMENT)
    # Ctrl-C, and a cluster that wants its machine back, reach all processes: the parent ends its workers.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    # On import it tells the terminal that QLoRA on a CPU could be faster; later words go to a log.
    unheard = logging.getLogger("bitsandbytes")
    unheard.setLevel(logging.ERROR)
    for kind, row in KINDS.items():
        if row.heavy:
            stage_function(kind)
    unheard.setLevel(logging.NOTSET)
    # What was imported stays: a training's own garbage collection need not look through it again.
    gc.freeze()


def _end_with_parent(parent: int) -> None:
    """Leave when the parent was killed: an orphan would go on building behind the next command's back."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(text: str) -> str:
    """The manifest of a job; both travel as JSON."""
    job = job_from(text)
    return json.dumps(run_job(job, lambda step, of: _events.put((job.path, step, of))))


def execute(
    todo: Sequence[Todo],
    workspace: Workspace,
    console: Console,
    *,
    jobs: int = 1,
    inherited: Mapping[str, str] | None = None,
    finished: Finished = lambda stage, manifest: None,
    launch: Launch | None = None,
) -> None:
    """Run a plan; what is done stays done when something fails or the user interrupts.

    `finished` is called in this process after each stage. `inherited` goes to the tracker (reporting, group).
    Stages that train run in the processes of `launch`, one stage after another.

    Raises:
        BadInput, RunFailed: of the first stage that failed, after the ones already running have ended.
        KeyboardInterrupt: after workers were stopped.
    """
    if not todo:
        return
    os.environ.update(QUIET_ENVIRONMENT | devices.environment([item.stage.recipe for item in todo]))
    workspace.open()
    expected = {item.stage.path: item.seconds for item in todo}
    kinds = {item.stage.path: item.stage.kind for item in todo}
    forced = {item.stage.path for item in todo if item.reason == "forced"}
    progress = PlanProgress(console, expected, min(jobs, len(todo)), kinds)

    def job(stage: Stage) -> Job[Recipe]:
        progress.start(stage.path)
        return job_of(stage, workspace, inherited or {}, force=stage.path in forced, launch=launch)

    def done(stage: Stage, manifest: Manifest) -> None:
        progress.finish(stage.path, summary(manifest), manifest.get("warnings", ()))
        finished(stage, manifest)

    try:
        if jobs == 1:
            for item in todo:
                done(item.stage, run_job(job(item.stage), partial(progress.step, item.stage.path)))
        else:
            _execute_parallel(_Line(todo), jobs, job, done, progress)
    finally:
        progress.close()


def _execute_parallel(
    line: _Line, jobs: int, job: Callable[[Stage], Job[Recipe]], done: Finished, progress: PlanProgress
) -> None:
    context = multiprocessing.get_context("spawn")
    running: dict[Future[str], Stage] = {}
    error: Exception | None = None
    events: Events = context.Queue()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(events,))
    try:
        while True:
            while error is None and len(running) < jobs and (stage := line.next()) is not None:
                running[pool.submit(_work, job(stage).to_json())] = stage
            if not running:
                break
            ended, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
            while not events.empty():
                progress.step(*events.get())
            for future in ended:
                stage = running.pop(future)
                try:
                    manifest = json.loads(future.result())
                except (BadInput, RunFailed) as failure:
                    error = error or failure
                    continue
                except BrokenProcessPool:
                    what = "a worker process died (out of memory?); run the same command again"
                    raise RunFailed(f"{stage.path}: {what}") from None
                line.done(stage)
                done(stage, manifest)
        if error is not None:
            raise error
    except BaseException:
        for process in list(pool._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def summary(manifest: Manifest) -> str:
    """A finished stage in a line: its headline metrics and its time."""
    numbers = [
        f"{name} {value:.4g}" for name, value in manifest["metrics"].items() if isinstance(value, float)
    ]
    return "  ".join([*numbers[:4], f"({clock(manifest['seconds'])})"])
