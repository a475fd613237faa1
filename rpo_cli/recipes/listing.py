"""`rpo recipe list`: every recipe that a name can mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from rpo_cli.recipes.files import RecipeError, known, short_name
from rpo_cli.recipes.load import Loaded, load
from rpo_cli.text import aligned


def list_recipes(as_json: bool) -> None:
    """Print all recipes that a name can mean; files that others extend are none, broken ones say why."""
    made, broken = load_all(known())
    columns = ("suite", "name", "stage", "objective", "description", "path")
    rows: list[tuple[str | None, ...]] = []
    for path, loaded in made.items():
        recipe, objective = loaded.recipe, getattr(loaded.recipe, "objective", None)
        row = (recipe.suite, short_name(path), recipe.stage, objective, recipe.description, str(path))
        rows.append(row)
    for path, error in broken.items():
        problem = f"broken: {error.problems[0]}"
        rows.append((path.parent.stem, short_name(path), None, None, problem, str(path)))
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    else:
        print(aligned([columns[:-1], *([cell or "" for cell in row[:-1]] for row in rows)]), end="")


def load_all(paths: Sequence[Path]) -> tuple[dict[Path, Loaded], dict[Path, RecipeError]]:
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


def names_like(incomplete: str) -> list[str]:
    """What a shell may complete to the name of a recipe, that of a suite in one file as `mine.yaml/dpo`.

    (In bash a colon ends a word.)
    """
    names = {short_name(path).replace(".yaml:", ".yaml/") for path in known()}
    names |= {
        str(path) for path in map(Path, glob(f"{incomplete}*")) if path.is_dir() or path.suffix == ".yaml"
    }
    return sorted(name for name in names if name.startswith(incomplete))
