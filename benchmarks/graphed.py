"""The sampler of fixed shapes with its step captured as a CUDA graph: a lead to be measured, not shipped.

One thing differs from `rpo_cli.models.sample_static`: all that a step reads and writes stays at its address,
so that replaying what was launched once is the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StaticCache
from transformers.cache_utils import StaticLayer

from rpo_cli.models import sample_static, stops_of
from rpo_cli.models.sample_static import _read, _State
from rpo_cli.models.tokens import Tokens

GRAPHS = ("cuda",)  # where a step is captured; elsewhere it is run again and again
WARM = 3  # steps before the capture, as torch's documentation has them: what is made at a first call is there
LOOK = 8  # steps between two looks at whether all rows have ended: each look waits for the device


@torch.no_grad()
def sample_graphed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> list[list[int]]:
    """`sample` for models whose layers all see every token before, by a graph for each width of batches.

    Under autocast the weights' casts are made when the first prompts are read, and kept until the caller
    leaves it: the graphs read them, and are gone before. In inference mode torch would keep none, and cast
    all weights in every step.

    Raises:
        Diverged: logits are not finite.
    """
    model.eval()
    made: dict[int, _Batches] = {}

    def respond(
        model: PreTrainedModel,
        prompts: Sequence[Tokens],
        width: int,
        table: Tensor,
        temperature: float,
        top_p: float,
        stops: Sequence[int],
        pad: int,
    ) -> Tensor:
        if width not in made:
            made.clear()  # batches are sorted by length: what another width held is not needed again
            made[width] = _Batches(model, width, table.shape[1], temperature, top_p)
        return made[width].respond(prompts, table, stops, pad)

    pad, stops = int(tokenizer.pad_token_id), stops_of(model.generation_config, tokenizer)
    with patch.object(sample_static, "_respond", respond):
        return sample_static.in_batches(
            model,
            pad,
            stops,
            prompts,
            temperature,
            top_p,
            max_new_tokens,
            batch_size,
            seed,
            lambda done: None,
        )


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
        if self.model.device.type not in GRAPHS:
            self._step()
        elif self.taken < WARM:
            _aside(self._step)
        else:
            self.graph = self.graph or _captured(self._step)
            self.graph.replay()
        self.taken += 1

    def _step(self) -> None:
        """Pick tokens and read them: nothing here asks the device, or keeps a number on the host.

        The mask is additive, as its shape and dtype are then what attention takes without looking at it.
        """
        state = self.state
        tokens = state.take(state.logits, self.temperature, self.top_p)
        seen = state.seen & (self.columns < self.width + state.step)
        mask = (1 - seen[:, None, None].float()) * torch.finfo(torch.float32).min
        state.logits.copy_(_read(self.model, tokens, state.positions, mask, self.cache))


@cache
def _side() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def _aside(work: Callable[[], None]) -> None:
    """Run it on a stream of its own, in its turn among what the current stream does."""
    stream = _side()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)


def _captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """What it launches, none of which has run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph
