"""The graph of artifacts: a stage and what it needs, by path and by key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from rpo_cli import devices
from rpo_cli.artifacts.files import hash_of, hash_path
from rpo_cli.artifacts.manifest import Identity
from rpo_cli.errors import BadInput
from rpo_cli.recipes import schema
from rpo_cli.recipes.draft import Place
from rpo_cli.recipes.yaml_lines import Keys

LONGEST = 240  # bytes of an artifact's path, of which its lock's name is made
AT_REVISION = re.compile(r"([\w.-]+(?:/[\w.-]+)?)@(\S+)")
Item = TypeVar("Item")


@dataclass
class External:
    """A model, tokenizer or data set that no stage makes: a directory or file, or a hub name.

    `use`: what of it is needed; `folders`: of a data set, which. `commit`: what the lock file pins a hub name
    to, see `snapshots.pin`. `planned`: the key that a plan on paper has for it.
    """

    reference: str
    revision: str | None = None
    use: Literal["model", "tokenizer", "dataset"] = "model"
    folders: tuple[str, ...] = ()
    commit: str | None = field(default=None, compare=False)
    planned: str | None = field(default=None, compare=False)

    @classmethod
    def named(
        cls, name: str, revision: str | None = None, use: Literal["model", "tokenizer", "dataset"] = "model"
    ) -> External:
        """From what a recipe says: a path, a hub name, or `name@revision`."""
        if revision is None and not Path(name).exists() and (found := AT_REVISION.fullmatch(name)):
            name, revision = found.groups()
        return cls(name, revision, use)

    @cached_property
    def on_hub(self) -> bool:
        return not Path(self.reference).exists()

    @cached_property
    def _content(self) -> str:
        return hash_path(Path(self.reference))

    @property
    def key(self) -> str:
        return self.planned or (
            f"hub:{self.reference}@{self.commit or self.revision or 'default'}"
            if self.on_hub
            else self._content
        )


@dataclass(frozen=True, eq=False)
class Stage:
    """One artifact to be: how to make it, from what, and where it goes.

    `places`: where each key of its recipe was set.
    """

    kind: str
    path: str
    recipe: schema.Recipe
    source: Path
    inputs: Mapping[str, Stage | External] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[Keys, Place] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # Every path of an artifact comes from here: what is written or removed lies below the workspace.
        for word in self.path.split("/"):
            if word in ("", ".", "..") or not word.isprintable():
                raise BadInput(f"{self.path!r}: {word!r} names no folder of an artifact")
        if len(self.path.encode("utf-8", "replace").replace(b"/", b"__")) > LONGEST:
            raise BadInput(f"{self.path}: longer than {LONGEST} bytes; give its recipe a shorter name")

    @cached_property
    def identity(self) -> Identity:
        """What the artifact depends on; its `key` is the hash of the rest.

        With `dtype: auto` this is a question to the machine, and imports torch.
        """
        fields = schema.result_fields(self.recipe)
        if "dtype" in fields:
            fields["dtype"] = devices.dtype_in_force(self.recipe)
        identity = Identity(
            kind=self.kind,
            format=schema.KINDS[self.kind].format,
            recipe=fields,
            options=dict(self.options),
            inputs={name: needed.key for name, needed in self.inputs.items()},
            key="",
        )
        identity["key"] = hash_of({name: value for name, value in identity.items() if name != "key"})
        return identity

    @property
    def key(self) -> str:
        return self.identity["key"]

    def is_same(self, other: Stage) -> bool:
        """Whether both describe one artifact as recipes say it: a plan asks the machine nothing."""
        rest, others = ((stage.kind, dict(stage.options), dict(stage.inputs)) for stage in (self, other))
        return rest == others and (
            self.recipe == other.recipe
            or schema.result_fields(self.recipe) == schema.result_fields(other.recipe)
        )

    def stages(self) -> Iterator[Stage]:
        """This stage's inputs that are stages themselves."""
        return (stage for stage in self.inputs.values() if isinstance(stage, Stage))

    def tables(self) -> Iterator[Stage]:
        """The artifacts in which the rows of this one's data may be, from its input on down to the texts."""
        below = self.inputs.get("data")
        while isinstance(below, Stage):
            yield below
            below = below.inputs.get("data") if schema.KINDS[below.kind].points_at_input else None

    def needed(self) -> dict[str, Stage]:
        """What must be there before this stage can run, by path."""
        return {stage.path: stage for stage in (*self.stages(), *self.tables())}


def scores_of(inputs: Mapping[str, Item]) -> dict[str, Item]:
    """Those of a policy's inputs that are the scores of what it distils, by the teacher's name."""
    return {name.removeprefix("scores/"): each for name, each in inputs.items() if name.startswith("scores/")}


def member_of(recipe: str, own: str) -> str:
    """What a member is called where an ensemble has those of several recipes."""
    return f"{recipe}:{own}"


def own_name(member: str) -> str:
    """What a member is called in its own recipe's ensemble."""
    return member.rpartition(":")[2]


def told_of(member: str) -> str:
    """The input of a policy that says what a member's bias b counts."""
    recipe = member.rpartition(":")[0]
    return f"told/{recipe}" if recipe else "told"


def where(node: Stage | External) -> str:
    """A stage's path in the workspace, or what a model from outside is called."""
    return node.path if isinstance(node, Stage) else node.reference


def rho_folder(rho: float | None) -> str:
    return "unbiased" if rho is None else f"rho-{rho:g}"


def _rho_of(stage: Stage) -> float | None:
    """The rho that a stage is at: its recipe's, or that of what it is about; None: no resampling."""
    if isinstance(rho := getattr(stage.recipe, "rho", None), float):
        return rho
    below = (stage.inputs.get(name) for name in ("evaluation", "policy", "data"))
    found = (_rho_of(each) for each in below if isinstance(each, Stage))
    return next((rho for rho in found if rho is not None), None)


def subject_of(stage: Stage) -> dict[str, Any]:
    """What a stage is found by: rho, seed, member, and its policy's path, objective, setting."""
    found: dict[str, Any] = {"rho": _rho_of(stage), "seed": stage.recipe.seed}
    below: Stage | External | None = stage
    while isinstance(below, Stage) and not isinstance(below.recipe, schema.PolicyRecipe):
        below = below.inputs.get("evaluation") or below.inputs.get("policy")
    if isinstance(below, Stage) and isinstance(policy := below.recipe, schema.PolicyRecipe):
        found |= {"policy": below.path, "objective": policy.objective, **policy.setting}
    for each in (stage, stage.inputs.get("model")):
        if isinstance(each, Stage) and "member" in each.options:
            found.setdefault("member", each.options["member"])
    return found


def walk(targets: Sequence[Stage]) -> list[Stage]:
    """Every stage the targets rest on and the targets themselves, inputs first, each once."""
    seen: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.path not in seen:
            for needed in stage.stages():
                visit(needed)
            seen[stage.path] = stage

    for target in targets:
        visit(target)
    return list(seen.values())
