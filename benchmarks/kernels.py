"""One step under torch's profiler: what the device is busy with, launches, and waits of the host."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from benchmarks.contestants import Training
from benchmarks.race import run_as, steps_of, synchronise

# The first that fits a kernel's name, or on a CPU that of an operation.
KINDS = {
    "compiled code": r"^triton_",
    "attention": r"attention|flash|fmha|sdpa",
    "matrix products": r"gemm|gemv|cutlass|xmma|nvjet|cublas|wgmma|\b(mm|addmm|bmm)\b|mkldnn|linear",
    "optimiser and clipping": r"adam|multi_tensor|foreach|lpnorm|_norm\b|sgd",
    "softmax and loss": r"softmax|logsumexp|cross_entropy|linear_logprob|nll",
    # Not "cast" alone: gpu_kernel_impl_nocast, LoadWithCast are ways in which any operation is run.
    "copies and casts": r"copy|memcpy|memset|fill|zero_",
    "gather and scatter": r"index|scatter|gather|sort|embedding|radix",
    "reductions": r"reduce|sum|mean|cumsum|scan",
    "element-wise": r"elementwise|vectorized|unrolled|\b(add|mul|div|sub|neg|exp|silu|rsqrt|where|cat)_?\b",
}
LAUNCHES = re.compile(r"(cuda|cu)LaunchKernel")
# A copy to or from the host is followed by a wait for its stream, unless both sides agreed not to.
WAITS = re.compile(r"cuda(Stream|Device|Event)Synchronize$|^aten::_local_scalar_dense$")
WARM = 3  # steps before the one that is looked at


@dataclass
class Seen:
    """A step: microseconds of each kind of kernel, launches, and waits of the host."""

    busy: Counter[str]
    launches: int
    waits: int

    def __str__(self) -> str:
        total = sum(self.busy.values()) or 1.0
        parts = ", ".join(f"{kind} {each / total:.0%}" for kind, each in self.busy.most_common())
        return f"busy {total / 1000:.1f} ms: {parts}"


def kind_of(name: str) -> str:
    """Which of `KINDS` a kernel is of."""
    lower = name.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, lower)), "others")


def seen_in(events: Sequence[Any], device: str) -> Seen:
    """What the profiler's events say; on a CPU, whose kernels are its operations, each one's own time."""
    busy: Counter[str] = Counter()
    for event in events:
        if device == "cpu":
            if event.name.startswith("aten::"):
                busy[kind_of(event.name)] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            busy[kind_of(event.name)] += event.time_range.elapsed_us()
    names = [event.name for event in events]
    # `.item()` is there twice: as an operation, and as the wait it makes.
    waits = sum(bool(WAITS.search(name)) for name in names if device == "cpu" or not name.startswith("aten"))
    return Seen(busy, sum(bool(LAUNCHES.match(name)) for name in names), waits)


class _Look(TrainerCallback):
    """Profiles one step, its batches' making included, in the thread that takes it."""

    def __init__(self, device: str) -> None:
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
        with profile(activities=activities):
            pass  # it begins in the thread that imported torch; a trainer has one of its own
        self.profile = profile(activities=activities)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM:
            self.profile.start()
        if state.global_step == WARM + 1:
            self.profile.stop()


def step_seen(step: Callable[[], object], device: str) -> Seen:
    """A step of this thread's."""
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")) as look:
        step()
        synchronise(device)
    return seen_in(look.events() or (), device)


def profiled(one: Training, device: str) -> Seen:
    """One step of a trainer after some others."""
    look = _Look(device)
    one.trainer.add_callback(look)
    run_as(one.setting)
    steps_of(one, WARM + 1)
    one.close()
    return seen_in(look.profile.events() or (), device)
