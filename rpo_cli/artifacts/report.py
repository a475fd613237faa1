"""What a stage says while it runs: progress, metrics.jsonl always, Weights & Biases when asked for."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rpo_cli.artifacts.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

    from rpo_cli.artifacts.job import Job
    from rpo_cli.recipes.schema import Recipe


METRICS = "metrics.jsonl"
log = logging.getLogger("rpo")
Progress = Callable[[int, int], None]  # told so many of so many steps


def wandb_mode() -> tuple[Any, str]:
    """Weights & Biases' mode (online, offline, disabled) and why."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode, "WANDB_MODE says so"
    if os.environ.get("WANDB_API_KEY"):
        return "online", "WANDB_API_KEY is set"
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    if netrc.is_file() and host in netrc.read_text():
        return "online", f"logged in ({netrc})"
    return "offline", "no login (run `wandb login`)"


def start_wandb(
    project: str, group: str, name: str, kind: str, run_id: str, config: Mapping[str, Any], root: Path
) -> Any:
    """A W&B run; offline, with the reason logged, when there is no login or no network."""
    import wandb

    mode: Any
    mode, why = wandb_mode()
    arguments: dict[str, Any] = {
        "project": project,
        "group": group,
        "name": name,
        "job_type": kind,
        "id": run_id,
        "resume": "allow",
        "config": dict(config),
    }
    root.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(silent=True, init_timeout=30, console="off", x_disable_stats=True)
    try:
        run = wandb.init(**arguments, dir=str(root), mode=mode, settings=settings)
    except wandb.errors.Error as error:
        if mode != "online":
            raise
        mode, why = "offline", f"no connection: {str(error).splitlines()[0]}"
        run = wandb.init(**arguments, dir=str(root), mode=mode, settings=settings)
    log.info("W&B %s (%s): %s", mode, why, run.dir)
    return run


class Report:
    """A stage's voice. As a context manager it opens and closes the W&B run."""

    def __init__(self, job: Job[Recipe], progress: Progress) -> None:
        self.job = job
        self.progress = progress
        self.file = job.directory / METRICS
        self.run: Any = None
        self.warnings: list[str] = []

    def __call__(self, step: int, of: int) -> None:
        """Progress: `step` of `of` done."""
        self.progress(step, of)

    def __enter__(self) -> Report:
        reporting = self.job.inherited.get("report_to", self.job.recipe.report_to)
        if reporting == "wandb":
            rho = getattr(self.job.recipe, "rho", None)
            objective = getattr(self.job.recipe, "objective", self.job.kind)
            group = "/".join([self.job.suite, "unbiased" if rho is None else f"rho-{rho:g}", objective])
            config = {**self.job.identity["recipe"], **self.job.options, "key": self.job.identity["key"]}
            run_id = self.job.identity["key"][:16]
            project = self.job.inherited.get("wandb_project", self.job.recipe.wandb_project)
            self.run = start_wandb(
                project, group, self.job.path, self.job.kind, run_id, config, self.job.root
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.run is not None:
            self.run.finish(exit_code=0 if kind is None else 1)

    def warn(self, line: str) -> None:
        """Something the user must know though the stage goes on: said at its end, logged and recorded."""
        log.warning(line)
        self.warnings.append(line)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Append one line to metrics.jsonl (and to W&B)."""
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}, sort_keys=True) + "\n")
        if self.run is not None:
            self.run.log(dict(metrics), step=step)

    def rewind(self, step: int) -> None:
        """Forget the lines after a step: training resumes there."""
        if not self.file.is_file():
            return
        kept = []
        for line in self.file.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except json.JSONDecodeError:  # the line that a kill cut short
                break
        write_whole(self.file, "".join(f"{line}\n" for line in kept))

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """A table of samples for W&B."""
        if self.run is not None:
            import wandb

            self.run.log({name: wandb.Table(dataframe=frame)})

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """The stage's final metrics."""
        if self.run is not None:
            self.run.summary.update(dict(metrics))


class Silence(Report):
    """The voice of all but the first of processes that train together: silence."""

    def __enter__(self) -> Report:
        return self

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Nothing."""

    def rewind(self, step: int) -> None:
        """Nothing."""


def log_images(project: str, suite: str, files: list[Path], root: Path) -> None:
    """A figure's pictures as images of one W&B run."""
    import wandb

    run = start_wandb(project, f"{suite}/figures", f"{suite} figure", "figure", f"{suite}-figure", {}, root)
    run.log({file.stem: wandb.Image(str(file)) for file in files if file.suffix == ".png"})
    run.finish()
