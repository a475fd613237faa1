"""What differs on XLA, which compiles a program for every shape and runs it when somebody looks at a result.

There, batches have one of a few shapes (`models.buckets`), a step ends with `step_mark`, and nothing is read
in between."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from rpo_cli.devices.device import Device, DeviceError
from rpo_cli.recipes.schema import KINDS, Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Xla(Device):
    """A TPU, or whatever else XLA compiles for."""

    fixed_shapes: ClassVar = True
    checkpointing: ClassVar = {"use_reentrant": True}
    attention: ClassVar = "eager"  # sdpa reads the mask back to the host before it calls XLA

    @property
    def trains_in_autocast(self) -> bool:
        return False  # accelerate's would round all of float32 to bfloat16

    def optimizer(self, name: str) -> str:
        """XLA fuses by itself, and has no kernel for torch's fused AdamW."""
        if name != "adamw_torch_fused":
            return name
        told = "optim: adamw_torch_xla in place of adamw_torch_fused, the same update without its kernel"
        logging.getLogger("rpo").info(told)
        return "adamw_torch_xla"

    def place(self, model: PreTrainedModel) -> PreTrainedModel:
        model = model.to(self.name)
        model.tie_weights()  # moving makes new parameters
        return model


def xla_hardware() -> str:
    """What XLA compiles for: TPU, or what PJRT_DEVICE names; CPU runs the same programs without one."""
    return os.environ.get("PJRT_DEVICE", "TPU")


def environment(recipes: Sequence[Recipe]) -> dict[str, str]:
    """Variables that transformers and accelerate read when imported; unless told, torch-xla takes over.

    Raises:
        DeviceError: some of the recipes ask for XLA and others for another device.
    """
    with_model = [recipe for recipe in recipes if KINDS[recipe.stage].needs_model]
    wanted = {recipe.device == "xla" for recipe in with_model or recipes}
    if len(wanted) > 1:
        raise DeviceError(
            "device: some stages of this plan ask for xla and others do not; give --device xla, which all "
            "of them follow"
        )
    if wanted != {True}:
        return {"USE_TORCH_XLA": "0"}
    # accelerate takes a process without a LOCAL_RANK for none of the first.
    return {
        "USE_TORCH_XLA": "1",
        "PJRT_DEVICE": xla_hardware(),
        "LOCAL_RANK": os.environ.get("LOCAL_RANK", "0"),
    }


def to_host(model: PreTrainedModel) -> PreTrainedModel:
    """The model where its weights can be looked at and saved: XLA's tensors have no memory to read."""
    if model.device.type == "xla":
        model = model.to("cpu")
        model.tie_weights()
    return model


def fixed_shapes(device: torch.device) -> bool:
    """Whether every new shape of a batch costs a compilation on this device."""
    return device.type == "xla"


@contextlib.contextmanager
def reading(device: torch.device) -> Iterator[None]:
    """What a model is read under where nothing is learnt.

    XLA has no inference mode, and in it an autocast casts each weight anew in each forward pass. What is cast
    is forgotten at the end: the autocast's own end may be that of the stage.
    """
    import torch

    casts = torch.is_autocast_enabled(device.type)
    try:
        with torch.no_grad() if casts or device.type == "xla" else torch.inference_mode():
            yield
    finally:
        if casts:
            torch.clear_autocast_cache()


def whole_products(device: Device) -> None:
    """Have float32 multiplied as float32: unless told, a TPU rounds the factors of a matrix to bfloat16."""
    if device.name == "xla":
        from torch_xla import backends

        if backends.get_mat_mul_precision() != "highest":
            # It warns, at the first time, of a second one.
            logging.getLogger(backends.__name__).setLevel(logging.ERROR)
            backends.set_mat_mul_precision("highest")


def step_mark(device: torch.device) -> None:
    """End of a step: on XLA, compile what was traced and run it; elsewhere it has run already."""
    if device.type == "xla":
        import torch_xla

        torch_xla.sync()


def settle(device: torch.device) -> None:
    """Before weights are read in between steps: on XLA, run what was traced and wait until it has run."""
    if device.type == "xla":
        import torch_xla
        import torch_xla.core.xla_model

        torch_xla.sync(wait=True)
        torch_xla.core.xla_model.wait_device_ops()


def one_chip() -> dict[str, str]:
    """Variables for a process that uses one chip of this host alone and waits for no other host."""
    if xla_hardware() != "TPU":
        return {}
    return {"TPU_VISIBLE_CHIPS": "0", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
