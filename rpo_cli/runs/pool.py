"""Run what is missing, in this process or in workers; a failure stops only what needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console

from rpo_cli import devices
from rpo_cli.artifacts import METRICS, Job, Launch, Manifest, Stage, Workspace, job_of
from rpo_cli.errors import BadInput, Died, OutOfMemory, RunFailed
from rpo_cli.recipes.schema import Recipe
from rpo_cli.runs.failures import Failures
from rpo_cli.runs.progress import PlanProgress
from rpo_cli.runs.results import in_words, latest
from rpo_cli.runs.room import Room
from rpo_cli.runs.todo import ReadyQueue, Todo, width
from rpo_cli.runs.work import QUIET_ENVIRONMENT, run_job
from rpo_cli.runs.workers import Made, Worker, ready
from rpo_cli.text import clock, size

Finished = Callable[[Stage, Manifest], None]


def execute(
    todo: Sequence[Todo],
    workspace: Workspace,
    console: Console,
    *,
    jobs: int = 1,
    inherited: Mapping[str, str] | None = None,
    finished: Finished = lambda stage, manifest: None,
    launch: Launch | None = None,
    may_diverge: Collection[str] = (),
    check: Callable[[], None] = lambda: None,
    before: Callable[[Stage], None] = lambda stage: None,
) -> set[str]:
    """Run a plan; what is done stays done when something fails or the user interrupts.

    A stage that fails stops only those that need it. `finished` is called in this process after each stage.
    `inherited` goes to the tracker (reporting, group). Stages that train run in the processes of `launch`,
    one after another, and nothing beside them. `may_diverge`: stages of which it is no failure if they do;
    returns those that did. `check` may refuse the whole plan before anything is made, while workers import
    what they need; `before` a stage, which then failed.

    Raises:
        BadInput, RunFailed: what failed and why, and what was not tried, when all the rest is done; or what
            `check` raised.
        KeyboardInterrupt: after workers were stopped.
    """
    if not todo:
        return set()
    recipes = [item.stage.recipe for item in todo]
    os.environ.update(QUIET_ENVIRONMENT | devices.environment(recipes))
    forced = {item.stage.path for item in todo if item.reason == "forced"}

    def job(stage: Stage) -> Job[Recipe]:
        before(stage)
        return job_of(stage, workspace, inherited or {}, force=stage.path in forced, launch=launch)

    gpus = devices.gpus(recipes) if jobs > 1 else []
    # A stage's GPU is chosen when it begins, and a TPU belongs to one process.
    ahead = jobs > 1 and not gpus and launch is None and all(each.device != "xla" for each in recipes)
    with closing(_Crew(jobs, gpus, Room(workspace, devices.free_bytes(gpus)))) as crew:
        if ahead:
            crew.hire_ahead(todo, devices.cpus() - 1)  # this process takes one for what it checks
        check()
        workspace.open()
        line = ReadyQueue(todo, longest_first=jobs > 1)
        with closing(_progress_of(todo, workspace, console, jobs)) as progress:
            run = _Run(line, progress, job, finished, launch)
            if jobs == 1:
                run.here()
            else:
                if not gpus and (said := devices.crowded(recipes, min(jobs, len(todo)))) is not None:
                    progress.note(f"note: {said}")
                if ahead:
                    crew.hire_ahead(todo, devices.cpus())
                crew.work(run)
    return run.outcome(workspace, may_diverge)


def _progress_of(todo: Sequence[Todo], workspace: Workspace, console: Console, jobs: int) -> PlanProgress:
    return PlanProgress(
        console,
        {item.stage.path: item.seconds for item in todo},
        min(jobs, len(todo)),
        {item.stage.path: item.stage.kind for item in todo},
        latest=lambda path: latest(workspace.root / path / METRICS),
    )


@dataclass
class _Run:
    """A plan on its way: the line of its stages, what is said of them, and what went wrong."""

    line: ReadyQueue
    progress: PlanProgress
    job: Callable[[Stage], Job[Recipe]]
    finished: Finished
    launch: Launch | None = None
    failures: Failures = field(default_factory=Failures)

    def here(self) -> None:
        """Run one stage after another in this process."""
        for stage in self.line:
            self.one(stage)
            if self.failures.hopeless:
                return

    def one(self, stage: Stage) -> None:
        """Run a stage in this process, or from it in those of the launch."""
        self.failures.let_go()
        self.progress.start(stage.path)
        try:
            manifest = run_job(self.job(stage), partial(self.progress.step, stage.path))
        except (BadInput, RunFailed) as error:
            self.failed(stage, error)
        else:
            self.done(stage, manifest)

    def spreads(self, stage: Stage) -> bool:
        """Whether a stage runs in several processes, which have the machine for themselves."""
        return self.launch is not None and self.launch.takes(stage.kind)

    def done(self, stage: Stage, manifest: Manifest) -> None:
        self.line.done(stage)
        self.progress.finish(stage.path, summary(manifest), manifest.get("warnings", ()))
        self.finished(stage, manifest)

    def failed(self, stage: Stage, error: BadInput | RunFailed) -> None:
        behind = self.line.behind(stage)
        self.failures.add(stage.path, error, behind)
        self.progress.fail(stage.path, str(error), behind)

    def outcome(self, workspace: Workspace, may_diverge: Collection[str]) -> set[str]:
        """The stages that diverged and may; raises what else went wrong, and what was not tried."""
        if self.failures.hopeless:
            self.failures.leave([stage.path for stage in self.line])
        forgiven = self.failures.forgive(may_diverge)
        if (error := self.failures.error(workspace)) is not None:
            raise error
        return forgiven


@dataclass
class _Crew:
    """The workers of a run: at most `jobs`, and no more than there is memory for."""

    jobs: int
    gpus: Sequence[str]
    room: Room
    run: _Run = field(init=False)
    workers: list[Worker] = field(default_factory=list)
    # Stages whose worker died once; each is retried when nothing else runs.
    alone: list[Stage] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)  # once, and their worker died or had not the memory

    def hire_ahead(self, todo: Sequence[Todo], at_most: int) -> None:
        """Start the workers that a plan can use at once, if there is room: they import before it begins."""
        stages = [each.stage for each in todo]
        largest = max(stages, key=lambda stage: self.room.need(stage, "", devices.HOST))
        with suppress(OSError):  # the system starts none now; it is asked once more when one is needed
            for slot in range(len(self.workers), min(self.jobs, width(todo), at_most)):
                held = [(worker.stage, worker.gpu) for worker in self.workers]
                if self.workers and self.room.lacks(largest, "", held) is not None:
                    return
                self.workers.append(Worker(slot, {}, largest))

    def work(self, run: _Run) -> None:
        """Run all stages that can be run."""
        self.run = run
        self._dismiss(*ready(self.workers, 0))  # who speaks before it is asked is dead
        while self._hand_out():
            for worker in ready(self.workers):
                self._hear(worker)

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:  # at once: Ctrl-C while one is waited for must leave no other at work
            worker.kill()
        for worker in self.workers:
            worker.end()

    def _hand_out(self) -> bool:
        """Give stages to as many workers as may run; whether any is at work."""
        busy = [worker for worker in self.workers if worker.at is not None]
        while len(busy) < self.jobs and not self.run.failures.hopeless:
            if any(worker.stage.path in self.tried for worker in busy):
                break  # a second try has the machine for itself
            if (stage := self.run.line.next()) is None:
                if busy or not self.alone:
                    break
                stage = self.alone.pop(0)
                self._dismiss(*self.workers)
            if self.run.spreads(stage):
                if busy:
                    self.run.line.put_back(stage)
                    break
                self._dismiss(*(self.workers if self.gpus else ()))  # they hold memory of its GPUs
                self.run.one(stage)
                continue
            if (worker := self._worker_for(stage, busy)) is None:
                self.run.line.put_back(stage)
                break
            self.run.progress.start(stage.path)
            worker.take(stage, self.run.job(stage))
            busy.append(worker)
        return bool(busy)

    def _worker_for(self, stage: Stage, busy: Sequence[Worker]) -> Worker | None:
        """An idle worker that has room for the stage beside those at work, or a new one; None: it waits.

        Room on its GPU: its own memory of the host was there when it was hired. Without one on the host, as
        it may have been hired before anything was known of what it would read.
        """
        at_work = [(worker.stage, worker.gpu) for worker in busy]
        for worker in self.workers:
            if worker.at is None:
                place = worker.gpu or devices.HOST
                if not busy or self.room.fits(stage, worker.gpu, place, at_work):
                    return worker
                if place == devices.HOST:
                    self._wait(stage, worker.gpu, place, len(busy))
                    return None
        return self._hire(stage) if len(self.workers) < self.jobs else None

    def _wait(self, stage: Stage, gpu: str, place: str, held: int) -> None:
        """Say why a stage waits."""
        need, free = (size(count) for count in (self.room.need(stage, gpu, place), self.room.free[place]))
        where = "memory" if place == devices.HOST else f"memory of GPU {place}"
        self.run.progress.note(
            f"note: {held} of {self.jobs} jobs at a time: {stage.path} is expected to need {need}, "
            f"and the {free} of {where} that were free are taken"
        )

    def _hire(self, stage: Stage) -> Worker | None:
        """A new worker for a stage, if there is room; the first one always gets it."""
        slots = {worker.slot for worker in self.workers}
        slot = next(index for index in range(self.jobs) if index not in slots)
        held = [(worker.stage, worker.gpu) for worker in self.workers]
        gpu = self.room.place(stage, self.gpus, held)
        place = self.room.lacks(stage, gpu, held)
        if self.workers and place is not None:
            self._wait(stage, gpu, place, len(held))
            return None
        try:
            self.workers.append(Worker(slot, devices.seen_by(gpu, self.jobs), stage))
        except OSError as error:
            if not self.workers:
                raise RunFailed(f"no worker process can be started: {error.strerror or error}") from error
            return None
        return self.workers[-1]

    def _hear(self, worker: Worker) -> None:
        """Take in what a worker says."""
        if worker.at is None:  # killed while it had nothing to do
            self._dismiss(worker)
            return
        stage, said = worker.stage, worker.hear()
        if isinstance(said, tuple) and not isinstance(said, Made):
            self.run.progress.step(stage.path, *said)
            return
        worker.at = None
        if isinstance(said, Made):
            self.room.measured(stage, said.host, said.device)
            self.run.done(stage, said.manifest)
            return
        if isinstance(said, Died | OutOfMemory):
            self._dismiss(worker)
            if stage.path not in self.tried:
                self.tried.add(stage.path)
                self.alone.append(stage)
                self.run.progress.again(stage.path, f"{said}; it is tried once more, alone, at the end")
                return
        self.run.failed(stage, said)

    def _dismiss(self, *workers: Worker) -> None:
        for worker in workers:
            worker.end()
            self.workers.remove(worker)


def summary(manifest: Manifest) -> str:
    """A finished stage in a line: what matters most of its metrics, and its time."""
    metrics = manifest["metrics"]
    numbers = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float)]
    words = in_words(manifest["kind"], metrics, manifest.get("recipe"))[:1]
    said = words or metrics.get("read_as") or numbers[:4]
    return "  ".join([*said, f"({clock(manifest['seconds'])})"])
