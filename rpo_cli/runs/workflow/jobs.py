"""The jobs of a plan, each of which makes the stages of one group. Copied beside a Snakefile, without rpo."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

LIMIT = 3  # a job may take so many times what it is expected to take
MORE = 10  # minutes, to start in


class Entry(TypedDict):
    """A stage in a plan, as far as jobs are made of it."""

    path: str
    key: str
    group: str
    state: str
    manifest: str
    inputs: list[dict[str, str]]
    resources: dict[str, float | None]


@dataclass(frozen=True)
class EngineJob:
    """The stages of one group that must be made, inputs first; `needs`: the jobs to be done before.

    A name ends in a hash of what is made: of other recipes or inputs it is another job. gpus, memory_mb,
    disk_mb and minutes (the limit) are zero where the plan knows none.
    """

    name: str
    stages: tuple[str, ...]
    manifests: dict[str, str]
    needs: tuple[str, ...]
    gpus: int
    memory_mb: int
    disk_mb: int
    minutes: int

    def done(self, workspace: Path) -> bool:
        """Whether the manifest of each stage is there, under the key that was planned."""
        return all(_key(workspace / file) == key for file, key in self.manifests.items())


def _key(manifest: Path) -> str | None:
    try:
        return str(json.loads(manifest.read_text())["key"])
    except (OSError, ValueError, KeyError):
        return None


def jobs_of(plan: Path) -> dict[str, EngineJob]:
    """The jobs of a plan's file by their names, inputs first."""
    stages: list[Entry] = [
        each for each in json.loads(plan.read_text())["stages"] if each["state"] == "build"
    ]
    groups: dict[str, list[Entry]] = {}
    for stage in stages:
        groups.setdefault(stage["group"], []).append(stage)
    names: dict[str, str] = {}
    for group, members in groups.items():
        hashed = hashlib.sha256("".join(stage["key"] for stage in members).encode()).hexdigest()
        names |= {stage["path"]: f"{group}-{hashed[:8]}" for stage in members}
    return {names[members[0]["path"]]: _job(members, names) for members in groups.values()}


def _job(members: list[Entry], names: dict[str, str]) -> EngineJob:
    """The job of these stages; `names`: of the jobs, by the stages that must be made."""
    name, needs = names[members[0]["path"]], [stage["resources"] for stage in members]
    above = {names.get(needed["path"], name) for stage in members for needed in stage["inputs"]}
    minutes = [need["minutes"] for need in needs]
    known = [each for each in minutes if each is not None]

    def most(what: str) -> int:
        return int(max(need[what] or 0 for need in needs))

    return EngineJob(
        name=name,
        stages=tuple(stage["path"] for stage in members),
        manifests={stage["manifest"]: stage["key"] for stage in members},
        needs=tuple(sorted(above - {name})),
        gpus=most("gpus"),
        memory_mb=most("memory_mb"),
        disk_mb=most("disk_mb"),
        minutes=math.ceil(LIMIT * sum(known)) + MORE if len(known) == len(minutes) else 0,
    )
