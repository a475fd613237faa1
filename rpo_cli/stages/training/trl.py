"""The trainers of TRL and transformers as they are used here, and every private name of theirs in use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import transformers.modeling_utils
import transformers.trainer
from accelerate import skip_first_batches
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments
from trl import DPOTrainer, SFTTrainer

from rpo_cli.artifacts import Job
from rpo_cli.devices import CPU, Device, cut_batches
from rpo_cli.models import Graphs, in_step
from rpo_cli.models.layout import Reader
from rpo_cli.recipes.schema import TrainingRecipe
from rpo_cli.stages.training.arguments import arguments
from rpo_cli.stages.training.order import OptimizerBatches

# Where (module, or module:class), what, why. A release may rename any: tests/test_trl_contract.py looks.
PRIVATE = (
    ("trl:DPOTrainer", "_prepare_dataset", "rows come tokenised"),
    ("trl:RewardTrainer", "_prepare_dataset", "rows come tokenised"),
    ("trl:DPOTrainer", "_precompute_ref_logps", "reference log-probs come as columns"),
    ("trl:DPOTrainer", "_send_telemetry", "no telemetry"),
    ("trl:RewardTrainer", "_send_telemetry", "no telemetry"),
    ("trl:SFTTrainer", "_send_telemetry", "no telemetry"),
    ("trl:SFTTrainer", "_total_train_tokens", "a count that no checkpoint of TRL's holds"),
    ("transformers:Trainer", "_get_train_sampler", "whole optimiser batches"),
    ("transformers:Trainer", "_prepare_inputs", "a batch on the device, as a step gets it"),
    ("transformers:TrainingArguments", "_n_gpu", "one process uses one GPU"),
    ("transformers.modeling_utils", "checkpoint", "torch's own asks for a module torch.xla: there is none"),
    ("transformers.trainer", "skip_first_batches", "the loader of a run that goes on cuts batches, too"),
    ("transformers.trainer", "nested_gather", "on XLA a meeting of a process with itself, in four programs"),
)  # fmt: skip

Config = TypeVar("Config", bound=TrainingArguments)


def config_of(
    kind: type[Config], job: Job[TrainingRecipe], device: Device, seed: int, **own: object
) -> Config:
    """A stage's training arguments; for one GPU, as over several Trainer would split batches unasked.

    A model is loaded without dropout; TRL's `disable_dropout` would silence that of an adapter besides.
    """
    recipe: TrainingRecipe = job.recipe
    config: Config = kind(**arguments(recipe, job.directory, device, seed) | own)
    if config.n_gpu > 1:
        config._n_gpu = 1
    return config


def mend_for_xla() -> None:
    """Replace what transformers does on XLA that fails, or compiles and reads more than it must."""
    import torch_xla.runtime
    import torch_xla.utils.checkpoint

    transformers.modeling_utils.checkpoint = torch_xla.utils.checkpoint.checkpoint
    transformers.trainer.skip_first_batches = skip_and_cut
    if torch_xla.runtime.world_size() == 1:
        transformers.trainer.nested_gather = lambda tensors, *args, **kwargs: tensors.cpu()


def skip_and_cut(loader: Any, count: int) -> Any:
    """Accelerate's loader without its first batches, for a run that goes on; it uploads as the whole one."""
    rest = skip_first_batches(loader, count)
    if hasattr(rest, "_parallel_loader_kwargs"):
        rest._parallel_loader_kwargs |= loader._parallel_loader_kwargs
    return rest


class WholeBatches(Trainer):
    """A Trainer on tokenised rows whose every optimiser step sees a whole batch, however it is cut in pieces.

    An epoch's last rows are left out. `device`: its forward passes bring an autocast if Trainer brings none.
    `turns`: its data set has the rows so many times, as `OptimizerBatches` takes them.
    """

    turns = 1

    def __init__(self, *args: object, device: Device = CPU, **kwargs: object) -> None:
        if device.name == "xla":
            mend_for_xla()
        self.device, self.compiled = device, False
        self.graphs: Graphs | None = None
        super().__init__(*args, **kwargs)

    def training_step(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Forward and backward of a piece of a batch; through compiled layers if `train` had them made."""
        with in_step() if self.compiled else nullcontext():
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> AbstractContextManager[None]:
        """What a forward pass with its loss runs under."""
        return nullcontext() if self.args.bf16 else self.device.autocast()

    def reader(self, read: Reader) -> Reader:
        """What reads a batch that is learnt from: `read`, or graphs that were made for it."""
        return read if self.graphs is None else self.graphs

    def is_logged(self) -> bool:
        """Whether the step that is under way gets a line of metrics; the last one does in any case."""
        step = self.state.global_step + 1
        return bool(step % self.args.logging_steps == 0 or step == self.args.max_steps)

    def batch_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over processes."""
        return self._over_processes(values, "mean")

    def batch_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over processes."""
        return self._over_processes(values, "sum")

    def _over_processes(self, values: torch.Tensor, how: str) -> torch.Tensor:
        if self.accelerator.num_processes == 1:
            return values  # one alone has nothing to wait for
        reduced: torch.Tensor = self.accelerator.reduce(values, how)
        return reduced

    def placed(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch on the device, as a step's loss gets it."""
        inputs: dict[str, torch.Tensor] = self._prepare_inputs(batch)
        return inputs

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Trainer's, whose batches are cut where a model is spread over devices."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        cut_batches(loader, self.args.train_batch_size)
        return loader

    def _prepare_dataset(self, dataset: Dataset, *args: object, **kwargs: object) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        """None."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        micro, grouped = self.args.train_batch_size, self.args.train_sampling_strategy == "group_by_length"
        batch = micro * self.args.gradient_accumulation_steps * self.args.world_size
        lengths = [0] * len(rows)
        if grouped or batch > micro:
            columns = [rows[name] for name in rows.column_names if name.endswith("_ids")]
            lengths = [sum(map(len, row)) for row in zip(*columns, strict=True)]
        # Accelerate tells a sampler that is none of its own the epoch only while nothing was resumed.
        turns, seed = self.turns, self.args.data_seed
        steps = max(1, len(rows) // turns // batch)
        return OptimizerBatches(
            lengths, batch, seed, lambda: self.state.global_step // steps, grouped=grouped, turns=turns
        )


class LeanTrainer(WholeBatches):
    """A trainer that logs what it notes, read in one transfer, and nothing of TRL's (8 to 15 syncs each)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.notes: dict[str, list[torch.Tensor]] = {}
        super().__init__(*args, **kwargs)

    def note(self, name: str, value: torch.Tensor) -> None:
        """Keep a metric of a piece of a batch on the device, if its step is logged."""
        if self.is_logged():
            self.notes.setdefault(name, []).append(value.detach())

    def noted(self) -> dict[str, float]:
        """What was noted since the last time, mean over pieces and processes."""
        if not self.notes:
            return {}
        means = torch.stack([torch.stack(values).mean() for values in self.notes.values()])
        found = dict(zip(self.notes, self.batch_mean(means).tolist(), strict=True))
        self.notes.clear()
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A line of metrics with what was noted."""
        logs |= self.noted()
        Trainer.log(self, logs, start_time)


class PairTrainer(LeanTrainer, DPOTrainer):
    """DPOTrainer on tokenised pairs whose reference log-probs are columns."""

    def _precompute_ref_logps(self, dataset: Dataset, *args: object, **kwargs: object) -> Dataset:
        return dataset


class TokenTrainer(WholeBatches, SFTTrainer):
    """SFTTrainer on tokenised rows, whose count of tokens survives a checkpoint."""

    uncounted: torch.Tensor | int = 0  # tokens of all processes since the count was last read

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, object]:
        """TRL's loss; on a GPU its other metrics, each of which is waited for, only where they are logged."""
        wanted = self.is_logged() or return_outputs or not self.model.training
        if wanted or self.device.name != "cuda" or self.aux_loss_enabled or num_items_in_batch is None:
            self.counted()
            found: torch.Tensor | tuple[torch.Tensor, object] = super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch
            )
            return found
        self.uncounted = self.uncounted + self.batch_sum(inputs["attention_mask"].sum())
        logps = model(**inputs, use_cache=False, fused_lm_head=True).log_probs
        loss: torch.Tensor = -logps.sum() / num_items_in_batch.clamp(min=1)
        # The count is of all processes' tokens, and their gradients are averaged.
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    def counted(self) -> dict[str, int]:
        """The count, for a checkpoint."""
        if isinstance(self.uncounted, torch.Tensor):
            self._total_train_tokens += int(self.uncounted)
            self.uncounted = 0
        return {"num_tokens": self._total_train_tokens}

    def count_from(self, state: Mapping[str, int]) -> None:
        """Go on from a checkpoint's count."""
        self._total_train_tokens = state["num_tokens"]
