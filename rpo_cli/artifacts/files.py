"""Files written whole or not at all, read if they are whole, and named by their content."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rpo_cli.recipes.whole import write_whole

SMALL_FILE = 64 * 2**20


def hash_of(value: object) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CROWDED = 2**20  # bytes free
# Of errors that have no class of their own: of the CPU's allocator, of CUDA, its libraries and its threads.
STARVED = re.compile(
    "can't allocate memory|cannot allocate memory|out of memory|OutOfMemory|bad_alloc|ALLOC_FAILED"
    "|can't start new thread|not enough memory|failed to map segment",
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
