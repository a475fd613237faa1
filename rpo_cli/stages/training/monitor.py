"""Looks at a policy while it trains: held-out pairs and samples, the same at every look.

Nothing of the training depends on a look: samples have random numbers of their own (`models.draws`), dropout
is off, no gradient is kept, and the model goes back to the mode that it was in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report, scores_of
from rpo_cli.errors import BadInput
from rpo_cli.models import TokenRow, Tokens, logps, pair_logps, sample, stops_of, views
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.stages.data.rows import PAIR, by_id, rows_of, write_columns
from rpo_cli.stages.held_out import measured
from rpo_cli.stages.reference import reference_logps
from rpo_cli.stages.samples import as_it_is
from rpo_cli.stages.training.trl import PairTrainer

START = "monitor.parquet"  # samples of the policy before its first step, where it is the reference
MOVED = 0.2  # share by which samples may get longer or shorter


@dataclass(frozen=True)
class HeldOut:
    """Pairs that a policy is looked at on.

    rows: [n], their tokens; reference: [n, 2], log pi_ref of their responses; teachers: [n] margins by name.
    """

    rows: Sequence[TokenRow]
    reference: np.ndarray
    teachers: Mapping[str, np.ndarray]


def held_out_of(job: Job[PolicyRecipe], tokenizer: PreTrainedTokenizerBase) -> HeldOut | None:
    """The first held-out pairs that fit and that every teacher has scored; None where there are none."""
    recipe = job.recipe
    try:
        found = rows_of(job, "held_out").tokens(PAIR, tokenizer, job.path, recipe.max_length, "drop")
    except BadInput:  # there are no rows, or none that fits
        return None
    reference = reference_logps(job.inputs["reference"])
    scores = {name: by_id(folder / "held_out.parquet") for name, folder in scores_of(job.inputs).items()}
    known = [row for row in found if all(row.id in each for each in (reference, *scores.values()))]
    rows = known[: recipe.monitor_prompts]
    margins = {name: np.array([each[row.id] for row in rows]) @ [1, -1] for name, each in scores.items()}
    return HeldOut(rows, np.array([reference[row.id] for row in rows]), margins) if rows else None


class Monitor(TrainerCallback):
    """Looks before the first step, every `monitor_steps` and after the last; `found`: what each look said."""

    def __init__(
        self,
        trainer: PairTrainer,
        tokenizer: PreTrainedTokenizerBase,
        recipe: PolicyRecipe,
        held_out: HeldOut,
        report: Report,
    ) -> None:
        self.trainer, self.tokenizer, self.recipe = trainer, tokenizer, recipe
        self.held_out, self.report = held_out, report
        # Of an adapter the model that it is in: peft's own does not say what its forward pass takes.
        self.model = getattr(trainer.model, "get_base_model", lambda: trainer.model)()
        self.found: list[dict[str, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step == 0:
            self._look(0)
        else:  # of a run that goes on, what its journal has of the steps before
            self.found = self.report.logged("monitor/tokens")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        every = self.recipe.monitor_steps
        assert every is not None
        if state.global_step % every == 0 or state.global_step >= state.max_steps:
            self._look(state.global_step)

    def _look(self, step: int) -> None:
        model = self.trainer.model
        training = model.training
        # Around it all: one for each pass would cast weights anew.
        with self.trainer.device.autocast():
            looked = self._samples(step) | (self._pairs() if step else {})
        model.train(training)
        self.found.append(looked | {"step": step})
        self.report.log(looked, step)

    def _samples(self, step: int) -> dict[str, float]:
        """Length of a sample for each prompt, and KL(pi_ref || pi_theta) on those drawn before the first."""
        model, recipe = self.model, self.recipe
        prompts, size = [row.prompt_ids for row in self.held_out.rows], recipe.per_device_eval_batch_size
        answers = sample(model, self.tokenizer, prompts, as_it_is(recipe))
        stops, file = stops_of(model.generation_config, self.tokenizer), self.report.job.directory / START
        if step == 0:
            values = logps(model, prompts, answers, size)
            write_columns({"sample_ids": pa.array(answers, pa.list_(pa.int32())), "logps": values}, file)
        found = {
            "monitor/tokens": float(np.mean([len(answer) for answer in answers])),
            "monitor/unfinished_share": float(np.mean([answer[-1] not in stops for answer in answers])),
        }
        if file.is_file():
            table = pq.read_table(file)
            drawn: list[Tokens] = list(views(table["sample_ids"]))
            moved = table["logps"].to_numpy() - logps(model, prompts, drawn, size)
            found["monitor/kl_to_reference"] = float(moved.mean())
        return found

    def _pairs(self) -> dict[str, float]:
        """Accuracy and margin of the implicit reward, and how often the teachers rank pairs as it does."""
        rows, recipe = self.held_out.rows, self.recipe
        size = recipe.per_device_eval_batch_size
        values = pair_logps(self.model, rows, size, shared=recipe.shared_prompts)
        h = values - self.held_out.reference
        delta = h[:, 0] - h[:, 1]
        found = {
            "monitor/accuracy": measured(delta)["accuracy"],
            "monitor/margin": float(recipe.reward_scale * delta.mean()),
        }
        teachers = self.held_out.teachers.values()
        alike = [float((np.sign(delta) == np.sign(margins)).mean()) for margins in teachers]
        if alike:
            found |= {"monitor/teachers_lowest": min(alike), "monitor/teachers_highest": max(alike)}
        return found


def monitor_of(
    trainer: PairTrainer, tokenizer: PreTrainedTokenizerBase, job: Job[PolicyRecipe], report: Report
) -> Monitor | None:
    """The monitor that a recipe asks for; None without one, or where it cannot look, which is said."""
    if job.recipe.monitor_steps is None:
        return None
    if devices.processes() > 1 or devices.is_spmd():
        report.tell("monitor_steps: nothing is looked at where several processes or devices train one policy")
        return None
    held_out = held_out_of(job, tokenizer)
    if held_out is None:
        report.tell(
            "monitor_steps: no held-out pair of the splits can be read, so there is nothing to look at"
        )
        return None
    return Monitor(trainer, tokenizer, job.recipe, held_out, report)


def ended(looks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the last look found, and the length that samples began with: for a policy's metrics."""
    last = {name: value for name, value in looks[-1].items() if name.startswith("monitor/")}
    return {**last, "monitor/tokens_before": looks[0]["monitor/tokens"]}


def over_optimised(looks: Sequence[Mapping[str, float]]) -> list[str]:
    """What speaks for over-optimisation in the looks at a policy, the first of them before it was trained.

    Its samples got longer or shorter by MOVED or more; docs/diagnose.md says how often that is right.
    Held-out accuracy is no sign: those pairs have the labels' bias, and a better policy may rank them worse.
    """
    before, after = looks[0]["monitor/tokens"], looks[-1]["monitor/tokens"]
    if abs(change := after / before - 1) <= MOVED - 1e-9:  # 12 / 10 - 1 is a little less than 0.2
        return []
    which = "longer" if change > 0 else "shorter"
    return [
        f"over-optimisation? its samples got {100 * abs(change):.0f} % {which} ({before:.1f} to {after:.1f} "
        "tokens): look at some, and compare a larger beta (or tau), or fewer steps"
    ]
