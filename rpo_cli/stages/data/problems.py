"""What is wrong with the rows of a file: more than the first of it is looked for and said."""

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
        self.count += len(problems)
        self.first += [f"{place}: {problem}" for problem in problems[: MOST_PROBLEMS - len(self.first)]]

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
        BadInput: rows are wrong, each of the first `MOST_PROBLEMS`, behind which nothing is read; of rows
            that are all wrong in the same words the first alone.
    """
    before = ledger.records.total()
    try:
        yield from items
    except BadInput as error:
        lines, reasons, read = list[str](), set[str](), 0
        found: BadInput | None = error
        while found is not None and read < (read := ledger.records.total() - before):  # else no row is wrong
            lines.append(str(found))
            reasons.add(str(found).removeprefix(f"{ledger.place}: "))
            found = _first_error(again()) if len(lines) < MOST_PROBLEMS else None
        alike = len(reasons) == 1 and len(lines) == ledger.records.total() - before
        if alike or len(lines) < 2:
            raise
        if len(lines) == MOST_PROBLEMS:
            lines.append(f"{what}: not read any further, so there may be more problems")
        raise BadInput("\n".join(lines)) from None


def _first_error(items: Iterator[object]) -> BadInput | None:
    try:
        for _ in items:
            pass
    except BadInput as error:
        return error
    return None
