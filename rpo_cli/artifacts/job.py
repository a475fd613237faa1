"""A stage as a job: what a process needs to make its artifact, by value, and how it is launched."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from rpo_cli.artifacts.graph import External, Stage, subject_of
from rpo_cli.artifacts.manifest import Identity
from rpo_cli.artifacts.origin import Origin, origin_of
from rpo_cli.artifacts.workspace import Workspace
from rpo_cli.recipes.schema import KINDS, Recipe

R = TypeVar("R", bound=Recipe, covariant=True)


@dataclass(frozen=True)
class Launch:
    """How training stages are started.

    `processes`: of XLA the TPU's cores, on all hosts, over which a model and its batches are spread;
    `strategy`: accelerate's distributed_type.
    """

    config: Path
    processes: int
    strategy: str
    use_cpu: bool
    port_given: bool

    def takes(self, kind: str) -> bool:
        """Whether a stage runs in other processes than this: all do on a TPU, held until a process ends."""
        return KINDS[kind].trains or self.strategy == "XLA"


@dataclass(frozen=True)
class Job(Generic[R]):
    """A stage ready to run: everything a worker process needs, by value.

    `artifacts`: the inputs that are artifacts of this workspace; `revisions`: of the others. `tables`: the
    artifacts below on the edge `data`, with their keys: where the rows' texts are. `inherited`:
    settings of the tracker that the command line gives; `about`: `subject_of` the stage, for the tracker.
    `origin`: of a model, for its card.
    """

    kind: str
    path: str
    recipe: R
    identity: Identity
    inputs: dict[str, Path]
    artifacts: tuple[str, ...]
    tables: dict[Path, str]
    revisions: dict[str, str | None]
    options: dict[str, Any]
    files: dict[str, str]
    root: Path
    suite: str
    inherited: dict[str, str]
    about: dict[str, Any]
    force: bool = False
    launch: Launch | None = None
    origin: Origin | None = None

    @property
    def directory(self) -> Path:
        return self.root / self.path

    def at_checkpoint(self) -> Job[R]:
        """The job as a stage reads it: its policy is the checkpoint of a training that `options` names."""
        if (number := self.options.get("checkpoint")) is None:
            return self
        return replace(self, inputs={**self.inputs, "policy": checkpoint_in(self.inputs["policy"], number)})

    def to_json(self) -> str:
        """The job as another process reads it with `job_from`."""
        recipe = self.recipe.model_dump(mode="json", exclude_unset=True)
        launch = None if self.launch is None else vars(self.launch)
        tables = {str(place): key for place, key in self.tables.items()}
        changed = {"recipe": recipe, "launch": launch, "tables": tables}
        return json.dumps({**vars(self), **changed}, default=str)  # paths are text


def processes_of(job: Job[Recipe]) -> int:
    """How many processes, of a TPU cores, make the artifact together."""
    return 1 if job.launch is None or not KINDS[job.kind].trains else job.launch.processes


def checkpoint_in(training: Path, number: int) -> Path:
    """Where a training that keeps several checkpoints has one of them, counted from 1."""
    return training / f"checkpoint-{number}"


class Outcome(NamedTuple):
    """What a stage's function leaves besides files: metrics, the device it ran on, its warnings.

    `told`: what its user should know, and nobody else who reads the manifest.
    """

    metrics: dict[str, object]
    device: str
    warnings: list[str]
    told: Sequence[str] = ()


def job_from(text: str) -> Job[Recipe]:
    """The job of a JSON text, its recipe validated as one of its kind.

    Raises:
        pydantic.ValidationError: it is none.
    """
    found = json.loads(text)
    launch, recipe = found["launch"], KINDS[found["kind"]].recipe
    return Job(
        **found
        | {
            "recipe": recipe.model_validate_json(json.dumps(found["recipe"])),
            "inputs": {name: Path(place) for name, place in found["inputs"].items()},
            "artifacts": tuple(found["artifacts"]),
            "tables": {Path(place): key for place, key in found["tables"].items()},
            "root": Path(found["root"]),
            "launch": launch and Launch(**launch | {"config": Path(launch["config"])}),
        }
    )


def job_of(
    stage: Stage,
    workspace: Workspace,
    inherited: Mapping[str, str],
    *,
    force: bool = False,
    launch: Launch | None = None,
) -> Job[Recipe]:
    """A stage's job in a workspace."""
    external = {name: needed for name, needed in stage.inputs.items() if isinstance(needed, External)}
    return Job(
        kind=stage.kind,
        path=stage.path,
        recipe=stage.recipe,
        identity=stage.identity,
        inputs={
            name: Path(needed.reference) if isinstance(needed, External) else workspace.root / needed.path
            for name, needed in stage.inputs.items()
        },
        artifacts=tuple(sorted(stage.inputs.keys() - external.keys())),
        tables={workspace.root / table.path: table.key for table in stage.tables()},
        revisions={name: needed.commit or needed.revision for name, needed in external.items()},
        options=dict(stage.options),
        files=dict(stage.files),
        root=workspace.root,
        suite=workspace.suite,
        inherited=dict(inherited),
        about=subject_of(stage),
        force=force,
        launch=launch if launch is not None and launch.takes(stage.kind) else None,
        origin=origin_of(stage) if KINDS[stage.kind].publishes else None,
    )
