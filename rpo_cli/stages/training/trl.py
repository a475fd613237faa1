"""TRL's and transformers' trainers as they are used here: arguments, whole optimiser batches, LoRA."""

from __future__ import annotations

import logging
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer

from rpo_cli.devices import CPU, Device, cut_batch, processes, rank, spread
from rpo_cli.errors import BadInput
from rpo_cli.models import PairCollator, for_training, groups_of, shape_of
from rpo_cli.recipes.schema import TrainingRecipe
from rpo_cli.stages.training.order import OptimizerBatches


def arguments(recipe: TrainingRecipe, directory: Path, device: Device, seed: int) -> dict[str, Any]:
    """Keyword arguments for SFTConfig, RewardConfig and DPOConfig; TRL's own defaults that are wrong here are set."""
    return {
        "output_dir": checkpoints_of(directory),
        "max_steps": recipe.max_steps,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.lr_scheduler_type,
        "warmup_steps": recipe.warmup_steps,
        "per_device_train_batch_size": recipe.per_device_train_batch_size,
        "train_sampling_strategy": recipe.train_sampling_strategy,
        "per_device_eval_batch_size": recipe.per_device_eval_batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "optim": device.optimizer(recipe.optim),
        "adam_beta1": recipe.adam_beta1,
        "adam_beta2": recipe.adam_beta2,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "activation_checkpointing": recipe.gradient_checkpointing,  # the name of gradient_checkpointing from transformers 6 on
        "activation_checkpointing_kwargs": device.checkpointing,
        "logging_steps": recipe.logging_steps,
        "logging_nan_inf_filter": False,  # a NaN must be seen, not averaged away
        "save_strategy": "no" if recipe.save_steps is None else "steps",
        "save_steps": recipe.save_steps or 500,
        "save_total_limit": 2,
        "report_to": "none",
        "seed": seed,
        "data_seed": seed,
        "bf16": device.trains_in_autocast,  # the weights stay float32
        "use_cpu": device.name == "cpu",
        "disable_tqdm": True,
        "dataloader_drop_last": False,  # of training rows `WholeBatches` leaves none over; of held-out rows none may be left out
        "dataloader_pin_memory": device.name == "cuda",
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,  # every weight takes part in every loss
    }


def checkpoints_of(directory: Path) -> str:
    """Where this process writes checkpoints: under an artifact, but for those of a spread model's processes that write for nobody.

    Each takes part in bringing the weights together, and to accelerate each is the first.
    """
    return tempfile.mkdtemp(prefix="rpo-") if spread() and rank() != 0 else str(directory / "checkpoints")


def one_gpu(config: Any) -> Any:
    """The arguments, for one GPU: with several visible, Trainer would split batches over them behind the recipe's back."""
    if config.n_gpu > 1:
        config._n_gpu = 1
    return config


def need_rows(count: int, recipe: TrainingRecipe, what: str) -> None:
    """Raise BadInput when a data set does not fill one optimiser step."""
    batch = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * processes()
    if count < batch:
        raise BadInput(f"{what}: {count} rows do not fill one batch of {batch}")


def collator_of(
    rows: list[dict[str, Any]], recipe: TrainingRecipe, device: Device, pad: int, shared: bool
) -> tuple[PairCollator, dict[str, float]]:
    """The collator of a stage's rows, and for its metrics what shapes its batches have where each must be compiled."""
    if not device.fixed_shapes:
        return PairCollator(pad, shared), {}
    needed = [shape_of(row["prompt_ids"], groups_of(row), shared=shared) for row in rows]
    found = for_training(
        needed, recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps * processes()
    )
    logging.getLogger("rpo").info("training batches: %s", found)
    return PairCollator(pad, shared, found), {"shapes": len(found.shapes), "padding_share": found.padding}


class WholeBatches(Trainer):
    """A Trainer whose every optimiser step sees a whole batch: an epoch's last rows are left out, however batches are cut.

    `device`: where its forward passes bring an autocast of their own, if Trainer brings none.
    """

    device: Device = CPU

    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> AbstractContextManager[None]:
        """What a forward pass with its loss runs under."""
        return nullcontext() if self.args.bf16 else self.device.autocast()

    def is_logged(self) -> bool:
        """Whether the step that is under way gets a line of metrics; the last one does in any case."""
        step = self.state.global_step + 1
        return bool(step % self.args.logging_steps == 0 or step == self.args.max_steps)

    def batch_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over processes; one alone has nothing to wait for."""
        mean: torch.Tensor = (
            self.accelerator.reduce(values, "mean") if self.accelerator.num_processes > 1 else values
        )
        return mean

    def batch_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over processes."""
        total: torch.Tensor = (
            self.accelerator.reduce(values, "sum") if self.accelerator.num_processes > 1 else values
        )
        return total

    def _prepare_inputs(self, inputs: Any) -> Any:
        return cut_batch(super()._prepare_inputs(inputs), self.args.train_batch_size)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        micro, grouped = self.args.train_batch_size, self.args.train_sampling_strategy == "group_by_length"
        batch = micro * self.args.gradient_accumulation_steps * self.args.world_size
        lengths = [0] * len(rows)
        if grouped or batch > micro:
            columns = [rows[name] for name in rows.column_names if name.endswith("_ids")]
            lengths = [sum(map(len, row)) for row in zip(*columns, strict=True)]
        # Accelerate tells a sampler that is none of its own the epoch only while nothing was resumed.
        steps = max(1, len(rows) // batch)
        return OptimizerBatches(
            lengths, batch, self.args.data_seed, lambda: self.state.global_step // steps, grouped=grouped
        )


def lora_of(recipe: TrainingRecipe, task: str) -> Any:
    """peft's LoraConfig for a recipe that asks for one, else None."""
    if not recipe.use_peft:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise BadInput("use_peft needs the extra `lora`: pip install 'rpo-cli[lora]'") from error
    modules_to_save = ["score"] if task == "SEQ_CLS" else None
    return LoraConfig(
        r=recipe.lora_r, lora_alpha=recipe.lora_alpha, lora_dropout=recipe.lora_dropout, target_modules=recipe.lora_target_modules,
        task_type=task, modules_to_save=modules_to_save,
    )  # fmt: skip
