"""The race: whose steps take how long, once it is seen that all did the same work."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import trl.trainer.utils

from benchmarks.peak import Peak
from rpo_cli import devices
from rpo_cli.devices import Device

# How a step runs: as every stage of rpo, with deterministic algorithms on a CPU; with them on a GPU too; as
# stock TRL, transformers and torch do; and TRL on a CPU as on a GPU, where its LM head reads the responses'
# tokens only (without Triton it reads every token, padding too, to keep shapes).
Setting = Literal["rpo", "repeats", "stock", "compact"]
_USE_TRITON = trl.trainer.utils._use_triton


class UnequalWork(RuntimeError):
    """Two contestants did not do the same work: no ratio between them means anything."""


class Work(Protocol):
    """Steps that were taken, each over `pieces` batches; `ids` and `losses` tell what work that was."""

    name: str
    kind: str
    ids: list[list[int]]
    pieces: int

    @property
    def losses(self) -> list[torch.Tensor]: ...


class Contestant(Work, Protocol):
    """Somebody who takes steps."""

    setting: Setting

    @property
    def captured(self) -> bool: ...
    def step(self) -> None: ...
    def close(self) -> None: ...


def same_work(contestants: Sequence[Work], tolerance: float) -> None:
    """Whether all saw the same rows in every batch, with the same losses for the same objective.

    Raises:
        UnequalWork: they did not.
    """
    steps = len(contestants[0].losses)
    first: dict[str, tuple[str, list[float]]] = {}
    for one in contestants:
        if len(one.losses) != steps or rows_of_steps(one)[:steps] != rows_of_steps(contestants[0])[:steps]:
            raise UnequalWork(f"{one.name} saw other rows than {contestants[0].name}")
        losses = [float(loss) for loss in one.losses]
        name, expected = first.setdefault(one.kind, (one.name, losses))
        worst = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(losses, expected, strict=True))
        if not worst <= tolerance:
            raise UnequalWork(
                f"losses of {one.name} and {name} differ by {worst:.2g}: {losses} and {expected}"
            )


def rows_of_steps(one: Work) -> list[list[int]]:
    """The rows of each optimiser batch, in no order: what it is cut into is everybody's own affair."""
    return [
        sorted(i for ids in one.ids[start : start + one.pieces] for i in ids)
        for start in range(0, len(one.ids), one.pieces)
    ]


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Spent(NamedTuple):
    """Seconds on the clock and on this process's processors: the same if quiet and of one thread."""

    wall: float
    cpu: float

    def over(self, parts: float) -> Spent:
        return Spent(self.wall / parts, self.cpu / parts)


def timed(work: Callable[[], Any], device: str) -> Spent:
    """What some work takes."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    synchronise(device)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def run_as(setting: Setting) -> None:
    """Set the process up for one contestant's turn."""
    if setting in ("rpo", "repeats"):
        on_gpu = torch.cuda.is_available()
        devices.prepare(None, setting == "repeats" or not on_gpu, strict=on_gpu)
    else:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.enable_cudnn_sdp(True)
    trl.trainer.utils._use_triton = _always if setting == "compact" else _USE_TRITON


def _always(device: torch.device) -> bool:
    return True


def steps_of(one: Contestant, count: int) -> None:
    """Let one take some steps."""
    for _ in range(count):
        one.step()


def race(
    contestants: Sequence[Contestant], rounds: int, steps: int, device: Device
) -> dict[str, list[Spent]]:
    """Time per step of each, a value a round; all take `steps` steps a round, in alternating order.

    The first step of each is not timed; its loss, and all later ones, must agree.

    Raises:
        UnequalWork: rows or losses differ.
    """
    tolerance = 1e-4 if device.dtype_name == "float32" else 2e-2
    spent: dict[str, list[Spent]] = {one.name: [] for one in contestants}
    for one in contestants:
        run_as(one.setting)
        one.step()
    same_work(contestants, tolerance)
    for number in range(rounds):
        for one in contestants if number % 2 == 0 else reversed(contestants):
            run_as(one.setting)
            spent[one.name].append(timed(partial(steps_of, one, steps), device.name).over(steps))
    same_work(contestants, tolerance)
    for one in contestants:
        one.close()
    return spent


@dataclass
class Done:
    """What is left of a contestant: its work, its time by round, bytes of memory at its peak and before.

    first: seconds of its first step, in which layers are compiled. captured: its passes were graphs to the
    end.
    """

    name: str
    kind: str
    ids: list[list[int]]
    pieces: int
    losses: list[torch.Tensor]
    spent: list[Spent]
    peak: int
    before: int
    first: float
    captured: bool


def one_by_one(
    makers: Sequence[Callable[[], Contestant]], warm: int, rounds: int, steps: int, device: Device
) -> dict[str, Done]:
    """`race` where memory holds one contestant: each is made, takes its steps, and is gone before the next.

    Its first `warm` steps are not timed. The device is waited for between rounds alone, so that the host may
    run ahead from step to step, as in a training.

    Raises:
        UnequalWork: rows or losses differ.
    """
    done: dict[str, Done] = {}
    for make in makers:
        begun = time.monotonic()
        one = make()
        run_as(one.setting)
        first = timed(one.step, device.name).wall
        steps_of(one, warm - 1)
        peak = Peak(device.name)
        spent = [timed(partial(steps_of, one, steps), device.name).over(steps) for _ in range(rounds)]
        used = peak.bytes()
        losses = [loss.cpu() for loss in one.losses]
        done[one.name] = Done(
            one.name, one.kind, one.ids, one.pieces, losses, spent, peak.before + used, peak.before, first,
            one.captured,
        )  # fmt: skip
        one.close()
        print(f"  {one.name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        del one
        release()
    try:
        same_work(list(done.values()), 1e-4 if device.dtype_name == "float32" else 2e-2)
    except UnequalWork as error:
        times = "; ".join(
            f"{one.name} {np.median([each.wall for each in one.spent]):.4g} s" for one in done.values()
        )
        raise UnequalWork(f"{error} (a step took: {times})") from error
    return done


def release() -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
