"""The repository as git has it: what else lies among its files is its owner's business, and no test's."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@cache
def tracked(*places: str, root: Path = ROOT) -> tuple[Path, ...]:
    """The files below places of a repository that git tracks and that are there; without git all of them."""
    command = ["git", "ls-files", "-z", "--", *places]
    try:
        listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        found = [path for place in places for path in (root / place, *(root / place).rglob("*"))]
    else:
        found = [root / name for name in listed.split("\0") if name]
    return tuple(sorted(path for path in found if path.is_file()))


def copy_tracked(place: str, to: Path) -> None:
    """Copy what is tracked below a place to the same place below another folder."""
    for path in tracked(place):
        copy = to / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
