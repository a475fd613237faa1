"""What the commands that only look have to say: here of recipes; of data, workspace and machine elsewhere.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rpo_cli import schema, snapshots
from rpo_cli.columns import aligned
from rpo_cli.doctor import show_doctor
from rpo_cli.errors import BadInput
from rpo_cli.plan import Planner, Stage, at_rho
from rpo_cli.recipe_files import SETTINGS, shown
from rpo_cli.recipes import Loaded, RecipeError, check_suite, find, json_schema, known, load, variant_overrides
from rpo_cli.session import Session, planner_for
from rpo_cli.stages import QUIET_ENVIRONMENT
from rpo_cli.status import show_status

__all__ = ["check_recipes", "fetch_data", "inspect_data", "list_recipes", "show_doctor", "show_status", "write_schema"]

LOCATED = re.compile(r"\S.*?:\d+: ")


def list_recipes(as_json: bool) -> None:
    """Print every recipe that a name can mean; files that others extend are no recipes, broken ones say why."""
    made, broken = _load_all(known())
    entries: list[dict[str, Any]] = [
        {
            "suite": loaded.recipe.suite,
            "name": _short_name(path),
            "stage": loaded.recipe.stage,  # type: ignore[attr-defined]
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


def check_recipes(recipes: Sequence[str]) -> None:
    """Check recipes, or folders of them, what they refer to, and that their whole plan can be made.

    A data file that is not there yet is noted; it is no mistake in a recipe.

    Raises:
        RecipeError: with every problem, as `file:line: field: message`.
    """
    problems: list[str] = []
    absent: set[str] = set()
    checked: set[Path] = set()
    for name in recipes:
        try:
            files, faults = _files(name)
        except RecipeError as error:
            problems += error.problems
            continue
        problems += faults
        made, _ = _load_all(files)
        for loaded in made.values():
            # A reference to nothing was reported above with its line; the planner, which has none, would repeat it.
            problems += [_located(line, loaded.path) for line in _plan(loaded, absent) if LOCATED.match(line) or not faults]
        checked |= made.keys()
    for note in sorted(absent):
        print(f"note: {note}", file=sys.stderr)
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    notes = f", {_count(len(absent), 'note')}" if absent else ""
    print(f"{_count(len(checked), 'recipe')}, no problems{notes}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _files(name: str) -> tuple[list[Path], list[str]]:
    """The recipe of this name, or a folder's files; and what is wrong with each taken alone."""
    if not os.path.isdir(name):
        loaded = load(name)
        own = tuple(f"{shown(file)}:" for file in loaded.files)
        return [loaded.path], [fault for fault in check_suite(loaded.path.parent) if fault.startswith(own)]
    files = [Path(os.path.abspath(file)) for file in sorted(Path(name).rglob("*.yaml")) if file.parent.name not in SETTINGS]
    if not files:
        raise RecipeError([f"{name}: no recipes"])
    folders = list(dict.fromkeys(file.parent for file in files))
    return files, [fault for folder in folders for fault in check_suite(folder)]


class _Rehearsal(Planner):
    """A planner that goes on where a data file is not there yet."""

    def __init__(self, seed: int, absent: set[str]) -> None:
        super().__init__(seed)
        self.absent = absent

    def _data(self, loaded: Loaded) -> Stage:
        try:
            return super()._data(loaded)
        except RecipeError as error:
            self.absent |= {problem.replace(f"{Path.cwd()}/", "") for problem in error.problems}
            return super()._data(replace(loaded, recipe=loaded.recipe.model_copy(update={"files": {}})))


def _plan(loaded: Loaded, absent: set[str]) -> list[str]:
    """What stands in the way of a recipe's plan, and of every cell of a figure's."""
    planner = _Rehearsal(loaded.recipe.seed, absent)
    recipe = loaded.recipe
    steps: list[Callable[[], Any]] = [partial(planner.build, loaded)]
    if isinstance(recipe, schema.FigureRecipe):
        steps = [partial(_cell, planner, loaded, policy, rho) for policy in recipe.policies for rho in recipe.rhos]
        steps += [partial(_variant, planner, loaded, variant, rho) for variant in recipe.variants for rho in recipe.rhos]
    elif isinstance(recipe, schema.PolicyRecipe):
        steps = [partial(planner.evaluation, loaded, "test")]
    elif isinstance(recipe, schema.RewardRecipe) and recipe.ensemble:
        steps.append(partial(planner.members, loaded))
    problems = []
    for step in steps:
        try:
            step()
        except RecipeError as error:
            problems += error.problems
    return problems


def _cell(planner: Planner, figure: Loaded, policy: str, rho: float | None) -> Stage:
    return planner.evaluation(planner.load(figure.sibling(policy), rho=rho, expect="policy"), "test")


def _variant(planner: Planner, figure: Loaded, variant: schema.Variant, rho: float | None) -> Stage:
    at = at_rho(rho)
    overrides = [*variant_overrides(variant), *at.pop("overrides", [])]
    return planner.measure(planner.load(figure.sibling(variant.recipe), overrides=overrides, expect="policy", **at))


def _located(problem: str, path: Path) -> str:
    """The problem with file and line, the file as the user knows it."""
    text = problem.replace(f"{Path.cwd()}/", "")
    if LOCATED.match(text):
        return text
    return f"{shown(path)}:1: {text.removeprefix(f'{shown(path)}: ')}"


def write_schema(out: Path | None) -> None:
    """Write the JSON Schema of recipes, to stdout without a file."""
    text = json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise BadInput(f"{out}: cannot be written: {error.strerror}") from error


def inspect_data(session: Session, rows: int, max_length: int | None) -> None:
    """Print what a data, relabel or splits recipe makes; see `data.inspection`."""
    loaded = session.load(None)
    if loaded.recipe.stage in ("data", "relabel", "splits"):  # type: ignore[attr-defined]
        planner_for(loaded).build(loaded)  # says what is wrong with the recipes before anything heavy is imported
    os.environ.update(QUIET_ENVIRONMENT)
    from rpo_cli.data.inspection import inspect

    inspect(session, rows, max_length)


def fetch_data(session: Session) -> None:
    """Bring what a recipe rests on into the hub's cache, and record the commits; on --dry-run only say what that is."""
    loaded = session.load(None)
    planner = planner_for(loaded)
    recipe = loaded.recipe
    if isinstance(recipe, schema.FigureRecipe):
        targets = [_cell(planner, loaded, policy, recipe.rhos[0]) for policy in recipe.policies]
        targets += [_variant(planner, loaded, variant, recipe.rhos[0]) for variant in recipe.variants]
    elif isinstance(recipe, schema.PolicyRecipe):
        targets = [planner.evaluation(loaded, "test")]
    elif isinstance(recipe, schema.RewardRecipe) and recipe.ensemble:
        targets = planner.members(loaded)
    else:
        targets = [planner.build(loaded)]
    workspace = session.open(loaded.recipe.suite)
    found = snapshots.wanted(targets, workspace) if session.dry_run else snapshots.fetch(targets, workspace, session.say)
    if session.as_json:
        session.print_json(found)
        return
    rows = [[entry["use"], entry["name"], entry["commit"] or "not recorded yet", entry.get("path", "")] for entry in found]
    print(aligned([("use", "name", "commit", "path"), *rows]) if rows else "nothing comes from the hub\n", end="")
