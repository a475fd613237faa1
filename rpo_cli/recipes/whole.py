"""Files that are written whole or not at all: recipes, and what artifacts keep beside their tables."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PART = ".tmp"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one; an old one's mode stays."""
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its place when it is whole, and leaves nothing where it is not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_parts(folder: Path) -> None:
    """Delete what killed processes left of the files that they were writing in a folder and below."""
    for part in folder.rglob(f".*{PART}"):
        part.unlink(missing_ok=True)
