"""What a trainer is given, as a recipe and a device say: a model, arguments, rows, a collator, LoRA."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rpo_cli.artifacts import Job
from rpo_cli.devices import CPU, Device, is_spmd, processes, rank
from rpo_cli.errors import BadInput
from rpo_cli.models import (
    CAPTURES,
    Buckets,
    Graphs,
    Layout,
    PairCollator,
    Row,
    Shape,
    for_training,
    four_bits,
    groups_of,
    layout_for,
    pad_of,
    response_logits,
    response_logps,
    shape_of,
)
from rpo_cli.models.layout import Reader
from rpo_cli.recipes.schema import TrainingRecipe

if TYPE_CHECKING:
    from peft import LoraConfig

# A graph takes about a second to capture: it must spare this share of all tokens, whatever the model's size.
GRAPHS, WORTH_A_GRAPH = 8, 0.02
# Keys of a recipe that mean in TrainingArguments what they mean here.
SAME = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "train_sampling_strategy",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "logging_steps",
)  # fmt: skip


def arguments(recipe: TrainingRecipe, directory: Path, device: Device, seed: int) -> dict[str, object]:
    """Keyword arguments for SFTConfig, RewardConfig and DPOConfig, also where TRL's defaults are wrong."""
    return {name: getattr(recipe, name) for name in SAME} | {
        "output_dir": checkpoints_of(directory),
        "max_length": None,  # rows come cut
        "optim": device.optimizer(recipe.optim),
        # The name of gradient_checkpointing from transformers 6 on.
        "activation_checkpointing": recipe.gradient_checkpointing,
        "activation_checkpointing_kwargs": device.checkpointing,
        "logging_nan_inf_filter": False,  # a NaN must be seen, not averaged away
        "save_strategy": "no" if recipe.save_steps is None else "steps",
        "save_steps": recipe.save_steps or 500,
        "save_total_limit": 2,
        "report_to": "none",
        "seed": seed,
        "data_seed": seed,
        # One process has an autocast around model and loss (`WholeBatches`). Accelerate's is around the model
        # alone and makes float32 of all logits, and what goes by an autocast before the model sees none.
        "bf16": device.trains_in_autocast and processes() > 1,
        "use_cpu": device.name == "cpu",
        "disable_tqdm": True,
        # Of training rows `WholeBatches` leaves none over; of held-out rows none may be left out.
        "dataloader_drop_last": False,
        "dataloader_pin_memory": device.name == "cuda",
        "accelerator_config": {"non_blocking": device.name == "cuda"},  # or each copy waits for the GPU
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,  # every weight takes part in every loss
    }


def checkpoints_of(directory: Path) -> str:
    """Where this process writes checkpoints: under an artifact, unless it writes for nobody.

    All processes of a spread model help to bring the weights together, and to accelerate each is the first.
    """
    return tempfile.mkdtemp(prefix="rpo-") if is_spmd() and rank() != 0 else str(directory / "checkpoints")


BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")  # times processes


def steps_over(rows: int, recipe: TrainingRecipe, what: str) -> int:
    """Optimiser steps of a recipe that trains on so many rows.

    Raises:
        BadInput: they do not fill one step, or the steps end before what is to happen on the way.
    """
    batch = recipe.batch * processes()
    if rows < batch:
        sizes = {name: getattr(recipe, name) for name in BATCH}
        lower = " or ".join(f"{name} ({value})" for name, value in sizes.items() if value > 1)
        how = f"lower {lower}" if lower else f"train in fewer processes than {processes()}"
        raise BadInput(f"{what}: {rows} rows do not fill one batch of {batch}; {how}")
    steps = recipe.steps(rows, batch)
    early = ("eval_steps",) if getattr(recipe, "stopping", None) == "early" else ()
    for name in ("warmup_steps", *early):
        if (value := getattr(recipe, name, None) or 0) > steps:
            passes = f"{recipe.duration} over {rows} rows in batches of {batch}"
            raise BadInput(f"{what}: {name}: {value} is more than all {steps} steps ({passes})")
    return steps


def start_from(
    load: Callable[..., PreTrainedModel],
    job: Job[TrainingRecipe],
    tokenizer: PreTrainedTokenizerBase,
    device: Device,
    seed: int,
) -> tuple[PreTrainedModel, Callable[[], PreTrainedModel]]:
    """The model that a stage trains, and what loads it once more, on the CPU; see `write_model`.

    What it lacks is drawn: embeddings of new tokens, and the head where it was a language model.
    """
    recipe, revision = job.recipe, job.revisions.get("model")
    again = partial(load, job.inputs["model"], recipe, tokenizer=tokenizer, revision=revision, training=True)
    torch.manual_seed(seed)
    return again(device=device, bits=four_bits(recipe, device)), partial(again, device=CPU)


def graphed(recipe: TrainingRecipe, device: Device, layout: Layout) -> bool:
    """Whether steps are captured as graphs: where a GPU would else wait for the host."""
    dropout = recipe.use_peft and recipe.lora_dropout > 0  # a replay's numbers would be others
    # An optimiser of the lomo kind steps in hooks of the backward pass, which no replay calls.
    # Layers that are computed again could be captured, without the generator's state; but a graph holds on
    # to memory that they are there to spare, and what that costs and gives no GPU has shown.
    hooked = "lomo" in recipe.optim
    other = recipe.gradient_checkpointing or recipe.load_in_4bit or dropout or hooked or processes() > 1
    return recipe.cuda_graphs and device.name in CAPTURES and layout == "shared" and not other


def few_shapes(rows: Sequence[Shape], size: int, together: int, *, grouped: bool = False) -> Buckets:
    """The shapes that graphs are captured for, of batches of `size` rows, so many in an optimiser's."""
    return for_training(rows, size, together, grouped=grouped, most=GRAPHS, worth=WORTH_A_GRAPH)


def collator_of(
    rows: Sequence[Row],
    recipe: TrainingRecipe,
    device: Device,
    pad: int,
    layout: Layout,
    *,
    few: bool = False,
) -> tuple[PairCollator, dict[str, float]]:
    """The collator of a stage's rows, and metrics of its batches' shapes where there are few.

    few: though the device takes any; where each must be compiled there are in any case.
    """
    if not (device.fixed_shapes or few):
        return PairCollator(pad, layout), {}
    needed = [shape_of(row["prompt_ids"], groups_of(row), layout) for row in rows]
    pieces = recipe.gradient_accumulation_steps * processes()
    size, grouped = recipe.per_device_train_batch_size, recipe.train_sampling_strategy == "group_by_length"
    found = (few_shapes if few else for_training)(needed, size, pieces, grouped=grouped)
    logging.getLogger("rpo").info("training batches: %s", found)
    return PairCollator(pad, layout, found), {"shapes": len(found.shapes), "padding_share": found.padding}


@dataclass(frozen=True)
class Prepared:
    """How a trainer reads its rows; `graphs` of its steps, where these are captured."""

    collator: PairCollator
    shapes: dict[str, float]  # metrics, as `collator_of` returns them
    graphs: Graphs | None

    @property
    def shared(self) -> bool:
        """Whether responses share a row with their prompt."""
        return self.collator.layout == "shared"


def prepare(
    model: PreTrainedModel,
    rows: Sequence[Row],
    recipe: TrainingRecipe,
    device: Device,
    read: Reader,
    *,
    shared: bool,
) -> Prepared:
    """The collator of rows in the layout that `layout_for` finds, and graphs of what `read` needs."""
    prompts, answers = [row["prompt_ids"] for row in rows], [groups_of(row) for row in rows]
    layout = layout_for(model, read, prompts, answers, shared=shared)
    few = graphed(recipe, device, layout)
    collator, shapes = collator_of(rows, recipe, device, pad_of(model), layout, few=few)
    captured = response_logits if read is response_logps else read  # the sums are not captured
    return Prepared(collator, shapes, Graphs(captured, collator.largest) if few else None)


def lora_of(recipe: TrainingRecipe, task: str) -> LoraConfig | None:
    """peft's LoraConfig for a recipe that asks for one, else None.

    Raises:
        BadInput: peft is not installed.
    """
    if not recipe.use_peft:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise BadInput("use_peft needs the extra `lora`: pip install 'rpo-cli[lora]'") from error
    return LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_target_modules,
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )
