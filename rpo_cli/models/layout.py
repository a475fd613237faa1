"""Batches of prompts with responses: a row holds a prompt and all its responses, or each response has a row.

Three layouts, dictionaries of the same tensors, N rows, T columns, R of them behind the shortest prompt, G
responses per row:
    input_ids [N, T]
    segments [N, T]    -1 padding, 0 prompt, g = 1 ... G the g-th response
    predictors [N, R]  which of the R + 1 kept positions predicts the token: one before, or the prompt's last
    ends [N, G]        column of each response's last token

shared: [padding | prompt | response 1 | response 2 ... | padding]. A response sees the prompt and itself, and
its positions go on where the prompt ends, so every log-probability and reward is what a row of its own would
give, for about half the tokens. All prompts of a batch end in one column: only the columns behind it need to
reach the LM head. With position_ids [N, T].
plain: [padding | prompt | response | padding], G = 1, the rows in the order [first responses | second
responses | ...]. With position_ids and a 2-D attention_mask.
right: [prompt | response | padding], else as plain, without position_ids: no causal model sees padding behind
a row, whatever it makes of masks and positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from rpo_cli.devices import put
from rpo_cli.models.buckets import Buckets, Shape, longest
from rpo_cli.models.tokens import Row, Tokens
from rpo_cli.objectives.logps import token_logps

PADDING, PROMPT = -1, 0
ALIGNED = 8  # columns between the beginnings of a mask's rows are a multiple, for attention on a GPU
Layout = Literal["shared", "plain", "right"]
Batch = dict[str, Tensor]
Groups = Sequence[Sequence[Tokens]]
Reader = Callable[[nn.Module, Batch], Tensor]


def pad_of(model: PreTrainedModel) -> int:
    """The padding token, which whoever loaded the model made that of its tokenizer."""
    return int(model.config.pad_token_id)


def shape_of(prompt: Tokens, group: Sequence[Tokens], layout: Layout) -> Shape:
    """Columns that a prompt with its responses needs in a layout: of the prompt, and behind it."""
    if layout == "right":
        return 1, len(prompt) - 1 + max(map(len, group))  # some row's prompt may be a token
    return len(prompt), (sum if layout == "shared" else max)(map(len, group))


def make_batch(
    prompts: Sequence[Tokens], groups: Groups, pad: int, layout: Layout, shape: Shape | None = None
) -> Batch:
    """A batch of N prompts with G responses each, as long as its longest row or of the shape given.

    Raises:
        ValueError: an empty prompt or response: nothing would predict its first token.
    """
    if not all(map(len, prompts)) or not all(len(response) for group in groups for response in group):
        raise ValueError("a prompt or a response without tokens")
    if layout != "shared":
        order = range(len(groups[0]))
        prompts, groups = list(prompts) * len(order), [[group[g]] for g in order for group in groups]
    both = list(zip(prompts, groups, strict=True))
    width, depth = shape or longest([shape_of(prompt, group, layout) for prompt, group in both])
    if layout == "right":  # no column of the prompts' part may be behind a prompt
        own = min(map(len, prompts)) if shape is None else 1
        width, depth = own, width + depth - own
    starts = [0 if layout == "right" else width - len(prompt) for prompt in prompts]
    batch = _rows(both, starts, pad, (width, depth))
    if layout != "shared":
        batch["attention_mask"] = (batch["segments"] != PADDING).long()
    if layout == "right":
        del batch["position_ids"]
    return batch


def padded(batch: Batch, ahead: int, behind: int, pad: int) -> Batch:
    """The batch with more columns of padding in front and behind."""
    fillers = {"input_ids": pad, "position_ids": 0, "segments": PADDING, "attention_mask": 0}
    wider = {
        name: functional.pad(batch[name], (ahead, behind), value=filler)
        for name, filler in fillers.items()
        if name in batch
    }
    wider |= {"predictors": functional.pad(batch["predictors"], (0, behind)), "ends": batch["ends"] + ahead}
    return {name: wider[name] for name in batch}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on this device."""
    return {name: put(tensor, device) for name, tensor in batch.items()}


def _rows(
    both: Sequence[tuple[Tokens, Sequence[Tokens]]], starts: Sequence[int], pad: int, given: Shape
) -> Batch:
    """Rows that begin in the columns `starts`."""
    width, depth = given
    shape = (len(both), width + depth)
    ids, positions, segments = np.full(shape, pad), np.zeros(shape, dtype=np.int64), np.full(shape, PADDING)
    predictors = np.zeros((len(both), depth), dtype=np.int64)
    ends = np.empty((len(both), len(both[0][1])), dtype=np.int64)
    for row, ((prompt, group), start) in enumerate(zip(both, starts, strict=True)):
        place = start + len(prompt)
        ids[row, start:place], segments[row, start:place] = prompt, PROMPT
        positions[row, start:place] = np.arange(len(prompt))
        last = place - width  # the kept position that predicts each response's first token
        for number, response in enumerate(group):
            end = place + len(response)
            ids[row, place:end], segments[row, place:end] = response, number + 1
            positions[row, place:end] = np.arange(len(prompt), len(prompt) + len(response))
            predictors[row, place - width : end - width] = np.arange(place - width, end - width)
            predictors[row, place - width] = last
            place = end
            ends[row, number] = place - 1
    arrays = {
        "input_ids": ids,
        "position_ids": positions,
        "segments": segments,
        "predictors": predictors,
        "ends": ends,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def attention_of(segments: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Additive attention mask [N, 1, T, T] of rows that share their prompt.

    A token sees the prompt and what precedes it in its own response; padding sees itself alone, so that no
    row is empty.
    """
    columns = torch.arange(segments.shape[1], device=segments.device)
    query, key = segments[:, :, None], segments[:, None, :]
    seen = ((key == PROMPT) | (key == query)) & (columns <= columns[:, None]) & (key != PADDING)
    seen = seen | (columns == columns[:, None])
    hidden = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=segments.device).masked_fill(~seen, hidden)[:, None]


def _mask(model: nn.Module, segments: Tensor) -> Tensor:
    """The mask in the form in which attention reads it, or each layer would bring its own into that.

    torch's attention reads it in an autocast's dtype, on a GPU in rows that begin at multiples of 8 numbers.
    """
    device = segments.device.type
    by_torch = getattr(getattr(model, "config", None), "_attn_implementation", None) == "sdpa"
    if not (by_torch and torch.is_autocast_enabled(device)):
        return attention_of(segments)
    mask = attention_of(segments, torch.get_autocast_dtype(device))
    columns = mask.shape[-1]
    return functional.pad(mask, (0, -columns % ALIGNED))[..., :columns]


def _inputs(model: nn.Module, batch: Batch) -> dict[str, object]:
    mask = batch["attention_mask"] if "attention_mask" in batch else _mask(model, batch["segments"])
    inputs: dict[str, object] = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    return inputs | {"attention_mask": mask, "use_cache": False}


def response_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits of the last R columns, in which all responses lie, and of the one before: [N, R + 1, V]."""
    kept = batch["predictors"].shape[1] + 1
    logits: Tensor = model(**_inputs(model, batch), logits_to_keep=kept).logits
    return logits[:, -kept:]  # of a model that returns all of them whatever it is asked for


def logps_of(logits: Tensor, batch: Batch) -> Tensor:
    """log pi(response | prompt), summed over its tokens with EOS: [G N] float32, first responses first."""
    depth = batch["predictors"].shape[1]
    logps = token_logps(logits, batch["input_ids"][:, -depth:], batch["predictors"])
    return torch.cat([logps.masked_fill(~own, 0).sum(1) for own in _own(batch)])


def response_logps(model: nn.Module, batch: Batch) -> Tensor:
    """log pi(response | prompt) as `logps_of` returns it."""
    return logps_of(response_logits(model, batch), batch)


def token_accuracy(logits: Tensor, batch: Batch) -> Tensor:
    """Share of the responses' tokens, EOS included, that are the likeliest ones: a scalar."""
    depth = batch["predictors"].shape[1]
    likeliest = logits.argmax(-1).gather(1, batch["predictors"])
    own = batch["segments"][:, -depth:] > PROMPT
    return ((likeliest == batch["input_ids"][:, -depth:]) & own).sum() / own.sum()


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

    The head's own output is read, which has one value for every column: the sequence classifiers of
    transformers return that of a row's last token that is no padding token. Encoders, whose head is not named
    `score` and reads the whole row, have a row for each response.
    """
    with _head_output(model) as seen:
        pooled: Tensor = model(**_inputs(model, batch)).logits
    if not seen:
        if "attention_mask" not in batch:
            raise TypeError(f"{type(model).__name__} has no head named `score`")
        return pooled.squeeze(-1).float()
    return seen[0].squeeze(-1).gather(1, batch["ends"]).T.reshape(-1).float()


def head_layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers of a sequence classifier outside its body, the last of which gives the reward."""
    body = getattr(model, "base_model", model)
    if body is model or not hasattr(model, "num_labels"):  # a language model's head is none
        return []
    inside = set(map(id, body.modules()))
    return [each for each in model.modules() if isinstance(each, nn.Linear) and id(each) not in inside]


@contextlib.contextmanager
def _head_output(model: nn.Module) -> Iterator[list[Tensor]]:
    named = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == "score"]
    seen: list[Tensor] = []
    # The shortest name: peft keeps the head it trains and the original one below a wrapper of the same name.
    heads = [module for _, module in sorted(named, key=lambda item: len(item[0]))[:1]]
    handles = [head.register_forward_hook(lambda *call: seen.append(_unrounded(*call))) for head in heads]
    last = [] if heads else head_layers(model)[-1:]  # of an encoder: its output becomes the model's
    handles += [head.register_forward_hook(_unrounded) for head in last]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _unrounded(head: nn.Module, inputs: tuple[Tensor, ...], rewards: Tensor) -> Tensor:
    """A head's output in float32, where an autocast rounds it: rewards of 2 to 4 would have steps of 1/64."""
    if rewards.dtype == torch.float32 or any(weights.dtype != torch.float32 for weights in head.parameters()):
        return rewards
    with torch.autocast(rewards.device.type, enabled=False):
        found: Tensor = head.forward(inputs[0].float())
    return found


@dataclass
class PairCollator:
    """Rows with prompt_ids, chosen_ids, rejected_ids and perhaps sample_ids to one batch, G = 2 or 3.

    Precomputed columns go along: ref_chosen_logps, ref_rejected_logps, ref_sample_logps (scalars) and margins
    (k calibrated teacher margins). Rows with completion_ids have one response, and `tokens` counts those of
    the batch. `buckets`: the only shapes that batches may have.
    """

    pad_token_id: int
    layout: Layout = "shared"
    buckets: Buckets | None = None

    @property
    def largest(self) -> Shape | None:
        """The shape that holds every batch; None: there are no buckets."""
        return None if self.buckets is None else self.buckets.shapes[-1]

    def __call__(self, rows: Sequence[Row]) -> Batch:
        groups = [groups_of(row) for row in rows]
        prompts = [row["prompt_ids"] for row in rows]
        shape = None
        if self.buckets is not None:
            both = zip(prompts, groups, strict=True)
            needed = [shape_of(prompt, group, self.layout) for prompt, group in both]
            shape = self.buckets.of(longest(needed))
        batch = make_batch(prompts, groups, self.pad_token_id, self.layout, shape)
        for name in ("ref_chosen_logps", "ref_rejected_logps", "ref_sample_logps", "margins"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        if "completion_ids" in rows[0]:
            batch["tokens"] = torch.tensor(sum(len(row["completion_ids"]) for row in rows))
        return batch


def groups_of(row: Row) -> list[Tokens]:
    """The responses of a row of the collator's: one to learn from, or a pair and perhaps a sample."""
    names = ("completion_ids", "chosen_ids", "rejected_ids", "sample_ids")
    return [row[name] for name in names if name in row]


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
