"""What is wrong with the rows of a file: all of it is looked for, the first of it is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.ledger import Ledger

MOST_PROBLEMS = 20  # of a file: they tend to be alike
Item = TypeVar("Item")


@dataclass
class Problems:
    """What is wrong with a file, or with several, the first of it in words."""

    file: Path | str
    first: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, place: str, *problems: str) -> None:
        """More of them, of one row."""
        self.add_lines(*(f"{place}: {problem}" for problem in problems))

    def add_lines(self, *lines: str) -> None:
        """More of them, with their places."""
        self.count += len(lines)
        self.first += lines[: MOST_PROBLEMS - len(self.first)]

    def check(self) -> None:
        """Raise BadInput if there are any."""
        more = self.count - len(self.first)
        if self.first:
            last = [f"{self.file}: and {more} more problems"] if more > 0 else []
            raise BadInput("\n".join(self.first + last))


def to_the_end(
    items: Iterator[Item], again: Callable[[], Iterator[object]], what: Path | str, ledger: Ledger
) -> Iterator[Item]:
    """What a source makes of rows; where one is wrong the others are read for what is wrong with them.

    again: what makes something of the rows behind the last that was read; ledger: is told of each.

    Raises:
        BadInput: rows are wrong, with all of `Problems`; of a set whose rows are all wrong in the same words,
            so far as there are more than a few, the first alone.
    """
    before = ledger.records.total()
    try:
        yield from items
    except BadInput as error:
        problems, reasons, read = Problems(what), set[str](), 0
        found: BadInput | None = error
        while found is not None and read < (read := ledger.records.total() - before):  # else no row is wrong
            problems.add_lines(str(found))
            reasons.add(str(found).removeprefix(f"{ledger.place}: "))
            if problems.count == read >= MOST_PROBLEMS and len(reasons) == 1:
                break
            found = _first_error(again())
        whole = len(reasons) == 1 and problems.count == ledger.records.total() - before
        if whole or problems.count < 2:
            raise
        problems.check()


def _first_error(items: Iterator[object]) -> BadInput | None:
    try:
        for _ in items:
            pass
    except BadInput as error:
        return error
    return None
