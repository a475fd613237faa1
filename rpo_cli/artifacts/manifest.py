"""What is written down about an artifact: what it depends on, and once it is finished, how it was made."""

from __future__ import annotations

import math
from typing import Any, Literal, NotRequired, TypedDict, cast

MANIFEST = "manifest.json"  # of a finished artifact: its `Manifest`, written last
STARTED = "started.json"  # of one that is being made: its `Identity`
DIVERGED = "diverged.json"  # beside it, where its training left the finite numbers: the key, and why


class Identity(TypedDict):
    """All that can change an artifact, and `key`, the hash of the rest.

    `format`, `recipe`: of `KINDS` and `result_fields`; `options`: what the plan says beyond the recipe;
    `inputs`: keys.
    """

    kind: str
    format: int
    recipe: dict[str, Any]
    options: dict[str, Any]
    inputs: dict[str, str]
    key: str


SHAPE = {"kind": str, "key": str, "recipe": dict, "options": dict, "inputs": dict, "metrics": dict}


class Manifest(Identity):
    """A finished artifact. `metrics`: what its stage measured; `warnings`: what it warned of; `git`: of this
    package; `rows_of`: the input whose rows it only names.
    """

    suite: str
    rpo: str
    git: str | None
    versions: dict[str, str]
    device: str
    processes: int
    threads: int | None
    seeds: dict[str, int]
    seconds: float
    metrics: dict[str, Any]
    warnings: NotRequired[list[str]]
    rows_of: NotRequired[Literal["data"]]
    weights: NotRequired[Literal["dropped"]]


def as_manifest(found: dict[str, Any] | None) -> Manifest | None:
    """What was read, if it is a manifest as rpo writes them: keys by which an artifact is known, numbers."""
    if found is None or not all(isinstance(found.get(name), kind) for name, kind in SHAPE.items()):
        return None
    words, seconds = [*found["inputs"].values(), found.get("suite", "")], found.get("seconds", 0.0)
    if not all(isinstance(word, str) for word in words):
        return None
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return None
    return cast(Manifest, found)
