"""What failed in a plan, what was not tried because of it, and how that is told at the end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from rpo_cli.artifacts import Workspace
from rpo_cli.errors import BadInput, Diverged, NoRoom, RunFailed
from rpo_cli.text import aligned, counted, first_line

MANY = 25  # rows of the table


@dataclass
class Failures:
    """Errors by the path of their stage; and of each stage behind those, the one that it needs."""

    failed: dict[str, BadInput | RunFailed] = field(default_factory=dict)
    not_tried: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, error: BadInput | RunFailed, behind: Sequence[str]) -> None:
        """A stage failed, and these need it."""
        self.failed[path] = error
        for other in behind:
            self.not_tried.setdefault(other, f"needs {path}")

    def let_go(self) -> None:
        """Forget where the errors came from: their tracebacks hold models in memory, and are in the logs."""
        for error in self.failed.values():
            error.__cause__ = error.__context__ = error.__traceback__ = None

    @property
    def hopeless(self) -> bool:
        """Whether no further stage need be tried."""
        return any(isinstance(error, NoRoom) for error in self.failed.values())

    def leave(self, paths: Collection[str]) -> None:
        """These were never begun, as there is no hope for them."""
        for path in paths:
            self.not_tried.setdefault(path, "no room on the disk")

    def forgive(self, paths: Collection[str]) -> set[str]:
        """Forget those of these stages that diverged, with what they kept from being tried: them."""
        forgiven = {path for path in paths if isinstance(self.failed.get(path), Diverged)}
        for path in forgiven:
            del self.failed[path]
        behind = {f"needs {path}" for path in forgiven}
        self.not_tried = {path: why for path, why in self.not_tried.items() if why not in behind}
        return forgiven

    def error(self, workspace: Workspace) -> BadInput | RunFailed | None:
        """All of it as one error, the reasons at its end: the line of a single failure stays as it is.

        Bad input where nothing else went wrong, and a failed run elsewhere.
        """
        if not self.failed:
            return None
        errors = list(self.failed.values())
        if len(errors) == 1 and not self.not_tried:
            return errors[0]
        count = f"{counted(len(errors), 'stage')} failed, {len(self.not_tried)} not tried"
        lines = [f"{count}; the same command tries these again"]
        lines += _table([("not tried", path, why) for path, why in self.not_tried.items()])
        rows = [("failed", path, _reason(path, error, workspace)) for path, error in self.failed.items()]
        lines += _table(rows) if len(rows) > 1 else [str(errors[0])]
        return (BadInput if all(isinstance(error, BadInput) for error in errors) else RunFailed)(
            "\n".join(lines)
        )


def _table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Rows as lines, as many as a screen takes."""
    more = [f"... and {len(rows) - MANY} more"] if len(rows) > MANY else []
    return [*aligned(rows[:MANY]).splitlines(), *more] if rows else []


def _reason(path: str, error: BadInput | RunFailed, workspace: Workspace) -> str:
    """The first line of an error, without the path that stands before it, and where its log is."""
    line = first_line(error).removeprefix(f"{path}: ")
    log = workspace.root / path / "log.txt"
    return f"{line} (log: {log})" if log.is_file() and "(log: " not in line else line
