"""Copies between the host and a device; on a GPU nobody waits for them.

A plain copy to or from a GPU waits until the GPU has done all that was asked of it before, and until then the
host asks it nothing new.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

What = TypeVar("What")


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def behind(device: torch.device) -> int:
    """How many results may be on their way while the host goes on: on a GPU, one keeps it busy."""
    return 1 if device.type == "cuda" else 0


class Returning(Generic[What]):
    """Results on their way to the host, each with what it is of; read when `behind` later ones were sent."""

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self._sent: deque[tuple[What, Tensor, torch.cuda.Event | None]] = deque()

    def send(self, what: What, tensor: Tensor) -> list[tuple[What, Tensor]]:
        """Send one, and return those that are due, on the host."""
        arrival = None
        if tensor.device.type == "cuda":
            import torch

            tensor = tensor.to("cpu", non_blocking=True)
            arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrival.record()
        self._sent.append((what, tensor, arrival))
        return list(self._read(self._behind))

    def rest(self) -> list[tuple[What, Tensor]]:
        """Those that are still on their way."""
        return list(self._read(0))

    def _read(self, left: int) -> Iterator[tuple[What, Tensor]]:
        while len(self._sent) > left:
            what, tensor, arrival = self._sent.popleft()
            if arrival is not None:
                arrival.synchronize()
            yield what, tensor.cpu()
