"""A model reading texts token by token, as fast as it does so rightly: as each alone, without a cache."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from rpo_cli.artifacts import no_memory
from rpo_cli.errors import BadInput
from rpo_cli.models.choice import alike, exactly, is_causal
from rpo_cli.models.layout import pad_of
from rpo_cli.models.proven import Proven, built_alike
from rpo_cli.models.tokens import Tokens

STEPS = 4  # that a cache is tried for
OWN_MASK = ("cuda",)  # where asking for a value is a wait, see _Cached
# Of the largest logit, with a cache and without: rounding makes 1e-6, a shifted position 1e-2.
TOLERANCE = 1e-4
PROVEN = Proven()


class Decoder(Protocol):
    """A model reading rows of tokens; each call gives the logits behind the last ones: [rows, V]."""

    def start(self, prompts: Sequence[Tokens], room: int) -> Tensor: ...

    def step(self, tokens: Tensor) -> Tensor: ...

    def keep(self, rows: Tensor) -> None: ...


def decoder_for(
    model: PreTrainedModel, prompts: Sequence[Tokens], room: int, batch_size: int
) -> tuple[Decoder, bool]:
    """How to read this model's rows step by step, and whether only prompts of one length go together.

    Whatever goes fastest among what gives, a few steps long, the logits of rows read alone without a cache.
    Where a model that is built alike did so within wider bounds, the first way is not tried again.
    """
    name, log = type(model).__name__, logging.getLogger("rpo")
    longest, shortest = max(prompts, key=len), min(map(len, prompts))
    own_masks = (True, False) if model.device.type in OWN_MASK else (False,)
    way = built_alike(model, batch_size > 1)
    bounds = (len(longest), _most(longest, room), room, -shortest)
    proven = PROVEN.holds(way, bounds)
    with exactly(model):
        if not proven and not is_causal(model, longest):
            raise BadInput(f"{name}: its tokens see those behind them: it is no causal language model")
        if (cache := _cache_of(model, int(longest[0]))) is None:
            reason = "has no cache this sampler knows"
        elif proven:
            return _Cached(model, cache, own_mask=own_masks[0]), False
        else:
            texts = telling_texts(model, longest, shortest, room)
            more = [[text[step % len(text)] for step in range(min(STEPS, room - 1))] for text in texts]
            alone = torch.cat([read_alone(model, *row) for row in zip(texts, more, strict=True)])
            for own_mask in own_masks:
                cached = _Cached(model, cache, own_mask=own_mask)
                if batch_size > 1 and _gives(alone, cached, [(texts, more)]):
                    if own_mask == own_masks[0]:
                        PROVEN.note(way, bounds)
                    return cached, False
            cuts = [0, *range(2 if batch_size > 1 else 1, len(texts)), len(texts)]
            even = [(texts[one:other], more[one:other]) for one, other in pairwise(cuts)]
            if _gives(alone, cached, even):
                if batch_size > 1:
                    log.warning("%s heeds padding before prompts: those of one length go together", name)
                return cached, batch_size > 1
            reason = "gives other logits with its cache than without"
    log.warning("%s %s: every step reads the whole response again", name, reason)
    return _Recomputed(model), False


# What models call their cache: from transformers 5.24 on; before it, and before it in state-space models.
CACHES = ("cache", "past_key_values", "cache_params")


def cache_name(model: PreTrainedModel) -> str:
    """The argument by which a model takes its cache; one that has none refuses it."""
    takes = inspect.signature(model.forward).parameters
    return next((name for name in CACHES if name in takes), CACHES[0])


class _Kind(NamedTuple):
    """What a model calls its cache, whether that is transformers' usual one, and whether it is a state."""

    name: str
    ordinary: bool
    recurrent: bool = False


def _cache_of(model: PreTrainedModel, token: int) -> _Kind | None:
    """What cache the model has, found by giving it one token and asking for it; None: it has none."""
    output = model(input_ids=torch.tensor([[token]], device=model.device), use_cache=True)
    for name in CACHES:
        if isinstance(cache := getattr(output, name, None), Cache):
            return _Kind(name, type(cache) in USUAL, bool(cache.is_linear) and all(cache.is_linear))
    return None


def telling_texts(model: PreTrainedModel, longest: Tokens, shortest: int, room: int) -> list[list[int]]:
    """Texts of lengths that samples may have: the extremes, and just below windows that the config names.

    The first comes twice, as copies of a prompt do.
    """
    most = _most(longest, room)
    settings = model.config.get_text_config().to_dict()
    windows = [value for name, value in settings.items() if "window" in name and isinstance(value, int)]
    below = [window - 2 for window in windows if shortest < window - 2 < most]
    lengths = sorted({shortest, len(longest), most, *below})
    text = list(map(int, longest)) * (1 + most // len(longest))
    return [text[:length] for length in [lengths[0], *lengths]]


def _most(longest: Tokens, room: int) -> int:
    """The longest text that a sample is before its last steps."""
    return len(longest) + max(0, room - 1 - STEPS)


def read_alone(model: PreTrainedModel, text: Sequence[int], more: Sequence[int]) -> Tensor:
    """Logits behind a text and each of the tokens that follow, read at once without a cache: [1, K, V]."""
    takes = inspect.signature(model.forward).parameters.keys()
    kept = {"logits_to_keep": len(more) + 1} if "logits_to_keep" in takes else {}
    logits: Tensor = model(input_ids=torch.tensor([[*text, *more]], device=model.device), **kept).logits
    return logits[:, -len(more) - 1 :]


def _gives(
    alone: Tensor, decoder: Decoder, batches: Sequence[tuple[list[list[int]], list[list[int]]]]
) -> bool:
    """Whether batches of texts and of the tokens that follow, read step by step, have these logits.

    Before the last step a row leaves, as those do that have ended, and the others change places. A model that
    fails in it, in whatever way, cannot be read so.
    """
    found, wanted, first = [], [], 0
    try:
        for texts, more in batches:
            rows = torch.arange(len(texts), device=alone.device)
            found.append(decoder.start(texts, len(more[0]) + 1))
            wanted.append(alone[first + rows, 0])
            for step, tokens in enumerate(zip(*more, strict=True), 1):
                if step == len(more[0]) and len(texts) > 1:
                    rows = rows.flip(0)[1:]
                    decoder.keep(rows)
                found.append(decoder.step(torch.tensor(tokens, device=alone.device)[rows]))
                wanted.append(alone[first + rows, step])
            first += len(texts)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        if no_memory(error):
            raise  # which says nothing of the cache
        return False
    return alike(torch.cat(found), torch.cat(wanted), TOLERANCE)


class OneDtype(DynamicCache):
    """A cache that takes keys in the values' dtype: in an autocast rotation makes float32 of them.

    The whole cache would then be float32, and attention would cast all of it in each step.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().update(key_states.to(value_states.dtype), value_states, *args, **kwargs)


USUAL = (DynamicCache, OneDtype)


class _Cached:
    """Prompts padded on the left, each read once however many rows have it; then a token per row and step.

    own_mask: a step's attention mask is made here. Of one that only says where padding is, transformers asks
    in every step whether there is any, and a GPU must have done all before to answer.
    """

    def __init__(self, model: PreTrainedModel, cache: _Kind, *, own_mask: bool) -> None:
        self.model, self.pad, self.own_mask = model, pad_of(model), own_mask
        self.cache_name, self.ordinary, self.recurrent = cache
        self.takes = inspect.signature(model.forward).parameters.keys()

    def start(self, prompts: Sequence[Tokens], room: int) -> Tensor:
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        place = {prompt: index for index, prompt in enumerate(distinct)}
        lengths = torch.tensor([len(prompt) for prompt in distinct])
        self.width = int(lengths.max())
        ids = torch.tensor([[self.pad] * (self.width - len(prompt)) + list(prompt) for prompt in distinct])
        self.mask: Tensor | None = None
        if int(lengths.min()) < self.width:
            # Without padding no mask is needed, nor positions: a model then has faster ways.
            columns = torch.arange(self.width + room)
            self.mask = (columns >= self.width - lengths[:, None]).long().to(self.model.device)
            self.lengths = lengths.to(self.model.device)
        rounds = self.ordinary and torch.is_autocast_enabled(self.model.device.type)
        self.cache: Cache | None = OneDtype(config=self.model.config) if rounds else None
        self.begun = False
        positions = (torch.arange(self.width) - (self.width - lengths)[:, None]).clamp(min=0)
        logits = self._read(ids.to(self.model.device), positions.to(self.model.device))
        if len(distinct) == len(prompts):
            return logits
        rows = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=logits.device)
        self.keep(rows)
        return logits[rows]

    def step(self, tokens: Tensor) -> Tensor:
        self.width += 1
        if self.mask is None:
            return self._read(tokens[:, None], None)
        self.lengths = self.lengths + 1
        return self._read(tokens[:, None], self.lengths[:, None] - 1)

    def keep(self, rows: Tensor) -> None:
        assert self.cache is not None
        self.cache.reorder_cache(rows)  # unlike batch_select_indices it is there for recurrent states, too
        if self.mask is not None:
            self.mask, self.lengths = self.mask[rows], self.lengths[rows]

    def _read(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        inputs: dict[str, object] = {"input_ids": ids, "use_cache": True, "logits_to_keep": 1}
        inputs[self.cache_name] = self.cache
        # A recurrent state has the padding behind it: only the prompt needs its mask.
        if self.mask is not None and not (self.begun and self.recurrent):
            mask = self.mask[:, : self.width]
            if self.own_mask and self.begun:
                mask = (1 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
            inputs |= {"attention_mask": mask, "position_ids": positions}
        output = self.model(**{name: value for name, value in inputs.items() if name in self.takes})
        self.cache, self.begun = getattr(output, self.cache_name), True
        logits: Tensor = output.logits[:, -1]
        return logits


class _Recomputed:
    """All tokens in every step, padded on the right, which no causal model sees: for any of them, slowly."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.pad = model, pad_of(model)

    def start(self, prompts: Sequence[Tokens], room: int) -> Tensor:
        self.rows = [list(prompt) for prompt in prompts]
        return self._read()

    def step(self, tokens: Tensor) -> Tensor:
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._read()

    def keep(self, rows: Tensor) -> None:
        self.rows = [self.rows[row] for row in rows.tolist()]

    def _read(self) -> Tensor:
        width = max(map(len, self.rows))
        padded = [row + [self.pad] * (width - len(row)) for row in self.rows]
        ids = torch.tensor(padded, device=self.model.device)
        last = torch.tensor([len(row) - 1 for row in self.rows], device=self.model.device)
        logits: Tensor = self.model(input_ids=ids).logits[torch.arange(len(ids), device=ids.device), last]
        return logits
