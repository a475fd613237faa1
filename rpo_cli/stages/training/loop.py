"""A training run: from the last complete checkpoint to the end, with its journal of metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rpo_cli.artifacts import Job, Report, checksum, damaged_files, read_json, write_json
from rpo_cli.devices import arrangement, cut_model, processes, step_mark
from rpo_cli.errors import Diverged
from rpo_cli.models import cannot_compile, compiled, layers_of
from rpo_cli.recipes.schema import PolicyRecipe, Recipe, TrainingRecipe
from rpo_cli.stages.training.trl import WholeBatches

ENDING = ("rewards/accuracies", "rewards/margins", "kl_to_reference", "kl_data")
STATE, TRAINER_STATE = "rpo_state.json", "trainer_state.json"


class Journal(TrainerCallback):
    """Reports progress and metrics, stops on a loss that is not finite, and completes checkpoints."""

    def __init__(self, report: Report, state: Callable[[], Mapping[str, object]]) -> None:
        self.report = report
        self.state = state
        self.best: Path | None = None  # the best checkpoint so far, of a run that is resumed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.report.rewind(state.global_step)
        if self.best is not None and self.best.is_dir():
            # Trainer forgets one that is not where it was, as in a workspace that was moved.
            state.best_model_checkpoint = str(self.best)
        cut_model(kwargs["model"], kwargs["optimizer"], args.train_batch_size)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # Each piece of a batch by itself: all in one program would take as much longer to compile.
        step_mark(args.device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.report(state.global_step, state.max_steps)
        if control.should_save or control.should_evaluate or state.global_step >= state.max_steps:
            # No checkpoint holds the losses since the last line, so a run that resumes there starts a new
            # one too; and no later line holds those of the last steps.
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        values = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        for name in ("loss", "grad_norm", "eval_loss", "train_loss"):
            if name in values and not math.isfinite(values[name]):
                raise diverged(self.report.job, f"{name} is {values[name]} at step {state.global_step}")
        if "train_runtime" not in values and state.is_world_process_zero:
            self.report.log(values, state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # Last, when every process has written its part: a checkpoint without it was cut short by a kill.
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            written = {
                str(file.relative_to(checkpoint)): file
                for file in checkpoint.rglob("*")
                if file.is_file() and file.name != STATE  # an earlier one, where a run comes by here again
            }
            files = {name: file.stat().st_size for name, file in written.items()}
            sums = {name: checksum(file) for name, file in written.items()}
            whole = {"processes": arrangement(), "files": files, "sums": sums}
            write_json(checkpoint / STATE, {**self.state(), **whole})


def diverged(job: Job[Recipe], what: str) -> Diverged:
    """The end of a training that left the finite numbers, with the settings that may have led there."""
    recipe = cast(TrainingRecipe, job.recipe)
    other = " or another {} (now {:g})".format(*recipe.strength) if isinstance(recipe, PolicyRecipe) else ""
    smaller = f"try a smaller learning_rate (now {recipe.learning_rate:g}){other}"
    return Diverged(f"{job.path}: {what}; {smaller}")


def last_checkpoint(directory: Path, max_steps: int, tell: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint of an unfinished run, written by processes arranged as now.

    Among fewer or more processes its last bits would differ. It leaves a step to do: after the last one
    Trainer would do one more. One that was damaged after it was written is told of and passed over.
    """
    names = re.compile(r"checkpoint-(\d+)")  # a copy that somebody made has another
    found = {int(name[1]): folder for folder in directory.glob("*") if (name := names.fullmatch(folder.name))}
    for step, folder in sorted(found.items(), reverse=True):
        if step >= max_steps or (read_json(folder / STATE) or {}).get("processes") != arrangement():
            continue
        best = _best(folder)
        damaged = _damaged(folder) or (None if best is None else _damaged(best))
        if damaged is None:
            return folder
        tell(f"{damaged} is damaged: training goes on from the checkpoint before, or from its start")
    return None


def _damaged(checkpoint: Path) -> Path | None:
    """The first file of a checkpoint that is not what was written; None if all are.

    Earlier versions wrote no checksums: of those the sizes and what the files say.
    """
    state = read_json(checkpoint / STATE) or {}
    files: dict[str, int] = state.get("files", {})
    sums: dict[str, int] = state.get("sums", {})
    for name, size in files.items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != size:
            return file
        if name in sums and checksum(file) != sums[name]:
            return file
    return next((file for file, _ in damaged_files(checkpoint)), None)


def _best(checkpoint: Path) -> Path | None:
    """The best checkpoint so far, as it is reached from this one; None where none is kept."""
    best = (read_json(checkpoint / TRAINER_STATE) or {}).get("best_model_checkpoint")
    return None if best is None else checkpoint.parent / Path(best).name


def train(
    trainer: WholeBatches,
    report: Report,
    *others: TrainerCallback | None,
    state: Callable[[], Mapping[str, object]] = dict,
    restore: Callable[[dict[str, Any]], None] = lambda state: None,
) -> dict[str, float]:
    """Train to the end, from the last complete checkpoint if any; returns the first and last logged loss."""
    trainer.remove_callback(PrinterCallback)
    journal = Journal(report, state)
    for callback in (journal, *others):  # what they log comes behind what was logged before
        if callback is not None:
            trainer.add_callback(callback)
    for weights in trainer.model.parameters():
        if weights.requires_grad:
            # TRL rounds an adapter on a base of 4 bits to bfloat16, where steps of 1e-5 would be lost.
            weights.data = weights.data.float()
    checkpoint = last_checkpoint(report.job.directory / "checkpoints", trainer.args.max_steps, report.tell)
    if checkpoint is not None:
        restore(read_json(checkpoint / STATE) or {})
        journal.best = _best(checkpoint)
    trainer.compiled = _compiles(trainer, report)
    graphs = trainer.graphs.used() if trainer.graphs is not None else nullcontext()
    with graphs, compiled(trainer.model) if trainer.compiled else nullcontext():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = [line["loss"] for line in lines]
    return {"first_loss": losses[0], "last_loss": losses[-1], **ending(lines)} if losses else {}


def _compiles(trainer: WholeBatches, report: Report) -> bool:
    """Whether layers are compiled: if the recipe asks for it; what is in the way is told."""
    if not cast(TrainingRecipe, report.job.recipe).torch_compile:
        return False
    name = trainer.device.name
    missing = "XLA compiles by itself" if name == "xla" else cannot_compile(name)
    if not layers_of(trainer.model):
        missing = "the model has none that repeat"
    if processes() > 1:
        missing = "several processes share the model"
    if missing is not None:
        report.tell(f"torch_compile: layers are not compiled: {missing}")
    return missing is None


def ending(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Reward accuracy, margin and KL of a policy's pairs, mean over the last tenth of a journal's lines."""
    last = lines[-max(1, len(lines) // 10) :]
    found = {name: [line[name] for line in last if name in line] for name in ENDING}
    return {f"ended/{name}": sum(values) / len(values) for name, values in found.items() if values}
