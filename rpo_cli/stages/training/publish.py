"""From a trained model to the artifact: unwrapped, merged, checked, saved beside its tokenizer."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import DistributedType
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rpo_cli.artifacts import all_finite, base_of_adapter, checkpoint_in
from rpo_cli.devices import is_spmd, rank, settle, to_host
from rpo_cli.errors import Diverged
from rpo_cli.models import save
from rpo_cli.stages.training.loop import STATE


def whole_model(trainer: Trainer) -> PreTrainedModel:
    """The trained model without wrappers; of a sharded one a copy, whose weights the first process holds."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.accelerator.distributed_type != DistributedType.FSDP:
        return model
    weights = trainer.accelerator.get_state_dict(trainer.model)
    whole = type(model)(model.config)
    if rank() == 0:
        whole.load_state_dict(weights)
    return whole.to(trainer.args.device).eval()


def publish_model(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    whole_base: Callable[[], PreTrainedModel] | None,
) -> PreTrainedModel:
    """Save the trained model as `write_model` does, and drop the checkpoints to resume from.

    Every process calls it, the first one writes. Returns the model, on the host where the device has no
    memory to save from.
    """
    trainer.accelerator.wait_for_everyone()  # another process may still read a checkpoint
    model = to_host(whole_model(trainer))
    if rank() == 0:
        model = write_model(model, trainer, tokenizer, directory, whole_base)
    elif is_spmd() and hasattr(model, "merge_and_unload"):
        # The same model, for what all hosts compute with it.
        model = write_model(model, trainer, tokenizer, Path(trainer.args.output_dir) / "merged", whole_base)
    drop_checkpoints(trainer, directory)
    return model


def drop_checkpoints(trainer: Trainer, directory: Path) -> None:
    """Remove what an unfinished training would have resumed from."""
    if rank() != 0:
        if is_spmd():
            shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
        return
    for state in (directory / "checkpoints").glob(f"*/{STATE}"):
        state.unlink()  # first: a kill in the middle must not leave half a checkpoint to resume from
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def write_model(
    model: PreTrainedModel,
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    whole_base: Callable[[], PreTrainedModel] | None,
) -> PreTrainedModel:
    """Save a model of a trainer beside its tokenizer; an adapter is kept apart and merged.

    `whole_base`: loads what the adapter was trained on, in full precision on the CPU, where it was trained in
    4 bits or in bfloat16: merged into those it would be rounded to them.
    """
    if hasattr(model, "merge_and_unload"):
        from peft import PeftModel

        stands_alone = True
        adapter = directory / "adapter"
        for config in model.peft_config.values():
            base = Path(config.base_model_name_or_path or "")
            if base.is_dir():  # peft looks from wherever it is called
                config.base_model_name_or_path = str(base.resolve())
                stands_alone = base_of_adapter(base) is None  # peft can load none on top of another
        rounded = any(weights.dtype != torch.float32 for weights in model.parameters())
        if stands_alone or rounded:
            model.save_pretrained(adapter, save_embedding_layers="auto" if stands_alone else False)
        if rounded:
            assert whole_base is not None
            where = model.device
            adapted = PeftModel.from_pretrained(whole_base(), adapter)
            model = adapted.merge_and_unload().to(where).eval()
        else:
            model = model.merge_and_unload()
        if not stands_alone:
            shutil.rmtree(adapter, ignore_errors=True)
            logging.getLogger("rpo").warning("trained on an adapter: only the merged model is kept")
    if not all(all_finite(weights) for weights in model.parameters()):
        raise Diverged(f"{directory}: the trained weights are not finite; try a smaller learning_rate")
    # TRL patches the forward of the instance; what is saved is the class's own.
    save(model, tokenizer, directory)
    return model


class Keeper(TrainerCallback):
    """Writes the model after each of these steps into a folder of its own; the training goes on as before.

    A run that is resumed writes again what came after the checkpoint that it resumes from.
    """

    def __init__(
        self, trainer: Trainer, steps: Sequence[int], write: Callable[[PreTrainedModel, Path], object]
    ) -> None:
        self.trainer, self.steps, self.write = trainer, list(steps), write

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step not in self.steps:
            return
        settle(args.device)
        model = whole_model(self.trainer)
        if hasattr(model, "merge_and_unload") or model.device.type == "xla":
            model = copy.deepcopy(model)  # what is merged, or moved to the host, is not trained on
        model = to_host(model)  # in every process: of a model that is spread over hosts each has a part
        cache = model.config.use_cache
        if rank() == 0:
            folder = checkpoint_in(Path(args.output_dir).parent, self.steps.index(state.global_step) + 1)
            self.write(model, folder)
        model.config.use_cache = cache
