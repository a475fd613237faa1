"""A training's forward and backward passes as CUDA graphs: one launch each, where there were thousands.

A small model keeps a GPU waiting for the host, which launches thousands of kernels for each piece of a
batch. A graph of a shape of batches is captured once and replayed: the same kernels on the same addresses.
So batches have few shapes (`buckets`), they are copied to where the graph reads them, and gradients are
added up where it left them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rpo_cli.artifacts import no_memory
from rpo_cli.models.buckets import Shape
from rpo_cli.models.capture import CAPTURES, aside, captured
from rpo_cli.models.layout import Batch, Reader, padded
from rpo_cli.models.rounded import Rounded
from rpo_cli.text import first_line

READ = ("input_ids", "position_ids", "segments", "predictors", "ends")  # of a batch
WARM = 2  # passes before a capture: what libraries make at a first call must be there
# Of the largest number: a graph runs the kernels that ran before it; some add up in an order of their own.
TOLERANCE = 1e-2
ROUNDING = 5e-2  # the same of products of layers together, which add up before they round


class Graphs:
    """Reads batches as `read` does, by a graph for each of their shapes; for one model while it trains.

    A model that cannot be captured, or gives other numbers so, is read without, and so is one for whose
    graphs there is no memory: that is told once. `largest`: the shape that holds all others; `rounds`: what
    rounds a model's weights where an autocast would.
    """

    def __init__(
        self,
        read: Reader,
        largest: Shape | None = None,
        rounds: Callable[[nn.Module, torch.dtype], Rounded | None] = Rounded,
    ) -> None:
        self.read, self.largest, self.rounds = read, largest, rounds
        self.made: dict[tuple[torch.Size, ...], _Graph] = {}
        self.gradients: _Gradients | None = None
        self.rounded: Rounded | None = None
        self.open = False

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it batches that are learnt from are read by graphs; behind it their memory is given back."""
        self.open = True
        try:
            yield
        finally:
            self._drop()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """What `read` gives: its gradient goes to the model's weights, and nowhere else."""
        if not (self.open and torch.is_grad_enabled() and model.training):
            return self.read(model, batch)
        read = {name: batch[name] for name in READ if name in batch}
        graph = self._graph(model, read)
        if graph is None:
            return self.read(model, batch)
        found: Tensor = _Replayed.apply(graph, graph.gradients.anchor, read)  # type: ignore[no-untyped-call]
        return found

    def _graph(self, model: nn.Module, batch: Batch) -> _Graph | None:
        """The one of a batch's shape; None: from here on there are none."""
        if self.gradients is None:
            self.gradients = _Gradients([each for each in model.parameters() if each.requires_grad])
            device = self.gradients.anchor.device.type
            if torch.is_autocast_enabled(device):
                self.rounded = self.rounds(model, torch.get_autocast_dtype(device))
            if self.largest is not None:  # in its memory all others have room
                self._made(model, widened(batch, self.largest))
        found = self.made.get(_shape(batch))
        return self._made(model, batch) if found is None and self.open else found

    def _made(self, model: nn.Module, batch: Batch) -> _Graph | None:
        assert self.gradients is not None
        pool = next((graph.pool for graph in self.made.values()), None)
        try:
            graph = _Graph(self.read, model, batch, self.gradients, self.rounded, pool)
            trouble = graph.trouble and f"a replay gives {graph.trouble}"
        except (RuntimeError, TypeError, ValueError) as error:  # of whatever a model does in its passes
            more = "not enough memory for graphs; a smaller per_device_train_batch_size needs less"
            trouble = more if no_memory(error) else first_line(error)
        if trouble is None:
            self.made[_shape(batch)] = graph
            return graph
        if self.rounded is not None and not self.made:  # some models change queries in place
            self._round_no_more()
            return self._made(model, batch)
        self._drop()
        why = f"cuda_graphs: {type(model).__name__}: {trouble}"
        logging.getLogger("rpo").warning("%s; training goes on without them, with the same steps", why)
        return None

    def _drop(self) -> None:
        """Have no graphs from here on; their memory is given back."""
        self.open, self.gradients = False, None
        self.made.clear()
        self._round_no_more()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _round_no_more(self) -> None:
        """Leave it to the autocast."""
        if self.rounded is not None:
            self.rounded.end()
            self.rounded = None


def _shape(batch: Batch) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in batch.values())


def widened(batch: Batch, shape: Shape) -> Batch:
    """A batch of shared prompts, padded in front and behind to the columns of a shape."""
    width, depth = shape
    behind = depth - batch["predictors"].shape[1]
    ahead = width + depth - batch["segments"].shape[1] - behind
    return padded(batch, ahead, behind, 0)


class _Gradients:
    """Where graphs add up the gradients of the weights that are trained."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = weights
        self.sums = [torch.zeros_like(each) for each in weights]
        self.used = [False] * len(weights)  # by some pass: an optimiser passes over what has no gradient
        self._places: dict[str, Tensor] = {}
        # What makes autograd call the backward pass; it has no gradient of its own.
        self.anchor = torch.zeros((), device=weights[0].device, requires_grad=True)

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """A place for a tensor of this shape, which all graphs share: one of them is in use at a time."""
        place = self._places.get(name)
        if place is None or place.numel() < tensor.numel() or place.dtype != tensor.dtype:
            place = self._places[name] = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        return place[: tensor.numel()].view(tensor.shape)

    def attach(self) -> None:
        """Have every weight's gradient be its sum here: 0 where it was forgotten, as after a step."""
        every = zip(self.weights, self.sums, self.used, strict=True)
        both = [(each, total) for each, total, used in every if used]
        forgotten = [total for each, total in both if each.grad is None]
        if forgotten:
            torch._foreach_zero_(forgotten)
        for each, total in both:
            if each.grad is not None and each.grad is not total:
                total.copy_(each.grad)
            each.grad = total

    def add(self, found: Sequence[Tensor | None]) -> None:
        """Add gradients to the sums; None: of a weight that the pass does not use."""
        add_up(self.sums, found)


def add_up(sums: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
    """Add gradients to their sums, all of a dtype at once."""
    both = [(total, each) for total, each in zip(sums, found, strict=True) if each is not None]
    for dtype in {each.dtype for _, each in both}:
        alike = [(total, each) for total, each in both if each.dtype == dtype]
        torch._foreach_add_([total for total, _ in alike], [each for _, each in alike])


class _Graph:
    """The two passes over batches of one shape."""

    def __init__(
        self,
        read: Reader,
        model: nn.Module,
        batch: Batch,
        gradients: _Gradients,
        rounded: Rounded | None,
        pool: Any,
    ) -> None:
        self.read, self.model, self.gradients, self.rounded, self.pool = read, model, gradients, rounded, pool
        self.batch = {name: tensor.clone() for name, tensor in batch.items()}
        self.captures = gradients.anchor.device.type in CAPTURES
        with aside() if self.captures else nullcontext():
            for how in [rounded] * WARM + [None] * (rounded is not None):
                self.rounded = how  # the last pass is one by the autocast alone, which a replay must resemble
                found: list[Tensor | None] = []  # memory for one pass at a time
                out = self._pass()
                self.slope = gradients.like("slope", out).fill_(1 / out.numel())
                found = self._back(out)
            self.rounded = rounded
        gradients.used = [used or each is not None for used, each in zip(gradients.used, found, strict=True)]
        expected, added_up = (out.detach(), found), [total.clone() for total in gradients.sums]
        del out
        try:
            if self.captures:
                self._capture(expected[0])
            self.trouble = self._beside(*expected)
        finally:  # what the pieces before added up is the step's, whatever becomes of the graph
            torch._foreach_copy_(gradients.sums, added_up)

    def _pass(self) -> Tensor:
        with nullcontext() if self.rounded is None else self.rounded.used():
            out = self.read(self.model, self.batch)
        # A cast that an autocast around this kept would be read by all that follow, whatever the weights are.
        torch.clear_autocast_cache()
        return out

    def _back(self, out: Tensor) -> list[Tensor | None]:
        # As a trainer does it, outside an autocast: within one float32 products would be rounded to bfloat16.
        with torch.autocast(out.device.type, enabled=False):
            weights = self.gradients.weights
            if self.rounded is not None:
                return self.rounded.gradients(out, weights, self.slope)
            return list(torch.autograd.grad(out, weights, self.slope, allow_unused=True))

    def _capture(self, out: Tensor) -> None:
        result = self.gradients.like("out", out)

        def forward() -> None:
            self.out = self._pass()
            result.copy_(self.out.detach())

        def backward() -> None:
            self.gradients.add(self._back(self.out))

        first = captured(forward, self.pool)
        self.pool = first.pool()
        self.graphs = first, captured(backward, self.pool)
        self.out = result  # the pass's own is memory of the pool again

    def forward(self, batch: Batch) -> Tensor:
        """What the pass gives for a batch, until the next one overwrites it."""
        for name, tensor in self.batch.items():
            tensor.copy_(batch[name])
        if self.captures:
            self.graphs[0].replay()
        else:
            with torch.enable_grad():
                self.kept = self._pass()
            self.out = self.kept.detach()
        return self.out

    def backward(self, slope: Tensor) -> None:
        """Add to the weights' gradients what a gradient of `forward`'s result gives."""
        self.slope.copy_(slope)
        if self.captures:
            self.graphs[1].replay()
        else:
            with torch.enable_grad():
                self.gradients.add(self._back(self.kept))

    def _beside(self, out: Tensor, found: list[Tensor | None]) -> str | None:
        """What a replay gives otherwise than the passes that ran before the capture; None: nothing."""
        torch._foreach_zero_(self.gradients.sums)
        replayed = self.forward(dict(self.batch)).clone()
        self.backward(self.slope.clone())
        both = [
            (total, each) for total, each in zip(self.gradients.sums, found, strict=True) if each is not None
        ]
        apart = torch.stack([(total - each).float().square().sum() for total, each in both]).sum()
        whole = torch.stack([each.float().square().sum() for _, each in both]).sum()
        tolerance = TOLERANCE if self.rounded is None else ROUNDING
        if not (replayed - out).abs().max() <= tolerance * out.abs().max():
            return "other numbers"
        return None if apart <= tolerance**2 * whole else "other gradients"


class _Replayed(torch.autograd.Function):
    """A graph's two passes as one operation of autograd's."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, anchor: Tensor, batch: Batch) -> Tensor:
        ctx.graph = graph
        return graph.forward(batch).clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[None, None, None]:
        ctx.graph.gradients.attach()
        ctx.graph.backward(slope)
        return None, None, None
