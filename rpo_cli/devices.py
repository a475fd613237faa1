"""Which device and precision a stage runs on, and why."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from rpo_cli.errors import BadInput
from rpo_cli.schema import Recipe


class DeviceError(BadInput):
    """The device that was asked for is not there; one line."""


@dataclass(frozen=True)
class Device:
    """A device, a dtype, and the reasons for both."""

    name: str
    dtype_name: str
    reason: str

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """What a forward pass outside a trainer runs under, so that it computes as training does."""
        import torch

        return torch.autocast(self.name, torch.bfloat16) if self.dtype_name == "bfloat16" else contextlib.nullcontext()

    def __str__(self) -> str:
        return f"{self.name}, {self.dtype_name} ({self.reason})"


CPU = Device("cpu", "float32", "cpu: nothing is computed here that needs another")


def choose(recipe: Recipe) -> Device:
    """The device and dtype a recipe asks for.

    Raises:
        DeviceError: cuda was asked for and there is none.
    """
    if recipe.device == "cpu":
        has_cuda = False
    else:
        import torch

        has_cuda = torch.cuda.is_available()
    if recipe.device == "cuda" and not has_cuda:
        raise DeviceError("device: cuda was asked for, but torch sees no CUDA device (try `rpo doctor`)")
    name = "cuda" if has_cuda else "cpu"
    why = "as the recipe says" if recipe.device != "auto" else "torch sees one" if has_cuda else "torch sees no CUDA device"
    if recipe.dtype != "auto":
        return Device(name, recipe.dtype, f"{name}: {why}; dtype: as the recipe says")
    if name == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Device(name, "bfloat16", f"cuda: {why}; bfloat16: in this GPU's hardware")
    return Device(name, "float32", f"{name}: {why}; float32: no bfloat16 in hardware assumed")


def dtype_in_force(recipe: Recipe) -> str:
    """The dtype that a recipe means on this machine; torch is asked only if the recipe leaves device and dtype open."""
    if recipe.dtype != "auto":
        return recipe.dtype
    try:
        return choose(recipe).dtype_name
    except DeviceError:
        return "auto"  # without the device the plan can be shown, and running it is refused


def rank() -> int:
    """Which of the processes that train together this one is; only the first writes."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def arrangement() -> str:
    """How this process trains with others, as checkpoints name it."""
    return f"{processes()}{' FSDP' if os.environ.get('ACCELERATE_USE_FSDP') == 'true' else ''}"


def prepare(threads: int | None) -> None:
    """Fix what would let the same seed give another result: thread count and algorithm choice."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # what `cuda` without a number means from here on
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor would make a small model's step five times slower; nothing here reads unwritten memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def quiet() -> None:
    """Keep the libraries' own bars and load reports off the terminal; their warnings go to the stage's log."""
    from datasets.utils.logging import disable_progress_bar as no_datasets_bar
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.disable_default_handler()
    logging.enable_propagation()
    no_datasets_bar()
