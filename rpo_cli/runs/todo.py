"""What must run for some targets, why, and in which order workers take it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Literal

from rpo_cli.artifacts import Stage, Workspace, snapshots, walk
from rpo_cli.recipes.schema import KINDS

State = Literal["up to date", "build", "not needed"]


@dataclass(frozen=True)
class Todo:
    """One line of a plan."""

    stage: Stage
    reason: str

    @property
    def seconds(self) -> float:
        """Wall time to expect: as its recipe says, else as its kind does."""
        return self.stage.recipe.expected_seconds or KINDS[self.stage.kind].guess_seconds


def as_json(todo: Sequence[Todo]) -> list[dict[str, object]]:
    """The stages of a plan that are built, and why."""
    return [
        {"path": t.stage.path, "kind": t.stage.kind, "reason": t.reason, "expected_seconds": t.seconds}
        for t in todo
    ]


def what_to_run(targets: Sequence[Stage], workspace: Workspace, force: Iterable[str] = ()) -> list[Todo]:
    """The stages that must run for the targets, inputs first, each with the reason.

    What is up to date is not looked behind, its inputs may be gone; unless it only names rows of one of them.
    """
    snapshots.pin(targets, workspace)
    forced = set(force)
    reasons: dict[str, str] = {}
    settled: set[str] = set()

    def visit(stage: Stage, weights: bool, why: str = "") -> None:
        # A dropped policy is enough as long as nobody wants to load it.
        if stage.path in reasons or (stage.path in settled and not weights):
            return
        settled.add(stage.path)
        # What is absent is missing whatever its key: the machine is not asked for it.
        stale = "forced" if stage.path in forced else workspace.why_absent(stage.path)
        stale = stale or workspace.why_stale(stage.path, stage.identity, weights=weights)
        if stale is None:
            found = workspace.manifest(stage.path)
            rows = None if found is None else stage.inputs.get(found.get("rows_of", ""))
            if isinstance(rows, Stage):
                visit(rows, weights=False, why=f"; {stage.path} names rows of it")
            return
        for needed in stage.stages():
            visit(needed, weights=True)
        reasons[stage.path] = stale + why

    for target in targets:
        visit(target, weights=KINDS[target.kind].publishes)
    stages = {stage.path: stage for stage in walk(targets)}
    return [Todo(stages[path], reason) for path, reason in reasons.items()]


def states(
    stages: Sequence[Stage], todo: Sequence[Todo], workspace: Workspace
) -> dict[str, tuple[State, str]]:
    """Of each stage by its path whether it is built, and why.

    Not needed is what lies behind something up to date, and is itself absent or stale.
    """
    reasons = {item.stage.path: item.reason for item in todo}
    found: dict[str, tuple[State, str]] = {}
    for stage in stages:
        if (reason := reasons.get(stage.path)) is not None:
            found[stage.path] = "build", reason
        else:
            stale = workspace.why_absent(stage.path) or workspace.why_stale(stage.path, stage.identity)
            found[stage.path] = "up to date" if stale is None else "not needed", ""
    return found


def width(todo: Sequence[Todo]) -> int:
    """How many stages of a plan can run beside each other, if all took equally long."""
    line, most = ReadyQueue(todo, longest_first=False), 0
    while wave := list(line):
        most = max(most, len(wave))
        for stage in wave:
            line.done(stage)
    return most


def built_on(todo: Sequence[Todo], workspace: Workspace) -> int:
    """How many finished artifacts outside the plan rest on finished ones that it replaces by others."""
    planned = {item.stage.path for item in todo}
    stale = {
        found["key"]
        for item in todo
        if (found := workspace.manifest(item.stage.path)) and found["key"] != item.stage.key
    }
    if not stale:
        return 0
    others = {
        path: found for path, found in workspace.artifacts() if found is not None and path not in planned
    }
    reached: set[str] = set()
    while True:
        further = {
            path for path, manifest in others.items() if stale & set(manifest["inputs"].values())
        } - reached
        if not further:
            return len(reached)
        reached |= further
        stale |= {others[path]["key"] for path in further}


class ReadyQueue:
    """Stages in the order in which they are taken: those whose inputs are there, in the order of the plan.

    For several workers the longest chain goes first, so that none is left waiting for it at the end.
    """

    def __init__(self, todo: Sequence[Todo], *, longest_first: bool) -> None:
        self._urgency = _urgency(todo) if longest_first else {}
        self._stages = {item.stage.path: item.stage for item in todo}
        self._needs = {p: stage.needed().keys() & self._stages.keys() for p, stage in self._stages.items()}
        self._order = {path: index for index, path in enumerate(self._stages)}
        self._ready: list[tuple[float, int, str]] = []
        self._sorter = TopologicalSorter(self._needs)
        self._sorter.prepare()
        self._push(*self._sorter.get_ready())

    def _push(self, *paths: str) -> None:
        for path in paths:
            heapq.heappush(self._ready, (-self._urgency.get(path, 0.0), self._order[path], path))

    def __iter__(self) -> Iterator[Stage]:
        """The stages that can run, until there is none; one that is done meanwhile may bring others."""
        while self._ready:
            yield self._stages[heapq.heappop(self._ready)[2]]

    def next(self) -> Stage | None:
        """The first stage that can run; None as long as there is none."""
        return next(iter(self), None)

    def put_back(self, stage: Stage) -> None:
        """The stage is to be taken once more."""
        self._push(stage.path)

    def done(self, stage: Stage) -> None:
        """The stage was made: what waited for it alone can run."""
        self._sorter.done(stage.path)
        self._push(*self._sorter.get_ready())

    def behind(self, stage: Stage) -> list[str]:
        """The stages that need this one, directly or through others, in the order of the plan."""
        found = {stage.path: None}
        for path, needs in self._needs.items():  # inputs stand first
            if needs & found.keys():
                found[path] = None
        return list(found)[1:]


def _urgency(todo: Sequence[Todo]) -> dict[str, float]:
    """Seconds of the longest chain that starts at each stage."""
    chain: dict[str, float] = {}
    for item in reversed(todo):
        chain[item.stage.path] = chain.get(item.stage.path, 0.0) + item.seconds
        for needed in item.stage.needed():
            chain[needed] = max(chain.get(needed, 0.0), chain[item.stage.path])
    return chain
