"""The jobs of a plan: each makes the stages of one group. Copied beside a Snakefile, which rpo may be far from."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

LIMIT = 3  # a job may take so many times what it is expected to take
MORE = 10  # minutes, to start in


@dataclass(frozen=True)
class Job:
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


def jobs_of(plan: Path) -> dict[str, Job]:
    """The jobs of a plan's file by their names, inputs first."""
    stages = [stage for stage in json.loads(plan.read_text())["stages"] if stage["state"] == "build"]
    groups: dict[str, list[dict]] = {}  # type: ignore[type-arg]
    for stage in stages:
        groups.setdefault(stage["group"], []).append(stage)
    names = {}
    for group, members in groups.items():
        hashed = hashlib.sha256("".join(stage["key"] for stage in members).encode()).hexdigest()
        names |= {stage["path"]: f"{group}-{hashed[:8]}" for stage in members}
    found = {}
    for members in groups.values():
        name = names[members[0]["path"]]
        above = {names.get(needed["path"], name) for stage in members for needed in stage["inputs"]}
        needs = [stage["resources"] for stage in members]
        minutes = [need["minutes"] for need in needs]
        found[name] = Job(
            name,
            tuple(stage["path"] for stage in members),
            {stage["manifest"]: stage["key"] for stage in members},
            tuple(sorted(above - {name})),
            *(max(need[what] or 0 for need in needs) for what in ("gpus", "memory_mb", "disk_mb")),
            0 if None in minutes else math.ceil(LIMIT * sum(minutes)) + MORE,
        )
    return found
