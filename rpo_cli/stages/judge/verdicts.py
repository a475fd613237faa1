"""Verdicts kept by content, one JSON line each: what was paid for is never asked again."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from rpo_cli.stages.judge.client import Answer, kept_as

VERDICTS = "judge/verdicts.jsonl"  # in the workspace: every policy, seed and run shares it


class Verdicts:
    """The answers known so far. Threads and processes may add; a line that a kill cut short is no answer.

    What else is none, such as an answer with half a character, is asked for again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file_lock = FileLock(file.with_name(f".{file.name}.lock"))
        self._known: dict[str, Answer] = {}
        self._read = 0  # bytes of the file
        self.unread = 0  # lines that are no answer
        if file.is_file():
            with self._file_lock, file.open("rb") as kept:
                self._catch_up(kept)

    def _catch_up(self, file: BinaryIO) -> None:
        """Take in the lines added since the last time. The first of two answers to one question stays."""
        file.seek(self._read)
        for line in file.read().splitlines():
            try:
                found = json.loads(line)
                key = found.pop("key")
                self._known.setdefault(key, kept_as(found))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                self.unread += bool(line.strip())
        self._read = file.tell()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Answer:
        return self._known[key]

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer, on disk before this returns; or the one that another process was told meanwhile."""
        line = json.dumps({"key": key, **asdict(answer)}, ensure_ascii=True).encode() + b"\n"
        with self._lock, self._file_lock, self.file.open("a+b") as file:
            self._catch_up(file)
            if key in self._known:
                return
            if file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    line = b"\n" + line  # after a line cut short
            file.write(line)
            file.flush()
            self._read = file.tell()
            self._known[key] = answer
