"""A plan on paper: every stage with what it needs, as JSON that engines of other programs run.

A stage of it can be made without the recipes being read again: what is written here is all that its job is
made of. Its key is computed anew wherever it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from rpo_cli.artifacts import MANIFEST, External, Stage, sha256
from rpo_cli.artifacts.snapshots import entry
from rpo_cli.errors import BadInput
from rpo_cli.recipes import shown
from rpo_cli.recipes.files import file_of
from rpo_cli.recipes.schema import KINDS, Recipe
from rpo_cli.text import first_line

VERSION: Final = 1
TEXTS = "texts"  # the name of an input that holds the texts of rows which another input only names
Values = dict[str, JsonValue]


class Part(BaseModel):
    """A part of a plan: it has these fields and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(Part):
    """An artifact that must be there before a stage can run."""

    name: str = Field(description=f"what the stage calls it; `{TEXTS}`: it holds texts of another's rows")
    path: str = Field(description="its stage")
    key: str = Field(description="the key that its manifest must have")


class Outside(Part):
    """A model, tokenizer or data set that no stage makes: a path, or a name of the Hugging Face hub."""

    name: str = Field(description="what the stage calls it")
    reference: str = Field(description="path, or name on the hub")
    revision: str | None = Field(description="branch, tag or commit that the recipe asks for")
    use: Literal["model", "tokenizer", "dataset"] = Field(description="what of it is needed")
    folders: list[str] = Field(description="of a data set, which folders; empty: all")
    commit: str | None = Field(description="of a hub name, the commit of the lock file")
    key: str = Field(description="hash of its content, or its name and commit on the hub")


class Resources(Part):
    """What a stage needs. A number that nobody knows is null: ask the engine for its default."""

    gpus: int = Field(description="GPUs that it needs", ge=0)
    max_gpus: int = Field(description="GPUs of one machine that it can use, with --accelerate", ge=0)
    memory_mb: int | None = Field(description="memory of the host, MB of 1,000,000 bytes; an estimate")
    disk_mb: int | None = Field(description="disk for weights and checkpoints, MB; an estimate")
    minutes: float | None = Field(description="expected time; no limit, which should be several times this")
    measured: bool = Field(
        description="whether `minutes` is the time of stages of this recipe in this workspace; "
        "else it is the recipe's expected_seconds, or arithmetic for the device of --device-name"
    )


class Planned(Part):
    """A stage: what it makes, from what, how, and whether it must run."""

    path: str = Field(description="its folder in the workspace, and its name")
    kind: str = Field(description=f"one of {', '.join(KINDS)}")
    key: str = Field(description="hash of all that can change its result")
    inputs: list[Input] = Field(description="artifacts of other stages that it needs")
    outside: list[Outside] = Field(description="what it needs that no stage makes")
    manifest: str = Field(description="the file that is written last, in the workspace")
    command: list[str] = Field(description="what makes it; several paths may stand in one command")
    resources: Resources
    group: str = Field(description="stages of one group are best run by one command, in this order")
    state: Literal["up to date", "build", "not needed"]
    why: str = Field(description="why it must run; empty where it need not")
    source: str = Field(description="the recipe's file")
    recipe: Values = Field(description="the recipe, resolved")
    options: Values = Field(description="what the plan says beyond the recipe")
    files: dict[str, str] = Field(description="files of the user that it reads, by table")


class Plan(Part):
    """The stages that a recipe rests on, inputs first, and what to run when all of them are there.

    Relative paths are relative to the folder in which the plan was made; run its commands from there.
    """

    version: Literal[1] = Field(VERSION, description="of this format")
    rpo: str = Field(description="the version of rpo that planned")
    recipe: str = Field(description="what was planned")
    suite: str
    workspace: str = Field(description="where artifacts live")
    command: list[str] = Field(description="makes this plan again")
    complete: bool = Field(description="false: what follows depends on results that are not there yet")
    then: Literal["finish", "plan again"] = Field(description="what `finish` does")
    finish: list[str] = Field(
        description="the command to run when all stages are there: draws or reports, or plans again"
    )
    recipes: dict[str, str] = Field(description="the recipes' files that were read, and hashes of them")
    stages: list[Planned] = Field(description="inputs first")

    def by_path(self) -> dict[str, Planned]:
        """The stages by their names."""
        return {stage.path: stage for stage in self.stages}


def read_plan(file: Path) -> Plan:
    """The plan in a file.

    Raises:
        BadInput: it cannot be read, or is none of this version.
    """
    try:
        return Plan.model_validate_json(file.read_bytes())
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror or error}") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"])) or "it"
        raise BadInput(f"{file}: no plan of version {VERSION}: {place}: {first_line(wrong['msg'])}") from None


def inputs_of(stage: Stage) -> list[Input]:
    """The artifacts that a stage needs, by the names that it gives them."""
    named = {name: needed for name, needed in stage.inputs.items() if isinstance(needed, Stage)}
    direct = {needed.path for needed in named.values()}
    texts = [table for path, table in stage.needed().items() if path not in direct]
    return [
        Input(name=name, path=needed.path, key=needed.key)
        for name, needed in (*named.items(), *((TEXTS, table) for table in texts))
    ]


def outside_of(stage: Stage) -> list[Outside]:
    """What a stage needs that no stage makes."""
    return [
        Outside(
            name=name,
            reference=node.reference,
            revision=node.revision,
            use=node.use,
            folders=list(node.folders),
            commit=node.commit,
            key=node.key,
        )
        for name, node in stage.inputs.items()
        if isinstance(node, External)
    ]


def planned(stage: Stage, file: str, resources: Resources, group: str, state: tuple[str, str]) -> Planned:
    """A stage as a plan in this file has it; `state`: see `todo.states`."""
    return Planned.model_validate(
        {
            "path": stage.path,
            "kind": stage.kind,
            "key": stage.key,
            "inputs": inputs_of(stage),
            "outside": outside_of(stage),
            "manifest": f"{stage.path}/{MANIFEST}",
            "command": ["rpo", "stage", stage.path, "--plan", file],
            "resources": resources,
            "group": group,
            "state": state[0],
            "why": state[1],
            "source": shown(stage.source),
            "recipe": in_force(stage).model_dump(mode="json", exclude_unset=True),
            "options": dict(stage.options),
            "files": dict(stage.files),
        }
    )


def rebuilt(plan: Plan, paths: Iterable[str]) -> dict[str, Stage]:
    """Stages of a plan as they were planned, with everything below them, by path."""
    entries, made = plan.by_path(), dict[str, Stage]()

    def build(path: str) -> Stage:
        if path not in made:
            found = entries[path]
            inputs: dict[str, Stage | External] = {
                needed.name: build(needed.path) for needed in found.inputs if needed.name != TEXTS
            }
            inputs |= {node.name: external_of(node) for node in found.outside}
            recipe = KINDS[found.kind].recipe.model_validate_json(json.dumps(found.recipe))
            made[path] = Stage(
                found.kind, path, recipe, Path(found.source), inputs, found.options, found.files
            )
        return made[path]

    return {path: build(path) for path in paths}


def external_of(node: Outside) -> External:
    """What no stage makes, as a stage has it; its key is the planned one, and is not asked for again."""
    return External(
        node.reference, node.revision, node.use, tuple(node.folders), node.commit, planned=node.key
    )


def key_now(node: Outside, commits: Mapping[str, Mapping[str, str]]) -> str:
    """The key that it has now, with these commits of the lock file: see `snapshots.commits`."""
    now = replace(external_of(node), planned=None)
    kind, name = entry(now)
    return replace(now, commit=commits.get(kind, {}).get(name)).key


def in_force(stage: Stage) -> Recipe:
    """A stage's recipe with the dtype that its key has: `auto` is what it means on this machine."""
    dtype = stage.identity["recipe"].get("dtype", stage.recipe.dtype)
    return stage.recipe if dtype == stage.recipe.dtype else stage.recipe.model_copy(update={"dtype": dtype})


def hashes(files: Iterable[Path]) -> dict[str, str]:
    """Files of recipes with the hashes of what is in them; those that are not there are left out."""
    real = sorted({file_of(file) for file in files})
    return {shown(file): sha256(file) for file in real if file.is_file()}


def changed_recipes(plan: Plan) -> list[str]:
    """The recipes' files that are not as they were; what is not on this machine cannot have changed."""
    there = {file: Path(file) for file in plan.recipes if Path(file).is_file()}
    return [name for name, file in there.items() if sha256(file) != plan.recipes[name]]
