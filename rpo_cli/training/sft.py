"""Supervised fine-tuning through TRL's SFTTrainer: makes pi_SFT, from scratch or from a checkpoint."""

from __future__ import annotations

from functools import partial
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rpo_cli import devices
from rpo_cli.data.pairs import columns_of, read_rows, tokenise
from rpo_cli.errors import BadInput
from rpo_cli.models import four_bits, load_causal, load_tokenizer, new_causal
from rpo_cli.pipeline import Job
from rpo_cli.schema import SFTRecipe, seed_of
from rpo_cli.tracking import Report
from rpo_cli.training.loop import WholeBatches, arguments, lora_of, need_rows, one_gpu, publish_model, train


class WholeBatchSFTTrainer(WholeBatches, SFTTrainer):
    """SFTTrainer on whole batches, whose count of tokens survives a checkpoint."""

    def _send_telemetry(self) -> None:
        """None."""

    def counted(self) -> dict[str, Any]:
        return {"num_tokens": self._total_train_tokens}

    def count_from(self, state: dict[str, Any]) -> None:
        self._total_train_tokens = state["num_tokens"]


def table_of(job: Job, table: str) -> list[dict[str, Any]]:
    """Rows of a table that the data stage wrote."""
    file = job.inputs["data"] / f"{table}.parquet"
    if not file.is_file():
        raise BadInput(f"{job.inputs['data']}: has no table `{table}`; add it to files: of the data recipe")
    return read_rows(file)


def run(job: Job, report: Report) -> dict[str, Any]:
    """Minimise the mean NLL of the completion's tokens, EOS included."""
    recipe: SFTRecipe = job.recipe
    device = devices.choose(recipe)
    seed = seed_of(recipe, "policy")
    rows = table_of(job, recipe.table)
    whole_base = None
    if recipe.model_config_kwargs is not None:
        tokenizer = load_tokenizer(job.inputs["data"] / "tokenizer", recipe)
        model = new_causal(recipe.model_config_kwargs, tokenizer, device, seed)
    else:
        tokenizer = load_tokenizer(job.inputs["model"], recipe, job.revisions.get("model"))
        load = partial(load_causal, job.inputs["model"], recipe, tokenizer=tokenizer, revision=job.revisions.get("model"), training=True)
        model = load(device=device, bits=four_bits(recipe, device))
        whole_base = partial(load, device=devices.CPU)
    tokens = tokenise(rows, columns_of(recipe.table)[1:], tokenizer, recipe.max_length, recipe.overlong, f"{job.path}: {recipe.table}")
    need_rows(len(tokens), recipe, job.path)
    data = Dataset.from_list(
        [{"input_ids": r.prompt_ids + r.responses[0], "labels": [-100] * len(r.prompt_ids) + r.responses[0]} for r in tokens]
    )
    config = one_gpu(
        SFTConfig(**arguments(recipe, job.directory, device, seed), max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    )
    trainer = WholeBatchSFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, peft_config=lora_of(recipe, "CAUSAL_LM"))
    metrics = train(trainer, report, state=trainer.counted, restore=trainer.count_from)
    publish_model(trainer, tokenizer, job.directory, whole_base)
    return {**metrics, "rows": len(tokens), "dropped": len(rows) - len(tokens), "steps": trainer.state.global_step}
