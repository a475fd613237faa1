"""Continuous batching with its step as a CUDA graph, for models whose layers see all tokens before.

A token of a small model is more kernels than a host launches while a GPU runs them. So all that a step
reads and writes stays at its address: replaying what was launched once is the next step. The rows stay as
many: where responses have ended, the next prompts are read into their places. A row is
[prompt | response | unused], with columns and a step of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from rpo_cli.artifacts import no_memory
from rpo_cli.devices import HOST_BOUND, put, reading
from rpo_cli.errors import Diverged
from rpo_cli.models import decode
from rpo_cli.models.buckets import for_batches
from rpo_cli.models.choice import alike, exactly
from rpo_cli.models.draws import Sampling, Waiting, pick
from rpo_cli.models.graphs import CAPTURES, aside, captured
from rpo_cli.models.layout import by_length
from rpo_cli.models.proven import Proven, built_alike
from rpo_cli.models.sample_static import read_step
from rpo_cli.models.tokens import Tokens
from rpo_cli.text import first_line

Made = TypeVar("Made")
NO_MEMORY = "not enough memory for a cache of fixed size; a smaller per_device_eval_batch_size needs less"
WARM = 3  # steps before the capture, as torch's documentation has them: what is made at a first call is there
PROVEN = Proven()
LOOK = 8  # steps between two looks at which rows have ended: each look waits for the device
# Prompts are read when this share of the rows have ended: a few prompts take as long as some steps.
FREE = 1 / 4


_given_up: WeakSet[PreTrainedModel] = WeakSet()


class NotCaptured(RuntimeError):
    """A step of the model's cannot be a graph."""


def worth_it(model: PreTrainedModel) -> bool:
    """Whether a model's steps are to be graphs, if they can be.

    A graph has the same number of rows to the end, ended ones among them: that pays where the device waits
    for the host, not where the host waits.
    """
    known = model in _given_up
    return model.device.type in CAPTURES and not known and model.num_parameters() <= HOST_BOUND


def give_up(model: PreTrainedModel) -> None:
    """Have the model's samples be drawn without graphs from here on; what was made for them is given back."""
    _given_up.add(model)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def continuously(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    how: Sampling,
    stops: Sequence[int],
    on_batch: Callable[[int], None],
) -> list[list[int]]:
    """`sample` by graphs of a step, one for each of a few widths.

    Under autocast the weights' casts are made when the first prompts are read, and kept until all are
    answered: the graphs read them, and are gone before. In inference mode torch would keep none, and cast
    all weights in every step.

    Raises:
        NotCaptured: there is no graph of a step, or the model cannot be read so.
        Diverged: logits are not finite.
    """
    if (trouble := why_not(model, prompts, how.max_new_tokens)) is not None:
        raise NotCaptured(trouble)
    try:
        with reading(model.device):
            return _answers(model, prompts, how, stops, on_batch)
    except (RuntimeError, MemoryError) as error:
        if no_memory(error):
            raise NotCaptured(NO_MEMORY) from error
        raise


def _answers(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    how: Sampling,
    stops: Sequence[int],
    on_batch: Callable[[int], None],
) -> list[list[int]]:
    waiting, room, lengths = Waiting(prompts, how), how.max_new_tokens, [len(prompt) for prompt in prompts]
    count = min(how.batch_size, len(prompts))
    widths = _widths(lengths, room, count)
    rows = _Rows(model, count, widths[-1], how, stops)
    logging.getLogger("rpo").info("continuous batching: %d rows of %s columns", count, widths)
    result: list[list[int]] = [[] for _ in prompts]
    going: dict[int, tuple[int, int]] = {}  # row: its prompt, and the step before its first
    step = done = 0
    while waiting or going:
        free = [row for row in range(count) if row not in going]
        if waiting and len(free) >= FREE * count:
            new, table = waiting.take(len(free))
            rows.fill(free[: len(new)], [waiting.texts[i] for i in new], table)
            going |= {row: (i, step) for row, i in zip(free, new, strict=False)}
        ahead = min(LOOK, max(room - (step - since) for _, since in going.values()))
        if ahead < 1:
            raise NotCaptured("rows go on behind their last step")
        needed = max(lengths[i] + min(step + ahead - since, room) for i, since in going.values())
        for _ in range(ahead):
            rows.advance(next(width for width in widths if width >= needed))
        step += ahead
        waiting.prepare(count // 2)  # while the device is at these steps: behind them it waits for the host
        ended = rows.ended_among(list(going))
        for row, answer in ended.items():
            if -1 in answer:
                raise Diverged("the model gave logits that are not finite")
            result[going.pop(row)[0]] = answer
        if ended:
            done += len(ended)
            on_batch(done)
    return result


def _widths(lengths: Sequence[int], room: int, count: int) -> list[int]:
    """How many columns rows may have: few numbers, as each is a graph; the last holds any prompt's row.

    They are multiples of 8, as attention wants masks; those behind a model's last position are not seen.
    """
    needed = [(length + room, 0) for length in lengths]
    return sorted({width for width, _ in for_batches(needed, list(by_length(lengths, count))).shapes})


def why_not(model: PreTrainedModel, prompts: Sequence[Tokens], room: int) -> str | None:
    """What keeps a model from being read so; None: it gives the logits of rows read alone without a cache.

    Where a model that is built alike did so within wider bounds, it is not tried again.
    """
    longest, shortest = max(prompts, key=len), min(map(len, prompts))
    way, bounds = built_alike(model), (len(longest), len(longest) + room, room, -shortest)
    if PROVEN.holds(way, bounds):
        return None
    try:
        layers = StaticCache(config=model.config, max_cache_len=1).layers
        if not all(type(layer) is StaticLayer for layer in layers):
            return "some of its layers do not see all tokens before"
        with exactly(model):
            texts = decode.telling_texts(model, longest, shortest, room)
            steps = min(decode.STEPS, room)
            more = [[text[step % len(text)] for step in range(steps)] for text in texts]
            alone = torch.cat([decode.read_alone(model, *row) for row in zip(texts, more, strict=True)])
            how = Sampling(1.0, 1.0, steps, len(texts), 0)
            made = _Rows(model, len(texts), max(map(len, texts)) + steps, how, [0])
            if not alike(made.forced(texts, more), alone, decode.TOLERANCE):
                return "its logits are others with a cache of fixed size"
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        return NO_MEMORY if no_memory(error) else first_line(error)
    PROVEN.note(way, bounds)
    return None


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


class _Rows:
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
