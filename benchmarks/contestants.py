"""Who takes turns in a race: this package's trainers and the baselines, a step at a time, in one process.

A trainer runs in a thread of its own and stops after each step until it is its turn again, so that everything
a step costs (data loading, callbacks, logging) is measured, set-up is not, and both sides of a ratio see the
same state of the machine.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import DPOConfig, RewardConfig, SFTConfig

from benchmarks.race import Setting
from benchmarks.trainers import (
    AsDrawn,
    LeanSFT,
    NaivePolicy,
    OurPolicy,
    OurReward,
    OurSFT,
    StockPolicy,
    StockReward,
    StockSFT,
)
from benchmarks.workloads import Row
from rpo_cli.artifacts import Report
from rpo_cli.devices import Device
from rpo_cli.models import Graphs, PairCollator, response_logits, response_logps, response_rewards
from rpo_cli.models.norms import fuse_norms
from rpo_cli.models.rotary import fuse_rotary
from rpo_cli.objectives.dpo import dpo_losses
from rpo_cli.objectives.members import MemberChoice
from rpo_cli.recipes.schema import PolicyRecipe, RewardRecipe, SFTRecipe, TrainingRecipe
from rpo_cli.stages.training.arguments import arguments, collator_of, graphed, lora_of
from rpo_cli.stages.training.loop import train

NEVER = 10**6  # steps: whoever measures says when to stop
WITHOUT_KL: dict[str, Any] = {"kl_estimator": "data", "gamma": 0.0, "gamma_end": None}  # e-dpo's, of a recipe
# How a recipe's steps are computed, not what is learnt in them: losses must agree whatever they are.
HOW = ("torch_compile", "gradient_checkpointing")
# What a recomputed layer must do without in a capture: torch reads the generator's state on the host.
CAPTURED_CHECKPOINTING = {"use_reentrant": False, "preserve_rng_state": False}


class _Turns(TrainerCallback):
    """Hands over after every step, and ends the training when told."""

    def __init__(self) -> None:
        self.go, self.done, self.over = threading.Semaphore(0), threading.Semaphore(0), False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done.release()
        self.go.acquire()
        control.should_training_stop = self.over


class Training:
    """A trainer as a contestant."""

    def __init__(
        self,
        name: str,
        kind: str,
        trainer: Any,
        run: Callable[[], Any],
        ids: list[list[int]],
        setting: Setting,
    ) -> None:
        self.name, self.kind, self.trainer, self.ids, self.setting = name, kind, trainer, ids, setting
        self.pieces: int = trainer.args.gradient_accumulation_steps
        self.turns = _Turns()
        self.error: BaseException | None = None
        self.trainer.add_callback(self.turns)
        self._run = run
        self._thread: threading.Thread | None = None

    @property
    def losses(self) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = self.trainer.seen
        return seen

    @property
    def captured(self) -> bool:
        """Whether its passes are read by graphs, and none was given up."""
        graphs: Graphs | None = getattr(self.trainer, "graphs", None)
        return graphs is not None and graphs.open

    def _body(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error
        finally:
            self.turns.done.release()

    def step(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._body, daemon=True)
            self._thread.start()
        else:
            self.turns.go.release()
        self.turns.done.acquire()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        if self._thread is not None:
            self.turns.over = True
            self.turns.go.release()
            self._thread.join()
            if self.error is not None:
                raise self.error


class Loop:
    """A bare loop, written as a generator of losses, as a contestant."""

    setting: Setting = "stock"
    captured = False

    def __init__(
        self, name: str, kind: str, losses: Iterator[torch.Tensor], ids: list[list[int]], pieces: int = 1
    ) -> None:
        self.name, self.kind, self.ids, self.pieces, self._iterator = name, kind, ids, pieces, losses
        self.losses: list[torch.Tensor] = []

    def step(self) -> None:
        self.losses.append(next(self._iterator))

    def close(self) -> None:
        pass


class _Recording:
    """A collator that notes which rows it was given."""

    def __init__(self, collate: Any, ids: list[list[int]]) -> None:
        self.collate, self.ids = collate, ids

    def __call__(self, rows: list[Row]) -> Any:
        self.ids.append([row["id"] for row in rows])
        return self.collate(rows)


@dataclass(frozen=True)
class Maker:
    """Makes contestants that share device, tokenizer, settings and batches of `pieces` times `batch` rows."""

    tokenizer: PreTrainedTokenizerBase
    device: Device
    batch: int
    folder: Path
    pieces: int = 1

    def _settings(self, recipe: TrainingRecipe) -> dict[str, Any]:
        return arguments(recipe, Path(tempfile.mkdtemp(dir=self.folder)), self.device, 0)

    def _stock_settings(self, recipe: TrainingRecipe) -> dict[str, Any]:
        """The same for TRL's trainers, which leave precision to Trainer."""
        return self._settings(recipe) | {"bf16": self.device.trains_in_autocast}

    def _recipe(self, kind: Any, **fields: Any) -> Any:
        common = {
            "max_steps": NEVER,
            "per_device_train_batch_size": self.batch,
            "gradient_accumulation_steps": self.pieces,
        }
        common |= {"learning_rate": 1e-5, "lr_scheduler_type": "constant", "optim": "adamw_torch_fused"}
        return kind(**common | {"dtype": self.device.dtype_name} | fields)

    def _report(self, recipe: TrainingRecipe) -> Report:
        job: Any = SimpleNamespace(
            directory=Path(tempfile.mkdtemp(dir=self.folder)), path="benchmark", recipe=recipe
        )
        return Report(job, lambda step, of: None)

    def ours(
        self,
        name: str,
        model: PreTrainedModel,
        rows: list[Row],
        objective: str = "dpo",
        as_drawn: bool = False,
        setting: Setting = "rpo",
        by_graphs: bool = False,
        **fields: Any,
    ) -> Training:
        """This package's policy trainer, with its journal, as `rpo train-policy` runs it.

        by_graphs: its passes are graphs though a recipe's would not be, layers that are recomputed included.
        """
        recipe = self._recipe(
            PolicyRecipe, stage="policy", objective=objective, beta=0.1, **_repeating(setting), **fields
        )
        members = None
        if objective == "e-dpo":
            members = self._members(rows, recipe)
        ids: list[list[int]] = []
        settings = self._settings(recipe)
        if by_graphs and recipe.gradient_checkpointing:
            settings["activation_checkpointing_kwargs"] = CAPTURED_CHECKPOINTING
        config = DPOConfig(**settings, beta=recipe.beta, precompute_ref_log_probs=True)
        pad, graphs = self.tokenizer.pad_token_id, by_graphs or graphed(recipe, self.device, "shared")
        collate, _ = collator_of(rows, recipe, self.device, pad, "shared", few=graphs)
        trainer = (AsDrawn if as_drawn else OurPolicy)(
            recipe,
            members,
            None,
            model=model,
            args=config,
            device=self.device,
            data_collator=_Recording(collate, ids),
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
            peft_config=_adapter(recipe),
        )
        trainer.graphs = Graphs(response_logits, collate.largest) if graphs else None
        return self._ours(recipe, name, _kind(objective, fields), trainer, ids, setting)

    def _members(self, rows: list[Row], recipe: PolicyRecipe) -> MemberChoice:
        margins = torch.tensor([row["margins"] for row in rows], dtype=torch.float32).T
        return MemberChoice("dataset", [str(i) for i in range(len(margins))], margins, recipe.ema_decay)

    def _ours(
        self,
        recipe: TrainingRecipe,
        name: str,
        kind: str,
        trainer: Any,
        ids: list[list[int]],
        setting: Setting = "rpo",
    ) -> Training:
        if self.device.name == "cuda":  # as models are loaded there
            fuse_norms(trainer.model)
            fuse_rotary(trainer.model)
        report = self._report(recipe)
        contestant = Training(name, kind, trainer, lambda: None, ids, setting)
        contestant._run = lambda: train(trainer, report)
        return contestant

    def _stock(self, name: str, kind: str, trainer: Any, setting: Setting = "stock") -> Training:
        trainer.remove_callback(PrinterCallback)
        ids: list[list[int]] = []
        trainer.data_collator = _Recording(trainer.data_collator, ids)
        return Training(name, kind, trainer, trainer.train, ids, setting)

    def trl(
        self,
        name: str,
        model: PreTrainedModel,
        rows: list[Row],
        reference: PreTrainedModel | None = None,
        setting: Setting = "stock",
        **fields: Any,
    ) -> Training:
        """TRL's DPOTrainer; with a reference model it is in the loop, else its log-probs are columns."""
        recipe = self._recipe(PolicyRecipe, stage="policy", objective="dpo", beta=0.1, **fields)
        config = DPOConfig(
            **self._stock_settings(recipe), beta=recipe.beta, precompute_ref_log_probs=reference is None
        )
        online = {"ref_chosen_logps", "ref_rejected_logps"} if reference is not None else set()
        data = Dataset.from_list(
            [{key: value for key, value in row.items() if key not in online} for row in rows]
        )
        trainer = StockPolicy(
            model=model,
            ref_model=reference,
            args=config,
            train_dataset=data,
            processing_class=self.tokenizer,
            peft_config=_adapter(recipe),
        )
        return self._stock(name, _kind("dpo", fields), trainer, setting)

    def naive(
        self,
        name: str,
        like: Training,
        model: PreTrainedModel,
        rows: list[Row],
        reference: PreTrainedModel,
        rms: Sequence[PreTrainedModel],
        setting: Setting,
    ) -> Training:
        """e-DPO with everything in the loop; `like` is the contestant whose loss it computes."""
        recipe = self._recipe(PolicyRecipe, stage="policy", objective="e-dpo", beta=0.1)
        config = DPOConfig(**self._stock_settings(recipe), beta=recipe.beta)
        trainer = NaivePolicy(
            model=model,
            ref_model=reference,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
        )
        trainer.prepare([rm.eval() for rm in rms], self._members(rows, recipe), recipe.beta)
        return self._stock(name, like.kind, trainer, setting)

    def our_reward(self, name: str, model: PreTrainedModel, rows: list[Row], **fields: Any) -> Training:
        """This package's reward model trainer."""
        recipe = self._recipe(RewardRecipe, stage="reward", **fields)
        ids: list[list[int]] = []
        pad, graphs = self.tokenizer.pad_token_id, graphed(recipe, self.device, "shared")
        collate, _ = collator_of(rows, recipe, self.device, pad, "shared", few=graphs)
        trainer = OurReward(
            model,
            RewardConfig(**self._settings(recipe)),
            device=self.device,
            train_dataset=Dataset.from_list(rows),
            data_collator=_Recording(collate, ids),
            processing_class=self.tokenizer,
        )
        trainer.graphs = Graphs(response_rewards, collate.largest) if graphs else None
        return self._ours(recipe, name, "reward", trainer, ids)

    def trl_reward(self, name: str, model: PreTrainedModel, rows: list[Row]) -> Training:
        """TRL's RewardTrainer, whose rows are prompt and response together."""
        recipe = self._recipe(RewardRecipe, stage="reward")
        whole = [
            {"id": row["id"], **{c: row["prompt_ids"] + row[c] for c in ("chosen_ids", "rejected_ids")}}
            for row in rows
        ]
        config = RewardConfig(**self._stock_settings(recipe))
        trainer = StockReward(
            model, config, train_dataset=Dataset.from_list(whole), processing_class=self.tokenizer
        )
        return self._stock(name, "reward", trainer)

    def our_sft(
        self, name: str, model: PreTrainedModel, rows: list[Row], setting: Setting = "rpo", **fields: Any
    ) -> Training:
        """This package's SFT trainer on the chosen responses."""
        ids: list[list[int]] = []
        recipe = self._sft_recipe(setting, **fields)
        if graphed(recipe, self.device, "shared"):
            return self.lean_sft(name, model, rows, setting, **fields)
        trainer = OurSFT(
            model,
            SFTConfig(**self._settings(recipe)),
            device=self.device,
            train_dataset=Dataset.from_list(labelled(rows)),
            processing_class=self.tokenizer,
        )
        trainer.data_collator = _Recording(trainer.data_collator, ids)
        return self._ours(recipe, name, "sft", trainer, ids, setting)

    def lean_sft(
        self, name: str, model: PreTrainedModel, rows: list[Row], setting: Setting = "rpo", **fields: Any
    ) -> Training:
        """The SFT trainer on rows as policies have them, by graphs where the recipe and the device do."""
        ids: list[list[int]] = []
        recipe = self._sft_recipe(setting, **fields)
        names = {"id": "id", "prompt_ids": "prompt_ids", "chosen_ids": "completion_ids"}
        table = [{new: row[old] for old, new in names.items()} for row in rows]
        pad, graphs = self.tokenizer.pad_token_id, graphed(recipe, self.device, "shared")
        collate, _ = collator_of(table, recipe, self.device, pad, "shared", few=graphs)
        trainer = LeanSFT(
            model,
            SFTConfig(**self._settings(recipe)),
            device=self.device,
            data_collator=_Recording(collate, ids),
            train_dataset=Dataset.from_list(table),
            processing_class=self.tokenizer,
        )
        trainer.graphs = Graphs(response_logits, collate.largest) if graphs else None
        return self._ours(recipe, name, "sft", trainer, ids, setting)

    def trl_sft(self, name: str, model: PreTrainedModel, rows: list[Row]) -> Training:
        """TRL's SFTTrainer on the same responses."""
        data = Dataset.from_list(labelled(rows))
        config = SFTConfig(**self._stock_settings(self._sft_recipe("stock")))
        trainer = StockSFT(model, config, train_dataset=data, processing_class=self.tokenizer)
        return self._stock(name, "sft", trainer)

    def _sft_recipe(self, setting: Setting, **fields: Any) -> SFTRecipe:
        recipe: SFTRecipe = self._recipe(
            SFTRecipe, stage="sft", model_name_or_path="model", **_repeating(setting), **fields
        )
        return recipe

    def bare(self, name: str, like: Training, model: PreTrainedModel, rows: list[Row], steps: int) -> Loop:
        """Forward, loss, backward, clip, AdamW on ready-made batches in the order `like` will take."""
        list(zip(range(steps * self.pieces), like.trainer.get_train_dataloader(), strict=False))
        order = like.ids[: steps * self.pieces]
        like.ids.clear()
        collate = PairCollator(self.tokenizer.pad_token_id)
        batches = [
            {name: t.to(self.device.name) for name, t in collate([rows[i] for i in ids]).items()}
            for ids in order
        ]
        return Loop(name, like.kind, self._bare(model, batches), order, self.pieces)

    def _bare(self, model: Any, batches: list[dict[str, torch.Tensor]]) -> Iterator[torch.Tensor]:
        model.train()
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(
            parameters, lr=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
        )
        for start in range(0, len(batches), self.pieces):
            total = torch.zeros((), device=self.device.name)
            for batch in batches[start : start + self.pieces]:
                size = len(batch["input_ids"])
                with self.device.autocast():
                    logps = response_logps(model, batch)
                    delta_h = (logps[:size] - batch["ref_chosen_logps"]) - (
                        logps[size:] - batch["ref_rejected_logps"]
                    )
                    loss = dpo_losses(delta_h, 0.1).mean() / self.pieces
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield total


def _kind(objective: str, fields: dict[str, Any]) -> str:
    """What is learnt: the losses of two contestants of one kind must agree."""
    return f"{objective} {sorted((key, value) for key, value in fields.items() if key not in HOW)}"


def _adapter(recipe: TrainingRecipe) -> Any:
    """The adapter of a recipe that asks for one, whose first weights are the same for everybody."""
    torch.manual_seed(0)
    return lora_of(recipe, "CAUSAL_LM")


def _repeating(setting: Setting) -> dict[str, bool]:
    """What a recipe says of it."""
    return {"deterministic": True} if setting == "repeats" else {}


def labelled(rows: list[Row]) -> list[Row]:
    """Rows of SFT as TRL has them, the prompt's tokens without a label."""
    return [
        {
            "id": row["id"],
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
        }
        for row in rows
    ]
