"""Rows of one response each: with a score or with a label, brought together by their prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import PAIR
from rpo_cli.stages.data.sources.base import Records, Row, named
from rpo_cli.stages.data.sources.labels import sides_in

LISTS = ("responses", "completions", "candidates", "answers", "generations", "outputs", "summaries")
ONE = ("response", "completion", "answer", "output", "generation", "text", "content")  # of such a list
SCORES = ("score", "overall_score", "rating", "reward")
GROUPED = LISTS[0]
RANK = "rank"  # the smaller the better
LABEL = "label"
Record = tuple[str, str | None, Row]


def grouped(records: Records, ledger: Ledger) -> Records:
    """Rows of one response each, with a score, as one row of each prompt, after all others.

    A row of several stands at the first of them, with what all of them have alike beside their responses.
    """
    of_prompts: dict[str, list[Record]] = {}
    for place, split, row in records:
        if (one := _one_in(row, (*SCORES, RANK))) is None:
            yield place, split, row
        else:
            of_prompts.setdefault(_name(split, row, one), []).append((place, split, row))
    for rows in of_prompts.values():
        ledger.place, split, first = rows[0]
        responses = [{name: row[name] for name in _one_in(first, (*SCORES, RANK)) or ()} for *_, row in rows]
        yield ledger.place, split, {**_alike([row for *_, row in rows]), GROUPED: responses}


def labelled(records: Records, ledger: Ledger) -> Records:
    """Rows of one response each that a label calls good or bad (TRL's unpaired preferences), as pairs, last.

    Of a prompt the first good response is chosen and the first bad one rejected, then the second of both, and
    so on: each is in one pair at most. Those without another are counted as left out.

    Raises:
        BadInput: a label is neither true nor false.
    """
    of_prompts: dict[str, tuple[list[Record], list[Record]]] = {}
    read = paired = 0
    for place, split, row in records:
        one = _one_in(row, (LABEL,))
        if one is None or _one_in(row, (*SCORES, RANK)) is not None:
            yield place, split, row
        elif (value := row[LABEL]) is None:
            ledger.leave_out("pairs/no_label")
        elif isinstance(value, bool | int | float) and value in (0, 1):
            read += 1
            of_prompts.setdefault(_name(split, row, one), ([], []))[int(value)].append((place, split, row))
        else:
            raise BadInput(f"{place}: {LABEL}: expected true or false of the {one[0]}, got {named(value)}")
    for bad, good in of_prompts.values():
        for (place, split, row), (_, _, other) in zip(good, bad, strict=False):
            ledger.place, paired = place, paired + 1
            name, _ = _one_in(row, (LABEL,)) or ("", "")
            yield place, split, _alike([row, other]) | {"chosen": row[name], "rejected": other[name]}
        for ledger.place, *_ in (*good[len(bad) :], *bad[len(good) :]):
            ledger.leave_out("pairs/unpaired")
    if read:
        how = (
            "of a prompt the first whose label is true is chosen and the first whose label is false rejected"
        )
        ledger.read_as.append(f"pairs: {paired} pairs of {read} unpaired rows: {how}, and so on")


def _one_in(row: Row, numbers: Iterable[str]) -> tuple[str, str] | None:
    """The columns of a row's one response and of its number, one of these; None: it is no such row."""
    if row.get("prompt") is None or not {*PAIR, *LISTS}.isdisjoint(row) or sides_in(row) is not None:
        return None
    one = next((name for name in ONE if isinstance(row.get(name), str | list)), None)
    number = next((name for name in numbers if name in row), None)
    return None if one is None or number is None else (one, number)


def _name(split: str | None, row: Row, one: tuple[str, str]) -> str:
    """What rows that are compared have alike: split, prompt, system prompt, and how they are written."""
    return json.dumps([split, row["prompt"], row.get("system"), one], default=str)


def _alike(rows: list[Row]) -> Row:
    """What all of these rows have alike."""
    first, *others = rows
    return {name: first[name] for name in first if all(row.get(name) == first[name] for row in others)}
