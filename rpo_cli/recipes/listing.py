"""`rpo recipe list`: every recipe that a name can mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rpo_cli.recipes.files import RecipeError, find, known, shown
from rpo_cli.recipes.load import Loaded, load
from rpo_cli.text import aligned


def list_recipes(as_json: bool) -> None:
    """Print every recipe that a name can mean; files that others extend are no recipes, broken ones say why."""
    made, broken = _load_all(known())
    entries: list[dict[str, Any]] = [
        {
            "suite": loaded.recipe.suite,
            "name": _short_name(path),
            "stage": loaded.recipe.stage,
            "objective": getattr(loaded.recipe, "objective", None),
            "description": loaded.recipe.description,
            "path": str(path),
        }
        for path, loaded in made.items()
    ]
    entries += [
        {"suite": path.parent.name, "name": _short_name(path), "stage": None, "objective": None,
         "description": f"broken: {error.problems[0]}", "path": str(path)}
        for path, error in broken.items()
    ]  # fmt: skip
    if as_json:
        print(json.dumps(entries, indent=2))
        return
    columns = ("suite", "name", "stage", "objective", "description")
    print(aligned([columns, *([entry[column] or "" for column in columns] for entry in entries)]), end="")


def _load_all(paths: Sequence[Path]) -> tuple[dict[Path, Loaded], dict[Path, RecipeError]]:
    """Recipes that load, and those that should: a file that another extends need not be whole."""
    made: dict[Path, Loaded] = {}
    broken: dict[Path, RecipeError] = {}
    for path in paths:
        try:
            made[path] = load(str(path))
        except RecipeError as error:
            broken[path] = error
    bases = {base for loaded in made.values() for base in loaded.files[1:]}
    return made, {path: error for path, error in broken.items() if path not in bases}


def _short_name(path: Path) -> str:
    """The shortest name that `--recipe` understands as this file."""
    for name in (path.name, f"{path.parent.name}/{path.name}"):
        if _found(name) == path:
            return name
    return shown(path)


def _found(name: str) -> Path | None:
    try:
        return find(name)
    except RecipeError:
        return None
