"""Policies through one thin subclass of TRL's DPOTrainer, whatever their objective.

Neither the reference model nor a reward model is in memory while a policy trains: log-probs and rewards come
as columns (kl_estimator: full is the exception and says so).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.errors import BadInput
from rpo_cli.models import (
    Row,
    four_bits,
    load_causal,
    logps_of,
    predicts,
    response_lengths,
    response_logits,
    response_logps,
)
from rpo_cli.objectives import Pair
from rpo_cli.objectives.kl import gamma_at, kl_full, kl_sample, kl_weight
from rpo_cli.objectives.logps import at_least_float32
from rpo_cli.objectives.members import MemberChoice
from rpo_cli.recipes.schema import PolicyRecipe, seed_of
from rpo_cli.stages.inputs import causal_of, tokenizer_of
from rpo_cli.stages.training.arguments import lora_of, prepare, start_from, steps_over
from rpo_cli.stages.training.doubts import doubts
from rpo_cli.stages.training.loop import train
from rpo_cli.stages.training.monitor import Monitor, ended, monitor_of, over_optimised
from rpo_cli.stages.training.publish import Keeper, drop_checkpoints, publish_model, write_model
from rpo_cli.stages.training.start import NOISE, FirstStep, beside_reference
from rpo_cli.stages.training.teachers import Teachers, calibrated_margins, policy_rows
from rpo_cli.stages.training.trl import PairTrainer, config_of


class PolicyTrainer(PairTrainer):
    """DPOTrainer with any declared objective over precomputed log-probs and teacher margins."""

    def __init__(
        self,
        recipe: PolicyRecipe,
        members: MemberChoice | None,
        kl_reference: PreTrainedModel | None,
        **kwargs: object,
    ) -> None:
        self.recipe = recipe
        self.objective = recipe.declared
        self.members = members
        self.kl_reference = kl_reference
        self.start: torch.Tensor | None = None  # of a step's last piece; see start.beside_reference
        super().__init__(**kwargs)
        if members is not None:
            self.add_callback(EndOfStep(self, members))

    def get_batch_samples(
        self, epoch_iterator: Iterator[object], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], object]:
        """All micro-batches of an optimiser step; e-DPO's batch min is decided here, over all of them."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.members is not None and batches:
            self.members.begin_step(
                self._choose(batches) if self.members.scope == "batch" and len(batches) > 1 else None
            )
        return batches, count

    @torch.no_grad()
    def _choose(self, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        means = []
        self.model.eval()  # dropout (LoRA's) would make the choice random and use up random numbers
        for batch in batches:
            inputs = self.placed(batch)
            with self.compute_loss_context_manager():
                pair = pair_of(response_logps(self.model_wrapped, inputs), inputs)
            means.append(self.objective.losses(pair, self.recipe).mean(1))
            devices.step_mark(self.args.device)
        self.model.train()
        return self.batch_mean(torch.stack(means).mean(0)).argmin()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: object = None,
    ) -> torch.Tensor | tuple[torch.Tensor, object]:
        """The objective's loss, mean over pairs (Fisch et al. 2025, sections 3 and 4)."""
        recipe = self.recipe
        logits = self.reader(response_logits)(model, inputs)
        if recipe.needs_reference:  # two gradients of them, which are to be rounded when they are one
            logits = at_least_float32(logits)
        logps = logps_of(logits, inputs)
        pair = pair_of(logps, inputs)
        losses = self.objective.losses(pair, recipe)
        if self.members is not None:
            losses = self.members.reduce(losses, self.batch_mean)
        loss = preference = losses.mean()
        kl = None
        if self.objective.pessimistic:
            kl = self._forward_kl(logits, logps, inputs)
            gamma = gamma_at(self.state.global_step, self.args.max_steps, recipe.gamma, recipe.gamma_end)
            loss = preference + kl_weight(gamma, recipe.beta, recipe.kl_coefficient) * kl
            self.note("kl_to_reference", kl)
        # On XLA in every step: there another step is another program.
        if (self.state.global_step == 0 or self.device.fixed_shapes) and not self.objective.reference_free:
            self.start = self._beside_reference(pair, kl)
        self.note("losses/preference", preference)
        if self.is_logged():
            self._note_rewards(pair)
        return (loss, {"logps": logps}) if return_outputs else loss

    def first_losses(self) -> torch.Tensor | None:
        """What the first step's last piece found `beside_reference`, mean over processes; None: resumed."""
        return None if self.start is None else self.batch_mean(self.start)

    @torch.no_grad()
    def _beside_reference(self, pair: Pair, kl: torch.Tensor | None) -> torch.Tensor:
        noise = NOISE[self.device.dtype_name]
        return beside_reference(pair, lambda pair: self.objective.losses(pair, self.recipe), kl, noise)

    def _forward_kl(
        self, logits: torch.Tensor, logps: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Estimate of KL(pi_ref || pi_theta), summed over tokens, mean over pairs."""
        size = len(inputs["ref_chosen_logps"])
        if self.recipe.kl_estimator == "data":
            reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
            return kl_sample(logps[: 2 * size], reference).mean()
        if self.recipe.kl_estimator == "sample":
            return kl_sample(logps[2 * size :], inputs["ref_sample_logps"]).mean()
        assert self.kl_reference is not None
        with torch.no_grad(), self.device.autocast():  # accelerate's, of several processes, is the policy's
            reference = response_logits(self.kl_reference, inputs)
        # Where every response has a row of its own, the samples' rows come last; else a sample is each row's
        # third response.
        start, number = (2 * size, 1) if len(logits) > size else (0, 3)
        return kl_full(logits[start:], reference[start:], predicts(inputs, number)[start:]).mean()

    @torch.no_grad()
    def _note_rewards(self, pair: Pair) -> None:
        scale = self.recipe.reward_scale
        self.note("rewards/chosen", scale * pair.h_chosen.mean())
        self.note("rewards/rejected", scale * pair.h_rejected.mean())
        self.note("rewards/margins", scale * pair.delta_h.mean())
        self.note("kl_data", -(pair.h_chosen + pair.h_rejected).mean() / 2)
        self.note("rewards/accuracies", (pair.h_chosen > pair.h_rejected).float().mean())
        self.note("logps/chosen", pair.chosen_logps.mean())
        self.note("logps/rejected", pair.rejected_logps.mean())

    def noted(self) -> dict[str, float]:
        """The metrics since the last line, with the step's gamma and the ensemble members' shares."""
        found, recipe = super().noted(), self.recipe
        if found and self.objective.pessimistic:
            step = self.state.global_step - 1
            found["gamma"] = gamma_at(step, self.args.max_steps, recipe.gamma, recipe.gamma_end)
        if found and self.members is not None:
            found |= self.members.shares()
        return found


def pair_of(logps: torch.Tensor, inputs: dict[str, torch.Tensor]) -> Pair:
    """The pairs of a micro-batch as a loss reads them; `logps` [2B or more], chosen first."""
    return Pair(logps, inputs, partial(response_lengths, inputs))


class EndOfStep(TrainerCallback):
    """Closes an optimiser step of the ensemble's min, before a checkpoint is written."""

    def __init__(self, trainer: PolicyTrainer, members: MemberChoice) -> None:
        self.trainer, self.members = trainer, members

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.members.end_step(self.trainer.batch_mean, self.trainer.batch_sum)


def members_of(recipe: PolicyRecipe, teachers: Teachers, rows: Sequence[Row]) -> MemberChoice | None:
    """The choice among an ensemble's members in every step; None: the objective makes none."""
    if not recipe.takes_min:
        return None
    margins = torch.tensor([row["margins"] for row in rows], dtype=torch.float32).T
    return MemberChoice(recipe.ensemble_min, list(teachers.temperatures), margins, recipe.ema_decay)


def trained(trainer: PolicyTrainer, report: Report, monitor: Monitor | None) -> dict[str, float]:
    """Train; metrics hold the shares of the ensemble's members and what the monitor saw last."""
    members = trainer.members
    if members is None:
        metrics = train(trainer, report, monitor)
    else:
        metrics = train(trainer, report, monitor, state=members.state, restore=members.restore)
        metrics |= members.all_shares()
    if metrics.get("ended/kl_to_reference", 0) < 0:
        report.warn(
            "the estimate of the forward KL is negative: the reference's samples were learnt with the pairs; "
            "reference_samples: as many as there are passes over the pairs draws each pass its own"
        )
    if monitor is not None and monitor.found:
        metrics |= ended(monitor.found) | {"monitor/pairs": len(monitor.held_out.rows)}
        for line in over_optimised(monitor.found):
            report.warn(line)
    return metrics


def run(job: Job[PolicyRecipe], report: Report) -> dict[str, object]:
    """Train one policy and save it; metrics hold the ensemble's temperatures and chosen members."""
    recipe: PolicyRecipe = job.recipe
    device = devices.choose(recipe)
    seed = seed_of(recipe, "policy")
    tokenizer = tokenizer_of(job, "model")
    teachers = calibrated_margins(job)
    by_size = recipe.model_dump().get("teacher_labels") != "argmax"
    for line in doubts(teachers.columns, recipe.beta, teachers.agreed, by_size=by_size):
        report.warn(line)
    turns, pairs_left = policy_rows(job, tokenizer, teachers, report)
    rows, every = turns[0], [row for rows in turns for row in rows]
    steps = steps_over(len(rows), recipe, job.path)
    if recipe.selects and recipe.checkpoints > steps:
        raise BadInput(f"{job.path}: checkpoints: {recipe.checkpoints} is more than all {steps} steps")
    members = members_of(recipe, teachers, rows)
    model, whole_base = start_from(load_causal, job, tokenizer, device, seed)
    kl_reference = None
    if recipe.needs_reference:
        kl_reference = causal_of(job, "model", tokenizer, device, four_bits(recipe, device))
    config = config_of(
        DPOConfig,
        job,
        device,
        seed,
        max_steps=steps,
        beta=recipe.beta,
        precompute_ref_log_probs=True,
        disable_dropout=False,
    )
    prepared = prepare(model, every, recipe, device, response_logps, shared=recipe.shared_prompts)
    trainer = PolicyTrainer(
        recipe,
        members,
        kl_reference,
        model=model,
        args=config,
        device=device,
        data_collator=prepared.collator,
        train_dataset=Dataset.from_list(every),
        processing_class=tokenizer,
        peft_config=lora_of(recipe, "CAUSAL_LM"),
    )
    trainer.graphs, trainer.turns = prepared.graphs, len(turns)
    trainer.add_callback(FirstStep(job.path, trainer.first_losses))
    kept = recipe.kept_at(steps)
    if kept:
        trainer.add_callback(
            Keeper(trainer, kept, lambda model, at: write_model(model, trainer, tokenizer, at, whole_base))
        )
    metrics = trained(trainer, report, monitor_of(trainer, tokenizer, job, report))
    if kept:
        drop_checkpoints(trainer, job.directory)
        metrics |= {f"kept/{number}": step for number, step in enumerate(kept, 1)}
    else:
        publish_model(trainer, tokenizer, job.directory, whole_base)
    temperatures = {f"temperature/{name}": value for name, value in teachers.temperatures.items()}
    counts = {
        "rows": len(rows),
        **pairs_left,
        "steps": trainer.state.global_step,
        "shared_prompts": prepared.shared,
    }
    return {**metrics, **temperatures, **counts, **prepared.shapes}
