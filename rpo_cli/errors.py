"""The two ways a run ends badly, each one line for the user."""

from __future__ import annotations


class BadInput(Exception):
    """Data, models or the command line are wrong; says what and where. Exit code 2."""


class RunFailed(Exception):
    """A stage failed while it ran; the traceback is in the stage's log. Exit code 1."""


class Diverged(RunFailed):
    """A loss or a weight left the finite numbers: a choice of its settings that is worse than any other."""


class OutOfMemory(RunFailed):
    """A stage needed more memory than there was, or its process was killed as if it had."""


class Died(RunFailed):
    """The process that made a stage ended without a word."""


class NoRoom(RunFailed):
    """The disk is full: no other stage would end better."""


NAMED = {kind.__name__: kind for kind in (Diverged, OutOfMemory, Died, NoRoom, RunFailed, BadInput)}


def encode_error(error: BadInput | RunFailed) -> tuple[str, str]:
    """An error as it goes from one process to another: its kind and its line."""
    return next(name for name, kind in NAMED.items() if isinstance(error, kind)), str(error)


def decode_error(kind: str, line: str) -> BadInput | RunFailed:
    """The error of `encode_error`."""
    return NAMED[kind](line)
