"""What each lead gives alone to a step of preference training, in a bare loop.

Every variant sees rows of its own, as a training does: what is made for each new length (a plan of cuDNN's,
compiled code) counts. Later ones may still meet a length, or code, of an earlier one in the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.bench import Comparison
from benchmarks.kernels import Seen, step_seen
from benchmarks.race import release, run_as, synchronise, timed
from benchmarks.workloads import Row, Settings, Shape, causal, pairs
from rpo_cli.devices import Device, put
from rpo_cli.models import (
    Graphs,
    PairCollator,
    compiled,
    groups_of,
    in_step,
    layers_of,
    layout,
    logps_of,
    response_logits,
    shape_of,
)
from rpo_cli.models.buckets import Buckets
from rpo_cli.models.buckets import Shape as Columns
from rpo_cli.models.layout import attention_of
from rpo_cli.models.norms import fuse_norms
from rpo_cli.models.rotary import fuse_rotary
from rpo_cli.models.rounded import Rounded
from rpo_cli.objectives import logps
from rpo_cli.objectives.dpo import dpo_losses
from rpo_cli.stages.training.arguments import few_shapes

if TYPE_CHECKING:
    from benchmarks.gpu_rows import Check

Item = TypeVar("Item")
WARM, STEPS = 3, 8


@dataclass(frozen=True)
class Multiples(Buckets):
    """Shapes whose columns are a multiple of a number: few, so that little is made for them."""

    multiple: int = 64

    def of(self, needed: Columns) -> Columns:
        width, depth = needed
        return width + -(width + depth) % self.multiple, depth


@dataclass(frozen=True)
class Lead:
    """How a step differs from the one that is shipped."""

    name: str
    cudnn: bool = False
    multiples: bool = False
    compiled: bool = False
    pieces: int = 1
    norms: bool = True
    once: bool = False
    graphs: bool = True
    mask: bool = True
    wide: bool = True
    rotary: bool = True
    rounded: bool = True
    joined: bool = True

    def rounds(self, model: torch.nn.Module, dtype: torch.dtype) -> Rounded | None:
        """What rounds weights in graphs; None: an autocast does, each by itself."""
        return Rounded(model, dtype, joined=self.joined) if self.rounded else None


SHIPPED = Lead("as shipped, in four pieces", pieces=4)
BY_KERNEL = Lead("kernel by kernel", graphs=False)
LEADS = (
    SHIPPED,
    Lead("all at once"),
    Lead("in two pieces", pieces=2),
    Lead("in eight pieces", pieces=8),
    Lead("layers compiled, all at once", compiled=True),
    Lead("layers compiled, in four pieces", compiled=True, pieces=4),
    replace(SHIPPED, name="a float32 mask, which each layer casts", mask=False),
    replace(SHIPPED, name="log-probs in pieces of 16 MB", wide=False),
    replace(SHIPPED, name="rotary embeddings as transformers has them", rotary=False),
    replace(SHIPPED, name="layers that read the same rows with a product each", joined=False),
    replace(SHIPPED, name="weights rounded one by one", rounded=False),
    replace(
        SHIPPED,
        name="weights rounded one by one, norms once, not in each layer that reads them",
        rounded=False,
        once=True,
    ),
    replace(SHIPPED, name="all of these as before", mask=False, wide=False, rotary=False, rounded=False),
    BY_KERNEL,
    replace(BY_KERNEL, name="kernel by kernel, in two pieces", pieces=2),
    replace(BY_KERNEL, name="kernel by kernel, norms as transformers has them", norms=False),
    replace(BY_KERNEL, name="kernel by kernel, cuDNN's attention, as torch would have it", cudnn=True),
    replace(BY_KERNEL, name="kernel by kernel, rows padded to multiples of 64 tokens", multiples=True),
    replace(BY_KERNEL, name="kernel by kernel, layers compiled", compiled=True),
)


@dataclass(frozen=True)
class Tried:
    """Seconds of each step, GiB at the peak, what one more step was busy with; `warm` steps do not count."""

    seconds: list[float]
    peak: float
    busy: Seen
    warm: int = WARM

    @property
    def median(self) -> float:
        return float(np.median(self.seconds[self.warm :]))


def tried(
    lead: Lead,
    model: PreTrainedModel,
    batches: list[list[list[Row]]],
    pad: int,
    device: Device,
    warm: int = WARM,
) -> Tried:
    """Steps of dpo, each over pieces of rows; the last of them under the profiler."""
    run_as("rpo")
    torch.backends.cuda.enable_cudnn_sdp(lead.cudnn)
    on_gpu = device.name == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=on_gpu)
    buckets: Buckets | None = Multiples(((0, 0),), 0, 0) if lead.multiples else None
    if lead.graphs:
        rows = [row for step in batches for rows in step for row in rows]
        shapes = [shape_of(row["prompt_ids"], groups_of(row), "shared") for row in rows]
        buckets = few_shapes(shapes, -(-len(batches[0][0]) // lead.pieces), lead.pieces * len(batches[0]))
    collate = PairCollator(pad, buckets=buckets)
    graphs = Graphs(response_logits, collate.largest, lead.rounds)
    where = torch.device(device.name)
    model.train()

    def step(pieces: list[list[Row]]) -> None:
        pieces = [part for rows in pieces for part in _cut(rows, -(-len(rows) // lead.pieces))]
        for rows in pieces:
            batch = {name: put(tensor, where) for name, tensor in collate(rows).items()}
            with in_step() if lead.compiled else nullcontext(), device.autocast():
                better, worse = logps_of(graphs(model, batch), batch).chunk(2)
                loss = dpo_losses(better - worse, 0.1).mean() / len(pieces)
                torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    ways = (layers_as(lead, model, device), compiled(model) if lead.compiled else nullcontext())
    with ways[0], ways[1], pieces_as(lead), graphs.used() if lead.graphs else nullcontext():
        seconds = [timed(partial(step, pieces), device.name).wall for pieces in batches[:-1]]
        busy = step_seen(partial(step, batches[-1]), device.name)
    synchronise(device.name)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return Tried(seconds, peak, busy, warm)


@contextmanager
def pieces_as(lead: Lead) -> Iterator[None]:
    """A mask and log-probs as the lead has them."""
    with ExitStack() as stack:
        if not lead.mask:
            stack.enter_context(patch.object(layout, "_mask", lambda model, given: attention_of(given)))
        if not lead.wide:
            stack.enter_context(patch.object(logps, "WIDE", ()))
        yield


@contextmanager
def layers_as(lead: Lead, model: PreTrainedModel, device: Device) -> Iterator[None]:
    """The model's norms and rotary embeddings as the lead has them, and the dtype in which norms are read."""
    kinds = {module: type(module) for module in model.modules()}
    if lead.norms:
        fuse_norms(model)
    if lead.rotary:
        fuse_rotary(model)
    dtype = torch.bfloat16 if device.dtype_name == "bfloat16" else torch.float32
    inner = [norm for layer in layers_of(model) for norm in layer.children() if "Norm" in type(norm).__name__]
    hooks = [
        norm.register_forward_hook(lambda norm, given, found: found.to(dtype))
        for norm in (inner if lead.once else [])
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, kind in kinds.items():
            module.__class__ = kind


def leads(check: Check) -> Iterator[Comparison]:
    """dpo with one thing changed at a time, on a small model and on a large one: what it gives alone."""
    bench = check.bench()
    scale = bench.scale
    tokenizer = bench.maker(1).tokenizer
    size, pieces = scale.step
    warm, steps_each = (check.warm, check.steps) if check.toy else (WARM, STEPS)
    makes: tuple[tuple[Settings, Shape, int, int], ...] = (
        (scale.small, scale.posts, 8 * scale.batch, 1),
        (scale.llama, scale.tldr, size, pieces),
    )
    for settings, shape, each, count in makes:
        model = causal(settings, tokenizer, 0, check.device)
        drawn = pairs(
            shape, len(LEADS) * (warm + steps_each + 1) * each * count, settings["vocab_size"], tokenizer
        )
        steps = [_pieces(rows, each) for rows in _cut(drawn, each * count)]
        found: dict[str, Tried] = {}
        for lead, batches in zip(LEADS, _cut(steps, warm + steps_each + 1), strict=True):
            found[lead.name] = tried(lead, model, batches, tokenizer.pad_token_id, bench.device, warm)
            release()
        millions = sum(weights.numel() for weights in model.parameters()) / 1e6
        workload = f"{shape.name}: llama {millions:.0f}M, {each * count} pairs, {each} at a time"
        for lead in LEADS:
            name, one = lead.name, found[lead.name]
            other = SHIPPED.name if lead.graphs else BY_KERNEL.name
            first = ", ".join(f"{took:.2f}" for took in one.seconds[:warm])
            yield Comparison(
                "dpo step in a bare loop, one thing changed",
                workload,
                f"{name}: {each * count / one.median:.1f} pairs/s; first steps {first} s; "
                f"{one.peak:.1f} GiB; {one.busy}",
                f"{other}: {each * count / found[other].median:.1f} pairs/s",
                [found[other].median / one.median],
                "",
                None,
            )
        del model
        release()


def _pieces(rows: list[Row], size: int) -> list[list[Row]]:
    """An optimiser batch as the trainers cut it: from its longest row to its shortest."""
    lengths = ("prompt_ids", "chosen_ids", "rejected_ids")
    return _cut(sorted(rows, key=lambda row: -sum(len(row[name]) for name in lengths)), size)


def _cut(items: list[Item], size: int) -> list[list[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
