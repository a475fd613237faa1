"""Members of an ensemble trained together: their weights stacked, one forward pass mapped over them.

Measured here and built nowhere: it is not faster where it counts (README.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from transformers import PreTrainedModel

from rpo_cli.models import Batch, response_rewards
from rpo_cli.models.layout import PADDING, attention_of

Step = Callable[[Sequence[Batch]], Tensor]


def _optimizer(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, fused=True)


def _loss(rewards: Tensor) -> Tensor:
    chosen, rejected = rewards.chunk(2)
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


def one_after_another(models: Sequence[PreTrainedModel]) -> Step:
    """A step of each member on its own batch: the members' losses [k]."""
    members = [copy.deepcopy(model).train() for model in models]
    optimizers = [_optimizer(list(member.parameters())) for member in members]

    def step(batches: Sequence[Batch]) -> Tensor:
        losses = []
        for member, optimizer, batch in zip(members, optimizers, batches, strict=True):
            loss = _loss(response_rewards(member, batch))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(member.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


class _Values(torch.nn.Module):
    """A reward model as the values of all columns [n, T]: pooling reads lengths back, so is not mapped."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        hidden = self.model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        values: Tensor = self.model.score(hidden).squeeze(-1)
        return values


def together(models: Sequence[PreTrainedModel], pad: int) -> Step:
    """The same step of all members at once, each with its own batch, norm and AdamW state: losses [k]."""
    members = [_Values(copy.deepcopy(model).train()) for model in models]
    for member in members:
        member.model.set_attn_implementation(
            "eager"
        )  # the CPU's fused attention has no batching rule: a loop, which is slower
    parameters, buffers = stack_module_state(members)  # type: ignore[arg-type]
    skeleton = copy.deepcopy(members[0]).to("meta")
    weights = list(parameters.values())
    optimizer = _optimizer(weights)

    def member_loss(own: dict[str, Tensor], others: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        ids, mask, positions, ends = inputs
        values = functional_call(skeleton, (own, others), (ids, mask, positions))
        return _loss(values.gather(1, ends).T.reshape(-1))

    def step(batches: Sequence[Batch]) -> Tensor:
        losses = vmap(member_loss)(parameters, buffers, *_stacked(batches, pad))
        losses.sum().backward()
        norms = torch.stack([w.grad.flatten(1).norm(dim=1) for w in weights]).norm(dim=0)
        scales = (1.0 / (norms + 1e-6)).clamp(max=1.0)
        for weight in weights:
            weight.grad.mul_(scales.view(-1, *[1] * (weight.dim() - 1)))
        optimizer.step()
        optimizer.zero_grad()
        return losses.detach()

    return step


def _stacked(batches: Sequence[Batch], pad: int) -> list[Tensor]:
    """ids, masks, positions, ends, each [k, ...], of batches widened to one shape."""
    depths = [batch["predictors"].shape[1] for batch in batches]
    widths = [batch["input_ids"].shape[1] - depth for batch, depth in zip(batches, depths, strict=True)]
    columns: list[tuple[Tensor, ...]] = []
    for batch, width, depth in zip(batches, widths, depths, strict=True):
        more = (max(widths) - width, max(depths) - depth)
        fillers = {"input_ids": pad, "segments": PADDING, "position_ids": 0}
        ids, segments, positions = (
            torch.nn.functional.pad(batch[name], more, value=filler) for name, filler in fillers.items()
        )
        columns.append((ids, attention_of(segments), positions, batch["ends"] + more[0]))
    return [torch.stack(column) for column in zip(*columns, strict=True)]
