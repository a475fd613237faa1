"""Progress with an ETA: a live bar on a terminal, else a line every few seconds. Always on stderr."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from rpo_cli.recipes.schema import KINDS
from rpo_cli.text import clock

QUIET_SECONDS = 5.0  # between lines
BAR_SECONDS = 0.1  # between changes of a live bar
ANY = "any"  # kind of stage
LONG = 10.0  # expected seconds from which a stage says something of other kinds: less is mostly its start


@dataclass
class Running:
    """A stage at work: seconds of the clock at its start, and at its first and latest report of steps.

    One that trains reports each step, the first one behind the checkpoint from which it goes on.
    """

    started: float
    trains: bool = False
    first: tuple[float, int] | None = None
    latest: tuple[float, int] | None = None
    of: int = 1

    @property
    def each(self) -> float | None:
        """Seconds of a step; None before that is known.

        What a training needed until its first step is mostly the loading of its model.
        """
        if self.first is None or self.latest is None or (self.trains and self.latest == self.first):
            return None
        (began, first), (at, step) = self.first, self.latest
        return (at - began) / (step - first) if step > first else (at - self.started) / max(1, step)

    def remaining(self, now: float) -> float | None:
        """Seconds to go at its own rate; None before that is known."""
        if self.latest is None or (each := self.each) is None:
            return None
        at, step = self.latest
        return max(0.0, (self.of - step) * each - (now - at))

    @property
    def skipped(self) -> int:
        """Steps before the checkpoint from which it goes on."""
        return self.first[1] - 1 if self.trains and self.first is not None else 0

    def whole(self, seconds: float) -> float | None:
        """What it would take without a checkpoint, of the seconds that it takes; None: not known."""
        if not self.skipped:
            return seconds
        return None if self.each is None else seconds + self.skipped * self.each


@dataclass
class PlanProgress:
    """How far a plan is, and how long the rest takes: what was measured goes before what was expected.

    A running stage takes as long as its own steps say. One that waits takes what the plan expects of it,
    corrected by how wrong that was for stages of its kind, or for `LONG` ones of any kind while none of its
    own has been seen.
    """

    console: Console
    expected: Mapping[str, float]
    jobs: int
    kinds: Mapping[str, str] = field(default_factory=dict)
    now: Callable[[], float] = time.monotonic
    latest: Callable[[str], str] = lambda path: ""  # what a running stage's journal says
    done: dict[str, float] = field(default_factory=dict)  # path -> seconds it took
    whole: dict[str, float | None] = field(default_factory=dict)  # path -> seconds without a checkpoint
    running: dict[str, Running] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)  # failed, or behind one that did
    _spoken: float = -QUIET_SECONDS
    _notes: set[str] = field(default_factory=set)
    _warned: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if self.console.is_terminal:
            self._bar_width = self.console.width // 5 if self.console.width >= 60 else 0
            texts = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[eta]}")]
            bars = [BarColumn(self._bar_width)] if self._bar_width else []
            self._bar = Progress(texts[0], *bars, texts[1], console=self.console, transient=True)
            self._task = self._bar.add_task("", total=1.0, eta="")
            self._bar.start()

    def remaining(self) -> dict[str, float]:
        """Seconds to go of each stage that is not done."""
        now = self.now()
        measured = dict(self.whole)
        rest: dict[str, float] = {}
        for path, stage in self.running.items():
            if (left := stage.remaining(now)) is not None:
                rest[path] = left
                measured[path] = stage.whole(now - stage.started + left)
        took = defaultdict[str | None, float](float)
        meant = defaultdict[str | None, float](float)
        for path, seconds in measured.items():
            if seconds is not None:
                for kind in (self.kinds.get(path), *([ANY] if self.expected[path] >= LONG else [])):
                    took[kind] += seconds
                    meant[kind] += self.expected[path]
        any_kind = took[ANY] / meant[ANY] if ANY in took else 1.0
        for path in self.expected.keys() - self.done.keys() - rest.keys() - self.lost:
            kind = self.kinds.get(path)
            seconds = self.expected[path] * (took[kind] / meant[kind] if kind in took else any_kind)
            if (running := self.running.get(path)) is not None:
                seconds = seconds * (1 - running.skipped / running.of) - (now - running.started)
            rest[path] = max(0.0, seconds)
        return rest

    def share(self) -> float:
        """Share of the work that is done, in seconds of work."""
        now = self.now()
        spent = sum(self.done.values()) + sum(now - stage.started for stage in self.running.values())
        total = spent + sum(self.remaining().values())
        return spent / total if total else 1.0

    def eta(self) -> float:
        """Seconds to go: the work that is left over the jobs, at least as long as its longest stage."""
        rest = self.remaining().values()
        return max(sum(rest) / max(1, self.jobs), max(rest, default=0.0))

    def start(self, path: str) -> None:
        kind = self.kinds.get(path)
        self.running[path] = Running(self.now(), kind in KINDS and KINDS[kind].trains)
        self._show(f"{path}: started", always=False)

    def step(self, path: str, step: int, of: int) -> None:
        """So many steps of a stage are done; none: it begins only now, in a worker that had to start."""
        if (stage := self.running.get(path)) is not None and step == 0:
            stage.started = self.now()
            return
        if stage is not None:
            stage.latest, stage.of = (self.now(), step), of
            stage.first = stage.first or stage.latest
        self._show(f"{path}: {step}/{of}", always=False, of=path)

    def finish(self, path: str, note: str, warnings: Sequence[str] = ()) -> None:
        stage = self.running.pop(path, None)
        self.done[path] = 0.0 if stage is None else self.now() - stage.started
        self.whole[path] = self.done[path] if stage is None else stage.whole(self.done[path])
        self._show(f"{path}: {note}", always=True)
        for line in warnings:
            self._warned[line] += 1
            if self._warned[line] == 1:
                self.console.print(f"warning: {path}: {line}", highlight=False, markup=False, soft_wrap=True)

    def fail(self, path: str, why: str, behind: Sequence[str]) -> None:
        """A stage failed; those behind it are not tried. At the end, maybe now, all is told at once."""
        self.running.pop(path, None)
        self.lost |= {path, *behind}
        if len(self.done) + len(self.lost) < len(self.expected):
            self._show(f"failed: {why}", always=True)

    def again(self, path: str, why: str) -> None:
        """A stage waits for another try."""
        self.running.pop(path, None)
        self._show(why, always=True)

    def note(self, line: str) -> None:
        """Say something, once."""
        if line not in self._notes:
            self._notes.add(line)
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show(self, line: str, *, always: bool, of: str | None = None) -> None:
        now = self.now()
        if not always and now - self._spoken < (QUIET_SECONDS if self._bar is None else BAR_SECONDS):
            return
        self._spoken = now
        said = "" if of is None else self.latest(of)
        line += f"  {said}" if said else ""
        counts = f"{len(self.done)}/{len(self.expected)} stages"
        counts += f", {len(self.lost)} not made" if self.lost else ""
        eta = f"ETA {clock(self.eta())}"
        if self._bar is not None and self._task is not None:
            name, tail = fitted(line, f"{eta}, {counts}", self.console.width - self._bar_width - 2)
            self._bar.update(self._task, completed=self.share(), description=name, eta=tail)
            if always:
                self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            self.console.print(f"{line}  [{counts}, {eta}]", highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        for line, count in self._warned.items():
            if count > 1:
                again = f"warning: {count} stages in all warned: {line}"
                self.console.print(again, highlight=False, markup=False, soft_wrap=True)


def fitted(name: str, tail: str, width: int) -> tuple[str, str]:
    """A name and the text behind it, which begins with an ETA, in so many columns with one between them.

    What does not fit is left out: of the name its beginning, of the text all behind the first comma. The ETA
    stays whole.
    """
    if len(tail) > 0.8 * width:
        tail = tail.split(",")[0]
    room = max(0, width - len(tail) - 1)
    return (name if len(name) <= room else f"…{name[len(name) - room + 1 :]}" if room > 1 else ""), tail
