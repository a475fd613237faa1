"""`rpo recipe check`: recipes, what they refer to, and whether their whole plan can be made."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from rpo_cli.artifacts import Stage, walk
from rpo_cli.errors import BadInput
from rpo_cli.recipes import (
    RECIPES,
    SETTINGS,
    Loaded,
    RecipeError,
    check_suite,
    find_suite,
    load,
    recipes_in,
    schema,
    shown,
    variant_overrides,
    where,
)
from rpo_cli.recipes.listing import load_all
from rpo_cli.runs import preflight
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.planning.base import at_rho
from rpo_cli.text import counted

LOCATED = re.compile(r"\S.*?:\d+: ")


def check_recipes(recipes: Sequence[str]) -> None:
    """Check recipes, or folders of them, what they refer to, and that their whole plan can be made.

    A data file that is not there yet is noted; it is no mistake in a recipe.

    Raises:
        RecipeError: with every problem, as `file:line: field: message`.
    """
    problems: list[str] = []
    absent: set[str] = set()
    noted: set[str] = set()
    checked: set[Path] = set()
    limits: dict[Path, int | None] = {}

    def missing(line: str) -> str:
        return line.split(": no such recipe")[0]

    for name in recipes:
        try:
            files, faults = _files(name)
        except RecipeError as error:
            problems += error.problems
            continue
        problems += faults
        made, _ = load_all(files)
        for loaded in made.values():
            # A reference to nothing was reported above.
            known = {missing(fault) for fault in faults}
            lines = [_located(line, loaded.path) for line in plan_problems(loaded, absent, noted, limits)]
            problems += [line for line in lines if missing(line) not in known]
        checked |= made.keys()
    noted |= absent
    for note in sorted(noted):
        print(f"note: {note}", file=sys.stderr)
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    notes = f", {counted(len(noted), 'note')}" if noted else ""
    print(f"{counted(len(checked), 'recipe')}, no problems{notes}")


def _files(name: str) -> tuple[list[Path], list[str]]:
    """The recipe of this name, or a folder's files; and what is wrong with each taken alone."""
    suite = find_suite(name)
    if suite is None:
        loaded = load(name)
        own = tuple(f"{where((file, 0)).rpartition(':')[0]}:" for file in loaded.files)
        return [loaded.path], [fault for fault in check_suite(loaded.path.parent) if fault.startswith(own)]
    if suite.is_file():
        return recipes_in(suite), check_suite(suite)
    folders = [suite, *sorted(place for place in suite.rglob("*") if place.is_dir())]
    files = [file for folder in folders if folder.name not in SETTINGS for file in recipes_in(folder)]
    files = files or (recipes_in(suite / RECIPES) if (suite / RECIPES).is_file() else [])
    if not files:
        raise RecipeError([f"{name}: no recipes"])
    suites = dict.fromkeys(file.parent for file in files)
    return files, [fault for suite in suites for fault in check_suite(suite)]


class _Rehearsal(Planner):
    """A planner that goes on where a data file is not there yet."""

    def __init__(self, seed: int, absent: set[str], limits: dict[Path, int | None]) -> None:
        super().__init__(seed)
        self.absent = absent
        self._limits = limits

    def _data(self, loaded: Loaded) -> Stage:
        try:
            return super()._data(loaded)
        except RecipeError as error:
            self.absent |= {problem.replace(f"{Path.cwd()}/", "") for problem in error.problems}
            return super()._data(replace(loaded, recipe=loaded.recipe.model_copy(update={"files": {}})))


def plan_problems(
    loaded: Loaded, absent: set[str], noted: set[str], limits: dict[Path, int | None] | None = None
) -> list[str]:
    """What stands in the way of a recipe's plan, and of every cell of a figure's; what it notes.

    `limits`: those of splits by path, kept from one recipe to the next, as they rest on a whole suite.
    """
    planner = _Rehearsal(loaded.recipe.seed, absent, {} if limits is None else limits)
    problems: list[str] = []
    made: list[Stage] = []
    for plan in plans(planner, loaded):
        try:
            made += plan()
        except RecipeError as error:
            problems += error.problems
        except BadInput as error:
            problems.append(str(error))
    stages = walk(made)
    noted |= set(preflight.notes(stages))
    noted |= set(preflight.tracking(any(stage.recipe.report_to == "wandb" for stage in stages)))
    return problems + preflight.problems(stages)


def plans(planner: Planner, loaded: Loaded) -> list[Callable[[], list[Stage]]]:
    """What plans each of the targets of a recipe: every cell of a figure, all that a reward recipe can be."""
    recipe = loaded.recipe
    if isinstance(recipe, schema.FigureRecipe):
        every = [(variant, rho) for variant in recipe.compared for rho in recipe.rhos]
        return [partial(_cell, planner, loaded, variant, rho) for variant, rho in every]
    if isinstance(recipe, schema.PolicyRecipe):
        return [lambda: [planner.evaluation(loaded, "test")]]
    members = isinstance(recipe, schema.RewardRecipe) and recipe.has_members
    return [lambda: [planner.build(loaded)], *([lambda: planner.members(loaded)] if members else [])]


def would_run(command: str, recipe: Path) -> bool:
    """Whether a command on this recipe of a suite could be planned, with every file there."""
    try:
        loaded = load(str(recipe))
    except RecipeError:
        return False
    kind = getattr(loaded.recipe, "kind", None)
    own = schema.KINDS[loaded.recipe.stage].command if kind is None else f"rpo figure {kind}"
    takes = {own, "rpo evaluate"} if loaded.recipe.stage == "policy" else {own}
    absent: set[str] = set()
    return command in takes and not plan_problems(loaded, absent, set()) and not absent


def _cell(planner: Planner, figure: Loaded, variant: schema.Variant, rho: float | None) -> list[Stage]:
    """What a figure reads of one of its variants at one rho."""
    at = at_rho(rho)
    at["overrides"] = [*variant_overrides(variant), *at.get("overrides", [])]
    key = "variants" if cast(schema.FigureRecipe, figure.recipe).variants else "policies"
    policy = planner.load(figure.sibling(variant.recipe, key), expect="policy", **at)
    measured = cast(schema.FigureRecipe, figure.recipe).measured
    return [planner.measure(policy) if measured else planner.evaluation(policy, "test")]


def _located(problem: str, path: Path) -> str:
    """The problem with file and line, the file as the user knows it."""
    text = problem.replace(f"{Path.cwd()}/", "")
    if LOCATED.match(text):
        return text
    return f"{where((path, 0))}: {text.removeprefix(f'{shown(path)}: ')}"
