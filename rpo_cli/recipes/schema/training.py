"""Recipes of training: what all share, SFT, reward models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, PositiveInt, model_validator

from rpo_cli.recipes.schema.base import (
    LARGEST,
    EachOnce,
    FourBits,
    Idle,
    ModelSource,
    NotNegative,
    Positive,
    Share,
    SharedPrompts,
    Table,
    added,
    at_most,
    cosmetic,
)

Measured = Literal[
    "held_out_accuracy", "held_out_accuracy/longer", "held_out_accuracy/shorter",
    "held_out_utility_accuracy", "held_out_utility_accuracy/longer", "held_out_utility_accuracy/shorter",
]  # fmt: skip
REQUIRED: tuple[str, ...] = get_args(Measured)
LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
WITHOUT_BETAS = re.compile("sgd|adagrad|adafactor|rmsprop|(ada)?lomo|schedule_free_sgd")


class TrainingRecipe(ModelSource, FourBits):
    """Keys of transformers.TrainingArguments that the recipes use, under their own names."""

    max_steps: PositiveInt = Field(1000, description="optimiser steps")
    num_train_epochs: Positive | None = added(
        None,
        "passes over the rows, in place of max_steps; of the last batch of a pass only a whole one counts",
    )
    learning_rate: Positive = Field(1e-6, description="peak learning rate")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    per_device_train_batch_size: PositiveInt = Field(
        16, description="rows at a time on one device; several processes share them"
    )
    gradient_accumulation_steps: PositiveInt = Field(
        1,
        description="pieces of this size in the batch of an optimiser step, which stays the same in several "
        "processes",
    )
    auto_find_batch_size: bool = cosmetic(
        False,
        "where memory ends, begin again with the optimiser's batch in more, smaller pieces; the batch, and "
        "with it the result but for rounding, stays the same. In one process",
    )
    train_sampling_strategy: Literal["random", "group_by_length"] = added(
        "random",
        "group_by_length: the rows of an optimiser batch are of about equal length, so that less is padding; "
        "such a batch no longer stands for the data, which matters where it decides something (ensemble_min: "
        "batch) and where the bias is one of length. Of either kind, a batch is cut into its pieces from the "
        "longest row to the shortest",
    )
    per_device_eval_batch_size: PositiveInt = cosmetic(64, "rows at a time where nothing is learnt")
    optim: str = "adamw_torch"
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    gradient_checkpointing: bool = cosmetic(False, "trade time for memory")
    torch_compile: bool = added(
        False,
        "compile the model's layers for the steps of training, on one GPU or the CPU; losses differ by "
        "rounding",
    )
    cuda_graphs: bool = added(
        True,
        "on one GPU, launch a training's passes as CUDA graphs, one for each of a few "
        "shapes of batches, which are padded to them; not with `shared_prompts: false`, "
        "gradient_checkpointing, load_in_4bit, lora_dropout or an optimiser of the lomo kind",
    )
    logging_steps: PositiveInt = cosmetic(10, "steps between lines of metrics.jsonl")
    save_steps: PositiveInt | None = cosmetic(
        None, "steps between checkpoints to resume from; default: none are written"
    )
    use_peft: bool = Field(
        False,
        description="train a LoRA adapter (extra `lora`); the saved model is merged, the adapter kept beside "
        "it",
    )
    lora_r: PositiveInt = 16
    lora_alpha: Annotated[PositiveInt, at_most(LARGEST)] = 32
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: str | Annotated[list[str], Field(min_length=1)] = "all-linear"

    @property
    def batch(self) -> int:
        """Rows of an optimiser step, of all processes together where a recipe is not one's share."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def cuts(self) -> Iterator[Self]:
        """Itself, then with the same batch in more and more pieces, down to one row at a time."""
        size = self.batch
        for pieces in range(self.gradient_accumulation_steps, size + 1):
            if size % pieces == 0:
                cut = {"per_device_train_batch_size": size // pieces, "gradient_accumulation_steps": pieces}
                yield self.model_copy(update=cut)

    def steps(self, rows: int, batch: int) -> int:
        """Optimiser steps of so many rows each: max_steps, or those of the passes, whole batches alone."""
        if self.num_train_epochs is None:
            return self.max_steps
        return max(1, math.ceil(self.num_train_epochs * (rows // batch)))

    @property
    def duration(self) -> str:
        """How long it trains, in words."""
        if self.num_train_epochs is None:
            return f"{self.max_steps} steps"
        return f"{self.num_train_epochs:g} epoch{'' if self.num_train_epochs == 1 else 's'}"

    @model_validator(mode="after")
    def one_duration(self) -> TrainingRecipe:
        if self.num_train_epochs is not None and "max_steps" in self.model_fields_set:
            raise ValueError("num_train_epochs: max_steps is given too; write one of the two")
        return self

    @model_validator(mode="after")
    def warms_up_in_time(self) -> TrainingRecipe:
        if self.num_train_epochs is None and self.warmup_steps > self.max_steps:
            more = f"{self.warmup_steps} is more than all steps (max_steps: {self.max_steps})"
            raise ValueError(f"warmup_steps: {more}")
        return self

    def idle(self) -> Idle:
        found = super().idle()
        if not self.use_peft:
            found |= dict.fromkeys(((name,) for name in LORA), "use_peft")
        if self.lr_scheduler_type == "constant":
            found["warmup_steps",] = "lr_scheduler_type"
        if WITHOUT_BETAS.match(self.optim):
            found |= dict.fromkeys((("adam_beta1",), ("adam_beta2",)), "optim")
        if self.num_train_epochs is None and (self.save_steps or 0) > self.max_steps:
            found["save_steps",] = "max_steps"
        return found

    @model_validator(mode="after")
    def four_bits_are_frozen(self) -> TrainingRecipe:
        if self.load_in_4bit and not self.use_peft:
            why = "weights of 4 bits cannot be trained, an adapter beside them can"
            raise ValueError(f"load_in_4bit needs use_peft: true; {why}")
        if not self.load_in_4bit and (self.use_bnb_nested_quant or self.bnb_4bit_quant_type != "nf4"):
            raise ValueError("bnb_4bit_quant_type and use_bnb_nested_quant: no effect without load_in_4bit")
        return self


class SFTRecipe(TrainingRecipe):
    """Supervised fine-tuning on (prompt, completion): makes pi_SFT, the reference policy."""

    stage: Literal["sft"]
    data: str = Field("data.yaml", description="the data recipe")
    table: Table = "sft_train"
    model_config_kwargs: dict[str, object] | None = Field(
        None,
        description="train from scratch: model_type and the keys of its transformers config; the tokenizer "
        "is the data's",
    )

    @model_validator(mode="after")
    def one_source(self) -> SFTRecipe:
        if (self.model_name_or_path is None) == (self.model_config_kwargs is None):
            raise ValueError("give either model_name_or_path or model_config_kwargs")
        keys = self.model_config_kwargs or {}
        if self.model_config_kwargs is not None and not isinstance(keys.get("model_type"), str):
            raise ValueError("model_config_kwargs: needs a model_type, such as llama")
        if taken := sorted(keys.keys() & {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}):
            raise ValueError(f"model_config_kwargs: {', '.join(taken)}: the tokenizer says it; leave it out")
        if self.load_in_4bit and self.model_config_kwargs is not None:
            why = "a model from scratch has no weights to quantise"
            raise ValueError(f"load_in_4bit: {why}; name one with model_name_or_path")
        return self


class RewardRecipe(TrainingRecipe, SharedPrompts):
    """Bradley-Terry reward model: the oracle, the one RM of D_rho, or the ensemble's members."""

    stage: Literal["reward"]
    data: str = Field("data.yaml", description="recipe of the pairs: data, relabel or splits")
    table: Table = Field("pairs", description="which table of a data recipe")
    rho: Share | None = Field(None, description="train on D_rho of a splits recipe")
    ensemble: Annotated[list[Share], EachOnce] = cosmetic(
        [], "biases b of the ensemble: one member on each D_rho,b"
    )  # a member's own b is in its key
    ensemble_of: Literal["subsets", "halves", "folds", "seeds"] = cosmetic(
        "subsets",
        "what members differ in. subsets: each on its D_rho,b. Told nothing of length: halves, each on "
        "another random half of D_rho; folds, each on all of D_rho but the prompts of another of "
        "ensemble_size parts; seeds, each on all of D_rho under a seed of its own",
    )  # a member's half, fold or seed is in its key
    ensemble_size: PositiveInt = cosmetic(5, "members of ensemble_of: halves, folds or seeds")
    stopping: Literal["steps", "early"] = Field(
        "steps",
        description="the last step, or the evaluated step with the lowest held-out loss (paper: unknown)",
    )
    eval_steps: PositiveInt | None = Field(
        None, description="steps between held-out evaluations; needed by stopping: early"
    )
    require: dict[Measured, Share] = added(
        {},
        "least accuracies on held-out pairs, such as {held_out_accuracy/shorter: 0.6}: a model below one is "
        "not published, and nothing is built on it",
    )

    @model_validator(mode="after")
    def early_needs_eval(self) -> RewardRecipe:
        late = self.num_train_epochs is None and (self.eval_steps or 0) > self.max_steps
        if self.stopping == "early" and (self.eval_steps is None or late):
            raise ValueError("stopping: early needs eval_steps, at most max_steps")
        return self

    @model_validator(mode="after")
    def folds_leave_something(self) -> RewardRecipe:
        if self.ensemble_of == "folds" and self.ensemble_size < 2:
            raise ValueError("ensemble_size: without the only fold nothing is left; write 2 or more")
        return self

    def idle(self) -> Idle:
        found = super().idle()
        if self.stopping != "early" and "stopping" not in self.model_fields_set:
            found["eval_steps",] = "stopping"
        if self.stopping == "early":  # a checkpoint is the best step so far
            found["save_steps",] = "stopping"
        if self.ensemble_of == "subsets":
            found["ensemble_size",] = "ensemble_of"
        return found

    @property
    def has_members(self) -> bool:
        """Whether it describes an ensemble beside the one model of all pairs."""
        return bool(self.ensemble) or self.ensemble_of != "subsets"
