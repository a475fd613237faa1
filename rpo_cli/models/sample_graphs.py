"""The sampler of fixed shapes with its step as a CUDA graph, for models whose layers see all tokens before.

A token of a small model is more kernels than a host launches while a GPU runs them. One
thing differs from `sample_static`: all that a step reads and writes stays at its address, so that replaying
what was launched once is the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from rpo_cli.artifacts import no_memory
from rpo_cli.devices import HOST_BOUND
from rpo_cli.models import decode, sample_static
from rpo_cli.models.choice import alike, exactly
from rpo_cli.models.draws import Sampling
from rpo_cli.models.graphs import CAPTURES, aside, captured
from rpo_cli.models.proven import Proven, built_alike
from rpo_cli.models.sample_static import _read, _State
from rpo_cli.models.tokens import Tokens
from rpo_cli.text import first_line

Made = TypeVar("Made")
NO_MEMORY = "no memory for a cache of fixed size, which a smaller per_device_eval_batch_size leaves"
WARM = 3  # steps before the capture, as torch's documentation has them: what is made at a first call is there
PROVEN = Proven()
LOOK = 8  # steps between two looks at whether all rows have ended: each look waits for the device


_given_up: WeakSet[PreTrainedModel] = WeakSet()


class NotCaptured(RuntimeError):
    """A step of the model's cannot be a graph."""


def worth_it(model: PreTrainedModel) -> bool:
    """Whether a model's steps are to be graphs, if they can be.

    A graph reads ended rows, the whole cache and every copy of a prompt, which costs more than launches where
    the host waits.
    """
    known = model in _given_up
    return model.device.type in CAPTURES and not known and model.num_parameters() <= HOST_BOUND


def give_up(model: PreTrainedModel) -> None:
    """Have the model's samples be drawn without graphs from here on; what was made for them is given back."""
    _given_up.add(model)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_batches(model: PreTrainedModel, prompts: Sequence[Tokens], how: Sampling) -> list[list[int]]:
    """`sample` by a graph for each width of batches.

    Under autocast the weights' casts are made when the first prompts are read, and kept until the caller
    leaves it: the graphs read them, and are gone before. In inference mode torch would keep none, and cast
    all weights in every step.

    Raises:
        NotCaptured: there is no graph of a step.
        Diverged: logits are not finite.
    """
    made: dict[int, _Batches] = {}

    def respond(
        model: PreTrainedModel,
        prompts: Sequence[Tokens],
        width: int,
        table: Tensor,
        how: Sampling,
    ) -> Tensor:
        if width not in made:
            made.clear()  # batches are sorted by length: what another width held is not needed again
            made[width] = _Batches(model, width, table.shape[1], how.temperature, how.top_p)
        return made[width].respond(prompts, table, how.stops, how.pad)

    try:
        return sample_static.in_batches(model, prompts, how, respond)
    except RuntimeError as error:
        if no_memory(error):
            raise NotCaptured(NO_MEMORY) from error
        raise


def why_not(model: PreTrainedModel, prompts: Sequence[Tokens], pad: int, room: int) -> str | None:
    """What keeps a model from being read so; None: it gives the logits of rows read alone without a cache.

    Where a model that is built alike did so within wider bounds, it is not tried again.
    """
    longest, shortest = max(prompts, key=len), min(map(len, prompts))
    way, bounds = built_alike(model, pad), (len(longest), len(longest) + room, room, -shortest)
    if PROVEN.holds(way, bounds):
        return None
    try:
        layers = StaticCache(config=model.config, max_cache_len=1).layers
        if not all(type(layer) is StaticLayer for layer in layers):
            return "some of its layers do not see all tokens before"
        with exactly(model):
            texts = decode._telling_texts(model, longest, shortest, room)
            steps = min(decode.STEPS, room)
            more = [[text[step % len(text)] for step in range(steps)] for text in texts]
            alone = torch.cat([decode._alone(model, *row) for row in zip(texts, more, strict=True)])
            made = _Batches(model, max(map(len, texts)), steps, 1.0, 1.0)
            if not alike(made.forced(texts, more, pad), alone, decode.TOLERANCE):
                return "its logits are others with a cache of fixed size"
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        return NO_MEMORY if no_memory(error) else first_line(error)
    PROVEN.note(way, bounds)
    return None


class _Layer(StaticLayer):
    """Keys and values of one dtype, the values'.

    Under autocast keys are float32 after their rotation, and values are not; attention casts both to what
    values are, so casting keys before they are kept gives the same numbers.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().update(key_states.to(value_states.dtype), value_states, *args, **kwargs)


class _Fixed(_State):
    """A state whose tensors stay at their addresses.

    seen: [N, columns] what padding does not hide; logits: [N, V] behind the last tokens.
    """

    def __init__(self, *given: Tensor, seen: Tensor, logits: Tensor) -> None:
        super().__init__(*given)
        self.seen, self.logits = seen, logits

    def put(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite what is here."""
        for name, tensor in tensors.items():
            getattr(self, name).copy_(tensor)

    def take(self, logits: Tensor, temperature: float, top_p: float) -> Tensor:
        """The next tokens [N, 1], as in any state."""
        here = dict(vars(self))
        tokens = super().take(logits, temperature, top_p)
        changed = {name: tensor for name, tensor in vars(self).items() if tensor is not here[name]}
        vars(self).update(here)
        self.put(changed)
        return tokens


class _Batches:
    """Batches of one shape, one after another: they share a cache, a state and a graph."""

    state: _Fixed

    def __init__(
        self, model: PreTrainedModel, width: int, room: int, temperature: float, top_p: float
    ) -> None:
        self.model, self.width, self.temperature, self.top_p = model, width, temperature, top_p
        self.columns = torch.arange(width + room, device=model.device)
        self.cache = StaticCache(config=model.config, max_cache_len=width + room)
        self.cache.layers = [_Layer(width + room) for _ in self.cache.layers]
        self.taken = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def respond(self, prompts: Sequence[Tokens], table: Tensor, stops: Sequence[int], pad: int) -> Tensor:
        """Tokens [N, steps] that the numbers of `table` choose, on the host."""
        self._start(prompts, table, stops, pad)
        for step in range(1, table.shape[1] + 1):
            self._advance()
            if step % LOOK == 0 and bool(self.state.all_ended):
                break
        return self.state.answers.cpu()

    def forced(self, prompts: Sequence[Tokens], more: Sequence[Sequence[int]], pad: int) -> Tensor:
        """Logits behind prompts and behind each of the tokens that follow: [N, K + 1, V]."""
        following = torch.tensor(more)
        self._start(prompts, torch.zeros(following.shape, dtype=torch.float64), [0], pad)
        found = [self.state.logits.clone()]
        for tokens in following.T.to(self.model.device):
            self.state.step.add_(1)
            self.state.positions.add_(1)
            self._next(tokens[:, None])
            found.append(self.state.logits.clone())
        return torch.stack(found, 1)

    def _start(self, prompts: Sequence[Tokens], table: Tensor, stops: Sequence[int], pad: int) -> None:
        """Read the prompts, padded on the left, and put the state where a graph looks for it."""
        device = self.model.device
        padded = [[pad] * (self.width - len(prompt)) + list(map(int, prompt)) for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        starts = (self.width - lengths)[:, None].to(device)
        seen = self.columns >= starts
        positions = (self.columns[: self.width] - starts).clamp(min=0)
        self.cache.reset()
        logits = _read(self.model, torch.tensor(padded).to(device), positions, seen.long(), self.cache)
        given = (table, torch.full(table.shape, stops[0]), lengths, torch.tensor(stops))
        state = _Fixed(*(tensor.to(device) for tensor in given), seen=seen, logits=logits)
        if self.taken == 0:
            self.state = state
        else:
            self.state.put(vars(state))

    def _advance(self) -> None:
        """One step; those before the capture are steps of the first batch like any other."""
        if self.model.device.type not in CAPTURES:
            self._step()
        elif self.taken < WARM:
            with aside():
                _as_such(self._step)
        else:
            self.graph = self.graph or _as_such(partial(captured, self._step))
            self.graph.replay()
        self.taken += 1

    def _step(self) -> None:
        """Pick tokens and read them: nothing here asks the device, or keeps a number on the host.

        The mask is additive, as its shape and dtype are then what attention takes without looking at it.
        """
        self._next(self.state.take(self.state.logits, self.temperature, self.top_p))

    def _next(self, tokens: Tensor) -> None:
        """Read a token of each row, whose places the state has."""
        state = self.state
        seen = state.seen & (self.columns < self.width + state.step)
        mask = (1 - seen[:, None, None].float()) * torch.finfo(torch.float32).min
        state.logits.copy_(_read(self.model, tokens, state.positions, mask, self.cache))


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
