"""Texts that stand in lists, or in lists written as JSON, where others have the text itself.

Arena's rows have the user's turns in `prompt` and a model's in `response_a` and `response_b`
(https://huggingface.co/datasets/lmarena-ai/arena-human-preference-55k); other sets several texts in `chosen`
and `rejected`, each of the former better than each of the latter.
"""

from __future__ import annotations

import json

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import PAIR
from rpo_cli.stages.data.sources.base import Records, Row
from rpo_cli.stages.data.sources.labels import sides_in

Texts = list[str | None]


def unlisted(records: Records, ledger: Ledger) -> Records:
    """The records with texts in place of lists: of turns the only one, of chosen and rejected the first.

    Left out and counted are rows of several turns, in which each model goes on from its own answers, and
    texts in JSON that are no text.

    Raises:
        BadInput: a row's lists are not of the same turns.
    """
    rows = rest = 0
    for place, split, row in records:
        both = {name: each for name in PAIR if (each := _texts(row.get(name)))}
        if len(both) == 2:
            beyond = sum(len(each) - 1 for each in both.values())
            rows, rest = rows + bool(beyond), rest + beyond
            yield place, split, row | {name: each[0] for name, each in both.items()}
        elif any(row.get(name) is not None for name in PAIR) or (turns := _turns(place, row)) is None:
            yield place, split, row
        elif any(len(each) > 1 for each in turns.values()):
            ledger.leave_out("pairs/several_turns")
        elif any(_is_half(each[0]) for each in turns.values()):
            ledger.leave_out("pairs/half_sign")
        else:
            yield place, split, row | {name: each[0] for name, each in turns.items()}
    if rows:
        ledger.read_as.append(
            f"pairs: in {rows} rows chosen and rejected are lists: the first of each is the pair; "
            f"{rest} more texts are left over"
        )


def _texts(value: object) -> Texts | None:
    """The texts of a list, or null in the place of one; None: it is something else."""
    if not isinstance(value, list) or not all(isinstance(text, str | None) for text in value):
        return None
    return value or None


def _written(value: object) -> Texts | None:
    """The texts of a list, which may be written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return _texts(json.loads(value))
        except (ValueError, RecursionError):
            return None
    return _texts(value)


def _turns(place: str, row: Row) -> dict[str, Texts] | None:
    """The turns of a row's prompt and of its two responses; None: it has no lists of them."""
    sides = sides_in([*row])
    if sides is None:
        return None
    given = {name: row[name] for name in ("prompt", *sides) if row.get(name) is not None}
    found = {name: _written(value) for name, value in given.items()}
    if None in found.values():  # a text that begins like a list is a text where others are plain
        found = {name: _texts(value) for name, value in given.items()}
    if not any(found.values()):
        return None
    turns = {name: found[name] or [value] for name, value in given.items()}
    first, *others = turns
    for name in others:
        if len(turns[name]) != len(turns[first]):
            count, wanted = len(turns[name]), len(turns[first])
            raise BadInput(f"{place}: {name}: expected as many turns as in {first}, {wanted}, got {count}")
    return turns


def _is_half(text: str | None) -> bool:
    """Whether a text holds half of a surrogate pair, which no file can be written with."""
    return any("\ud800" <= sign <= "\udfff" for sign in text or "")
