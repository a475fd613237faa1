"""Which device and precision a stage runs on, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rpo_cli.devices import xla_probe
from rpo_cli.devices.device import Device, DeviceError
from rpo_cli.devices.xla import Xla, environment, xla_hardware
from rpo_cli.recipes.schema import Recipe


def choose(recipe: Recipe) -> Device:
    """The device and dtype a recipe asks for.

    Raises:
        DeviceError: cuda was asked for and there is none.
    """
    if recipe.device == "xla":
        return _xla(recipe)
    if recipe.device == "cpu":
        has_cuda = False
    else:
        import torch

        has_cuda = torch.cuda.is_available()
    if recipe.device == "cuda" and not has_cuda:
        raise DeviceError("device: cuda was asked for, but torch sees no CUDA device (try `rpo doctor`)")
    name = "cuda" if has_cuda else "cpu"
    why = (
        "as the recipe says"
        if recipe.device != "auto"
        else "torch sees one"
        if has_cuda
        else "torch sees no CUDA device"
    )
    if recipe.dtype != "auto":
        return Device(name, recipe.dtype, f"{name}: {why}; dtype: as the recipe says")
    if name == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Device(name, "bfloat16", f"cuda: {why}; bfloat16: in this GPU's hardware")
    return Device(name, "float32", f"{name}: {why}; float32: no bfloat16 in hardware assumed")


def _xla(recipe: Recipe) -> Device:
    _need_torch_xla()
    hardware = xla_hardware()
    if hardware == "TPU" and not xla_probe.chips():
        raise DeviceError(
            "device: xla was asked for, but there is no TPU chip on the PCI bus (PJRT_DEVICE=CPU runs XLA "
            "without one)"
        )
    why = (
        f"xla on {hardware}: PJRT_DEVICE says so"
        if "PJRT_DEVICE" in os.environ
        else f"xla on {hardware}: the default"
    )
    if recipe.dtype != "auto":
        return Xla("xla", recipe.dtype, f"{why}; dtype: as the recipe says")
    if hardware == "TPU":
        return Xla("xla", "bfloat16", f"{why}; bfloat16: in a TPU's hardware")
    return Xla("xla", "float32", f"{why}; float32: no bfloat16 in hardware assumed")


def _need_torch_xla() -> None:
    if (problem := lacking_xla()) is not None:
        raise DeviceError(problem)


def lacking_xla() -> str | None:
    """Why no recipe could run on XLA here, as far as is known without starting anything; None: it may."""
    problem = xla_probe.torch_xla_problem()
    return None if problem is None else f"device: xla was asked for, but {problem}"


def check(recipes: Sequence[Recipe], jobs: int) -> None:
    """Refuse a plan that its device could not run; a TPU is tried in a process that can be ended.

    Raises:
        DeviceError: recipes of several devices; several jobs on XLA; no torch-xla; a TPU that does not start.
    """
    if environment(recipes)["USE_TORCH_XLA"] == "0":
        return
    _need_torch_xla()
    if jobs > 1:
        raise DeviceError(f"--jobs {jobs}: a TPU belongs to one process; stages on xla run one after another")
    if xla_hardware() == "TPU" and not (found := xla_probe.probe_tpu()).devices:
        raise DeviceError(f"device: xla was asked for: {found.why}")


def dtype_in_force(recipe: Recipe) -> str:
    """The dtype that a recipe means here; torch is asked only if it leaves device and dtype open."""
    if recipe.dtype != "auto":
        return recipe.dtype
    try:
        return choose(recipe).dtype_name
    except DeviceError:
        return "auto"  # without the device the plan can be shown, and running it is refused
