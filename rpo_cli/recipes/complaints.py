"""What is wrong with a recipe's values, in plain words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rpo_cli.recipes.hints import hint
from rpo_cli.recipes.schema import JudgeSettings, Recipe
from rpo_cli.recipes.yaml_lines import Keys, formerly, instead
from rpo_cli.text import cut

TYPES = {
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
# Mappings whose values have no type of their own here: 10000.0 must stay a float.
OF_KEY = re.compile(r"(\w+): ")
UNTYPED = ("model_config_kwargs", "by_rho")


class Complaint(NamedTuple):
    """One mistake. `absent`: something is missing, rather than wrong."""

    keys: Keys
    message: str
    absent: bool = False


def check(model: type[Recipe], values: Mapping[str, object]) -> tuple[Recipe | None, list[Complaint]]:
    """The validated recipe, or every complaint about it; no silent conversions, except 1e3 to 1000."""
    stage = str(values["stage"])
    known = {key: value for key, value in values.items() if key in model.model_fields}
    known |= {key: _whole(value) for key, value in known.items() if key not in UNTYPED}
    complaints = [
        Complaint((key,), unknown(key, stage, [*model.model_fields, "extends"]))
        for key in values
        if key not in known
    ]
    try:
        recipe = model.model_validate(known, strict=True)
    except ValidationError as error:
        groups: dict[Keys, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            # A key that is not there is in no value either.
            keys = tuple(detail["loc"]) if detail["type"] == "missing" else _keys(known, detail["loc"])
            groups.setdefault(keys, []).append(detail)
        for keys, details in groups.items():
            # `str | list[str]` complains about the whole as well as about the item: the item says more.
            if keys and any(len(other) > len(keys) and other[: len(keys)] == keys for other in groups):
                continue
            message = _words(details, stage)
            said = OF_KEY.match(message)
            inside = known if not keys else known.get(str(keys[0]))
            if (
                said
                and details[0]["type"] == "value_error"
                and isinstance(inside, dict)
                and said[1] in inside
            ):
                # A rule between keys names the one to look at.
                keys, message = (*keys, said[1]), message[said.end() :]
            absent = not keys or details[0]["type"] == "missing"
            if details[0]["type"] == "extra_forbidden":
                message += suggest(str(keys[-1]), JudgeSettings.model_fields)
            complaints.append(Complaint(keys, message, absent))
        return None, complaints
    return (None if complaints else recipe), complaints


def unknown(key: object, stage: str, known: Iterable[str]) -> str:
    """That a recipe knows no such key, and what to write instead, as far as that can be told."""
    return "unknown key" + (hint(key) or suggest(str(key), known) or f" in a {stage} recipe")


def suggest(word: str, known: Iterable[str]) -> str:
    """`, did you mean beta?`, or nothing."""
    close = difflib.get_close_matches(str(word), sorted(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def got(value: object) -> str:
    """A value as a reader of YAML would call it."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    return f"{names.get(type(value), 'a value')} ({short(value)})"


def short(value: object) -> str:
    """A value in at most 60 characters."""
    try:
        return cut(repr(value), 60)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of very many digits"


def _whole(value: object) -> object:
    """Whole floats as ints: strict validation takes an int for a float, but no float for an int."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {key: _whole(item) for key, item in value.items()} if isinstance(value, dict) else value


def _keys(value: object, loc: tuple[int | str, ...]) -> Keys:
    """Where in the values an error is: its location without the names of union members and the like."""
    keys: list[str | int] = []
    for part in loc:
        if isinstance(value, dict):
            inside = {str(key): item for key, item in value.items()}
            if str(part) in inside or not keys:
                keys.append(str(part))
                value = inside.get(str(part))
        elif isinstance(value, list) and isinstance(part, int):
            keys.append(part)
            value = value[part]
        elif not keys:
            keys.append(str(part))
    return tuple(keys)


def _words(details: list[ErrorDetails], stage: str) -> str:
    """One sentence for the errors at one place: members of a union complain each."""
    of_value = [
        detail for detail in details if detail["type"] not in TYPES and detail["type"] != "literal_error"
    ]
    if not of_value:
        return _mismatch(details)
    detail = of_value[0]
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "missing":
        return f"missing; a {stage} recipe needs it" if len(detail["loc"]) == 1 else "missing"
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "value_error":
        return str(context["error"])
    if kind in BOUNDS:
        words, bound = BOUNDS[kind]
        limit = context[bound]
        return f"must be {words} {limit if isinstance(limit, int) else f'{limit:g}'}, got {short(value)}"
    if kind == "too_short":
        return f"needs at least {context['min_length']} item(s)"
    if kind == "finite_number":
        return f"must be finite, got {short(value)}"
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, got {got(value)}"


def _mismatch(details: list[ErrorDetails]) -> str:
    """Expected this or that, got something else."""
    value = details[0]["input"]
    choices = [word for detail in details for word in _choices(detail)]
    if "[key]" in details[0]["loc"]:
        return "unknown key" + (suggest(value, choices) or f", expected {either(choices)}")
    expected = [TYPES[detail["type"]] for detail in details if detail["type"] in TYPES]
    message = f"expected {either([*choices, *expected])}, got {got(value)}"
    meant = formerly(value) if isinstance(value, str) else None
    if meant is not None and (TYPES["bool_type"] in expected) == isinstance(meant, bool):
        return f"{message}; {instead(meant)}"
    if isinstance(value, str) and choices:
        return message + suggest(value, choices)
    scalar = isinstance(value, bool | int | float)
    return message + ("; put it in quotes if it is text" if scalar and expected == ["text"] else "")


def _choices(detail: ErrorDetails) -> list[str]:
    """The words a Literal allows."""
    expected = detail.get("ctx", {}).get("expected", "") if detail["type"] == "literal_error" else ""
    return [word.strip().strip("'") for word in expected.replace(" or ", ", ").split(", ") if word]


def either(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
