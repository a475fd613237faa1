"""The processes that train together, and a model that is spread over XLA's devices."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rpo_cli.devices import xla_probe
from rpo_cli.errors import BadInput

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def rank() -> int:
    """Which of the processes that train together this one is; only the first writes."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def arrangement() -> str:
    """How this process trains with others, as checkpoints name it."""
    if is_spmd():
        import torch_xla.runtime

        return f"{torch_xla.runtime.global_runtime_device_count()} XLA"
    return f"{processes()}{' FSDP' if os.environ.get('ACCELERATE_USE_FSDP') == 'true' else ''}"


def is_spmd() -> bool:
    """Whether one model and its batches are spread over all XLA devices, which this process sees as one."""
    return os.environ.get("XLA_USE_SPMD") == "1"


def join_spread(devices: int) -> None:
    """Take this process's place among those of a pod, one for each host; the first host's writes.

    By the order of hosts, not of XLA's processes, whose order is the runtime's.

    Raises:
        BadInput: there are not so many devices.
    """
    import torch_xla.runtime

    found = torch_xla.runtime.global_runtime_device_count()
    if found != devices:
        raise BadInput(f"num_processes: {devices}, but XLA sees {found} devices")
    os.environ["RANK"] = str(xla_probe.host())


def cut_model(model: nn.Module, optimizer: Optimizer, rows: int) -> None:
    """Where a model is spread over devices: cut its weights and what the optimiser knows of them."""
    if is_spmd():
        from rpo_cli.devices import spmd

        spmd.shard_model(model, spmd.mesh(rows))
        spmd.shard_optimizer(optimizer, spmd.mesh(rows))


def cut_batches(loader: object, rows: int) -> None:
    """Where a model is spread over devices: have a loader's batches cut as those of so many rows."""
    if is_spmd():
        from rpo_cli.devices import spmd

        spmd.shard_batches(loader, spmd.mesh(rows))
