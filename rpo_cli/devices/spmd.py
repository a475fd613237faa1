"""One model and its batches over all devices of XLA: fully sharded data parallelism by GSPMD.

Every process runs the same program on what it sees as one device; XLA's compiler cuts it as the annotations
say, and adds the gathers and sums. Source: Xu et al. 2021, arXiv 2105.04663; torch_xla.distributed.spmd.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch_xla.distributed.spmd as xs
import torch_xla.runtime
from torch import nn

ROWS, REST = "rows", "rest"


@functools.cache
def mesh(rows: int) -> xs.Mesh:
    """All devices as [ROWS, REST]: as many as divide the batch have rows of their own, each with its rest."""
    count = torch_xla.runtime.global_runtime_device_count()
    slots = math.gcd(rows, count)
    return xs.Mesh(np.arange(count), (slots, count // slots), (ROWS, REST))


def spec_of(shape: torch.Size, over: xs.Mesh) -> tuple[object, ...]:
    """How a weight, or its optimiser's tensor, is cut: along the largest dimension that divides, or not."""
    count = over.size()
    divided = [dim for dim, length in enumerate(shape) if length and length % count == 0]
    largest = max(divided, key=lambda dim: shape[dim], default=None)
    return tuple((ROWS, REST) if dim == largest else None for dim in range(len(shape)))


def shard_model(model: nn.Module, over: xs.Mesh) -> None:
    """Cut every weight of a model that is on XLA's device."""
    torch_xla.sync()  # what was only traced so far cannot be cut
    for weight in model.parameters():
        if weight.dim():
            xs.mark_sharding(weight, over, spec_of(weight.shape, over))


def shard_optimizer(optimizer: torch.optim.Optimizer, over: xs.Mesh) -> None:
    """Cut an optimiser's state as the weights it belongs to."""
    for weight, state in optimizer.state.items():
        for tensor in state.values():
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.device.type == "xla"
                and tensor.shape == weight.shape
                and tensor.dim()
            ):
                xs.mark_sharding(tensor, over, spec_of(tensor.shape, over))


class Rows:
    """How the loader, in its own thread, cuts the batches that it uploads: along their rows.

    Cut later, a tensor is read back to the host first. Those of one dimension, a number a row, and those with
    other numbers of rows stay whole everywhere. Takes the place of xs.ShardingSpec, which is of one shape.
    """

    minibatch = False  # every host has the whole batch

    def __init__(self, over: xs.Mesh) -> None:
        self.over = over

    def xla_spec(self, tensor: torch.Tensor) -> object:
        """What a tensor is uploaded as; None: whole."""
        if tensor.dim() < 2 or tensor.shape[0] % self.over.shape()[ROWS]:
            return None
        spec = xs.ShardingSpec(self.over, (ROWS, *[None] * (tensor.dim() - 1)))
        return spec.xla_spec(tensor)


def shard_batches(loader: Any, over: xs.Mesh) -> None:
    """Cut every batch of a loader, one of accelerate's for XLA, along its rows."""
    loader._parallel_loader_kwargs["input_sharding"] = Rows(over)
