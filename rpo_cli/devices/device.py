"""A device and a dtype, with the reasons for both: what is the same for all, and for cpu and cuda."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rpo_cli.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Parameters up to which a GPU is taken to wait for the host; measured at 135M, where it does, and at 1.24B.
HOST_BOUND = 500_000_000


class DeviceError(BadInput):
    """The device that was asked for is not there; one line."""


@dataclass(frozen=True)
class Device:
    """A device, a dtype, and the reasons for both."""

    # Whether every new shape of a batch costs a compilation.
    fixed_shapes: ClassVar[bool] = False
    # How gradient checkpointing goes on this device, where it is not transformers' own way.
    checkpointing: ClassVar[dict[str, object] | None] = None
    # attn_implementation where the recipe names none; None: the model's own.
    attention: ClassVar[str | None] = None

    name: str
    dtype_name: str
    reason: str

    @property
    def repeats(self) -> bool:
        """Whether algorithms are deterministic unless the recipe says so: on a GPU they take longer."""
        return self.name != "cuda"

    @property
    def trains_in_autocast(self) -> bool:
        """Whether a training computes in bfloat16 on weights of float32."""
        return self.dtype_name == "bfloat16"

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """What passes run under: of one process's training loss and model, and whatever scores or samples."""
        import torch

        return (
            torch.autocast(self.name, torch.bfloat16)
            if self.dtype_name == "bfloat16"
            else contextlib.nullcontext()
        )

    def optimizer(self, name: str) -> str:
        """Trainer's name of an optimiser on this device."""
        return name

    def place(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model on this device, its tied weights still tied."""
        return model.to(self.name)

    def __str__(self) -> str:
        return f"{self.name}, {self.dtype_name} ({self.reason})"


CPU = Device("cpu", "float32", "cpu: nothing is computed here that needs another")
