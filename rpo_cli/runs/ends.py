"""The bad end of a stage that it cannot tell itself, in a line: an unexpected error, a process that died."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from rpo_cli.artifacts import Job, no_memory, no_room
from rpo_cli.errors import Died, NoRoom, OutOfMemory, RunFailed
from rpo_cli.recipes.schema import KINDS, Recipe
from rpo_cli.text import first_line

# What a process says of the others when one of them is gone: gloo's words, NCCL's, those of torch's store.
LOST = re.compile(
    "connection closed by peer|connection reset by peer|connection refused|broken pipe|ncclRemoteError"
    "|remote process exited|socket timeout|timed out waiting|collective operation timeout|wait timeout"
    "|connection was likely closed|failed to (recv|send), got|NCCL communicator was aborted|peer closed",
    re.IGNORECASE,
)
# Of a process in what torch's launcher says at its end, the one that it saw first behind `Root Cause`.
FALLEN = re.compile(r"^ +rank +: (\d+) .*\n +exitcode +: (-?\d+) ", re.MULTILINE)
ROOT_CAUSE = "Root Cause"
# Of the only process of a launch: subprocess's words for how its command ended.
ALONE = re.compile(r"CalledProcessError: .*(?:exit status (\d+)|died with <Signals\.\w+: (\d+)>)\.?\s*$")
END = 2**16  # bytes of a log in which the launcher's last words are


def failed(job: Job[Recipe], error: Exception) -> RunFailed:
    """A stage's unexpected end in one line."""
    full = no_room(error, job.root)
    if full is not None:
        what = f"{full}: {job.directory}; make room, then the same command goes on from here"
        return NoRoom(f"{job.path}: {what}")
    line = first_line(error)
    if no_memory(error):
        return OutOfMemory(f"{job.path}: out of memory ({line}); {_less_memory(job)}")
    if isinstance(error, OSError):
        what = f"{error.strerror or error}: {error.filename or job.directory}"
    else:
        what = f"{type(error).__name__}: {line} (log: {job.directory / 'log.txt'})"
    return RunFailed(f"{job.path}: {what}")


def died(job: Job[Recipe], code: int | None, who: str = "its process") -> RunFailed:
    """The end of a stage whose process ended without a word; `code`: its exit code, of a signal the negative.

    The kernel takes back memory with signal 9.
    """
    if code == -signal.SIGKILL:
        return OutOfMemory(f"{job.path}: {who} was killed, as if out of memory; {_less_memory(job)}")
    how = f"exit code {code}" if code is None or code >= 0 else signal.strsignal(-code)
    return Died(f"{job.path}: {who} died ({how}); if for want of memory, {_less_memory(job)}")


def _less_memory(job: Job[Recipe]) -> str:
    """What makes a stage need less memory, with the value that it has now."""
    name = "per_device_train_batch_size" if KINDS[job.kind].trains else "per_device_eval_batch_size"
    size = getattr(job.recipe, name, None)
    smaller = "" if size is None else f"a smaller {name} (now {size}) or "
    return f"{smaller}fewer --jobs need less (log: {job.directory / 'log.txt'})"


def lost_others(error: Exception) -> bool:
    """Whether an error only says that another process is gone."""
    return type(error) is RunFailed and LOST.search(str(error)) is not None


def fallen(log: Path, start: int, heard: set[int]) -> tuple[int, int] | None:
    """Rank and exit code of the process that ended a launch, if its log, from `start` on, says that.

    heard: the ranks that said themselves why they ended. Those that torch ended with SIGTERM are no cause,
    nor are those that NCCL aborted, where there is another.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - END))
            said = file.read().decode(errors="replace")
    except OSError:
        return None
    if (alone := ALONE.search(said)) is not None:
        return 0, int(alone[1]) if alone[1] is not None else -int(alone[2])
    others, _, root = said.rpartition(ROOT_CAUSE)
    found = [(int(rank), int(code)) for part in (root, others) for rank, code in FALLEN.findall(part)]
    causes = [each for each in found if each[0] not in heard and each[1] != -signal.SIGTERM]
    return min(causes, key=lambda each: each[1] == -signal.SIGABRT, default=None)
