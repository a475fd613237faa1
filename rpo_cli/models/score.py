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
from rpo_cli.models.layout import (
    Groups,
    Reader,
    by_length,
    by_tokens,
    can_share,
    make_batch,
    response_logps,
    response_rewards,
    shape_of,
    to_device,
)
from rpo_cli.models.tokens import TokenRow, Tokens


def silent(done: int) -> None:
    """Progress nobody wants."""


def rewards(
    model: PreTrainedModel,
    sequences: Sequence[Tokens],
    pad: int,
    batch_size: int,
    on_batch: Callable[[int], None] = silent,
) -> np.ndarray:
    """Reward of each sequence (prompt + response + EOS), read at its last token: float32 [n].

    Raises:
        RunFailed: a reward is not finite.
    """
    result = np.empty(len(sequences), dtype=np.float32)
    done = 0
    model.eval()
    lengths = [len(sequence) for sequence in sequences]
    for rows, shape in _cuts(lengths, [(length, 0) for length in lengths], batch_size, model.device):
        width = shape[0] if shape else max(lengths[i] for i in rows)
        table, mask = np.full((len(rows), width), pad), np.zeros((len(rows), width), dtype=np.int64)
        for row, i in enumerate(rows):
            table[row, : len(sequences[i])], mask[row, : len(sequences[i])] = sequences[i], 1
        with devices.reading(model.device):
            ids, seen = (torch.from_numpy(array).to(model.device) for array in (table, mask))
            logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
            result[rows] = logits.squeeze(-1).float().cpu().numpy()
        done = min(done + len(rows), len(sequences))
        on_batch(done)
    return _finite_rewards(result)


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


def _finite_rewards(result: np.ndarray) -> np.ndarray:
    wrong = int((~np.isfinite(result)).sum())
    if wrong:
        share = f"{wrong} of {result.size} responses"
        raise RunFailed(f"the reward model gave a reward that is not finite for {share}")
    return result


def logps(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    responses: Sequence[Tokens],
    pad: int,
    batch_size: int,
    on_batch: Callable[[int], None] = silent,
) -> np.ndarray:
    """log pi(response | prompt), summed over the response's tokens: float32 [n]."""
    groups = [[response] for response in responses]
    values = _read(model, response_logps, prompts, groups, pad, batch_size, on_batch, shared=False)
    return _finite_logps(values[:, 0])


def pair_logps(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    pad: int,
    batch_size: int,
    on_batch: Callable[[int], None] = silent,
    *,
    shared: bool = True,
) -> np.ndarray:
    """log pi of each row's responses: float32 [n, 2].

    A batch holds at most `batch_size` responses of the longest rows.
    """
    shared = shared and can_share(model, response_logps, *_prompts_and_groups(rows), pad)
    return _finite_logps(_read_pairs(model, response_logps, rows, pad, batch_size, on_batch, shared))


def _finite_logps(result: np.ndarray) -> np.ndarray:
    if not np.isfinite(result).all():
        raise Diverged("the model gave a log-probability that is not finite")
    return result


def pair_rewards(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    pad: int,
    batch_size: int,
    on_batch: Callable[[int], None] = silent,
    *,
    shared: bool = True,
) -> np.ndarray:
    """Rewards of each row's responses: float32 [n, 2].

    A batch holds at most `batch_size` responses of the longest rows.

    Raises:
        RunFailed: a reward is not finite.
    """
    if shared and can_share(model, response_rewards, *_prompts_and_groups(rows), pad):
        return _finite_rewards(_read_pairs(model, response_rewards, rows, pad, batch_size, on_batch, True))
    sequences = [np.concatenate([row.prompt_ids, answer]) for row in rows for answer in row.responses]
    return rewards(model, sequences, pad, batch_size, on_batch).reshape(len(rows), -1)


def _prompts_and_groups(rows: Sequence[TokenRow]) -> tuple[list[Tokens], list[Sequence[Tokens]]]:
    return [row.prompt_ids for row in rows], [row.responses for row in rows]


def _read_pairs(
    model: PreTrainedModel,
    read: Reader,
    rows: Sequence[TokenRow],
    pad: int,
    batch_size: int,
    on_batch: Callable[[int], None],
    shared: bool,
) -> np.ndarray:
    prompts, groups = _prompts_and_groups(rows)
    each = len(groups[0])
    size = max(1, batch_size // each)
    return _read(model, read, prompts, groups, pad, size, lambda done: on_batch(done * each), shared=shared)


def _read(
    model: PreTrainedModel,
    read: Reader,
    prompts: Sequence[Tokens],
    groups: Groups,
    pad: int,
    size: int,
    on_batch: Callable[[int], None],
    *,
    shared: bool,
) -> np.ndarray:
    """What `read` says of every response: float32 [n, G]."""
    result = np.empty((len(prompts), len(groups[0])), dtype=np.float32)
    done = 0
    model.eval()
    both = list(zip(prompts, groups, strict=True))
    needed = [shape_of(prompt, group, shared=shared) for prompt, group in both]
    lengths = [len(prompt) + sum(map(len, group)) for prompt, group in both]
    for rows, shape in _cuts(lengths, needed, size, model.device):
        some, theirs = [prompts[i] for i in rows], [groups[i] for i in rows]
        batch = make_batch(some, theirs, pad, shared=shared, shape=shape)
        with devices.reading(model.device):
            values = read(model, to_device(batch, model.device))
            result[rows] = values.cpu().numpy().reshape(-1, len(rows)).T
        done = min(done + len(rows), len(prompts))
        on_batch(done)
    return result
