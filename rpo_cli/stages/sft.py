"""Supervised fine-tuning through TRL's SFTTrainer: makes pi_SFT, from scratch or from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from trl import SFTConfig

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import (
    Graphs,
    four_bits,
    layout_for,
    load_causal,
    load_tokenizer,
    logps_of,
    new_causal,
    pad_id,
    response_logits,
    response_logps,
    token_accuracy,
)
from rpo_cli.recipes.schema import SFTRecipe, seed_of
from rpo_cli.stages.data.rows import columns_of, rows_of
from rpo_cli.stages.training.arguments import collator_of, graphed, lora_of, steps_over
from rpo_cli.stages.training.loop import train
from rpo_cli.stages.training.publish import publish_model
from rpo_cli.stages.training.trl import LeanTrainer, TokenTrainer, config_of


class FewShapesSFTTrainer(LeanTrainer, TokenTrainer):
    """The same loss over batches of a few shapes, with nothing read back in a step."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[object], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | None]:
        """An optimiser step's batches, and how many tokens all completions have, in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = [batch["tokens"] for batch in batches]
        return batches, self.batch_sum(torch.stack(tokens).sum()) if tokens else None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """NLL of the completions' tokens, EOS included; mean over those of the optimiser step."""
        assert num_items_in_batch is not None
        logits = self.reader(response_logits)(model, inputs)
        nll = -logps_of(logits, inputs).sum() / num_items_in_batch
        if self.is_logged() and not self.device.fixed_shapes:  # there it would be a program more
            self.note("mean_token_accuracy", token_accuracy(logits.detach(), inputs))
        loss: torch.Tensor = nll * self.accelerator.num_processes
        return loss


def run(job: Job[SFTRecipe], report: Report) -> dict[str, object]:
    """Minimise the mean NLL of the completion's tokens, EOS included."""
    recipe: SFTRecipe = job.recipe
    device = devices.choose(recipe)
    seed = seed_of(recipe, "policy")
    rows = rows_of(job, recipe.table)
    whole_base = None
    if recipe.model_config_kwargs is not None:
        tokenizer = load_tokenizer(job.inputs["data"] / "tokenizer", recipe)
        model = new_causal(recipe.model_config_kwargs, tokenizer, device, seed)
    else:
        tokenizer = load_tokenizer(job.inputs["model"], recipe, job.revisions.get("model"))
        load = partial(
            load_causal,
            job.inputs["model"],
            recipe,
            tokenizer=tokenizer,
            revision=job.revisions.get("model"),
            training=True,
        )
        torch.manual_seed(seed)  # embeddings of new tokens are drawn
        model = load(device=device, bits=four_bits(recipe, device))
        whole_base = partial(load, device=devices.CPU)
    columns, what = columns_of(recipe.table)[1:], f"{job.path}: {recipe.table}"
    tokens = rows.tokens(columns, tokenizer, what, recipe.max_length, recipe.overlong, report.warn)
    steps = steps_over(len(tokens), recipe, job.path)
    kwargs = {"skip_prepare_dataset": True}
    config = config_of(SFTConfig, job, device, seed, max_steps=steps, dataset_kwargs=kwargs)
    prompts, answers, pad = [r.prompt_ids for r in tokens], [r.responses for r in tokens], pad_id(tokenizer)
    graphs = (
        graphed(recipe, device, "shared")
        and layout_for(model, response_logps, prompts, answers, pad, shared=True) == "shared"
    )
    few = device.fixed_shapes or graphs
    table = [
        {"prompt_ids": r.prompt_ids, "completion_ids": r.responses[0]}
        if few
        else {
            "input_ids": np.concatenate([r.prompt_ids, r.responses[0]]),
            "labels": np.concatenate([np.full_like(r.prompt_ids, -100), r.responses[0]]),
        }
        for r in tokens
    ]
    collator, shapes = (
        collator_of(table, recipe, device, pad, "shared", few=graphs) if few else (None, dict[str, float]())
    )
    trainer = (FewShapesSFTTrainer if few else TokenTrainer)(
        model,
        config,
        device=device,
        data_collator=collator,
        train_dataset=Dataset.from_list(table),
        processing_class=tokenizer,
        peft_config=lora_of(recipe, "CAUSAL_LM"),
    )
    if graphs and collator is not None:
        trainer.graphs = Graphs(response_logits, collator.largest)
    metrics = train(trainer, report, state=trainer.counted, restore=trainer.count_from)
    publish_model(trainer, tokenizer, job.directory, whole_base)
    counts = {"rows": len(tokens), "dropped": len(rows) - len(tokens), "steps": trainer.state.global_step}
    return {**metrics, **counts, **shapes}
