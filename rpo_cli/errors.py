"""The two ways a run ends badly, each one line for the user."""

from __future__ import annotations


class BadInput(Exception):
    """Data, models or the command line are wrong; says what and where. Exit code 2."""


class RunFailed(Exception):
    """A stage failed while it ran; the traceback is in the stage's log. Exit code 1."""
