"""What a model was made of: the recipes of its whole chain, and the content of what no recipe makes.

It stands beside a model, in the head of its card and in `rpo_recipe.yaml`, and `rpo rebuild` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import yaml

from rpo_cli.artifacts.graph import External, Stage, walk
from rpo_cli.artifacts.snapshots import entry
from rpo_cli.recipes import schema
from rpo_cli.recipes.draft import REFERENCES
from rpo_cli.recipes.yaml_lines import Dumper

# No model depends on these, however it is made.
WITHOUT = {"by_rho", "grid", "evaluate", "report_to", "wandb_project", "save_steps", "logging_steps"}
HEAD = """\
# Every recipe behind this model, resolved. `rpo rebuild README.md` makes the model of {target} again.
"""


class Origin(TypedDict):
    """How to make a model again.

    target: its recipe's name among `recipes`. member: what tells one of an ensemble from the others; warm:
    the mean of all.
    recipes: their keys that are not at their defaults. inputs: files and folders with their content; hub:
    names with their commits, as a lock file has them. start: what this training began with, an artifact
    perhaps; base: what all trainings began with; datasets: where rows came from.
    """

    target: str
    member: NotRequired[dict[str, object]]
    recipes: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    hub: dict[str, dict[str, str]]
    start: str
    base: list[str]
    datasets: list[str]


def origin_of(stage: Stage) -> Origin:
    """What a stage's model will be made of."""
    below = walk([stage])
    chain = [each for each in below if each.kind in schema.MODELS]
    outside = [needed for each in below for needed in each.inputs.values() if isinstance(needed, External)]
    start = _start(stage)
    files = {
        portable(file): str(each.options["files"][table])
        for each in chain
        for table, file in each.files.items()
    }
    hub: dict[str, dict[str, str]] = {}
    for kind, name, commit in sorted((*entry(each), each.commit or "") for each in outside if each.on_hub):
        if commit:
            hub.setdefault(kind, {})[name] = commit
    found: Origin = {
        "target": stage.source.stem,
        "recipes": {each.source.stem: _body(each) for each in chain},
        "inputs": files | {portable(each.reference): each.key for each in outside if not each.on_hub},
        "hub": hub,
        "start": portable(start.reference) if isinstance(start, External) else start.path if start else "",
        "base": [portable(needed.reference) for needed in _bases(stage)],
        "datasets": sorted({portable(each.reference) for each in outside if each.use == "dataset"}),
    }
    if stage.kind == "reward" and stage.options:
        found["member"] = dict(stage.options)
    if stage.kind == "warm":
        found["member"] = {"warm": True}
    return found


def _start(stage: Stage) -> Stage | External | None:
    """What a model's training began with; of a mean of weights any member, which began alike."""
    members = (node for name, node in stage.inputs.items() if name.startswith("members/"))
    return stage.inputs.get("model") or next(members, None)


def _bases(stage: Stage) -> Iterator[External]:
    """The model that training began with, below all the stages that trained it."""
    node = _start(stage)
    if isinstance(node, Stage):
        yield from _bases(node)
    elif node is not None:
        yield node


def _body(stage: Stage) -> dict[str, object]:
    """A stage's recipe as a file beside the others' would say it."""
    recipe = stage.recipe
    fields = stage.identity["recipe"]
    # Of what has no effect beside other keys some is in the artifact's key all the same.
    idle = {str(keys[0]) for keys in recipe.idle() if len(keys) == 1} - fields.keys()
    values = recipe.model_dump(mode="json", exclude_defaults=True, exclude=WITHOUT | idle)
    values = {"stage": stage.kind} | values | {"suite": recipe.suite}
    if (size := "per_device_eval_batch_size") in recipe.model_fields_set:
        values[size] = getattr(recipe, size)  # whose default is another where it is derived from this one
    if "dtype" in fields:
        values["dtype"] = fields["dtype"]  # as it was in force
    if isinstance(recipe, schema.SplitsRecipe) and recipe.max_length == "auto":
        values["max_length"] = None  # no recipe set a limit
    for name in values.keys() & set(REFERENCES):
        values[name] = _named(values[name])
    if "files" in values:
        values["files"] = {table: portable(file) for table, file in values["files"].items()}
    return values


def _named(reference: object) -> object:
    """A reference as it is written where all recipes are in one place."""
    if isinstance(reference, list):
        return [_named(each) for each in reference]
    if isinstance(reference, dict) and "members" in reference:
        return {"members": _named(reference["members"])}
    if isinstance(reference, str):
        return f"{Path(reference).stem}.yaml" if schema.is_recipe(reference) else portable(reference)
    return reference


def portable(place: str) -> str:
    """A path without the name of its user; a name of the hub as it is."""
    home = str(Path.home())
    return f"~{place.removeprefix(home)}" if place.startswith(f"{home}/") else place


def as_yaml(origin: Origin) -> str:
    """`rpo_recipe.yaml`."""
    text: str = yaml.dump({"recipes": origin["recipes"]}, Dumper=Dumper, sort_keys=False, width=100)
    return HEAD.format(target=origin["target"]) + text
