"""Worker processes: each imports the heavy libraries once, and makes one stage at a time."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from rpo_cli import devices
from rpo_cli.artifacts import Job, Manifest, Stage, job_from
from rpo_cli.errors import BadInput, RunFailed, decode_error, encode_error
from rpo_cli.recipes.schema import KINDS, Recipe
from rpo_cli.runs.ends import died, failed
from rpo_cli.runs.work import run_job, set_aside, stage_function, start_arrow


class Made(NamedTuple):
    """A manifest, and the most bytes that the worker has held so far: of the host, and of its device."""

    manifest: Manifest
    host: int
    device: int


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started here is not told of Ctrl-C, from its first moment on; this process is, afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """A process, and the job that it is at. What it says comes through a pipe, which needs no thread.

    `slot`: its number among those of now; `environment`: which GPU it sees; `stage`: the last one that it
    took, at first the one that it is started for. OSError: the system starts no further process.
    """

    def __init__(self, slot: int, environment: Mapping[str, str], stage: Stage) -> None:
        context = multiprocessing.get_context("spawn")
        self.slot, self.environment, self.stage = slot, environment, stage
        self.at: Job[Recipe] | None = None
        self.pipe, theirs = context.Pipe()
        with theirs:
            self._process = context.Process(target=serve, args=(theirs, dict(environment)))
            with _without_interrupts():
                self._process.start()

    @property
    def gpu(self) -> str:
        """The GPU that it sees, as CUDA_VISIBLE_DEVICES names it; empty where it sees none."""
        return self.environment.get("CUDA_VISIBLE_DEVICES", "")

    def take(self, stage: Stage, job: Job[Recipe]) -> None:
        """Begin a stage."""
        self.stage, self.at = stage, job
        with suppress(OSError):  # it is dead: `hear` says so
            self.pipe.send_bytes(job.to_json().encode())

    def hear(self) -> tuple[int, int] | Made | BadInput | RunFailed:
        """What it says next: steps, or the end of its stage; what it cannot say itself is `died`."""
        assert self.at is not None
        try:
            said: dict[str, Any] = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join()
            return died(self.at, self._process.exitcode)
        if "step" in said:
            step, of = said["step"]
            return step, of
        return Made(*said["made"]) if "made" in said else decode_error(*said["error"])

    def kill(self) -> None:
        """Have the process end, whatever it is doing."""
        self._process.kill()

    def end(self) -> None:
        """End the process, and wait until it is gone."""
        self.kill()
        self._process.join()
        self.pipe.close()


def ready(workers: Sequence[Worker], seconds: float | None = None) -> list[Worker]:
    """Wait, for so long at most, until some worker says something, or is dead: those."""
    spoke = wait([worker.pipe for worker in workers], seconds)
    return [worker for worker in workers if worker.pipe in spoke]


def serve(pipe: Connection, environment: dict[str, str]) -> None:
    """The life of a worker; thread counts are set for each stage."""
    os.environ.update(environment)
    os.dup2(2, 1)  # stdout is data, and what libraries print is none
    trouble: Exception | None = None
    try:
        _set_up()
    except Exception as error:  # of whatever cannot be imported, or has no memory for it
        trouble = error

    def say(**message: object) -> None:
        try:
            pipe.send_bytes(json.dumps(message).encode())
        except OSError:
            os._exit(1)  # the parent is gone, and nobody wants the result

    while True:
        try:
            job = job_from(pipe.recv_bytes().decode())
        except (EOFError, OSError):
            return
        try:
            if trouble is not None:
                raise failed(job, trouble)
            say(step=[0, 1])  # it begins: what was before is no time of its own
            manifest = run_job(job, lambda step, of: say(step=[step, of]))
        except (BadInput, RunFailed) as error:
            said = encode_error(error)
            del error  # its traceback holds what the stage held
            _peaks()
            say(error=said)
        else:
            say(made=[manifest, *_peaks()])


def _set_up() -> None:
    """What is done once: how the process ends, and the imports."""
    # Ctrl-C, and a cluster that wants its machine back, reach all processes: the parent ends its workers.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start_arrow()
    devices.unheard()
    for kind, row in KINDS.items():
        if row.heavy:
            stage_function(kind)
    set_aside()


def _end_with_parent() -> None:
    """Leave when the parent was killed: an orphan would go on building behind the next command's back."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _peaks() -> tuple[int, int]:
    """The most bytes that this process has held since the last time, of the host's memory and of its GPU's.

    What it holds of the GPU's for nothing is given back.
    """
    import torch

    host, device = _peak_on_host(), 0
    gc.collect()  # a trainer, its model and AdamW's state name each other, and stay until then
    with suppress(OSError):  # from here on Linux counts anew, where it is allowed to
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        device = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return host, device


def _peak_on_host() -> int:
    """Bytes; where there is no /proc, since the process began."""
    import resource

    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, LookupError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
