"""Weights & Biases, on which nothing depends: what goes wrong there is told, and all goes on without it."""

from __future__ import annotations

import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpo_cli.text import counted, first_line

if TYPE_CHECKING:
    import pandas as pd

FEW = 5  # runs that are named one by one
OFFLINE = "offline-run-"
RUN = re.compile(r"(offline-)?run-\d+_\d+-.+")
SECONDS = 5.0  # for an answer of the server's before anything is sent to it
MODE = "WANDB_MODE"
log = logging.getLogger("rpo")
Tell = Callable[[str], None]


def server() -> str:
    """The address of Weights & Biases."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def wandb_mode() -> tuple[str, str]:
    """Weights & Biases' mode (online, offline, disabled) and why."""
    if mode := os.environ.get(MODE):
        return mode, f"{MODE} says so"
    if os.environ.get("WANDB_API_KEY"):
        return "online", "WANDB_API_KEY is set"
    host = server().split("//")[-1].split("/")[0]
    with suppress(OSError, RuntimeError):  # no such file, or no such user, whose home it would be in
        netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        if host in netrc.read_text(errors="replace"):
            return "online", f"logged in ({netrc})"
    return "offline", "no login (run `wandb login`)"


@contextmanager
def told_where(root: Path, wanted: bool, say: Tell) -> Iterator[None]:
    """Say at the end, if runs were asked for, where those of a workspace went that were begun meanwhile."""
    before = _runs(root)
    try:
        yield
    finally:
        if wanted:
            say(_place(root, _runs(root) - before))


def _runs(root: Path) -> set[str]:
    """The folders of runs: `run-TIME-ID` of those that were sent, `offline-run-TIME-ID` of the others."""
    return {folder.name for folder in (root / "wandb").glob("*run-*") if RUN.fullmatch(folder.name)}


def _place(root: Path, begun: set[str]) -> str:
    """Where these runs went, in a line: what is on disk says it, whichever process began them."""
    folder = root / "wandb"
    kept = sorted(name for name in begun if name.startswith(OFFLINE))
    again = {_id(name) for name in kept}  # where the server did not answer after all
    sent = [name for name in begun if not name.startswith(OFFLINE) and _id(name) not in again]
    if not begun:
        mode, why = wandb_mode()
        return f"Weights & Biases: nothing was written ({why if mode == 'disabled' else 'no run was begun'})"
    said = [f"{counted(len(sent), 'run')} sent to {server()}"] if sent else []
    if kept:
        named = [folder / name for name in kept] if len(kept) <= FEW else [folder / f"{OFFLINE}*"]
        sends = f"`wandb sync {' '.join(map(str, named))}` sends {'it' if len(kept) == 1 else 'them'}"
        said += [f"{counted(len(kept), 'offline run')}; {sends}"]
    return f"Weights & Biases: runs in {folder}: {', '.join(said)}"


def _id(run: str) -> str:
    return run.removeprefix(OFFLINE).removeprefix("run-").partition("-")[2]


class Tracker:
    """A run of Weights & Biases, or none: after the first trouble every call does nothing.

    What one stage of a command found out (no network, no wandb) the next ones need not: it is kept in the
    environment, for worker processes too.
    """

    def __init__(self, tell: Tell) -> None:
        self.run: Any = None
        self.wandb: Any = None  # the package, which is imported where a run begins
        self.tell = tell

    def start(self, root: Path, **about: object) -> None:
        """Begin a run in a folder; offline, with the reason, where there is no login or no connection."""
        with self._guarded():
            mode, why = wandb_mode()
            if mode == "disabled":
                return
            import wandb

            self.wandb = wandb
            root.mkdir(parents=True, exist_ok=True)
            settings = wandb.Settings(
                silent=True, init_timeout=30, finish_timeout=300, console="off", x_disable_stats=True
            )
            begin: dict[str, Any] = {"dir": str(root), "settings": settings, "resume": "allow", **about}
            try:
                if mode == "online":
                    need_answer()
                self.run = wandb.init(**{**begin, "mode": mode})
            except Exception as error:  # of wandb, and of what it is made of
                if mode != "online":
                    raise
                mode, why = "offline", f"not online: {first_line(error)}"
                self.tell(f"Weights & Biases: {why}; it goes on offline (`wandb sync` sends it later)")
                os.environ[MODE] = mode
                wandb.teardown()  # of the attempt: its service still holds the run's name
                self.run = wandb.init(**{**begin, "mode": mode})
            log.info("W&B %s (%s): %s", mode, why, self.run.dir)

    def log(self, values: Mapping[str, object], step: int | None = None) -> None:
        self._do(lambda run: run.log(dict(values), step=step))

    def catch_up(self, lines: Iterable[tuple[int, Mapping[str, object]]]) -> None:
        """Log those of these steps that the run lacks: it begins behind what the server has of it.

        What a process that was killed had not yet sent, or wrote to a file of its own offline.
        """

        def send(run: Any) -> None:
            begins = run.step
            for step, values in lines:
                if step >= begins:
                    run.log(dict(values), step=step)

        self._do(send)

    def table(self, name: str, frame: pd.DataFrame) -> None:
        self._do(lambda run: run.log({name: self.wandb.Table(dataframe=frame)}))

    def images(self, files: Mapping[str, Path]) -> None:
        pictures = files.items()
        self._do(lambda run: run.log({name: self.wandb.Image(str(file)) for name, file in pictures}))

    def summary(self, metrics: Mapping[str, object]) -> None:
        self._do(lambda run: run.summary.update(dict(metrics)))

    def finish(self, *, failed: bool = False) -> None:
        self._do(lambda run: run.finish(exit_code=int(failed)))

    def _do(self, act: Callable[[Any], object]) -> None:
        with self._guarded():
            if self.run is not None:
                act(self.run)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of wandb, and of what it is made of
            self.run = None
            os.environ[MODE] = "disabled"
            self.tell(f"Weights & Biases: {first_line(error)}; all goes on without it")
            with suppress(Exception):
                import wandb

                wandb.teardown()


def need_answer() -> None:
    """Ask the server for any answer: its client would wait for minutes. OSError: there is none."""
    with suppress(urllib.error.HTTPError):  # which is one
        urllib.request.urlopen(urllib.request.Request(server(), method="HEAD"), timeout=SECONDS).close()
