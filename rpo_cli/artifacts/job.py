"""A stage as a job: what a process needs to make its artifact, by value, and how it is launched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpo_cli.artifacts.graph import External, Stage
from rpo_cli.artifacts.workspace import Workspace

TRAINED = ("sft", "reward", "policy")


@dataclass(frozen=True)
class Launch:
    """How training stages are started."""

    config: Path
    processes: int  # of XLA: the TPU's cores, on all hosts, over which a model and its batches are spread
    strategy: str  # accelerate's distributed_type
    use_cpu: bool
    port_given: bool


def leaves(kind: str, launch: Launch | None) -> bool:
    """Whether a stage runs in other processes than this one: on a TPU every stage, which it holds until its process ends."""
    return launch is not None and (kind in TRAINED or launch.strategy == "XLA")


@dataclass(frozen=True)
class Job:
    """A stage ready to run: everything a worker process needs, by value."""

    kind: str
    path: str
    recipe: Any
    identity: dict[str, Any]
    inputs: dict[str, Path]
    artifacts: tuple[str, ...]  # the inputs that are artifacts of this workspace
    tables: dict[Path, str]  # those below on the edge `data`, with their keys: where the rows' texts are
    revisions: dict[str, str | None]
    options: dict[str, Any]
    files: dict[str, str]
    root: Path
    suite: str
    inherited: dict[str, Any]
    force: bool = False
    launch: Launch | None = None

    @property
    def directory(self) -> Path:
        return self.root / self.path


def job_of(
    stage: Stage,
    workspace: Workspace,
    inherited: dict[str, Any],
    *,
    force: bool = False,
    launch: Launch | None = None,
) -> Job:
    """The picklable form of a stage."""
    inputs = {}
    revisions: dict[str, str | None] = {}
    for name, needed in stage.inputs.items():
        if isinstance(needed, External):
            inputs[name] = Path(needed.reference)
            revisions[name] = needed.commit or needed.revision
        else:
            inputs[name] = workspace.root / needed.path
    tables = {workspace.root / table.path: table.key for table in stage.tables()}
    return Job(
        stage.kind, stage.path, stage.recipe, stage.identity, inputs, tuple(sorted(set(inputs) - set(revisions))),
        tables, revisions, dict(stage.options), dict(stage.files), workspace.root, workspace.suite, inherited, force,
        launch if leaves(stage.kind, launch) else None,
    )  # fmt: skip
