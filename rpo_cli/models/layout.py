"""Batches of prompts with responses: a row holds a prompt and all its responses, or each response has a row.

Shared prompts: a row is [padding | prompt | response 1 | response 2 ... | padding]. A response sees the
prompt and itself, and its positions go on where the prompt ends, so every log-probability and reward is what
a row of its own would give, for about half the tokens. All prompts of a batch end in one column: only the
columns behind it need to reach the LM head.

Both layouts are dictionaries of the same tensors, N rows, T columns, R of them behind the prompt, G responses
per row:
    input_ids, position_ids [N, T]
    segments [N, T]    -1 padding, 0 prompt, g = 1 ... G the g-th response
    predictors [N, R]  which of the R + 1 kept positions predicts the token: one before, or the prompt's last
    ends [N, G]        column of each response's last token
The plain layout has G = 1, its rows in the order [first responses | second responses | ...], and a 2-D
attention_mask.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from rpo_cli.models.buckets import Buckets, Shape, longest
from rpo_cli.models.tokens import Tokens
from rpo_cli.objectives.logps import token_logps

PADDING, PROMPT = -1, 0
Batch = dict[str, Tensor]
Groups = Sequence[Sequence[Tokens]]
Reader = Callable[[nn.Module, Batch], Tensor]


def shape_of(prompt: Tokens, group: Sequence[Tokens], *, shared: bool) -> Shape:
    """Columns that a prompt with its responses needs in a layout: of the prompt, and behind it."""
    return len(prompt), (sum if shared else max)(map(len, group))


def make_batch(
    prompts: Sequence[Tokens], groups: Groups, pad: int, *, shared: bool, shape: Shape | None = None
) -> Batch:
    """A batch of N prompts with G responses each, as long as its longest row or of the shape given.

    Raises:
        ValueError: an empty prompt or response: nothing would predict its first token.
    """
    if shared:
        return _rows(prompts, groups, pad, shape)
    order = range(len(groups[0]))
    batch = _rows(list(prompts) * len(order), [[group[g]] for g in order for group in groups], pad, shape)
    return batch | {"attention_mask": (batch["segments"] != PADDING).long()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on this device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _rows(prompts: Sequence[Tokens], groups: Groups, pad: int, given: Shape | None) -> Batch:
    if not all(map(len, prompts)) or not all(len(response) for group in groups for response in group):
        raise ValueError("a prompt or a response without tokens")
    both = list(zip(prompts, groups, strict=True))
    width, depth = given or longest([shape_of(prompt, group, shared=True) for prompt, group in both])
    shape = (len(prompts), width + depth)
    ids, positions, segments = np.full(shape, pad), np.zeros(shape, dtype=np.int64), np.full(shape, PADDING)
    predictors = np.zeros((len(prompts), depth), dtype=np.int64)
    ends = np.empty((len(prompts), len(groups[0])), dtype=np.int64)
    for row, (prompt, group) in enumerate(both):
        before = slice(width - len(prompt), width)
        ids[row, before], segments[row, before] = prompt, PROMPT
        positions[row, before] = np.arange(len(prompt))
        place = 0
        for number, response in enumerate(group):
            there = slice(width + place, width + place + len(response))
            ids[row, there], segments[row, there] = response, number + 1
            positions[row, there] = np.arange(len(prompt), len(prompt) + len(response))
            predictors[row, place + 1 : place + len(response)] = np.arange(place + 1, place + len(response))
            place += len(response)
            ends[row, number] = width + place - 1
    arrays = {
        "input_ids": ids,
        "position_ids": positions,
        "segments": segments,
        "predictors": predictors,
        "ends": ends,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def attention_of(segments: Tensor) -> Tensor:
    """Additive attention mask [N, 1, T, T], float32, of rows that share their prompt.

    A token sees the prompt and what precedes it in its own response; padding sees itself alone, so that no
    row is empty.
    """
    columns = torch.arange(segments.shape[1], device=segments.device)
    query, key = segments[:, :, None], segments[:, None, :]
    seen = ((key == PROMPT) | (key == query)) & (columns <= columns[:, None]) & (key != PADDING)
    seen = seen | (columns == columns[:, None])
    hidden = torch.finfo(torch.float32).min
    return torch.zeros(seen.shape, device=segments.device).masked_fill(~seen, hidden)[:, None]


def _inputs(batch: Batch) -> dict[str, Any]:
    mask = batch["attention_mask"] if "attention_mask" in batch else attention_of(batch["segments"])
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "position_ids")}
    return inputs | {"attention_mask": mask, "use_cache": False}


def response_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits of the prompts' last column and every column behind it: [N, R + 1, V]."""
    logits: Tensor = model(**_inputs(batch), logits_to_keep=batch["predictors"].shape[1] + 1).logits
    return logits


def logps_of(logits: Tensor, batch: Batch) -> Tensor:
    """log pi(response | prompt), summed over its tokens with EOS: [G N] float32, first responses first."""
    depth = batch["predictors"].shape[1]
    logps = token_logps(logits, batch["input_ids"][:, -depth:], batch["predictors"])
    return torch.cat([logps.masked_fill(~own, 0).sum(1) for own in _own(batch)])


def response_logps(model: nn.Module, batch: Batch) -> Tensor:
    """log pi(response | prompt) as `logps_of` returns it."""
    return logps_of(response_logits(model, batch), batch)


def response_lengths(batch: Batch) -> Tensor:
    """Tokens of each response, EOS included: [G N], in the order of `logps_of`."""
    return torch.cat([own.sum(1) for own in _own(batch)])


def _own(batch: Batch) -> list[Tensor]:
    """For each of the G responses of a row, which of the R columns are its own: [N, R] bool."""
    behind = batch["segments"][:, -batch["predictors"].shape[1] :]
    return [behind == number for number in range(1, batch["ends"].shape[1] + 1)]


def predicts(batch: Batch, number: int) -> Tensor:
    """Which of the R + 1 kept positions predict a token of each row's response `number`: [N, R + 1] bool."""
    own = batch["segments"][:, -batch["predictors"].shape[1] :] == number
    count = torch.zeros(len(own), own.shape[1] + 1, dtype=torch.long, device=own.device)
    return count.scatter_add(1, batch["predictors"], own.long()) > 0


def response_rewards(model: nn.Module, batch: Batch) -> Tensor:
    """Rewards of the responses, read at each one's last token: [G N] float32, in the order of `logps_of`.

    The sequence classifiers of transformers return one value per row, of its last token; where a row holds
    several responses the head's own output is read, which has one for every column.
    """
    if "attention_mask" in batch:
        only: Tensor = model(**_inputs(batch)).logits.squeeze(-1).float()
        return only
    with _head_output(model) as seen:
        model(**_inputs(batch))
    values = seen[0].squeeze(-1)
    return values.gather(1, batch["ends"]).T.reshape(-1).float()


@contextlib.contextmanager
def _head_output(model: nn.Module) -> Iterator[list[Tensor]]:
    named = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == "score"]
    if not named:
        raise TypeError(f"{type(model).__name__} has no head named `score`")
    seen: list[Tensor] = []
    # The shortest name: peft keeps the head it trains and the original one below a wrapper of the same name.
    head = min(named, key=lambda item: len(item[0]))[1]
    handle = head.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


@dataclass
class PairCollator:
    """Rows with prompt_ids, chosen_ids, rejected_ids and perhaps sample_ids to one batch, G = 2 or 3.

    Precomputed columns go along: ref_chosen_logps, ref_rejected_logps, ref_sample_logps (scalars) and margins
    (k calibrated teacher margins). Rows with completion_ids have one response, and `tokens` counts those of
    the batch. `buckets`: the only shapes that batches may have.
    """

    pad_token_id: int
    shared: bool = True
    buckets: Buckets | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        groups = [groups_of(row) for row in rows]
        prompts = [row["prompt_ids"] for row in rows]
        shape = None
        if self.buckets is not None:
            both = zip(prompts, groups, strict=True)
            needed = [shape_of(prompt, group, shared=self.shared) for prompt, group in both]
            shape = self.buckets.of(longest(needed))
        batch = make_batch(prompts, groups, self.pad_token_id, shared=self.shared, shape=shape)
        for name in ("ref_chosen_logps", "ref_rejected_logps", "ref_sample_logps", "margins"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        if "completion_ids" in rows[0]:
            batch["tokens"] = torch.tensor(sum(len(row["completion_ids"]) for row in rows))
        return batch


def groups_of(row: dict[str, Any]) -> list[Tokens]:
    """The responses of a row of the collator's: one to learn from, or a pair and perhaps a sample."""
    names = ("completion_ids", "chosen_ids", "rejected_ids", "sample_ids")
    return [row[name] for name in names if name in row]


def can_share(
    model: PreTrainedModel, read: Reader, prompts: Sequence[Tokens], groups: Groups, pad: int
) -> bool:
    """Whether the model gives the same numbers in both layouts, measured on the longest rows; logs it if not.

    A model cannot where its attention takes no mask of this form, is limited to a window shorter than the
    row, or where it is recurrent. `read` is `response_logps` or `response_rewards`.
    """
    prompts, groups = longest_rows(prompts, groups)
    plain, packed = (make_batch(prompts, groups, pad, shared=shared) for shared in (False, True))
    batches = (plain, _padded(packed, pad))
    values = []
    was_training = model.training
    model.eval()
    try:
        # In float32: what bfloat16 rounds away must not hide a wrong mask.
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            for batch in batches:
                values.append(read(model, to_device(batch, model.device)).cpu())
        alike = torch.allclose(values[0], values[1], rtol=1e-4, atol=2e-3)
        reason = f"its numbers would differ by {float((values[0] - values[1]).abs().max()):.3g}"
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        if len(values) == 0:
            raise
        alike, reason = False, str(error).strip().splitlines()[0]
    finally:
        model.train(was_training)
    if not alike:
        logging.getLogger("rpo").warning(
            "%s cannot share prompts: %s; every response gets a row of its own", type(model).__name__, reason
        )
    return alike


def longest_rows(prompts: Sequence[Tokens], groups: Groups) -> tuple[list[Tokens], list[Sequence[Tokens]]]:
    """The rows that exceed a window first: the longest if shared, and the longest of one response each.

    A model whose own masks have a window does not apply it to a mask it is given, so that the longest
    response tells; one that looks back a number of columns whatever the mask loses its prompt in the longest
    shared row. Often it is one row.
    """
    rows = list(zip(prompts, groups, strict=True))
    total = max(rows, key=lambda row: len(row[0]) + sum(map(len, row[1])))
    alone = max(rows, key=lambda row: (len(row[0]) + max(map(len, row[1])), row is total))
    chosen = [total] if alone is total else [total, alone]
    return [prompt for prompt, _ in chosen], [group for _, group in chosen]


def _padded(batch: Batch, pad: int) -> Batch:
    """The shared batch with one more column of padding before its prompts and one behind its responses."""
    fillers = {"input_ids": pad, "position_ids": 0, "segments": PADDING}
    wider = {name: functional.pad(batch[name], (1, 1), value=filler) for name, filler in fillers.items()}
    return wider | {"predictors": functional.pad(batch["predictors"], (0, 1)), "ends": batch["ends"] + 1}


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of `size` of about equal length, longest first: memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def by_tokens(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of about equal length, longest first, of at most the tokens of `size` longest."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        count = max(size, size * lengths[order[0]] // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count
