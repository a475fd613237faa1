"""Published preference sets, each read from exactly its own schema, as the pipeline's tables.

A source's function turns records (`Sets`) into `Pair`s and `Written`s; `assemble` splits by post and counts;
nothing else knows a schema.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rpo_cli.errors import BadInput
from rpo_cli.recipes.schema import DataRecipe

Counts = Counter[str]
# Place for error messages, split as published or None, record.
Records = Iterable[tuple[str, str | None, dict[str, Any]]]


@dataclass(frozen=True)
class Sets:
    """What a source reads: records of pairs and of written responses, and what it does that with.

    written: none without sft_dataset; tokenizer: None where the recipe names none; counts: of what is left
    out, by reason.
    """

    recipe: DataRecipe
    tokenizer: Any
    pairs: Records
    written: Records
    counts: Counts


@dataclass(frozen=True)
class Pair:
    """One comparison.

    `split`: train, validation or test as published; `posts`: names of its post, any of which identifies it.
    """

    split: str
    posts: tuple[str, ...]
    prompt: str
    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None


@dataclass(frozen=True)
class Written:
    """One written response; `split` and `posts` as in `Pair`."""

    split: str
    posts: tuple[str, ...]
    prompt: str
    completion: str


def column(place: str, row: dict[str, Any], *names: str) -> Any:
    """The first of these columns that the row has.

    Raises:
        BadInput: it has none, with what it has instead.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    listed = " or ".join(repr(name) for name in names)
    found = ", ".join(sorted(name for name, value in row.items() if value is not None))
    raise BadInput(f"{place}: no column {listed} (has: {found})")


def text(place: str, row: dict[str, Any], *names: str) -> str:
    """`column`, which must be text."""
    value = column(place, row, *names)
    if not isinstance(value, str):
        raise BadInput(f"{place}: {names[0]}: expected text, got {named(value)}")
    return value


def named(value: object) -> str:
    """What a value of a row is, in the words of JSON."""
    if isinstance(value, bool):
        return str(value).lower()
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
    """Whether a value is a list of messages with role and content."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)
    )
