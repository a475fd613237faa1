"""Free memory, of the host and of each GPU, and which GPU each worker process sees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from rpo_cli.devices.choice import choose
from rpo_cli.recipes.schema import Recipe

HOST = "host"  # a place with memory; the others are GPUs, as CUDA_VISIBLE_DEVICES names them
CGROUP = Path("/sys/fs/cgroup")


def gpus(recipes: Sequence[Recipe]) -> list[str]:
    """The GPUs that may be used, where some of these recipes run on one."""
    if all(recipe.device in ("cpu", "xla") or choose(recipe).name != "cuda" for recipe in recipes):
        return []
    import torch

    return named(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count)


def named(visible: str | None, count: Callable[[], int]) -> list[str]:
    """The GPUs of CUDA_VISIBLE_DEVICES, up to one that is none, as CUDA reads it; unset: all of them."""
    if visible is None:
        return [str(index) for index in range(count())]
    names = [name.strip() for name in visible.split(",")]
    ends = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
    return names[:ends]


def seen_by(gpu: str, workers: int) -> dict[str, str]:
    """The environment in which a worker sees this GPU alone; none where there is no GPU.

    It has its share of the CPUs: two jobs of two threads each took 1.5 times as long on two of them as with
    one thread each. Where a CPU computes their number is the recipes', as results depend on it.
    """
    if not gpu:
        return {}
    return {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": threads_of_a_worker(workers)}


def threads_of_a_worker(workers: int) -> str:
    """How many threads torch has in each of so many workers that share the CPUs, unless a recipe says."""
    return os.environ.get("OMP_NUM_THREADS", str(min(_own_threads(), max(1, cpus() // workers))))


def crowded(recipes: Sequence[Recipe], workers: int) -> str | None:
    """What to say where several workers have more threads than there are CPUs; None: they have not.

    Their number of threads is the recipes', as a CPU's results depend on it.
    """
    own = _own_threads()
    fixed = "OMP_NUM_THREADS" in os.environ or all(each.threads for each in recipes)
    if fixed or own * workers <= cpus():
        return None
    share = max(1, cpus() // workers)
    return (
        f"{workers} jobs of {own} threads each share {cpus()} CPUs, which makes all of them slower: "
        f"OMP_NUM_THREADS={share}, or `threads: {share}` in the recipes (what exists is then made anew), "
        "gives each its own; results differ in their last bits"
    )


def _own_threads() -> int:
    """How many threads torch has unless it is told: one for each core that this process may run on."""
    return min(cpus(), psutil.cpu_count(logical=False) or cpus())


def cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(gpus: Sequence[str]) -> Mapping[str, int]:
    """Bytes that are free now, by place; a GPU whose driver does not say is left out."""
    free = {HOST: min(int(psutil.virtual_memory().available), _left_by_limit())}
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i"]
    for gpu in gpus:
        try:
            said = subprocess.run(
                [*query, gpu], capture_output=True, text=True, timeout=30, check=True
            ).stdout
            free[gpu] = int(said) * 2**20
        except (OSError, subprocess.SubprocessError, ValueError):
            continue
    return free


def _left_by_limit() -> int:
    """Bytes that a container's limit leaves, beside files that the kernel keeps only as long as it likes."""
    try:
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        kept = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return sys.maxsize  # there is none
    return limit - used + int(kept.get("inactive_file", 0)) + int(kept.get("active_file", 0))
