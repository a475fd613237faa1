"""Sampling responses with a KV cache, each a function of its own prompt and seed, whatever shares its batch.

The t-th token of a response is where its t-th uniform number falls in the model's cumulative distribution.
The numbers belong to (seed, prompt, how often that prompt came before), so batch size, order, retirement of
finished rows and device change a sample only where rounding of the logits moves an edge across a number.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from rpo_cli import devices
from rpo_cli.errors import BadInput, Diverged
from rpo_cli.models.draws import occurrences, pick, uniforms
from rpo_cli.models.layout import by_length
from rpo_cli.models.tokens import Tokens

# Finished rows leave the batch when they are this share of it: leaving copies what others have in the cache.
RETIRE = 1 / 8


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """One sample for each prompt: response tokens, ending in EOS unless max_new_tokens came first.

    Samples do not depend on batch_size or on the other prompts; the n-th copy of a prompt has numbers of its
    own. The model's generation_config has no influence: a repetition penalty there would not be pi's sample.

    Raises:
        BadInput: prompt and response would exceed the model's positions.
        Diverged: logits are not finite.
    """
    room = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(p) for p in prompts), default=0)
    if room is not None and longest + max_new_tokens > room:
        asked = f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens}"
        raise BadInput(f"{asked} exceed the model's {room} positions")
    model.eval()
    if not prompts:
        return []
    in_batches = _in_batches
    if devices.fixed_shapes(model.device):
        from rpo_cli.models.sample_static import in_batches  # which draws and picks with what is below
    with devices.reading(model.device):
        return in_batches(
            model, tokenizer, prompts, temperature, top_p, max_new_tokens, batch_size, seed, on_batch
        )


def _in_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    on_batch: Callable[[int], None],
) -> list[list[int]]:
    copies = occurrences(prompts)
    result: list[list[int]] = [[] for _ in prompts]
    decoder = _decoder(model, int(prompts[0][0]), int(tokenizer.pad_token_id))
    eos = int(tokenizer.eos_token_id)
    done = 0
    for rows in by_length([len(p) for p in prompts], batch_size):
        texts = [list(map(int, prompts[i])) for i in rows]
        table = uniforms(texts, [copies[i] for i in rows], max_new_tokens, seed).to(model.device)
        answers = _respond(decoder, texts, table, temperature, top_p, eos)
        for i, answer in zip(rows, answers, strict=True):
            result[i] = answer
        done += len(rows)
        on_batch(done)
    return result


class _Decoder(Protocol):
    """A model reading rows of tokens; each call gives the logits behind the last ones: [rows, V]."""

    def start(self, prompts: Sequence[Tokens], room: int) -> Tensor: ...

    def step(self, tokens: Tensor) -> Tensor: ...

    def keep(self, rows: Tensor) -> None: ...


def _respond(
    decoder: _Decoder, prompts: Sequence[Tokens], table: Tensor, temperature: float, top_p: float, eos: int
) -> list[list[int]]:
    """Responses of one batch; a row that has ended is soon read no further."""
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # those in the decoder
    count = table.shape[1]
    logits = decoder.start(prompts, count)
    for step in range(count):
        tokens = pick(logits, table[:, step], temperature, top_p)
        going = []
        # The only wait for the device in a step; without it, ended rows would be read to the end.
        for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if token < 0:
                raise Diverged("the model gave logits that are not finite")
            if step > 0 and answers[row][-1] == eos:
                continue
            answers[row].append(token)
            if token != eos:
                going.append(place)
        if not going or step == count - 1:
            break
        if len(rows) - len(going) >= RETIRE * len(rows):
            places = torch.tensor(going, device=tokens.device)
            decoder.keep(places)
            tokens, table, rows = tokens[places], table[places], [rows[place] for place in going]
        logits = decoder.step(tokens)
    return answers


def _decoder(model: PreTrainedModel, token: int, pad: int) -> _Decoder:
    """How to read this model's rows step by step: found by giving it one token and asking for a cache."""
    output = model(input_ids=torch.tensor([[token]], device=model.device), use_cache=True)
    for name in ("past_key_values", "cache_params"):  # the second is that of state-space models
        if isinstance(getattr(output, name, None), Cache):
            return _Cached(model, pad, name)
    logging.getLogger("rpo").warning(
        "%s has no cache this sampler knows: every step reads the whole response again", type(model).__name__
    )
    return _Recomputed(model, pad)


class _Cached:
    """Prompts padded on the left, each read once however many rows have it; then a token per row and step."""

    def __init__(self, model: PreTrainedModel, pad: int, cache: str) -> None:
        self.model, self.pad, self.cache_name = model, pad, cache
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
        self.cache: Cache | None = None
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
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True, "logits_to_keep": 1}
        inputs[self.cache_name] = self.cache
        # A recurrent state has the padding behind it: only the prompt needs its mask.
        if self.mask is not None and (self.cache is None or self.cache_name == "past_key_values"):
            inputs |= {"attention_mask": self.mask[:, : self.width], "position_ids": positions}
        output = self.model(**{name: value for name, value in inputs.items() if name in self.takes})
        self.cache = getattr(output, self.cache_name)
        logits: Tensor = output.logits[:, -1]
        return logits


class _Recomputed:
    """All tokens in every step, padded on the right, which no causal model sees: for any of them, slowly."""

    def __init__(self, model: PreTrainedModel, pad: int) -> None:
        self.model, self.pad = model, pad

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
