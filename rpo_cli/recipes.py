"""Recipes: from a name to a validated stage, and every mistake on the way with its file and line.

Schema default < extended file < file < `by_rho` of the rho in force < `--set key=value` < named flag.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rpo_cli import yaml_lines
from rpo_cli.complaints import check, got, suggest
from rpo_cli.recipe_draft import MERGED, REFERENCES, Draft, Place, anchor, gather, same, where
from rpo_cli.recipe_files import RecipeError, find, known, near, shown
from rpo_cli.recipe_schema import NOT_BY_RHO, json_schema
from rpo_cli.schema import MODELS, PolicyRecipe, Recipe, is_recipe
from rpo_cli.yaml_lines import Keys

__all__ = [
    "Loaded", "RecipeError", "check_suite", "find", "json_schema", "known", "load", "resolved_yaml", "write_by_rho"
]  # fmt: skip

COMMANDS = {
    "data": "rpo data",
    "sft": "rpo train-sft",
    "reward": "rpo train-rm",
    "relabel": "rpo relabel",
    "splits": "rpo splits",
    "policy": "rpo train-policy",
    "evaluate": "rpo evaluate",
    "figure": "rpo figure",
}


@dataclass(frozen=True)
class Loaded:
    """A valid recipe and where it comes from.

    `where`: top-level field -> file and line that set it, for fields that a file set.
    `overrides`: what the command line set, dotted keys as typed. `files`: the recipe and all it extends, itself first.
    """

    recipe: Recipe
    path: Path
    where: dict[str, tuple[Path, int]]
    overrides: dict[str, Any]
    files: tuple[Path, ...]
    places: dict[Keys, Place] = field(repr=False, compare=False)

    def sibling(self, name: str) -> Path:
        """The file of a recipe that this one refers to: beside it, beside what it extends, else by `find`.

        Raises:
            RecipeError: there is none.
        """
        return near(name, list(dict.fromkeys(file.parent for file in self.files)))

    def reference(self, name: str) -> Path | None:
        """The file of the recipe that a field refers to; None if it is empty or names a model directory or hub model.

        Raises:
            RecipeError: there is no such recipe; with the line that refers to it.
        """
        value = getattr(self.recipe, name)
        if not isinstance(value, str) or not is_recipe(value):
            return None
        try:
            return self.sibling(value)
        except RecipeError as error:
            place = self.places.get((name,), (self.path, 1))
            raise RecipeError([f"{where(place)}: {name}: {problem}" for problem in error.problems]) from None


def load(
    name: str,
    *,
    rho: float | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    expect: str | None = None,
    beside: Path | None = None,
) -> Loaded:
    """The recipe of this name, validated and resolved.

    `overrides`: `key=value` with a YAML value; `rows.pairs=100` reaches into a mapping. `flags`: fields set by options
    of their own; None means not given. `expect`: the stage that the command handles. `beside`: see `find`.

    Raises:
        RecipeError: with every mistake found.
    """
    options = {key: value for key, value in {**(flags or {}), "seed": seed, "rho": rho}.items() if value is not None}
    return _load(find(name, beside), overrides, options, expect)


def _load(
    path: Path,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    expect: str | None = None,
    text: str | None = None,
) -> Loaded:
    draft = gather(path, text=text)
    model = _model(draft, expect)
    if not draft.values.get("suite"):
        draft.values["suite"] = path.parent.name
    asked = _asked(draft, model, overrides, options or {})
    recipe = _resolve(draft, model, asked)
    if draft.problems or recipe is None:
        raise RecipeError(draft.errors())
    in_files = {str(keys[0]): place for keys, place in draft.places.items() if len(keys) == 1 and isinstance(place, tuple)}
    changed = {".".join(map(str, keys)): value for keys, (_, value) in asked.items()}
    return Loaded(recipe, path, in_files, changed, tuple(draft.files), draft.places)


def _model(draft: Draft, expect: str | None) -> type[Recipe]:
    """The model of the draft's stage; without one nothing else can be checked."""
    stage = draft.values.get("stage")
    if "stage" not in draft.values:
        if not draft.broken:
            draft.complain((), f"stage: missing, one of {', '.join(MODELS)}")
    elif not isinstance(stage, str) or stage not in MODELS:
        draft.complain(("stage",), f"expected one of {', '.join(MODELS)}, got {got(stage)}{suggest(str(stage), MODELS)}")
    elif expect is not None and stage != expect:
        draft.complain((), f"is a {stage} recipe; use {COMMANDS[stage]}")
    else:
        return MODELS[stage]
    raise RecipeError(draft.errors())


def _asked(
    draft: Draft, model: type[Recipe], overrides: Sequence[str], options: Mapping[str, Any]
) -> dict[Keys, tuple[Place, Any]]:
    """What the command line sets, in order, with the option to name in an error; mistakes go to the draft."""
    asked: dict[Keys, tuple[Place, Any]] = {}
    stage = draft.values["stage"]
    for override in overrides:
        key, equals, text = override.partition("=")
        key, place = key.strip(), f"--set {key.strip()}"
        keys: Keys = tuple(key.split("."))
        try:
            value = yaml_lines.parse_value(text)
        except ValueError as error:
            draft.problems.append((place, str(error)))
            continue
        if not equals:
            draft.problems.append((f"--set {override}", "expected key=value"))
        elif keys[0] not in model.model_fields:
            draft.problems.append((place, "unknown key" + (suggest(key, model.model_fields) or f" in a {stage} recipe")))
        elif key == "stage":
            draft.problems.append((place, "cannot be changed from the command line"))
        elif len(keys) > 1 and (keys[0] not in MERGED or keys[0] == "by_rho"):
            draft.problems.append((place, f"{keys[0]} cannot be set in part"))
        else:
            asked[keys] = (place, _from_here(keys, value))
    for key, value in options.items():
        place = f"--{key.replace('_', '-')}"
        if key in model.model_fields:
            asked = {keys: at for keys, at in asked.items() if keys[0] != key}
            asked[(key,)] = (place, _from_here((key,), value))
        else:
            draft.problems.append((place, f"a {stage} recipe has no {key}"))
    return asked


def _from_here(keys: Keys, value: Any) -> Any:
    """A value of the command line, its relative paths taken from the current directory."""
    values = {keys[0]: value if len(keys) == 1 else {keys[1]: value}}
    anchor(values, Path.cwd())
    return values[keys[0]] if len(keys) == 1 else values[keys[0]][keys[1]]


def _resolve(draft: Draft, model: type[Recipe], asked: Mapping[Keys, tuple[Place, Any]]) -> Recipe | None:
    """Lay `by_rho` and the command line over the files' values and validate; mistakes go to the draft."""
    for keys in (("rho",), ("by_rho",)):
        if keys in asked:
            draft.put(keys, asked[keys][1], asked[keys][0])
    by_rho = _by_rho(draft, model)
    files = dict(draft.values)
    rho = draft.values.get("rho")
    for chosen_for, chosen in by_rho.items():
        if isinstance(rho, float) and same(chosen_for, rho):
            for key, value in chosen.items():
                at = draft.places.get(("by_rho", str(chosen_for), key), "--set by_rho")
                draft.put((key,), value, at)
    for keys, (place, value) in asked.items():
        if len(keys) > 1 and not isinstance(draft.values.get(str(keys[0])) or {}, dict):
            draft.problems.append((place, f"{keys[0]} is not a mapping"))
        else:
            draft.put(keys, value, place)
    recipe, complaints = check(model, draft.values)
    seen = {(complaint.keys, complaint.message) for complaint in complaints}
    for complaint in complaints:
        if not (complaint.absent and draft.broken):
            draft.complain(complaint.keys, complaint.message)
    # A mistake in the values for another rho is one now, not on the day that rho is run.
    for chosen_for, chosen in by_rho.items():
        _, complaints = check(model, {**files, **chosen, "rho": chosen_for})
        for keys, message, _ in complaints:
            if keys and keys[0] in chosen:
                draft.complain(("by_rho", str(chosen_for), *keys), message)
            elif not keys and (keys, message) not in seen:
                draft.complain(("by_rho", str(chosen_for)), message)
    return recipe


def _by_rho(draft: Draft, model: type[Recipe]) -> dict[float, dict[str, Any]]:
    """The well-formed part of `by_rho`, which is also what stays in the draft; mistakes go to the draft."""
    found = draft.values.get("by_rho")
    if "by_rho" not in model.model_fields or not isinstance(found, dict):
        return {}
    allowed = [key for key in model.model_fields if key not in NOT_BY_RHO]
    good: dict[float, dict[str, Any]] = {}
    for rho, chosen in found.items():
        keys: Keys = ("by_rho", str(rho))
        if not isinstance(rho, float) or not 0 < rho < 1:
            draft.complain(keys, f"expected a rho between 0 and 1, got {got(rho)}")
        elif not isinstance(chosen, dict):
            draft.complain(keys, f"expected a mapping, got {got(chosen)}")
        else:
            good[rho] = {key: value for key, value in chosen.items() if key in allowed}
            for key in chosen:
                if key in NOT_BY_RHO:
                    draft.complain((*keys, str(key)), "cannot depend on rho")
                elif key not in allowed:
                    draft.complain((*keys, str(key)), "unknown key" + (suggest(key, allowed) or " in a policy recipe"))
    draft.values["by_rho"] = good
    return good


def check_suite(folder: Path) -> list[str]:
    """What is wrong with the recipes of a folder: mistakes in them, and references to recipes that are not there.

    A file without a stage that another one extends is checked as a part of that one.
    """
    files = sorted(Path(os.path.abspath(folder)).glob("*.yaml"))
    if not files:
        return [f"{shown(Path(os.path.abspath(folder)))}: no recipes"]
    drafts = {file: gather(file) for file in files}
    bases = {base for file, draft in drafts.items() for base in draft.files if base != file}
    problems: list[str] = []
    for file, draft in drafts.items():
        if "stage" not in draft.values and file in bases:
            continue
        try:
            loaded = _load(file)
        except RecipeError as error:
            problems += error.problems
            continue
        for keys, name in _references(loaded.recipe):
            if not (file.parent / name).is_file():
                place = loaded.places.get(keys) or loaded.places.get(keys[:1]) or (file, 1)
                problems.append(f"{where(place)}: {keys[0]}: {name}: no such recipe in {shown(file.parent)}")
    return list(dict.fromkeys(problems))


def _references(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """The recipes that a recipe rests on, with the field; a policy's teachers only if its objective has any."""
    for name in REFERENCES:
        value = getattr(recipe, name, None)
        if isinstance(recipe, PolicyRecipe) and (
            (name == "reward_model" and recipe.objective not in ("d-dpo", "dp-dpo"))
            or (name == "ensemble" and recipe.objective != "e-dpo")
        ):
            continue
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, str) and is_recipe(item):
                yield ((name, index) if isinstance(value, list) else (name,)), item


def write_by_rho(path: Path, chosen: Mapping[float, Mapping[str, Any]]) -> None:
    """Replace the whole `by_rho` block of a recipe, or add one; no other line changes, and the file is never half written.

    Raises:
        RecipeError: the result would not be a valid recipe, or the file belongs to an installed package or is read-only.
    """
    path = Path(path).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        raise RecipeError([f"{shown(path)}: belongs to the installed package; copy the recipe and change the copy"])
    body = [f"{round(rho, 9)!r}: {_flow(dict(values))}" for rho, values in sorted(chosen.items())]
    try:
        before = path.read_bytes().decode("utf-8")
        text = yaml_lines.replace_block(before, "by_rho", body)
    except (OSError, ValueError, yaml.YAMLError):
        # The loader says it better, and with the line.
        _load(path)
        raise RecipeError([f"{shown(path)}: not in block style (`key: value` lines), so by_rho cannot be written"]) from None
    written = _load(path, text=text).recipe
    if not isinstance(written, PolicyRecipe) or any(
        dict(values) not in [found for rho, found in written.by_rho.items() if same(rho, float(wanted))]
        for wanted, values in chosen.items()
    ):
        raise RecipeError([f"{shown(path)}: by_rho would not be read back as written"])
    try:
        _replace(path, text)
    except OSError as error:
        raise RecipeError([f"{shown(path)}: cannot be written: {error.strerror}"]) from None


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, name)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def resolved_yaml(loaded: Loaded) -> str:
    """The recipe with every default written out, each value followed by where it comes from; loads to the same recipe."""
    values = loaded.recipe.model_dump(mode="python")
    rho = values.get("rho")
    if rho is not None and "by_rho" in values:
        # Already in force; left in, it would undo what the command line changed.
        values["by_rho"] = {key: chosen for key, chosen in values["by_rho"].items() if not same(key, rho)}
    lines = []
    for key in ["stage", *(key for key in values if key != "stage")]:
        value, source = values[key], _source(loaded, (key,))
        if isinstance(value, dict) and value:
            lines.append(f"{key}:  # {source}")
            lines += [f"  {_flow(name)}: {_flow(item)}  # {_source(loaded, (key, str(name)))}" for name, item in value.items()]
        else:
            lines.append(f"{key}: {_flow(value)}  # {source}")
    return "\n".join(lines) + "\n"


def _source(loaded: Loaded, keys: Keys) -> str:
    for length in range(len(keys), 0, -1):
        if (place := loaded.places.get(keys[:length])) is not None:
            return place.split()[0] if isinstance(place, str) else where(place)
    # A mapping of which only parts were set, each of them on the command line.
    parts = [place for at, place in loaded.places.items() if at[: len(keys)] == keys and isinstance(place, str)]
    return parts[0].split()[0] if parts else "default"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value) if "\n" in text else text
