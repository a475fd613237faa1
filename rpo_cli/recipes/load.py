"""Recipes: from a name to a validated stage, and every mistake on the way with its file and line.

Schema default < extended file < file < `by_rho` of the rho in force < `--set key=value` < named flag.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from rpo_cli.recipes import yaml_lines
from rpo_cli.recipes.complaints import either, got, suggest
from rpo_cli.recipes.draft import REFERENCES, Draft, Place, gather, nearest, stands, where
from rpo_cli.recipes.files import RecipeError, file_of, find, places_of, recipes_in, shown, suite_of, there
from rpo_cli.recipes.resolve import asked_for, resolve
from rpo_cli.recipes.schema import (
    KINDS,
    MODELS,
    FigureRecipe,
    Members,
    PolicyRecipe,
    Recipe,
    Variant,
    is_recipe,
)
from rpo_cli.recipes.yaml_lines import Keys
from rpo_cli.text import unplain


@dataclass(frozen=True)
class Loaded:
    """A valid recipe and where it comes from.

    `overrides`: what the command line set, dotted keys as typed. `files`: the recipe and all it extends,
    itself first. `places`: of every key that was set, the file and line or the option.
    """

    recipe: Recipe
    path: Path
    overrides: dict[str, Any]
    files: tuple[Path, ...]
    places: dict[Keys, Place] = field(repr=False, compare=False)

    def place(self, *keys: str | int) -> str:
        """Where a key stands, and its name."""
        return stands(self.places, self.path, keys)

    def sibling(self, name: str, *keys: str | int) -> Path:
        """The file of a recipe that this one refers to: beside it, beside what it extends, else by `find`.

        A name that nobody wrote, the default of its key, is looked for beside the recipe, and beside the file
        that says its stage, and nowhere else. Nor is what a suite in one file calls by name alone.

        Raises:
            RecipeError: there is none; with the line that refers to it.
        """
        if not keys or keys[:1] in self.places:
            places = list(dict.fromkeys(place for file in self.files for place in places_of(file)))
            written = isinstance(self.places.get(keys[:1]), tuple)  # in a file, not on the command line
            alone = written and suite_of(self.path) is not None and not {"/", ":"} & {*name}
            if alone and not any(there(place / name) for place in places):
                no_such = f"{name}: no such recipe in {shown(self.path.parent)}"
                raise RecipeError([f"{self.place(*keys)}: {no_such}"])
            try:
                return find(name, places)
            except RecipeError as error:
                at = f"{self.place(*keys)}: " if keys else ""
                raise RecipeError([f"{at}{line}" for line in error.problems]) from None
        for file in (self.path, self.places["stage",][0]):
            if isinstance(file, Path) and there(beside := file.parent / name):
                return beside
        what = f"no {name}, its default, in {shown(self.path.parent)}; write one, or say which to use"
        raise RecipeError([f"{self.place(*keys)}: {what}"])

    def reference(self, name: str) -> Path | None:
        """The file of the recipe that a field refers to; None if it is empty or names a model.

        Raises:
            RecipeError: there is no such recipe; with the line that refers to it.
        """
        value = getattr(self.recipe, name)
        return self.sibling(value, name) if isinstance(value, str) and is_recipe(value) else None


def load(
    name: str,
    *,
    rho: float | Literal["none"] | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    expect: str | None = None,
    among: Sequence[str] = (),
) -> Loaded:
    """The recipe of this name, validated and resolved.

    `overrides`: `key=value` with a YAML value; `rows.pairs=100` reaches into a mapping. `flags`: fields set
    by options of their own; None means not given. `rho`: likewise, and "none" means without resampling.
    `expect`: the stage that the command handles; `among`: those, where it handles several, of which a recipe
    is meant where a suite is named.

    Raises:
        RecipeError: with every mistake found.
    """
    given = {**(flags or {}), "seed": seed, "rho": rho}
    options = {key: value for key, value in given.items() if value is not None}
    if rho == "none":
        options["rho"] = None
    return load_file(_one_of(find(name), among if expect is None else (expect,)), overrides, options, expect)


def load_file(
    path: Path,
    overrides: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
    expect: str | None = None,
    text: str | None = None,
) -> Loaded:
    if (why := unplain(path.stem)) is not None:
        raise RecipeError([f"{shown(path)!a}: the name of a recipe names its artifacts: {why}"])
    draft = _gathered(path) if text is None else gather(path, text=text)
    model = _model(draft, expect)
    if not draft.values.get("suite"):
        suite = path.parent.name if suite_of(path) is None else path.parent.stem
        draft.values["suite"] = suite if unplain(suite) is None else ""
    asked = asked_for(draft, model, overrides, options or {})
    recipe = resolve(draft, model, asked)
    if draft.problems or recipe is None:
        raise RecipeError(draft.errors())
    changed = {".".join(map(str, keys)): value for keys, (_, value) in asked.items()}
    return Loaded(recipe, path, changed, tuple(draft.files), draft.places)


def _one_of(path: Path, stages: Sequence[str]) -> Path:
    """The recipe itself, or of a suite in one file the only one of the stages that a command handles.

    Raises:
        RecipeError: there are others, or none; with their names.
    """
    recipes = [] if (suite_of(path) or not path.is_file()) else recipes_in(path)
    drafts = {each: gather(each) for each in recipes}
    whole = [each for each in recipes if _is_whole(drafts[each])]
    fitting = [each for each in whole if not stages or drafts[each].values["stage"] in stages]
    if not recipes or len(fitting) == 1:
        return fitting[0] if recipes else path
    kind = f"{either(stages)} recipe" if stages else "recipe"
    if fitting:
        raise RecipeError([f"{shown(path)}: which {kind}? {', '.join(map(shown, fitting))}"])
    problems = [problem for draft in drafts.values() for problem in draft.errors()]
    has = ", ".join(map(shown, whole or recipes))
    raise RecipeError(list(dict.fromkeys(problems)) or [f"{shown(path)}: has no {kind}; it has {has}"])


def _is_whole(draft: Draft) -> bool:
    """Whether a draft has a stage and all that it requires: what others extend need not."""
    model = MODELS.get(str(draft.values.get("stage")))
    fields = model.model_fields if model else {}
    return {"stage", *(key for key in fields if fields[key].is_required())} <= draft.values.keys()


_drafts: dict[tuple[Path, str], tuple[dict[Path, bytes], Draft]] = {}


def _gathered(path: Path) -> Draft:
    """`gather`, remembered while its files stay as they are: hundreds of cells read the same few."""
    call = (path, os.getcwd())
    files, draft = _drafts.get(call, ({}, None))
    if draft is None or any(_content(file) != content for file, content in files.items()):
        draft = gather(path)
        if draft.problems:
            return draft
        _drafts[call] = {file: _content(file) for file in draft.files}, draft
    return replace(draft, files=[*draft.files], values={**draft.values}, places={**draft.places}, problems=[])


def _content(file: Path) -> bytes:
    try:
        return file_of(file).read_bytes()
    except OSError:
        return b""  # which no recipe has


def article(stage: str) -> str:
    """The stage with its article: `an sft`, `a policy`."""
    return f"{'an' if stage in ('sft', 'evaluate') else 'a'} {stage}"


def _model(draft: Draft, expect: str | None) -> type[Recipe]:
    """The model of the draft's stage; without one nothing else can be checked."""
    stage = draft.values.get("stage")
    if "stage" not in draft.values:
        if not draft.broken:
            draft.complain((), f"stage: missing, one of {', '.join(MODELS)}")
    elif not isinstance(stage, str) or stage not in MODELS:
        expected = f"expected one of {', '.join(MODELS)}"
        draft.complain(("stage",), f"{expected}, got {got(stage)}{suggest(str(stage), MODELS)}")
    elif expect is not None and stage != expect:
        draft.complain((), f"is {article(stage)} recipe; use {KINDS[stage].command}")
    else:
        return MODELS[stage]
    raise RecipeError(draft.errors())


def check_suite(folder: Path) -> list[str]:
    """What is wrong with a folder's recipes: mistakes in them, and references to recipes that are not there.

    A file that another one extends, and that lacks its stage or a required key, is checked as a part of that
    one.
    """
    files = recipes_in(Path(os.path.abspath(folder)))
    if not files:
        return [f"{shown(Path(os.path.abspath(folder)))}: no recipes"]
    problems: list[str] = []
    for file in _without_parts(files):
        try:
            loaded = load_file(file)
        except RecipeError as error:
            problems += error.problems
            continue
        for keys, name in _references(loaded.recipe):
            place = loaded.places.get(nearest(loaded.places, keys), (file, 0))
            if not any(there(place / name) for part in loaded.files for place in places_of(part)):
                problems.append(f"{where(place)}: {keys[0]}: {name}: no such recipe in {shown(file.parent)}")
            elif keys[0] == "variants":
                problems += _variant_problems(loaded, int(keys[1]), where(place))
    return list(dict.fromkeys(problems))


def _without_parts(files: Sequence[Path]) -> dict[Path, Draft]:
    """A suite's recipes, less those that others extend and that lack a stage or a required key."""
    drafts = {file: gather(file) for file in files}
    bases = {base for file, draft in drafts.items() for base in draft.files if base != file}
    return {file: draft for file, draft in drafts.items() if file not in bases or _is_whole(draft)}


def recipes_of(suite: Path) -> list[Path]:
    """A suite's recipes, mistakes or none in them."""
    return list(_without_parts(recipes_in(suite)))


def policies_of(suite: Path) -> tuple[list[Path], list[Path]]:
    """A suite's policy recipes, mistakes or none in them; and what lacks a stage or an objective to be one.

    The latter are taken for parts, extended from elsewhere. Other files without a stage are in neither list,
    unless one cannot be read.
    """
    policies, parts = list[Path](), list[Path]()
    for file, draft in _without_parts(recipes_in(suite)).items():
        stage = draft.values.get("stage")
        if isinstance(stage, str) and stage in MODELS.keys() - {"policy"}:
            continue
        if draft.broken or ("stage" in draft.values and not (stage == "policy" and _is_part(draft))):
            policies.append(file)
        elif "objective" in draft.values or stage == "policy":
            parts.append(file)
    return policies, parts


def _is_part(policy: Draft) -> bool:
    """Whether a policy lacks an objective, and not because of a key that is none."""
    return "objective" not in policy.values and policy.values.keys() <= PolicyRecipe.model_fields.keys()


def variant_overrides(variant: Variant) -> list[str]:
    """A variant's changes as --set has them."""
    return [f"{key}={yaml_lines.one_line(value)}" for key, value in variant.set.items()]


def _variant_problems(loaded: Loaded, index: int, place: str) -> list[str]:
    variant = cast(FigureRecipe, loaded.recipe).variants[index]
    try:
        file = loaded.sibling(variant.recipe, "variants", index)
        load(str(file), overrides=variant_overrides(variant), expect="policy")
    except RecipeError as error:
        return [f"{place}: variants: {variant.name}: {problem}" for problem in error.problems]
    return []


def _references(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """The recipes that a recipe rests on, with the field; a policy's teachers only if it has any."""
    for index, variant in enumerate(getattr(recipe, "variants", [])):
        yield ("variants", index), variant.recipe
    for name in REFERENCES:
        value = getattr(recipe, name, None)
        if isinstance(recipe, PolicyRecipe) and name in recipe.unused():
            continue
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            named = item.members if isinstance(item, Members) else item
            if isinstance(named, str) and is_recipe(named):
                yield ((name, index) if isinstance(value, list) else (name,)), named
