"""Signals that end a run: Ctrl-C, and SIGTERM, which a cluster sends before it takes its machine back."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType

END_SECONDS = 10.0  # that a run which SIGTERM ended may take to its end


class Interrupt:
    """A signal that ends a run as Ctrl-C ends it; the same right behind it does not disturb that end.

    Later it does: where Python cleaned up an object, or a library was imported, the first may be lost.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.came = -math.inf

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self.came > self.seconds:
            self.came = now
            raise KeyboardInterrupt


def heed_interrupts() -> None:
    """Take SIGTERM as Ctrl-C, and remember either."""
    signal.signal(signal.SIGTERM, Interrupt(END_SECONDS))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell had it ignored
        signal.signal(signal.SIGINT, Interrupt(0.0))


def interrupted() -> bool:
    """Whether a signal to end has come, even if a library has caught what it raised."""
    handlers = (signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM))
    return any(isinstance(each, Interrupt) and each.came > -math.inf for each in handlers)


def end_undisturbed() -> None:
    """Have SIGTERM do nothing from here on, where a run ends by a signal: the last thing before that end.

    While Python takes itself down handlers are gone, and a second one would end it with another exit code.
    """
    if interrupted():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
