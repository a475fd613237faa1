"""Rows with several responses to a prompt and a number for each, as `rpo score` writes them: a pair of each.

The pair is the response with the highest number and the one with the lowest; of several such the first.
"""

from __future__ import annotations

from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.sources.base import FAR, Row
from rpo_cli.stages.data.sources.turns import part

LISTS = ("responses", "completions", "candidates", "answers", "generations")  # several to one prompt
NUMBERS = {"rewards": "reward", "scores": "score", "ratings": "rating"}  # beside them, and what one is called


def is_ranked(row: Row) -> bool:
    """Whether a row has a list of responses with a list of numbers (or null for either), and no pair."""
    return row.get("chosen") is row.get("rejected") is None and None not in _columns(row)


def best_and_worst(place: str, row: Row, ledger: Ledger) -> Row | None:
    """The row with `chosen` and `rejected` for its lists, and both numbers beside them (`reward_chosen`).

    None: nothing is preferred in it, which is counted.

    Raises:
        BadInput: one of the two is neither text nor messages.
    """
    names = _columns(row)
    responses, numbers = (row[str(name)] for name in names)
    if responses and numbers and len(responses) == len(numbers):  # one that is null was never given
        given = [place for place, response in enumerate(responses) if response is not None]
        responses, numbers = ([each[place] for place in given] for each in (responses, numbers))
    why = None
    if responses is None or len(responses) < 2:
        why = "few_responses"
    elif numbers is None or len(numbers) != len(responses) or not all(map(_is_number, numbers)):
        why = "no_numbers"
    elif min(numbers) == max(numbers):
        why = "equal_numbers"
    if why is not None:
        ledger.leave_out(f"pairs/{why}")
        return None
    one = NUMBERS[str(names[1])]
    made = {name: value for name, value in row.items() if name not in names}
    for name, number in {"chosen": max(numbers), "rejected": min(numbers)}.items():
        response = responses[numbers.index(number)]
        part(place, str(names[0]), response)  # what is wrong with it is said by the name that it has there
        made |= {name: response, f"{one}_{name}": number}
    return made


def _columns(row: Row) -> tuple[str | None, str | None]:
    """The columns of responses, where there are some, and of numbers: one scorer's for all rows of a set."""
    lists, numbers = (
        [name for name in names if name in row and isinstance(row[name], list | None)]
        for names in (LISTS, NUMBERS)
    )
    return min(lists, key=lambda name: row[name] is None, default=None), next(iter(numbers), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FAR
