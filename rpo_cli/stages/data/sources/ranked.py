"""Rows that hold several responses and say which is better: a pair of each, of the best and the worst.

Every form becomes responses with numbers, the larger the better. Lists of both are as `rpo score` writes
them; the others are how published sets are written: a list of objects with a score or a rank, two columns
with a label, rows of one response each (`grouped.py`), texts in lists (`text_lists.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.sources.base import FAR, Records, Row, is_conversation
from rpo_cli.stages.data.sources.grouped import LISTS, ONE, RANK, SCORES, grouped, labelled
from rpo_cli.stages.data.sources.labels import (
    LABELS,
    Verdict,
    label_in,
    sides_in,
    verdict,
    verdict_of_columns,
    winners_in,
)
from rpo_cli.stages.data.sources.text_lists import unlisted
from rpo_cli.stages.data.sources.turns import part

NUMBERS = {"rewards": "reward", "scores": "score", "ratings": "rating"}  # beside them, and what one is called
PAIR = {"chosen", "rejected"}
JUDGES = re.compile(r"winner|label|prefer|better|choice|vote|score|rank", re.IGNORECASE)


@dataclass(frozen=True)
class Ranking:
    """What a row says of its responses.

    columns: where it says so; responses, numbers: one for each, None where the column is null; one: what a
    number is called beside the pair, None where it is not kept; told: how it was read, in words; why: the
    reason for which nothing is preferred, where that is known.
    """

    columns: Sequence[str]
    responses: Sequence[object] | None
    numbers: Sequence[object] | None
    one: str | None = None
    told: str = ""
    why: str | None = None


def paired(
    records: Records, ledger: Ledger, columns: Mapping[str, str]
) -> Iterator[tuple[str, str | None, Row, bool]]:
    """(place, split, row, whether it was ranked): rows with `chosen` and `rejected`, if they have either.

    columns: ours -> the data's, as the recipe has them.

    Raises:
        BadInput: what should tell which response is better cannot be understood, or has no use.
    """
    told = Counter[str]()
    for place, split, row in grouped(labelled(unlisted(records, ledger), ledger), ledger):
        ranking = ranking_in(place, row)
        if ranking is None:
            _refuse_labels(place, row, columns)
            yield place, split, row, False
        elif (made := best_and_worst(place, row, ranking, ledger)) is not None:
            told[ranking.told] += 1
            yield place, split, made, True
    label = f" (label is {columns['label']})" if "label" in columns else ""
    ledger.read_as += [f"pairs: in {count} rows {how}{label}" for how, count in told.items() if how]


def _refuse_labels(place: str, row: Row, columns: Mapping[str, str]) -> None:
    """Raise BadInput where a pair stands beside a label that is not read, and that may say the contrary."""
    if not row.keys() >= PAIR:
        return
    for name in ("label", "score"):
        if name in columns:
            raise BadInput(
                f"{place}: columns: {name}: no use beside chosen and rejected, which say it already"
            )
    sides = [columns.get(name, "") for name in ("chosen", "rejected")]
    labels = [name for name in row if JUDGES.search(name)]
    if labels and sides_in(sorted(sides)) is not None:
        what = f"{sides[0]} and {sides[1]} are two responses, and {', '.join(labels)} may say which is better"
        raise BadInput(
            f"{place}: columns: {what}; leave chosen and rejected out of columns, name one as label"
        )


def ranking_in(place: str, row: Row) -> Ranking | None:
    """What a row without a pair says of its responses; None: it has nothing of the kind.

    Raises:
        BadInput: it has responses, and what should tell which is better cannot be understood.
    """
    if any(row.get(name) is not None for name in PAIR):
        return None
    return _of_lists(row) or _of_two(place, row) or _of_objects(place, row)


def best_and_worst(place: str, row: Row, ranking: Ranking, ledger: Ledger) -> Row | None:
    """The row with `chosen` and `rejected` for its responses, and both numbers beside them (`reward_chosen`).

    The pair is the response with the highest number and the one with the lowest; of several such the first.
    None: nothing is preferred in it, which is counted.

    Raises:
        BadInput: one of the two is neither text nor messages.
    """
    responses, numbers = ranking.responses, ranking.numbers
    if responses and numbers and len(responses) == len(numbers):  # one that is null was never given
        given = [place for place, response in enumerate(responses) if response is not None]
        responses, numbers = ([each[place] for place in given] for each in (responses, numbers))
    known = [number for number in numbers or () if _is_number(number)]
    why = ranking.why
    if why is None and (responses is None or len(responses) < 2):
        why = "few_responses"
    elif why is None and not len(known) == len(numbers or ()) == len(responses or ()):
        why = "no_numbers"
    elif why is None and min(known) == max(known):
        why = "equal_numbers"
    if why is not None or responses is None:
        ledger.leave_out(f"pairs/{why}")
        return None
    made = {name: value for name, value in row.items() if name not in ranking.columns}
    for name, number in {"chosen": max(known), "rejected": min(known)}.items():
        response = responses[known.index(number)]
        part(place, ranking.columns[0], response)  # refused by the name that it has there
        made |= {name: response} | ({f"{ranking.one}_{name}": number} if ranking.one else {})
    return made


def _of_lists(row: Row) -> Ranking | None:
    """A list of responses beside one of numbers (or null for either): one scorer's for all rows of a set."""
    lists, numbers = (
        [name for name in names if name in row and isinstance(row[name], list | None)]
        for names in (LISTS, NUMBERS)
    )
    if not lists or not numbers:
        return None
    name, number = min(lists, key=lambda name: row[name] is None), numbers[0]
    return Ranking((name, number), row[name], row[number], NUMBERS[number])


def _of_two(place: str, row: Row) -> Ranking | None:
    """Two columns of responses, such as response_a and response_b, and a label that names the better one."""
    if (sides := sides_in(row)) is None:
        return None
    what = f"{sides[0]} and {sides[1]} are two responses"
    if winners := winners_in(place, row, what, sides):
        (numbers, why), told = verdict_of_columns(place, row, winners, sides)
        return Ranking((*sides, *winners), [row[side] for side in sides], numbers, None, told, why)
    label = label_in(place, row, what)
    (numbers, why), told = verdict(place, label, row[label], sides)
    return Ranking((*sides, label), [row[side] for side in sides], numbers, None, told, why)


def _of_objects(place: str, row: Row) -> Ranking | None:
    """A list of objects, each with a text and a score or a rank, or of which a label names the best."""
    name = next((name for name in LISTS if isinstance(row.get(name), list)), None)
    if name is None or is_conversation(row[name]):
        return None
    if not row[name]:
        return Ranking((name,), [], [])
    each = [one if isinstance(one, dict) else {"text": one} for one in row[name]]
    text = next((key for key in ONE if any(key in one for one in each)), None)
    if text is None:
        return None
    responses = [one.get(text) for one in each]
    score = next((key for key in (*SCORES, RANK) if any(key in one for one in each)), None)
    if any(label in row for label in LABELS):
        label = label_in(place, row, f"{name} are several responses")
        told = f"of {name} the one that {label} counts, from 0, is chosen"
        best, why = _at(place, label, row[label], len(each))
        return Ranking((name, label), responses, best, None, told, why)
    if score is None:
        return None
    numbers = [one.get(score) for one in each]
    if score == RANK:
        worth = [-number if _is_number(number) else None for number in numbers]
        return Ranking((name,), responses, worth, None, f"of {name} the one of the smallest rank is chosen")
    return Ranking((name,), responses, numbers, score, f"of {name} the one of the highest {score} is chosen")


def _at(place: str, label: str, value: object, count: int) -> Verdict:
    """What a label says of a list of which it names the best by its place."""
    if value is None:
        return [], "no_label"
    if type(value) is not int or not 0 <= value < count:
        raise BadInput(f"{place}: {label}: expected a place in a list of {count}, from 0, got {value!r:.40}")
    return [int(index == value) for index in range(count)], None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FAR
