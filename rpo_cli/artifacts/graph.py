"""The graph of artifacts: a stage and what it needs, by path and by key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from rpo_cli import devices
from rpo_cli.artifacts.files import hash_of, hash_path
from rpo_cli.recipes import schema

AT_REVISION = re.compile(r"([\w.-]+(?:/[\w.-]+)?)@(\S+)")
# Raised when a stage starts to compute something else for the same recipe: older artifacts then count as stale.
FORMATS = {
    "data": 1, "sft": 1, "reward": 1, "warm": 1, "relabel": 1, "splits": 2, "reference": 1, "samples": 1, "scores": 1, "policy": 1,
    "evaluate": 1, "measure": 1, "judge": 1,
}  # fmt: skip
# Kinds that name rows of their input `data`, in which the texts are; their manifests say so (rows_of: data).
POINTING = ("relabel", "splits", "samples")


@dataclass
class External:
    """A model, tokenizer or data set that no stage makes: a directory or file, or a hub name.

    `use`: what of it is needed; `folders`: of a data set, which. `commit`: what the lock file pins a hub name to, see `snapshots.pin`.
    """

    reference: str
    revision: str | None = None
    use: Literal["model", "tokenizer", "dataset"] = "model"
    folders: tuple[str, ...] = ()
    commit: str | None = field(default=None, compare=False)

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
        return (
            f"hub:{self.reference}@{self.commit or self.revision or 'default'}"
            if self.on_hub
            else self._content
        )


@dataclass(frozen=True, eq=False)
class Stage:
    """One artifact to be: how to make it, from what, and where it goes."""

    kind: str
    path: str
    recipe: schema.Recipe
    source: Path
    inputs: Mapping[str, Stage | External] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the artifact depends on; its `key` is the hash of the rest.

        With `dtype: auto` this is a question to the machine, and imports torch.
        """
        fields = schema.result_fields(self.recipe)
        if "dtype" in fields:
            fields["dtype"] = devices.dtype_in_force(self.recipe)
        content = {
            "kind": self.kind,
            "format": FORMATS[self.kind],
            "recipe": fields,
            "options": dict(self.options),
            "inputs": {name: stage.key for name, stage in self.inputs.items()},
        }
        return {**content, "key": hash_of(content)}

    @property
    def key(self) -> str:
        return cast(str, self.identity["key"])

    def is_same(self, other: Stage) -> bool:
        """Whether both describe one artifact, as recipes say it: a plan is made before the machine is asked anything."""
        one, two = (
            (s.kind, schema.result_fields(s.recipe), dict(s.options), dict(s.inputs)) for s in (self, other)
        )
        return one == two

    def stages(self) -> Iterator[Stage]:
        """This stage's inputs that are stages themselves."""
        return (stage for stage in self.inputs.values() if isinstance(stage, Stage))

    def tables(self) -> Iterator[Stage]:
        """The artifacts in which the rows of this one's data may be, from its input on down to the texts."""
        below = self.inputs.get("data")
        while isinstance(below, Stage):
            yield below
            below = below.inputs.get("data") if below.kind in POINTING else None

    def needed(self) -> dict[str, Stage]:
        """What must be there before this stage can run, by path."""
        return {stage.path: stage for stage in (*self.stages(), *self.tables())}


def rho_folder(rho: float | None) -> str:
    return "unbiased" if rho is None else f"rho-{rho:g}"


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
