"""The command line and `by_rho` laid over a recipe's files, and the whole validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rpo_cli.recipes import yaml_lines
from rpo_cli.recipes.complaints import check, got, unknown
from rpo_cli.recipes.draft import DURATIONS, MERGED, Draft, Place, anchor, same
from rpo_cli.recipes.schema import KINDS, MODELS, NOT_BY_RHO, Recipe
from rpo_cli.recipes.yaml_lines import Keys


def asked_for(
    draft: Draft, model: type[Recipe], overrides: Sequence[str], options: Mapping[str, object]
) -> dict[Keys, tuple[Place, object]]:
    """What the command line sets, in order, with the option to name in an error; mistakes go to the draft."""
    asked: dict[Keys, tuple[Place, object]] = {}
    stage = str(draft.values["stage"])
    for override in overrides:
        key, equals, text = override.partition("=")
        key, place = key.strip(), f"--set {key.strip()}"
        keys: Keys = tuple(key.split("."))
        try:
            value = yaml_lines.parse_value(text, keys)
        except ValueError as error:
            draft.problems.append((place, str(error)))
            continue
        if not equals:
            draft.problems.append((f"--set {override}", "expected key=value"))
        elif keys[0] not in model.model_fields:
            draft.problems.append((place, unknown(keys[0], stage, model.model_fields)))
        elif key.endswith("_seed") and key.removesuffix("_seed") not in KINDS[stage].seeds:
            takers = [name for name in MODELS if key.removesuffix("_seed") in KINDS[name].seeds]
            draft.problems.append(
                (place, f"has no effect in a {stage} recipe; set it in a {' or '.join(takers)} recipe")
            )
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


def _from_here(keys: Keys, value: object) -> object:
    """A value of the command line, its relative paths taken from the current directory."""
    values: dict[str, Any] = {str(keys[0]): value if len(keys) == 1 else {keys[1]: value}}
    anchor(values, Path.cwd())
    made = values[str(keys[0])]
    return made if len(keys) == 1 else made[keys[1]]


def resolve(draft: Draft, model: type[Recipe], asked: Mapping[Keys, tuple[Place, Any]]) -> Recipe | None:
    """Lay `by_rho` and the command line over the files' values and validate; mistakes go to the draft."""
    for first in ("rho", "by_rho"):
        if (first,) in asked:
            place, value = asked[(first,)]
            draft.put((first,), value, place)
    by_rho = _by_rho(draft, model)
    files = dict(draft.values)
    rho, applied = draft.values.get("rho"), set[str]()
    for chosen_for, chosen in by_rho.items():
        if isinstance(rho, float) and same(chosen_for, rho):
            for key, value in chosen.items():
                at = draft.places.get(("by_rho", str(chosen_for), key), "--set by_rho")
                draft.put((key,), value, at)
            applied |= chosen.keys() - {str(keys[0]) for keys in asked}
    measured, seconds = dict(draft.values), draft.values.get("expected_seconds")
    for keys, (place, value) in asked.items():
        if len(keys) > 1 and not isinstance(draft.values.get(str(keys[0])) or {}, dict):
            draft.problems.append((place, f"{keys[0]} is not a mapping"))
        else:
            draft.put(keys, value, place)
    other = next((name for name in DURATIONS if (name,) in asked), None)
    if other is not None and ("expected_seconds",) not in asked and seconds is not None:
        place, wanted = asked[(other,)]
        # What was measured holds for the steps that were run; where those cannot be told, for nothing.
        numbers = (wanted, measured.get(other), seconds)
        told = all(isinstance(value, int | float) and value > 0 for value in numbers)
        draft.put(("expected_seconds",), wanted / measured[other] * seconds if told else None, place)
    recipe, complaints = check(model, draft.values)
    for keys, message, absent in complaints:
        if not (absent and draft.broken) and not (keys and keys[0] in applied):
            draft.complain(keys, message)
    # A mistake in the values for another rho is one now, not on the day that rho is run.
    for chosen_for, chosen in by_rho.items():
        _, complaints = check(model, {**files, **chosen, "rho": chosen_for})
        for keys, message, _ in complaints:
            if keys and keys[0] in chosen:
                draft.complain(("by_rho", str(chosen_for), *keys), message)
    return recipe


def _by_rho(draft: Draft, model: type[Recipe]) -> dict[float, dict[str, object]]:
    """The well-formed part of `by_rho`, which is also what stays in the draft; mistakes go to the draft."""
    found = draft.values.get("by_rho")
    if "by_rho" not in model.model_fields or not isinstance(found, dict):
        return {}
    allowed = [key for key in model.model_fields if key not in NOT_BY_RHO]
    good: dict[float, dict[str, object]] = {}
    for rho, chosen in found.items():
        keys: Keys = ("by_rho", str(rho))
        if not isinstance(rho, float) or not 0 < rho < 1:
            draft.complain(keys, f"expected a rho between 0 and 1, got {got(rho)}")
        elif not isinstance(chosen, dict):
            draft.complain(keys, f"expected a mapping, got {got(chosen)}")
        else:
            good[rho] = {key: value for key, value in chosen.items() if key in allowed}
            for key in [key for key in chosen if key not in allowed]:
                no_such = "cannot depend on rho" if key in NOT_BY_RHO else unknown(key, "policy", allowed)
                draft.complain((*keys, str(key)), no_such)
    draft.values["by_rho"] = good
    return good
