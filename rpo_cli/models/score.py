"""Rewards and log-probabilities of many responses, in batches of about equal length."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from rpo_cli import devices
from rpo_cli.errors import Diverged, RunFailed
from rpo_cli.models.buckets import Shape, for_batches, longest
from rpo_cli.models.choice import layout_for
from rpo_cli.models.layout import (
    Groups,
    Reader,
    by_length,
    by_tokens,
    make_batch,
    pad_of,
    response_logps,
    response_rewards,
    shape_of,
    to_device,
)
from rpo_cli.models.tokens import TokenRow, Tokens

Done = Callable[[int], None]  # told how many are done


def silent(done: int) -> None:
    """Progress nobody wants."""


def rewards(
    model: PreTrainedModel, sequences: Sequence[Tokens], batch_size: int, on_batch: Done = silent
) -> np.ndarray:
    """Reward of each sequence (prompt + response + EOS), read at its last token: float32 [n].

    Raises:
        RunFailed: a reward is not finite.
    """
    prompts, rest = [sequence[:1] for sequence in sequences], [[sequence[1:]] for sequence in sequences]
    return _all(model, response_rewards, prompts, rest, batch_size, on_batch)[:, 0]


def _cuts(
    lengths: Sequence[int], needed: Sequence[Shape], size: int, device: torch.device
) -> Iterator[tuple[list[int], Shape | None]]:
    """Numbers of rows in batches of about equal length, the longest first, and each one's shape.

    There is a shape where shapes are few, and there all batches have as many rows: the last one reads its
    first row again and again.
    """
    if not devices.fixed_shapes(device):
        for rows in by_tokens(lengths, size):
            yield rows, None
        return
    size = min(size, len(needed))
    batches = list(by_length(lengths, size))
    found = for_batches(needed, batches)
    logging.getLogger("rpo").info("batches to read: %s", found)
    for rows in batches:
        yield [*rows, *[rows[0]] * (size - len(rows))], found.of(longest([needed[i] for i in rows]))


def logps(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    responses: Sequence[Tokens],
    batch_size: int,
    on_batch: Done = silent,
) -> np.ndarray:
    """log pi(response | prompt), summed over the response's tokens: float32 [n]."""
    groups = [[response] for response in responses]
    return _all(model, response_logps, prompts, groups, batch_size, on_batch)[:, 0]


def pair_logps(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    batch_size: int,
    on_batch: Done = silent,
    *,
    shared: bool = True,
) -> np.ndarray:
    """log pi of each row's responses: float32 [n, 2].

    A batch holds at most `batch_size` responses of the longest rows.
    """
    return _pairs(model, response_logps, rows, batch_size, on_batch, shared)


def pair_rewards(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    batch_size: int,
    on_batch: Done = silent,
    *,
    shared: bool = True,
) -> np.ndarray:
    """Rewards of each row's responses: float32 [n, 2].

    A batch holds at most `batch_size` responses of the longest rows.

    Raises:
        RunFailed: a reward is not finite.
    """
    return _pairs(model, response_rewards, rows, batch_size, on_batch, shared)


def _pairs(
    model: PreTrainedModel,
    read: Reader,
    rows: Sequence[TokenRow],
    batch_size: int,
    on_batch: Done,
    shared: bool,
) -> np.ndarray:
    prompts, groups = [row.prompt_ids for row in rows], [row.responses for row in rows]
    each = len(groups[0])
    size = max(1, batch_size // each)
    return _all(model, read, prompts, groups, size, lambda done: on_batch(done * each), shared=shared)


def _all(
    model: PreTrainedModel,
    read: Reader,
    prompts: Sequence[Tokens],
    groups: Groups,
    size: int,
    on_batch: Done,
    *,
    shared: bool = False,
) -> np.ndarray:
    """What `read`, of log-probs or rewards, says of every response: float32 [n, G].

    Raises:
        Diverged, RunFailed: a log-probability, or a reward, is not finite.
    """
    result = np.empty((len(prompts), len(groups[0]) if groups else 1), dtype=np.float32)
    if not prompts:
        return result
    done = 0
    model.eval()
    layout = layout_for(model, read, prompts, groups, shared=shared)
    both = list(zip(prompts, groups, strict=True))
    needed = [shape_of(prompt, group, layout) for prompt, group in both]
    lengths = [len(prompt) + sum(map(len, group)) for prompt, group in both]
    returning = devices.Returning[list[int]](devices.behind(model.device))

    def keep(arrived: list[tuple[list[int], torch.Tensor]]) -> None:
        for rows, values in arrived:
            result[rows] = values.numpy().reshape(-1, len(rows)).T

    for rows, shape in _cuts(lengths, needed, size, model.device):
        some, theirs = [prompts[i] for i in rows], [groups[i] for i in rows]
        batch = make_batch(some, theirs, pad_of(model), layout, shape)
        with devices.reading(model.device):
            keep(returning.send(rows, read(model, to_device(batch, model.device))))
        done = min(done + len(rows), len(prompts))
        on_batch(done)
    keep(returning.rest())
    if wrong := int((~np.isfinite(result)).sum()):
        if read is response_logps:
            raise Diverged("the model gave a log-probability that is not finite")
        share = f"{wrong} of {result.size} responses"
        raise RunFailed(f"the reward model gave a reward that is not finite for {share}")
    return result
