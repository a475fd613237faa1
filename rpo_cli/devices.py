"""Which device and precision a stage runs on, and why; everything that differs between cpu, cuda and xla.

XLA compiles a program for every shape it meets and runs it when somebody looks at a result. There, batches have one of a
few shapes (`buckets`), a step ends with `step_mark`, and nothing is read in between.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from rpo_cli import xla_probe
from rpo_cli.errors import BadInput
from rpo_cli.schema import WITHOUT_MODEL, Recipe

if TYPE_CHECKING:
    import torch


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
        """Whether Trainer may bring its own autocast: on XLA accelerate's would round all of float32 to bfloat16."""
        return self.dtype_name == "bfloat16" and self.name != "xla"

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """What a forward pass outside a trainer runs under, so that it computes as training does."""
        import torch

        return torch.autocast(self.name, torch.bfloat16) if self.dtype_name == "bfloat16" else contextlib.nullcontext()

    def optimizer(self, name: str) -> str:
        """Trainer's name of an optimiser on this device; XLA fuses by itself and has no kernel for torch's fused AdamW."""
        if self.name == "xla" and name == "adamw_torch_fused":
            logging.getLogger("rpo").info("optim: adamw_torch_xla in place of adamw_torch_fused, the same update without its kernel")
            return "adamw_torch_xla"
        return name

    @property
    def checkpointing(self) -> dict[str, Any] | None:
        """How gradient checkpointing goes on this device, where it is not transformers' own way."""
        return {"use_reentrant": True} if self.name == "xla" else None

    @property
    def attention(self) -> str | None:
        """attn_implementation where the recipe names none: sdpa reads the mask back to the host before it calls XLA."""
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
    why = "as the recipe says" if recipe.device != "auto" else "torch sees one" if has_cuda else "torch sees no CUDA device"
    if recipe.dtype != "auto":
        return Device(name, recipe.dtype, f"{name}: {why}; dtype: as the recipe says")
    if name == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Device(name, "bfloat16", f"cuda: {why}; bfloat16: in this GPU's hardware")
    return Device(name, "float32", f"{name}: {why}; float32: no bfloat16 in hardware assumed")


def _xla(recipe: Recipe) -> Device:
    _need_torch_xla()
    hardware = xla_hardware()
    if hardware == "TPU" and not xla_probe.chips():
        raise DeviceError("device: xla was asked for, but there is no TPU chip on the PCI bus (PJRT_DEVICE=CPU runs XLA without one)")
    why = f"xla on {hardware}: PJRT_DEVICE says so" if "PJRT_DEVICE" in os.environ else f"xla on {hardware}: the default"
    if recipe.dtype != "auto":
        return Device("xla", recipe.dtype, f"{why}; dtype: as the recipe says")
    if hardware == "TPU":
        return Device("xla", "bfloat16", f"{why}; bfloat16: in a TPU's hardware")
    return Device("xla", "float32", f"{why}; float32: no bfloat16 in hardware assumed")


def _need_torch_xla() -> None:
    if (problem := xla_probe.torch_xla_problem()) is not None:
        raise DeviceError(f"device: xla was asked for, but {problem}")


def xla_hardware() -> str:
    """What XLA compiles for: TPU, or what PJRT_DEVICE names; CPU runs the same programs without one."""
    return os.environ.get("PJRT_DEVICE", "TPU")


def environment(recipes: Sequence[Recipe]) -> dict[str, str]:
    """Variables that transformers and accelerate read when they are imported: torch-xla, where installed, takes over unless told not to.

    Raises:
        DeviceError: some of the recipes ask for XLA and others for another device.
    """
    with_model = [recipe for recipe in recipes if recipe.stage not in WITHOUT_MODEL]  # type: ignore[attr-defined]
    wanted = {recipe.device == "xla" for recipe in with_model or recipes}
    if len(wanted) > 1:
        raise DeviceError("device: some stages of this plan ask for xla and others do not; give --device xla, which all of them follow")
    if wanted != {True}:
        return {"USE_TORCH_XLA": "0"}
    # accelerate takes a process without a LOCAL_RANK for none of the first.
    return {"USE_TORCH_XLA": "1", "PJRT_DEVICE": xla_hardware(), "LOCAL_RANK": os.environ.get("LOCAL_RANK", "0")}


def check(recipes: Sequence[Recipe], jobs: int) -> None:
    """Refuse a plan that its device could not run; a TPU is started once for that, in a process that may be ended.

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


def to_host(model: Any) -> Any:
    """The model where its weights can be looked at and saved: XLA's tensors have no memory to read."""
    if model.device.type == "xla":
        model = model.to("cpu")
        model.tie_weights()
    return model


def fixed_shapes(device: torch.device) -> bool:
    """Whether every new shape of a batch costs a compilation on this device."""
    return device.type == "xla"


def reading(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """What a model is read under where nothing is learnt; XLA has no inference mode."""
    import torch

    return torch.no_grad() if device.type == "xla" else torch.inference_mode()


def step_mark(device: torch.device) -> None:
    """End of a step: on XLA, compile what was traced and run it; elsewhere it has run already."""
    if device.type == "xla":
        import torch_xla

        torch_xla.sync()


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
    if spread():
        import torch_xla.runtime

        return f"{torch_xla.runtime.global_runtime_device_count()} XLA"
    return f"{processes()}{' FSDP' if os.environ.get('ACCELERATE_USE_FSDP') == 'true' else ''}"


def spread() -> bool:
    """Whether one model and its batches are spread over all XLA devices, which this process sees as one."""
    return os.environ.get("XLA_USE_SPMD") == "1"


def join_spread(devices: int) -> None:
    """Take this process's place among those that accelerate's TPU launcher started, one for each chip of each host.

    The first process of the first host writes. By the order of hosts, not of XLA's processes, whose order is the runtime's.

    Raises:
        BadInput: there are not so many devices.
    """
    import torch_xla.runtime

    found = torch_xla.runtime.global_runtime_device_count()
    if found != devices:
        raise BadInput(f"num_processes: {devices}, but XLA sees {found} devices")
    local, count = (int(os.environ[f"PJRT_LOCAL_PROCESS_{what}"]) for what in ("RANK", "COUNT"))
    os.environ["RANK"] = str(xla_probe.host() * count + local)


def cut_model(model: Any, optimizer: Any, rows: int) -> None:
    """Where a model is spread over devices: cut its weights, and what the optimiser knows of them, for batches of so many rows."""
    if spread():
        from rpo_cli import spmd

        spmd.shard_model(model, spmd.mesh(rows))
        spmd.shard_optimizer(optimizer, spmd.mesh(rows))


def cut_batch(batch: Any, rows: int) -> Any:
    """A batch; where a model is spread over devices, cut as one of so many rows."""
    if spread():
        from rpo_cli import spmd

        spmd.shard_batch(batch, spmd.mesh(rows))
    return batch


def one_chip() -> dict[str, str]:
    """Variables for a process that uses a TPU alone: one chip of this host, so that it waits for no other host."""
    if xla_hardware() != "TPU":
        return {}
    return {"TPU_VISIBLE_CHIPS": "0", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}


def prepare(threads: int | None) -> None:
    """Fix what would let the same seed give another result: thread count and algorithm choice."""
    import torch

    torch.set_num_threads(_own_threads() if threads is None else threads)
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # what `cuda` without a number means from here on
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor would make a small model's step five times slower; nothing here reads unwritten memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if os.environ.get("USE_TORCH_XLA") == "1":
        _mend_transformers()


@cache
def _own_threads() -> int:
    """The threads of this process before any stage asked for a number of them, which is no other stage's."""
    import torch

    return torch.get_num_threads()


def _mend_transformers() -> None:
    """What transformers does on XLA that fails, or compiles and reads more than it must."""
    import torch_xla.runtime
    import torch_xla.utils.checkpoint
    import transformers.modeling_utils
    import transformers.trainer

    # torch's own asks for the module torch.xla, which there is none of.
    transformers.modeling_utils.checkpoint = torch_xla.utils.checkpoint.checkpoint
    if torch_xla.runtime.world_size() == 1:
        # The logged loss would go through a rendezvous of the process with itself, in four programs.
        transformers.trainer.nested_gather = lambda tensors, *args, **kwargs: tensors.cpu()


def quiet() -> None:
    """Keep the libraries' own bars and load reports off the terminal; their warnings go to the stage's log."""
    from datasets.utils.logging import disable_progress_bar as no_datasets_bar
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.disable_default_handler()
    logging.enable_propagation()
    no_datasets_bar()
