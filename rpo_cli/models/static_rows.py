"""Rows that are read a token at a time, all of it at its address: their steps are CUDA graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from rpo_cli.artifacts import no_memory
from rpo_cli.devices import put
from rpo_cli.models import decode
from rpo_cli.models.capture import CAPTURES, aside, captured
from rpo_cli.models.draws import Sampling, pick
from rpo_cli.models.sample_static import read_step
from rpo_cli.models.tokens import Tokens
from rpo_cli.text import first_line

Made = TypeVar("Made")
WARM = 3  # steps before the capture, as torch's documentation has them: what is made at a first call is there
# Prompts are read when this share of the rows have ended: a few prompts take as long as some steps.
FREE = 1 / 4


class NotCaptured(RuntimeError):
    """A step of the model's cannot be a graph."""


@dataclass
class _Shared:
    """What rows and the layers of their cache have in common, so that neither holds the other.

    With the cache and its graphs they would else stay until garbage is collected. position: [N, 1] the column
    of each row's next token; width: how many columns are seen; columns: how many there are; places: where
    layers of so many heads keep the token that is read now.
    """

    count: int
    columns: int
    width: int
    position: Tensor
    places: dict[int, Tensor] = field(default_factory=dict)


class _Layer(StaticLayer):
    """Keys and values of one dtype, the values'; each row has a place of its own for the next token.

    Under autocast keys are float32 after their rotation, and values are not; attention casts both to what
    values are, so casting keys before they are kept gives the same numbers.
    """

    def __init__(self, shared: _Shared) -> None:
        super().__init__(shared.columns)
        self.shared = shared

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for all rows, whatever the number of those given."""
        wide = [states[:1].expand(self.shared.count, -1, -1, -1) for states in (key_states, value_states)]
        super().lazy_initialization(*wide)
        count, heads, columns, _ = self.keys.shape
        self.begins = torch.arange(count * heads, device=self.device).view(count, heads) * columns
        self.heads = heads

    def fill(self, rows: Tensor, which: Tensor, keys: Tensor, values: Tensor) -> None:
        """Begin rows with what was read: `which` of it for each."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        for mine, read in ((self.keys, keys), (self.values, values)):
            mine[:, :, : read.shape[2]].index_copy_(0, rows, read.index_select(0, which))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Keep a token of each row, [N, heads, 1, D], and give what is to be seen of all."""
        both = (key_states.to(value_states.dtype), value_states)
        if not self.is_initialized:
            self.lazy_initialization(*both)
        if self.heads not in self.shared.places:
            self.shared.places[self.heads] = (self.begins + self.shared.position).flatten()
        places = self.shared.places[self.heads]
        for mine, new in zip((self.keys, self.values), both, strict=True):
            mine.view(-1, mine.shape[-1]).index_copy_(0, places, new.reshape(-1, mine.shape[-1]))
        return self.keys[:, :, : self.shared.width], self.values[:, :, : self.shared.width]


class Rows:
    """As many rows as are read at once, with their cache; all of it stays at its address on the device.

    table: [N, room] numbers that choose tokens; answers: [N, room] those chosen; taken: [N, 1] how many;
    token, position: [N, 1] what is read next, and where; ended: [N].
    """

    def __init__(
        self, model: PreTrainedModel, count: int, columns: int, how: Sampling, stops: Sequence[int]
    ) -> None:
        self.model, self.how = model, how
        shape, device = (count, how.max_new_tokens), model.device
        self.numbers = torch.arange(columns, device=device)
        self.begins = torch.arange(count, device=device)[:, None] * how.max_new_tokens
        self.stops = torch.tensor(stops, device=device)
        self.table = torch.zeros(shape, dtype=torch.float64, device=device)
        self.answers = torch.zeros(shape, dtype=torch.long, device=device)
        self.taken, self.token, self.position = torch.zeros(3, count, 1, dtype=torch.long, device=device)
        self.ended = torch.ones(count, dtype=torch.bool, device=device)
        self.shared = _Shared(count, columns, columns, self.position)
        self.cache = StaticCache(config=model.config, max_cache_len=columns)
        self.cache.layers = [_Layer(self.shared) for _ in self.cache.layers]
        self.steps: dict[int, int] = {}  # of each width
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def fill(self, rows: Sequence[int], prompts: Sequence[np.ndarray], table: Tensor) -> None:
        """Begin responses in rows: each prompt is read once, but for its last token, with which steps begin.

        At most a share FREE of the rows is read at once: its keys and values are there twice.
        """
        owners: dict[bytes, tuple[np.ndarray, list[int]]] = {}
        for row, prompt in zip(rows, prompts, strict=True):
            owners.setdefault(prompt[:-1].tobytes(), (prompt[:-1], []))[1].append(row)
        read = [(text, own) for text, own in owners.values() if len(text)]
        last = np.array([prompt[-1] for prompt in prompts])
        size = math.ceil(FREE * self.shared.count)
        for start in range(0, len(read), size):
            self._prefill(read[start : start + size], int(last[0]))
        begun = {
            "table": table,
            "taken": torch.zeros(len(rows), 1, dtype=torch.long),
            "token": torch.from_numpy(last[:, None]),
            "position": torch.tensor([[len(prompt) - 1] for prompt in prompts]),
            "ended": torch.zeros(len(rows), dtype=torch.bool),
        }
        index = put(torch.tensor(rows), self.model.device)
        for name, values in begun.items():
            getattr(self, name).index_copy_(0, index, put(values, self.model.device))

    def _prefill(self, owners: Sequence[tuple[np.ndarray, Sequence[int]]], filling: int) -> None:
        """Read texts into the cache of the rows that begin with each.

        `filling` is behind the shorter ones, where no token sees it, and is overwritten before any could. It
        is not padding, of which some models say that it lacks a mask.
        """
        device = self.model.device
        padded = np.full((len(owners), max(len(text) for text, _ in owners)), filling)
        for line, (text, _) in zip(padded, owners, strict=True):
            line[: len(text)] = text
        read = decode.OneDtype(config=self.model.config)
        more = {decode.cache_name(self.model): read, "use_cache": True, "logits_to_keep": 1}
        self.model(input_ids=put(torch.from_numpy(padded), device), **more)
        pairs = [(row, which) for which, (_, rows) in enumerate(owners) for row in rows]
        rows, which = put(torch.tensor(pairs).T.contiguous(), device)
        for mine, layer in zip(self.cache.layers, read.layers, strict=True):
            mine.fill(rows, which, layer.keys, layer.values)

    def forced(self, prompts: Sequence[Tokens], more: Sequence[Sequence[int]]) -> Tensor:
        """Logits behind prompts and behind each of the tokens that follow: [N, K + 1, V]."""
        texts = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
        self.fill(range(len(texts)), texts, torch.zeros(self.table.shape, dtype=torch.float64))
        found = [self._read()]
        for tokens in torch.tensor(more).T.to(self.model.device):
            self.token.copy_(tokens[:, None])
            self.position.add_(1)
            found.append(self._read())
        return torch.stack(found, 1)

    def advance(self, width: int) -> None:
        """One step of all rows, none of which has a token from column `width` on.

        Those before the capture are steps like any other.
        """
        self.shared.width, taken = width, self.steps.get(width, 0)
        if self.model.device.type not in CAPTURES:
            self._step()
        elif taken < WARM:
            with aside():
                _as_such(self._step)
        else:
            if width not in self.graphs:
                self.graphs[width] = _as_such(self._graph)
            self.graphs[width].replay()
        self.steps[width] = taken + 1

    def _graph(self) -> torch.cuda.CUDAGraph:
        """A graph of a step, whose tokens were compared with the step's own.

        Few may differ: where a number is at the edge between two tokens, rounding decides.

        Raises:
            NotCaptured: many differ.
        """
        state = (self.taken, self.token, self.position, self.ended, self.answers)
        before = [each.clone() for each in state]
        self.ended.zero_()  # a row that has ended would not tell
        with aside():
            self._step()
        expected = self.answers.clone()
        torch._foreach_copy_(state, before)
        self.ended.zero_()
        graph = captured(self._step, next((graph.pool() for graph in self.graphs.values()), None))
        graph.replay()
        others = (self.answers != expected).any(1).sum()
        torch._foreach_copy_(state, before)
        if others > len(expected) // 8:
            raise NotCaptured("a replay gives other tokens than the step it is of")
        return graph

    def ended_among(self, rows: Sequence[int]) -> dict[int, list[int]]:
        """The responses of those of the rows that have ended."""
        seen = torch.cat([self.ended[:, None], self.taken, self.answers], 1).tolist()
        return {row: seen[row][2 : 2 + seen[row][1]] for row in rows if seen[row][0]}

    def _step(self) -> None:
        """Read a token of each row and pick the next: nothing here asks the device, or keeps a number.

        A row that has ended reads the token before its last again and again, for nothing.
        """
        room = self.how.max_new_tokens
        last = self.taken.clamp(max=room - 1)
        numbers = self.table.gather(1, last)[:, 0]
        chosen = pick(self._read(), numbers, self.how.temperature, self.how.top_p)[:, None]
        going = ~self.ended[:, None]
        kept = chosen.where(going, self.answers.gather(1, last))
        self.answers.view(-1).index_copy_(0, (self.begins + last).flatten(), kept.flatten())
        self.taken.add_(going)
        stopped = (chosen == self.stops).any(1, keepdim=True) | (chosen < 0) | (self.taken == room)
        self.ended.logical_or_(stopped[:, 0])
        going = going & ~stopped
        self.position.add_(going)
        self.token.copy_(chosen.where(going, self.token))

    def _read(self) -> Tensor:
        """Logits behind the rows' tokens: [N, V].

        The mask is additive, as its shape and dtype are then what attention takes without looking at it.
        """
        self.shared.places.clear()
        unseen = (self.numbers[: self.shared.width] > self.position)[:, None, None]
        mask = unseen.float() * torch.finfo(torch.float32).min
        return read_step(self.model, self.token, self.position, mask, self.cache)


def _as_such(work: Callable[[], Made]) -> Made:
    """Do it; what a model cannot is told as `NotCaptured`.

    Raises:
        NotCaptured: whatever it raised, but for a lack of memory.
    """
    try:
        return work()
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        if no_memory(error):
            raise
        raise NotCaptured(first_line(error)) from error
