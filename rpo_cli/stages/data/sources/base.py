"""Published preference sets, each read from exactly its own schema, as the pipeline's tables.

A source's function turns records (`Sets`) into `Pair`s and `Written`s; `assemble` splits by post and counts;
nothing else knows a schema.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rpo_cli.errors import BadInput
from rpo_cli.recipes.schema import DataRecipe
from rpo_cli.stages.data.ledger import Ledger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAR = 1e300  # no score is so large; an integer may be too large for any float
# Place for error messages, split as published or None, record.
Row = dict[str, Any]  # a record as it was read: nothing is known of it
Records = Iterable[tuple[str, str | None, Row]]


@dataclass(frozen=True)
class Sets:
    """What a source reads: records of pairs and of written responses, and what it does that with.

    written: none without sft_dataset; tokenizer: None where the recipe names none; ledger: told of what is
    left out, while the record stands that it is of.
    """

    recipe: DataRecipe
    tokenizer: PreTrainedTokenizerBase
    pairs: Records
    written: Records
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison.

    `split`: train, validation or test as published; `posts`: names of its post, any of which identifies it;
    `messages`: the conversation that its texts were made of (`turns.as_json`); `kept`: see `beside`;
    `place`: the file and line that it was read from.
    """

    split: str
    posts: tuple[str, ...]
    prompt: str
    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None
    messages: str | None = None
    kept: Mapping[str, float | str] = field(default_factory=dict)
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Written:
    """One written response; `split`, `posts`, `messages` and `place` as in `Pair`."""

    split: str
    posts: tuple[str, ...]
    prompt: str
    completion: str
    messages: str | None = None
    place: str = field(default="", compare=False)


def column(place: str, row: Row, *names: str) -> Any:
    """The first of these columns that the row has.

    Raises:
        BadInput: it has none, with what it has instead.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise BadInput(f"{place}: {lacking(row, *names)}")


def lacking(row: Row, *names: str) -> str:
    """That a row has none of these columns, or nothing in one, with what it has instead."""
    given = {name: value for name, value in row.items() if value is not None}
    null = [name for name in names if name in row]
    lacks = f"{null[0]} is null" if null else f"no column {' or '.join(map(repr, names))}"
    return f"{lacks} (has: {columns_in(given)})"


def text(place: str, row: Row, *names: str) -> str:
    """`column`, which must be text."""
    value = column(place, row, *names)
    if not isinstance(value, str):
        raise BadInput(f"{place}: {names[0]}: expected text, got {named(value)}")
    return value


def number(place: str, row: Row, name: str) -> float | None:
    """A column that must be a number where it has a value."""
    return None if row.get(name) is None else _finite(place, name, row[name])


def numbers(place: str, row: Row, names: Iterable[str]) -> dict[str, float]:
    """Columns that must all be numbers.

    Raises:
        BadInput: one is not there, or is none.
    """
    found = {name: row[name] if name in row else column(place, row, name) for name in names}
    return {name: _finite(place, name, value) for name, value in found.items()}


def _finite(place: str, name: str, value: object) -> float:
    if isinstance(value, int | float) and abs(value) < FAR:
        return float(value)
    raise BadInput(f"{place}: {name}: expected a finite number, got {named(value)}")


def beside(place: str, row: Row, recipe: DataRecipe) -> dict[str, float | str]:
    """What a recipe keeps of a pair's row beside its texts: numbers, and of what kind it is.

    Raises:
        BadInput: a column is not there, or no number where one is asked for.
    """
    if lacking := [name for name in recipe.attributes if name not in row]:
        raise BadInput(f"{place}: no column {lacking[0]!r} (has: {columns_in(row)})")
    kinds = {name: "" if row[name] is None else str(row[name]) for name in recipe.attributes}
    return {**numbers(place, row, recipe.keep_columns), **kinds}


def shown_name(name: str) -> str:
    """A column's name, on one line whatever it holds."""
    return name if name.isprintable() else ascii(name)


def columns_in(row: Mapping[str, object]) -> str:
    """The columns of a row, for a message."""
    return ", ".join(map(shown_name, sorted(row)))


def named(value: object) -> str:
    """What a value of a row is, in the words of JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")
    names: dict[type, str] = {
        type(None): "null",
        str: "text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    # What JSON has no word for: dates and bytes of a Parquet file.
    return names.get(type(value)) or f"a value of type {type(value).__name__}"


def is_conversation(value: object) -> bool:
    """Whether a value is a list of messages, with role and content or with from and value."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and not {"role", "from"}.isdisjoint(turn) for turn in value)
    )
