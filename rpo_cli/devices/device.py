"""A device and a dtype, with the reasons for both."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rpo_cli.errors import BadInput

if TYPE_CHECKING:
    pass


class DeviceError(BadInput):
    """The device that was asked for is not there; one line."""


@dataclass(frozen=True)
class Device:
    """A device, a dtype, and the reasons for both."""

    name: str
    dtype_name: str
    reason: str

    @property
    def fixed_shapes(self) -> bool:
        """Whether every new shape of a batch costs a compilation."""
        return self.name == "xla"

    @property
    def trains_in_autocast(self) -> bool:
        """Whether Trainer may bring its own autocast: on XLA it would round all of float32 to bfloat16."""
        return self.dtype_name == "bfloat16" and self.name != "xla"

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """What a forward pass outside a trainer runs under, so that it computes as training does."""
        import torch

        return (
            torch.autocast(self.name, torch.bfloat16)
            if self.dtype_name == "bfloat16"
            else contextlib.nullcontext()
        )

    def optimizer(self, name: str) -> str:
        """Trainer's name of an optimiser here; XLA fuses by itself, without torch's fused AdamW."""
        if self.name == "xla" and name == "adamw_torch_fused":
            logging.getLogger("rpo").info(
                "optim: adamw_torch_xla in place of adamw_torch_fused, the same update without its kernel"
            )
            return "adamw_torch_xla"
        return name

    @property
    def checkpointing(self) -> dict[str, Any] | None:
        """How gradient checkpointing goes on this device, where it is not transformers' own way."""
        return {"use_reentrant": True} if self.name == "xla" else None

    @property
    def attention(self) -> str | None:
        """attn_implementation where the recipe names none: sdpa reads the mask back before it calls XLA."""
        return "eager" if self.name == "xla" else None

    def place(self, model: Any) -> Any:
        """The model on this device, its tied weights still tied: moving to XLA makes new parameters."""
        model = model.to(self.name)
        if self.name == "xla":
            model.tie_weights()
        return model

    def __str__(self) -> str:
        return f"{self.name}, {self.dtype_name} ({self.reason})"


CPU = Device("cpu", "float32", "cpu: nothing is computed here that needs another")
