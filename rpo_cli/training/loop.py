"""What SFT, reward model and policy training share: TRL's arguments, checkpoints to resume from, the metrics' journal."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rpo_cli.batches import PairCollator, groups_of, shape_of
from rpo_cli.buckets import for_training
from rpo_cli.devices import CPU, Device, arrangement, cut_batch, cut_model, processes, rank, spread, step_mark, to_host
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.models import save
from rpo_cli.schema import TrainingRecipe
from rpo_cli.tracking import Report
from rpo_cli.workspace import read_json, write_json

STATE = "rpo_state.json"


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
    found = for_training(needed, recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps * processes())
    logging.getLogger("rpo").info("training batches: %s", found)
    return PairCollator(pad, shared, found), {"shapes": len(found.shapes), "padding_share": found.padding}


class WholeBatches(Trainer):
    """A Trainer whose every optimiser step sees a whole batch: an epoch's last rows are left out, however batches are cut.

    `device`: where its forward passes bring an autocast of their own, if Trainer brings none.
    """

    device: Device = CPU

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[None]:
        """What a forward pass with its loss runs under."""
        return nullcontext() if self.args.bf16 else self.device.autocast()

    def is_logged(self) -> bool:
        """Whether the step that is under way gets a line of metrics; the last one does in any case."""
        step = self.state.global_step + 1
        return bool(step % self.args.logging_steps == 0 or step == self.args.max_steps)

    def batch_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over processes; one alone has nothing to wait for."""
        mean: torch.Tensor = self.accelerator.reduce(values, "mean") if self.accelerator.num_processes > 1 else values
        return mean

    def batch_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over processes."""
        total: torch.Tensor = self.accelerator.reduce(values, "sum") if self.accelerator.num_processes > 1 else values
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
        return OptimizerBatches(lengths, batch, self.args.data_seed, lambda: self.state.global_step // steps, grouped=grouped)


class OptimizerBatches(Sampler[int]):
    """Rows in whole optimiser batches, each from its longest row to its shortest, so that the micro-batches it is cut into pad little.

    A batch is drawn at random and stands for the data; `grouped`: its rows are of about equal length, as transformers'
    group_by_length has them. As there, rows are shuffled, and sorted within pieces of up to 50 batches. What differs: the
    rows that an epoch leaves out are drawn from all, not the shortest of the last piece; and batches are shuffled, not taken
    from long to short. The batch meant is the optimiser's, whatever number of micro-batches and processes share it.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, epoch: Callable[[], int], *, grouped: bool) -> None:
        self.lengths, self.batch, self.seed, self.epoch, self.grouped = lengths, batch, seed, epoch, grouped

    def __len__(self) -> int:
        # dataloader_drop_last would leave an accumulated batch incomplete at the end of an epoch.
        return len(self.lengths) // self.batch * self.batch

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch())
        rows: list[int] = torch.randperm(len(self.lengths), generator=draw).tolist()[: len(self)]
        if not self.grouped:
            yield from self._from_long_to_short(rows, self.batch)
            return
        size = max(1, min(len(rows) // (4 * self.batch), 50)) * self.batch  # at least four pieces, which differ from epoch to epoch
        ordered = self._from_long_to_short(rows, size)
        for batch in torch.randperm(len(rows) // self.batch, generator=draw).tolist():
            yield from ordered[batch * self.batch : (batch + 1) * self.batch]

    def _from_long_to_short(self, rows: list[int], size: int) -> list[int]:
        """The rows of each piece of this size by length; those of one length stay as drawn."""
        pieces = (rows[start : start + size] for start in range(0, len(rows), size))
        return [i for piece in pieces for i in sorted(piece, key=lambda i: -self.lengths[i])]


class Journal(TrainerCallback):
    """Reports progress and metrics, stops on a loss that is not finite, and completes checkpoints."""

    def __init__(self, report: Report, state: Callable[[], dict[str, Any]]) -> None:
        self.report = report
        self.state = state

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.report.rewind(state.global_step)
        cut_model(kwargs["model"], kwargs["optimizer"], args.train_batch_size)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step_mark(args.device)  # each piece of a batch by itself: all in one program would take as much longer to compile

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.report(state.global_step, state.max_steps)
        if control.should_save or control.should_evaluate or state.global_step >= state.max_steps:
            # The losses since the last line are in no checkpoint: a run that resumes there starts a new line too. Nor is
            # there a later line for those of the last steps.
            control.should_log = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        values = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        for name in ("loss", "grad_norm", "eval_loss", "train_loss"):
            if name in values and not math.isfinite(values[name]):
                raise RunFailed(
                    f"{self.report.job.path}: {name} is {values[name]} at step {state.global_step}; try a smaller learning_rate"
                )
        if "train_runtime" not in values and state.is_world_process_zero:
            self.report.log(values, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Written last, when every process has written its part: a checkpoint without this file was cut short by a kill.
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE, {**self.state(), "processes": arrangement()})


def last_checkpoint(directory: Path, max_steps: int) -> Path | None:
    """The newest complete checkpoint of an unfinished run that leaves a step to do: after the last Trainer would do one more.

    In as many processes as now: among fewer or more its last bits would differ.
    """

    def step(checkpoint: Path) -> int:
        return int(checkpoint.name.split("-")[1])

    complete = [p for p in directory.glob("checkpoint-*") if (read_json(p / STATE) or {}).get("processes") == arrangement()]
    return max((p for p in complete if step(p) < max_steps), key=step, default=None)


def train(
    trainer: Trainer,
    report: Report,
    *,
    state: Callable[[], dict[str, Any]] = dict,
    restore: Callable[[dict[str, Any]], None] = lambda state: None,
) -> dict[str, float]:
    """Train to the end, from the last complete checkpoint if there is one; returns the final training metrics."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Journal(report, state))
    for weights in trainer.model.parameters():
        if weights.requires_grad:  # TRL rounds an adapter on a base of 4 bits to bfloat16, where steps of 1e-5 would be lost
            weights.data = weights.data.float()
    checkpoint = last_checkpoint(report.job.directory / "checkpoints", trainer.args.max_steps)
    if checkpoint is not None:
        restore(read_json(checkpoint / STATE) or {})
        _relocate(checkpoint)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not losses:
        return {}
    return {"first_loss": losses[0], "last_loss": losses[-1]}


def _relocate(checkpoint: Path) -> None:
    """Name the best checkpoint so far as it is reached from here: Trainer forgets one that it does not find, and keeps the last step."""
    state = read_json(checkpoint / "trainer_state.json") or {}
    if (best := state.get("best_model_checkpoint")) is not None:
        write_json(checkpoint / "trainer_state.json", state | {"best_model_checkpoint": str(checkpoint.parent / Path(best).name)})


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


def whole_model(trainer: Trainer) -> Any:
    """The trained model without wrappers; of one that is sharded over processes, a copy whose weights the first process holds."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.accelerator.distributed_type != DistributedType.FSDP:
        return model
    weights = trainer.accelerator.get_state_dict(trainer.model)
    whole = type(model)(model.config)
    if rank() == 0:
        whole.load_state_dict(weights)
    return whole.to(trainer.args.device).eval()


def publish_model(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, directory: Path, whole_base: Callable[[], PreTrainedModel] | None = None
) -> PreTrainedModel:
    """Save the trained model beside its tokenizer, drop the checkpoints; an adapter is kept apart and merged.

    Every process calls it, the first one writes. Returns the model, on the host where the device has no memory to save from.
    `whole_base`: loads what the adapter was trained on, in full precision on the CPU, where it was trained in 4 bits: merged
    into those it would be rounded to them.
    """
    trainer.accelerator.wait_for_everyone()  # another process may still read a checkpoint
    model = to_host(whole_model(trainer))
    if rank() != 0:
        if spread():
            shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
        return model
    if hasattr(model, "merge_and_unload"):
        from peft import PeftModel

        for config in model.peft_config.values():
            base = Path(config.base_model_name_or_path or "")
            if base.is_dir():  # peft looks from wherever it is called
                config.base_model_name_or_path = str(base.resolve())
        model.save_pretrained(directory / "adapter")
        if getattr(model, "is_loaded_in_4bit", False):
            assert whole_base is not None
            adapted = PeftModel.from_pretrained(whole_base(), directory / "adapter")
            model = adapted.merge_and_unload().to(trainer.args.device).eval()
        else:
            model = model.merge_and_unload()
    if not all(bool(weights.isfinite().all()) for weights in model.parameters()):
        raise RunFailed(f"{directory}: the trained weights are not finite; try a smaller learning_rate")
    # TRL patches the forward of the instance; what is saved is the class's own.
    save(model, tokenizer, directory)
    for state in (directory / "checkpoints").glob(f"*/{STATE}"):
        state.unlink()  # first: a kill in the middle must not leave half a checkpoint to resume from
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    return model
