"""Policies through one thin subclass of TRL's DPOTrainer: dpo, ipo, d-dpo, p-dpo, dp-dpo, e-dpo and rivals.

Neither the reference model nor a reward model is in memory while a policy trains: log-probs and rewards come
as columns (kl_estimator: full is the exception and says so).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import (
    can_share,
    four_bits,
    groups_of,
    load_causal,
    load_tokenizer,
    logps_of,
    pad_id,
    predicts,
    response_lengths,
    response_logits,
    response_logps,
)
from rpo_cli.objectives import (
    MemberChoice,
    distill_losses,
    dpo_losses,
    gamma_at,
    ipo_losses,
    kl_full,
    kl_sample,
    kl_weight,
    nll_losses,
    r_dpo_losses,
    robust_dpo_losses,
    select_member,
    simpo_losses,
)
from rpo_cli.recipes.schema import DISTILLED, PESSIMISTIC, PolicyRecipe, seed_of
from rpo_cli.stages.training.arguments import collator_of, lora_of, need_rows
from rpo_cli.stages.training.loop import train
from rpo_cli.stages.training.publish import publish_model
from rpo_cli.stages.training.teachers import calibrated_margins, policy_rows
from rpo_cli.stages.training.trl import PairTrainer, config_of


class PolicyTrainer(PairTrainer):
    """DPOTrainer with the objectives of Fisch et al. (2025) on precomputed log-probs and teacher margins."""

    def __init__(
        self,
        recipe: PolicyRecipe,
        members: MemberChoice | None,
        kl_reference: PreTrainedModel | None,
        **kwargs: Any,
    ) -> None:
        self.recipe, self.members, self.kl_reference = recipe, members, kl_reference
        super().__init__(**kwargs)
        if members is not None:
            self.add_callback(EndOfStep(self, members))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
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
                delta_h = self._delta_h(response_logps(self.model_wrapped, inputs), inputs)
            means.append(distill_losses(delta_h, inputs["margins"].T, self.recipe.beta).mean(1))
            devices.step_mark(self.args.device)
        self.model.train()
        return select_member(self.batch_mean(torch.stack(means).mean(0)))

    def _delta_h(self, logps: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        size = len(inputs["ref_chosen_logps"])
        h_chosen = logps[:size] - inputs["ref_chosen_logps"]
        h_rejected = logps[size : 2 * size] - inputs["ref_rejected_logps"]
        if self.recipe.objective == "ipo-norm":
            lengths = response_lengths(inputs)
            return h_chosen / lengths[:size] - h_rejected / lengths[size : 2 * size]
        return h_chosen - h_rejected

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objective's loss, mean over pairs (Fisch et al. 2025, sections 3 and 4)."""
        recipe = self.recipe
        logits = response_logits(model, inputs)
        logps = logps_of(logits, inputs)
        delta_h = self._delta_h(logps, inputs)
        if recipe.objective in ("dpo", "p-dpo"):
            losses = dpo_losses(delta_h, recipe.beta)
        elif recipe.objective in ("ipo", "ipo-norm"):
            losses = ipo_losses(delta_h, recipe.tau)
        elif recipe.objective not in DISTILLED:
            losses = rival_losses(recipe, delta_h, logps, response_lengths(inputs))
        else:
            losses = distill_losses(delta_h, inputs["margins"].T, recipe.beta)
            losses = losses[0] if self.members is None else self.members.reduce(losses, self.batch_mean)
        loss = preference = losses.mean()
        if recipe.objective in PESSIMISTIC:
            kl = self._forward_kl(logits, logps, inputs)
            gamma = gamma_at(self.state.global_step, self.args.max_steps, recipe.gamma, recipe.gamma_end)
            loss = preference + kl_weight(gamma, recipe.beta, recipe.kl_coefficient) * kl
            self.note("kl_to_reference", kl)
        self.note("losses/preference", preference)
        if self.is_logged():
            self._note_rewards(logps, inputs)
        return (loss, {"logps": logps}) if return_outputs else loss

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
        with torch.no_grad():
            reference = response_logits(self.kl_reference, inputs)
        # Where every response has a row of its own, the samples' come last; else each row's third response.
        start, number = (2 * size, 1) if len(logits) > size else (0, 3)
        return kl_full(logits[start:], reference[start:], predicts(inputs, number)[start:]).mean()

    def _note_rewards(self, logps: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        size = len(inputs["ref_chosen_logps"])
        chosen, rejected = logps[:size].detach(), logps[size : 2 * size].detach()
        h_chosen, h_rejected = chosen - inputs["ref_chosen_logps"], rejected - inputs["ref_rejected_logps"]
        strength = 1.0 if self.recipe.objective.startswith("ipo") else self.recipe.beta
        self.note("rewards/chosen", strength * h_chosen.mean())
        self.note("rewards/rejected", strength * h_rejected.mean())
        self.note("rewards/margins", strength * (h_chosen - h_rejected).mean())
        self.note("rewards/accuracies", (h_chosen > h_rejected).float().mean())
        self.note("logps/chosen", chosen.mean())
        self.note("logps/rejected", rejected.mean())

    def noted(self) -> dict[str, float]:
        """The metrics since the last line, with the step's gamma and the ensemble members' shares."""
        found = super().noted()
        if found and self.recipe.objective in PESSIMISTIC:
            step = self.state.global_step - 1
            found["gamma"] = gamma_at(step, self.args.max_steps, self.recipe.gamma, self.recipe.gamma_end)
        if found and self.members is not None:
            found |= self.members.shares()
        return found


def rival_losses(
    recipe: PolicyRecipe, delta_h: torch.Tensor, logps: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Losses [B] of the rivals: `delta_h` [B]; `logps`, `lengths` [2B or more], chosen first."""
    size = len(delta_h)
    chosen, rejected = slice(size), slice(size, 2 * size)
    if recipe.objective == "r-dpo":
        return r_dpo_losses(delta_h, lengths[chosen], lengths[rejected], recipe.beta, recipe.length_alpha)
    if recipe.objective == "dpo-sft":
        return dpo_losses(delta_h, recipe.beta) + recipe.sft_weight * nll_losses(
            logps[chosen], lengths[chosen]
        )
    if recipe.objective == "robust-dpo":
        return robust_dpo_losses(delta_h, recipe.beta, recipe.label_smoothing)
    return simpo_losses(
        logps[chosen], logps[rejected], lengths[chosen], lengths[rejected], recipe.beta, recipe.simpo_gamma
    )


class EndOfStep(TrainerCallback):
    """Closes an optimiser step of the ensemble's min, before a checkpoint is written."""

    def __init__(self, trainer: PolicyTrainer, members: MemberChoice) -> None:
        self.trainer, self.members = trainer, members

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.members.end_step(self.trainer.batch_mean, self.trainer.batch_sum)


def run(job: Job[PolicyRecipe], report: Report) -> dict[str, Any]:
    """Train one policy and save it; metrics hold the ensemble's temperatures and chosen members."""
    recipe: PolicyRecipe = job.recipe
    device = devices.choose(recipe)
    seed = seed_of(recipe, "policy")
    tokenizer = load_tokenizer(job.inputs["model"], recipe, job.revisions.get("model"))
    teachers = calibrated_margins(job, recipe)
    rows, dropped = policy_rows(job, recipe, tokenizer, teachers)
    need_rows(len(rows), recipe, job.path)
    members = None
    if recipe.objective == "e-dpo":
        margins = torch.tensor([row["margins"] for row in rows], dtype=torch.float32).T
        members = MemberChoice(recipe.ensemble_min, list(teachers.temperatures), margins, recipe.ema_decay)
    load = partial(
        load_causal, job.inputs["model"], recipe, tokenizer=tokenizer, revision=job.revisions.get("model")
    )
    bits = four_bits(recipe, device)
    torch.manual_seed(seed)  # what a model lacks is drawn when it is loaded
    model = load(device=device, training=True, bits=bits)
    with_reference = recipe.objective in PESSIMISTIC and recipe.kl_estimator == "full"
    kl_reference = load(device=device, bits=bits) if with_reference else None
    config = config_of(DPOConfig, job, device, seed, beta=recipe.beta, precompute_ref_log_probs=True)
    shared = recipe.shared_prompts and _shares(model, rows, pad_id(tokenizer))
    collator, shapes = collator_of(rows, recipe, device, pad_id(tokenizer), shared)
    trainer = PolicyTrainer(
        recipe,
        members,
        kl_reference,
        model=model,
        args=config,
        device=device,
        data_collator=collator,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_of(recipe, "CAUSAL_LM"),
    )
    if members is None:
        metrics: dict[str, Any] = train(trainer, report)
    else:
        metrics = train(trainer, report, state=members.state, restore=members.restore)
        metrics |= members.all_shares()
    publish_model(trainer, tokenizer, job.directory, partial(load, device=devices.CPU, training=True))
    temperatures = {f"temperature/{name}": value for name, value in teachers.temperatures.items()}
    counts = {
        "rows": len(rows),
        "dropped": dropped,
        "steps": trainer.state.global_step,
        "shared_prompts": shared,
    }
    return {**metrics, **temperatures, **counts, **shapes}


def _shares(model: PreTrainedModel, rows: list[dict[str, Any]], pad: int) -> bool:
    return can_share(
        model, response_logps, [row["prompt_ids"] for row in rows], [groups_of(row) for row in rows], pad
    )
