"""Files written whole or not at all, read if they are whole, and named by their content."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from rpo_cli.recipes.whole import write_whole

STALE = 120.0  # seconds: a lease that was not renewed for so long, as who waits counts them, is taken over
LOOK = 5.0  # seconds: who has waited so long for a lease says so
SMALL_FILE = 64 * 2**20


def hash_of(value: object) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256(file: Path) -> str:
    """The hash of a file's content, read piece by piece."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def hash_path(path: Path) -> str:
    """Content hash of a file or a directory.

    Large files (weights), and those that may not be read (apt's lock), count by size and modification time.
    """
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        stat = file.stat()
        digest.update(str(file.relative_to(path)).encode())
        if stat.st_size <= SMALL_FILE and os.access(file, os.R_OK):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        else:
            digest.update(f"{stat.st_size}:{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a part."""
    write_whole(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's mapping; None when it is absent or was cut short."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@contextlib.contextmanager
def lease(root: Path, name: str) -> Iterator[SoftFileLease]:
    """Hold this name in a workspace by a file that says who does, and is renewed while it is held.

    Any file system that several machines share will do. Who waits says so in a line, and takes the lease over
    when its process is gone from this machine, or when it was not renewed for STALE seconds: counted on the
    waiting machine's own clock, from when it last saw a change, so that no two clocks are compared.
    """
    locks = root / ".locks"
    locks.mkdir(exist_ok=True)
    file = locks / f"{name}.lease"
    held = SoftFileLease(file, lease_duration=STALE, poll_interval=0.2)
    began, seen, said = time.monotonic(), None, False
    while not held.is_locked:
        try:
            held.acquire(timeout=min(LOOK, STALE))
        except Timeout:
            if not said:
                waited = "waiting for another process that makes the same (%s)"
                logging.getLogger("rpo").warning(waited, file)
            said, now = True, _empty(file)
            if now is None or now != seen:
                began, seen = time.monotonic(), now
            elif time.monotonic() - began >= STALE:
                _mark_abandoned(file)
    try:
        yield held
    finally:
        held.release()


def _empty(file: Path) -> tuple[int, int] | None:
    """Which file this is and when it last changed, if it is empty."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return None if stat.st_size else (stat.st_ino, stat.st_ctime_ns)


def _mark_abandoned(file: Path) -> None:
    """Write into a lease whose process was killed before it wrote who it is; filelock waits for empty ones.

    What is no record of a holder filelock takes over by itself, one waiting process at a time.
    """
    with contextlib.suppress(OSError), open(os.open(file, os.O_WRONLY | os.O_APPEND), "w") as marker:
        marker.write("abandoned\n")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CROWDED = 2**20  # bytes free
# Of errors that have no class of their own: of the CPU's allocator, of CUDA, its libraries and its threads,
# and of XLA, whose words for a TPU these are.
STARVED = re.compile(
    "can't allocate memory|cannot allocate memory|out of memory|OutOfMemory|bad_alloc|ALLOC_FAILED"
    "|can't start new thread|not enough memory|failed to map segment"
    "|RESOURCE_EXHAUSTED|Attempting to allocate"
    "|CUBLAS_STATUS_NOT_INITIALIZED",  # where a card has no room for the library's own memory
    re.IGNORECASE,
)


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def no_memory(error: BaseException) -> bool:
    """Whether there was too little memory, of the host or of a device, behind an error."""
    return any(
        isinstance(seen, MemoryError)
        or (isinstance(seen, RuntimeError | OSError | ImportError) and STARVED.search(str(seen)) is not None)
        for seen in _behind(error)
    )


def no_room(error: BaseException, directory: Path) -> str | None:
    """What the disk of a directory says, if that is behind an error; else None.

    safetensors, tokenizers and Arrow put the system's words into errors of their own; torch's writer says
    only that it is not where it should be.
    """
    for seen in _behind(error):
        for code in FULL:
            if getattr(seen, "errno", None) == code or os.strerror(code) in str(seen):
                return os.strerror(code)
        if (
            isinstance(seen, RuntimeError)
            and "inline_container.cc" in str(seen)
            and shutil.disk_usage(directory).free < CROWDED
        ):
            return os.strerror(errno.ENOSPC)
    return None


def publish(path: Path, content: bytes) -> Path:
    """Write a file whole, in a folder that need not be there; the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path


def write_csv(rows: Sequence[Mapping[str, object]], file: Path) -> None:
    """Write rows as CSV, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    publish(file, text.getvalue().encode())
