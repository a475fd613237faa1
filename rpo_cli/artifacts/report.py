"""What a stage says while it runs: progress, metrics.jsonl always, Weights & Biases when asked for."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rpo_cli import devices
from rpo_cli.artifacts.files import read_json, write_json, write_whole
from rpo_cli.artifacts.graph import rho_folder
from rpo_cli.artifacts.job import Job, processes_of
from rpo_cli.artifacts.manifest import STARTED
from rpo_cli.artifacts.tracker import Tell, Tracker, told_where
from rpo_cli.artifacts.workspace import versions
from rpo_cli.recipes.schema import Recipe, TrainingRecipe

METRICS = "metrics.jsonl"
log = logging.getLogger("rpo")
Progress = Callable[[int, int], None]  # told so many of so many steps


class PackageWarnings(logging.Handler):
    """Tells a stage's user what the package warns of below the stage's own code, each line once."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.levelno == logging.WARNING and line not in (*self.report.told, *self.report.warnings):
            self.report.told.append(line)


class Report:
    """A stage's voice. As a context manager it opens and closes the W&B run.

    `warnings` go into the manifest; `told` only to the user.
    """

    def __init__(self, job: Job[Recipe], progress: Progress) -> None:
        self.job = job
        self.progress = progress
        self.file = job.directory / METRICS
        self.tracker = Tracker(self.tell)
        self.warnings: list[str] = []
        self.told: list[str] = []
        self.heard = PackageWarnings(self)

    def __call__(self, step: int, of: int) -> None:
        """Progress: `step` of `of` done."""
        self.progress(step, of)

    def __enter__(self) -> Report:
        log.addHandler(self.heard)
        reporting = self.job.inherited.get("report_to", self.job.recipe.report_to)
        if reporting == "wandb":
            about = self.job.about
            objective = about.get("objective", self.job.kind)
            self.tracker.start(
                self.job.root,
                project=self.job.inherited.get("wandb_project", self.job.recipe.wandb_project),
                group="/".join([self.job.suite, rho_folder(about["rho"]), objective]),
                name=self.job.path,
                job_type=self.job.kind,
                id=self._run_id(),
                config=self._config(),
            )
        return self

    def _run_id(self) -> str:
        """The run's id: the same when the artifact's making is taken up again, and only then."""
        key, file = self.job.identity["key"], self.job.directory / STARTED
        started = read_json(file)
        part = (started or {}).get("wandb")
        if not isinstance(part, str):
            part = secrets.token_hex(4)
            if started is not None:
                with suppress(OSError):  # the stage itself needs none
                    write_json(file, {**started, "wandb": part})
        return f"{key[:16]}-{part}"

    def _config(self) -> dict[str, Any]:
        """What a run is found by: its recipe, whose policy it is about, and on what it runs."""
        job, recipe = self.job, self.job.recipe
        found = {**job.identity["recipe"], **job.options, **job.about, "key": job.identity["key"]}
        found |= {"suite": job.suite, "device": str(devices.choose(recipe)), "versions": versions()}
        found["processes"] = processes_of(job)
        if isinstance(recipe, TrainingRecipe):
            found["effective_batch"] = recipe.batch * devices.processes()
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log.removeHandler(self.heard)
        self.tracker.finish(failed=kind is not None)

    def warn(self, line: str) -> None:
        """Something the user must know though the stage goes on: said at its end, logged and recorded."""
        self.warnings.append(line)
        log.warning(line)

    def tell(self, line: str) -> None:
        """What the user should know and has no part in the result: said at the stage's end, and logged."""
        self.told.append(line)
        log.warning(line)

    def log(self, metrics: Mapping[str, object], step: int) -> None:
        """Append one line to metrics.jsonl (and to W&B)."""
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}, sort_keys=True) + "\n")
        self.tracker.log(metrics, step)

    def rewind(self, step: int) -> None:
        """Forget the lines after a step: training resumes there. W&B is told what it lacks of the rest."""
        if not self.file.is_file():
            return
        if step == 0:
            self.file.unlink()  # what was found before the first step is found again
            return
        kept = []
        for line in self.file.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except json.JSONDecodeError:  # the line that a kill cut short
                break
        write_whole(self.file, "".join(f"{line}\n" for line in kept))
        self.tracker.catch_up((values.pop("step"), values) for values in map(json.loads, kept))

    def logged(self, name: str) -> list[dict[str, float]]:
        """The lines of metrics.jsonl that have this metric, oldest first."""
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        return [found for line in lines if name in (found := json.loads(line))]


class Silence(Report):
    """The voice of all but the first of processes that train together: silence."""

    def __enter__(self) -> Report:
        return self

    def log(self, metrics: Mapping[str, object], step: int) -> None:
        """Nothing."""

    def rewind(self, step: int) -> None:
        """Nothing."""


def log_images(project: str, suite: str, figure: str, files: list[Path], root: Path, tell: Tell) -> None:
    """A figure's pictures as images of one W&B run, another one each time that it is drawn."""
    with told_where(root, True, tell):
        tracker = Tracker(tell)
        about = {"project": project, "group": f"{suite}/figures", "job_type": "figure"}
        word = re.sub(r"[^A-Za-z0-9_-]+", "-", figure)[:64]
        tracker.start(root, **about, name=f"{suite} {figure}", id=f"{word}-{secrets.token_hex(6)}")
        tracker.images({file.stem: file for file in files if file.suffix == ".png"})
        tracker.finish()
