"""Supervised fine-tuning through TRL's SFTTrainer: makes pi_SFT, from scratch or from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import SFTConfig

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.devices import Device
from rpo_cli.models import (
    Row,
    load_causal,
    load_tokenizer,
    logps_of,
    new_causal,
    pad_of,
    response_logits,
    response_logps,
    token_accuracy,
)
from rpo_cli.recipes.schema import SFTRecipe, seed_of
from rpo_cli.stages.data.rows import columns_of, rows_of
from rpo_cli.stages.inputs import tokenizer_of
from rpo_cli.stages.training.arguments import (
    Prepared,
    collator_of,
    graphed,
    lora_of,
    prepare,
    start_from,
    steps_over,
)
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


def in_few_shapes(
    model: PreTrainedModel, rows: Sequence[Row], recipe: SFTRecipe, device: Device
) -> Prepared | None:
    """How rows are read in batches of a few shapes; None: in any, by TRL's own collator."""
    if device.fixed_shapes:
        return Prepared(*collator_of(rows, recipe, device, pad_of(model), "shared"), None)
    if not graphed(recipe, device, "shared"):
        return None
    found = prepare(model, rows, recipe, device, response_logps, shared=True)
    return None if found.graphs is None else found


def labelled(row: Row) -> Row:
    """A row as TRL's collator reads it: a prompt's tokens are none to learn."""
    prompt, completion = row["prompt_ids"], row["completion_ids"]
    return {
        "input_ids": np.concatenate([prompt, completion]),
        "labels": np.concatenate([np.full_like(prompt, -100), completion]),
    }


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
        tokenizer = tokenizer_of(job, "model")
        model, whole_base = start_from(load_causal, job, tokenizer, device, seed)
    columns, what = columns_of(recipe.table)[1:], f"{job.path}: {recipe.table}"
    tokens = rows.tokens(columns, tokenizer, what, recipe.max_length, recipe.overlong, report.warn)
    steps = steps_over(len(tokens), recipe, job.path)
    kwargs = {"skip_prepare_dataset": True}
    config = config_of(SFTConfig, job, device, seed, max_steps=steps, dataset_kwargs=kwargs)
    table = [{"prompt_ids": row.prompt_ids, "completion_ids": row.responses[0]} for row in tokens]
    few = in_few_shapes(model, table, recipe, device)
    trainer = (FewShapesSFTTrainer if few else TokenTrainer)(
        model,
        config,
        device=device,
        data_collator=few.collator if few else None,
        train_dataset=Dataset.from_list(table if few else list(map(labelled, table))),
        processing_class=tokenizer,
        peft_config=lora_of(recipe, "CAUSAL_LM"),
    )
    trainer.graphs = few.graphs if few else None
    metrics = train(trainer, report, state=trainer.counted, restore=trainer.count_from)
    publish_model(trainer, tokenizer, job.directory, whole_base)
    counts = {"rows": len(tokens), "dropped": len(rows) - len(tokens), "steps": trainer.state.global_step}
    return {**metrics, **counts, **(few.shapes if few else {})}
