"""Making one artifact: its stage's function, its log, its failures in a line, its publication."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from rpo_cli import __version__, devices
from rpo_cli.artifacts import (
    MANIFEST,
    Job,
    Manifest,
    Origin,
    Outcome,
    Progress,
    Report,
    Silence,
    Workspace,
    cure,
    damaged_files,
    git_revision,
    no_memory,
    processes_of,
    read_json,
    versions,
    write_card,
)
from rpo_cli.errors import BadInput, Diverged, NoRoom, OutOfMemory, RunFailed
from rpo_cli.recipes.schema import KINDS, PURPOSES, Recipe, TrainingRecipe, seed_of
from rpo_cli.runs import processes
from rpo_cli.runs.ends import failed
from rpo_cli.text import first_line

QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "WANDB_SILENT": "true",
}
Run = Callable[[Job[Any], Report], dict[str, Any]]  # makes an artifact's files; its metrics


def stage_function(kind: str) -> Run:
    """The function that makes an artifact of this kind; imports the heavy libraries.

    What these say of themselves goes to stderr: transformers prints that W&B is offline.
    """
    module, _, name = str(KINDS[kind].run).partition(":")
    with _uncollected(), contextlib.redirect_stdout(sys.stderr):
        return cast(Run, getattr(importlib.import_module(module), name))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Imports make hundreds of thousands of objects that stay: to look for garbage takes a fifth of them."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def run_job(job: Job[Recipe], progress: Progress) -> Manifest:
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
                return workspace.finished(job.path)

            def held(step: int, of: int) -> None:
                workspace.require_lease(job.path)
                progress(step, of)

            try:
                return _build(job, workspace, directory, held)
            except Diverged as error:  # while nobody else can publish here
                workspace.note_divergence(job.path, job.identity, str(error))
                raise
    except (BadInput, RunFailed):
        raise
    except Exception as error:
        raise failed(job, error) from error


def _follow(job: Job[Recipe], workspace: Workspace, progress: Progress) -> Manifest:
    """Train an artifact together with a pod's first host, which holds its lock and publishes it."""
    while not workspace.is_building(job.path, job.identity):
        if not job.force and workspace.why_stale(job.path, job.identity, weights=True) is None:
            return workspace.finished(job.path)
        time.sleep(1)
    processes.run(job, progress)
    with workspace.building(job.path, job.identity) as directory:  # when the first host lets go of it
        if directory is not None:
            log = job.directory / "log.txt"
            raise RunFailed(f"{job.path}: the first host has not finished it; its log says why: {log}")
    return workspace.finished(job.path)


def _build(job: Job[Recipe], workspace: Workspace, directory: Path, progress: Progress) -> Manifest:
    """Run the stage in the directory that is held for it, and publish.

    Its seconds are those of all attempts that went on from one another, but for one that was killed outright.
    """
    before, started = workspace.spent(job.path), time.monotonic()
    with logged(directory / "log.txt"):
        try:
            _check_inputs(job)
            with told_in_a_line(job):
                run = run_here if job.launch is None else processes.run
                metrics, device, warnings, told = run(job, progress)
        except BaseException:
            workspace.note_spent(job.path, before + time.monotonic() - started)
            raise
        manifest: Manifest = {
            **job.identity,  # type: ignore[typeddict-item]  # that has nothing of what need not be there
            "suite": job.suite,
            "rpo": __version__,
            "git": git_revision(),
            "versions": versions(),
            "device": device,
            "processes": processes_of(job),
            "threads": job.recipe.threads,
            "seeds": {name: seed_of(job.recipe, name) for name in PURPOSES},
            "seconds": round(before + time.monotonic() - started, 2),
            "metrics": metrics,
        }
        if warnings:
            manifest["warnings"] = warnings
        if KINDS[job.kind].points_at_input:
            manifest["rows_of"] = "data"
        _check_inputs(job)
        if job.origin is not None:
            _write_cards(job, job.origin, manifest)
        workspace.publish(job.path, manifest)
    return {**manifest, "warnings": [*warnings, *told]} if told else manifest


def _write_cards(job: Job[Recipe], origin: Origin, manifest: Manifest) -> None:
    """Beside the model, and beside its adapter, where peft leaves a blank form."""
    found = (read_json(place / MANIFEST) for place in job.tables)
    tables = [cast(Manifest, table) for table in found if table]  # an older workspace may do without its data
    for folder, path in ((job.directory, job.path), (job.directory / "adapter", f"{job.path}/adapter")):
        if any(folder.glob("*config.json")):  # of a training that keeps checkpoints they are below
            write_card(folder, path, manifest, origin, tables, adapter=folder != job.directory)


def _check_inputs(job: Job[Recipe]) -> None:
    """Raise RunFailed when what is read is no longer what this artifact's key names: another command made it.

    That is its inputs, and the tables in which the rows' texts are: where an input only names rows, the one
    that it names.
    """
    wanted = {job.inputs[name]: job.identity["inputs"][name] for name in job.artifacts}
    for directory, key in job.tables.items():
        wanted[directory] = key
        if "rows_of" not in (read_json(directory / MANIFEST) or {}):
            break
    for directory, key in wanted.items():
        if (read_json(directory / MANIFEST) or {}).get("key") != key:
            what = f"{directory} was changed by another command meanwhile; run the same command again"
            raise RunFailed(f"{job.path}: {what}")


class _LogFile(logging.FileHandler):
    """A log that gives up where the disk is full: what matters is the error itself, in one line."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def start_arrow() -> None:
    """Have Arrow start its threads, one of each sort, while there is memory for them.

    Where a limit to memory or to threads forbids one later on, it would wait for that for ever.

    Raises:
        MemoryError: it is forbidden already.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    table = io.BytesIO()
    pq.write_table(pa.table({"": [0]}), table)
    try:
        list(pq.ParquetFile(table).iter_batches())  # which says so, and does not wait
    except pa.ArrowException as error:
        raise MemoryError(first_line(error)) from error


@cache
def set_aside() -> None:
    """Have what was imported stay: a training's own garbage collection need not look through it again.

    Once, before there is a model, which would stay as well.
    """
    gc.collect()
    gc.freeze()


def run_here(job: Job[Recipe], progress: Progress) -> Outcome:
    """Run the stage's function in this process."""
    with _uncollected():
        device = devices.choose(job.recipe)
        asked = job.recipe.deterministic
        deterministic = device.repeats if asked is None else asked
        devices.prepare(job.recipe.threads, deterministic, strict=device.name == "cuda")
        devices.whole_products(device)
        devices.quiet()
        start_arrow()
    with (Report if devices.rank() == 0 else Silence)(job, progress) as report:
        run = stage_function(job.kind)
        if KINDS[job.kind].heavy:
            set_aside()
        # Trainers have an autocast around each of their losses.
        with contextlib.nullcontext() if KINDS[job.kind].trains else device.autocast():
            metrics = _as_memory_allows(run, job.at_checkpoint(), report)
        report.tracker.summary(metrics)
    ran = str(device)
    if asked is not None or not deterministic:
        ran += f"; deterministic algorithms {'on' if deterministic else 'off'}"
    return Outcome(metrics, ran, report.warnings, report.told)


def _as_memory_allows(run: Run, job: Job[Recipe], report: Report) -> dict[str, Any]:
    """Run the stage; where memory ends and the recipe allows it, again with its batch in smaller pieces."""
    recipe = job.recipe
    if not (isinstance(recipe, TrainingRecipe) and recipe.auto_find_batch_size) or devices.processes() > 1:
        return run(job, report)
    from accelerate.utils.memory import clear_device_cache

    *larger, smallest = recipe.cuts()
    for cut in larger:
        try:
            return run(replace(job, recipe=cut), report)
        except Exception as error:  # of whatever allocates
            if not no_memory(error):
                raise
        clear_device_cache(garbage_collection=True)  # out here, where nothing refers to what it held
        report.tell(f"auto_find_batch_size: no memory for {cut.per_device_train_batch_size} rows at a time")
    return run(replace(job, recipe=smallest), report)


@contextlib.contextmanager
def told_in_a_line(job: Job[Recipe]) -> Iterator[None]:
    """Turn whatever goes wrong in a stage into BadInput or RunFailed; the traceback goes to the log."""
    try:
        yield
    except (BadInput, RunFailed) as error:
        logging.getLogger("rpo").error(error)
        _name_damage(job, error)
        if isinstance(error, RunFailed) and job.path not in str(error):
            raise type(error)(f"{job.path}: {error}") from error
        raise
    except Exception as error:
        logging.getLogger("rpo").error(traceback.format_exc())
        found = failed(job, error)
        _name_damage(job, found, str(error) if isinstance(error, FileNotFoundError) else "")
        raise found from error


def _name_damage(job: Job[Recipe], error: BadInput | RunFailed, missing: str = "") -> None:
    """Where a file of an input is damaged, that is the reason of whatever else went wrong: RunFailed.

    missing: what was said of a file that is not there.
    """
    if isinstance(error, OutOfMemory | NoRoom):
        return
    for artifact in dict.fromkeys([*(job.inputs[name] for name in job.artifacts), *job.tables]):
        if f"{artifact}/" in missing:
            again = f"delete {artifact}, and the same command makes it again"
            raise RunFailed(f"{job.path}: a file of a finished stage is gone ({missing}): {again}") from error
        for file, why in damaged_files(artifact):
            raise RunFailed(f"{job.path}: {cure(file, why, artifact)}") from error


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
