"""The trainers that race: this package's and TRL's, each keeping the loss of every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler
from transformers import PreTrainedModel, Trainer
from trl import DPOTrainer, RewardTrainer, SFTTrainer

from rpo_cli.objectives.distill import distill_losses
from rpo_cli.objectives.members import MemberChoice
from rpo_cli.stages.policy import EndOfStep, PolicyTrainer
from rpo_cli.stages.reward import LeanRewardTrainer
from rpo_cli.stages.sft import FewShapesSFTTrainer
from rpo_cli.stages.training.trl import TokenTrainer


class Witness(Trainer):
    """Keeps the loss of every step on the device, the sum of its pieces' shares."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if len(self.seen) > self.state.global_step:
            self.seen[-1] = self.seen[-1] + loss.detach()
        else:
            self.seen.append(loss.detach())
        return loss

    @property
    def seen(self) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = self.__dict__.setdefault("_seen", [])
        return seen


class OurPolicy(Witness, PolicyTrainer):
    pass


class AsDrawn(OurPolicy):
    """Ours, with the rows of an optimiser batch in the order drawn."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return RandomSampler(self.train_dataset if train_dataset is None else train_dataset)


class OurReward(Witness, LeanRewardTrainer):
    pass


class StockReward(Witness, RewardTrainer):
    pass


class OurSFT(Witness, TokenTrainer):
    pass


class LeanSFT(Witness, FewShapesSFTTrainer):
    """Ours where shapes are fixed: a loss of its own, through the rows of policies."""


class StockSFT(Witness, SFTTrainer):
    """TRL's trainer with its own loss, batches and metrics; only tokenising is skipped."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class StockPolicy(Witness, DPOTrainer):
    """TRL's trainer with its own loss, batches and metrics; only tokenising and references are skipped."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class NaivePolicy(StockPolicy):
    """e-DPO as one would first write it: TRL's batches and head, all models in the loop."""

    def prepare(self, reward_models: Sequence[PreTrainedModel], members: MemberChoice, beta: float) -> None:
        self.reward_models, self.members, self.strength = reward_models, members, beta
        self.add_callback(EndOfStep(self, members))

    def batch_mean(self, values: torch.Tensor) -> torch.Tensor:
        return values

    batch_sum = batch_mean

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self.members.begin_step(None)
        return super().get_batch_samples(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        plain = {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "use_cache": False,
        }
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        chosen, rejected = model(**plain, labels=labels, fused_lm_head=True).log_probs.sum(1).chunk(2)
        with torch.no_grad():
            ref_chosen, ref_rejected = (
                self.ref_model(**plain, labels=labels, fused_lm_head=True).log_probs.sum(1).chunk(2)
            )
            rewards = [rm(**plain).logits.squeeze(-1).float().chunk(2) for rm in self.reward_models]
        margins = torch.stack([better - worse for better, worse in rewards])
        losses = distill_losses((chosen - ref_chosen) - (rejected - ref_rejected), margins, self.strength)
        return self.members.reduce(losses, self.batch_mean).mean()
