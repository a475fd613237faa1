"""Two columns of responses and a label that says which of them is better, as published sets write it.

A label names a response by what its column ends in: 0 is `response_0`, `model_a` or `A` is `response_a`.
Where that says nothing (0 beside `response_a`), only the conventions that a published set documents are read,
and everything else is refused: a guess would turn every pair round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.sources.base import Row, is_conversation, named

SIDE = re.compile(
    r"(response|completion|answer|output|generation|candidate|conversation|reply|text|summary|human_ref)"
    r"([ _-]?)([AaBb012])"
)
ENDS = [("a", "b"), ("A", "B"), ("0", "1"), ("1", "2")]
# How far the first response is better, below 0 where it is: https://huggingface.co/datasets/nvidia/HelpSteer3
SIGNED = ("overall_preference", "preference_strength")
LABELS = ("label", "labels", "better_response_id", "winner", "choice", "preference", "preferred", *SIGNED)
WINNER = "winner_"  # winner_model_a: 1
SHP = ("human_ref_A", "human_ref_B")  # https://huggingface.co/datasets/stanfordnlp/SHP: labels 1 prefers A
TIE = re.compile(r"(tie|draw|both|neither|equal|same)\b.*|both_?bad", re.DOTALL)
WORDS = "model|response|answer|completion|output|conversation|assistant|candidate|option"
NAMED = re.compile(rf"(?:(?:{WORDS})[ _-]?)?([ab012])", re.IGNORECASE)  # no model, such as gpt-2
Verdict = tuple[list[int], str | None]  # a number for each response, why neither is preferred


def sides_in(names: Mapping[str, object] | Sequence[str]) -> tuple[str, str] | None:
    """The two columns of responses, such as response_a and response_b, of a row or of these names."""
    for name in names:
        if (found := SIDE.fullmatch(name)) is None:
            continue
        stem, end = name[: -len(found[3])], found[3]
        for first, second in ENDS:
            if end == first and (other := f"{stem}{second}") in names:
                both = name, other
                if not isinstance(names, Mapping) or all(_is_response(names[side]) for side in both):
                    return both
    return None


def _is_response(value: object) -> bool:
    return value is None or isinstance(value, str) or is_conversation(value)


def label_in(place: str, row: Row, what: str) -> str:
    """The column that says which response is better.

    Raises:
        BadInput: no column that is known does, or several do; `what` says what the row has.
    """
    found = [name for name in LABELS if name in row]
    if not found:
        cure = "columns: {label: …} in the data recipe names the one that does"
        raise BadInput(f"{place}: {what}, and no known column says which is better; {cure}")
    if len(found) > 1 and found[0] != "label":
        raise _several(place, what, found)
    return found[0]


def _several(place: str, what: str, names: Iterable[str]) -> BadInput:
    cure = "columns: {label: …} in the data recipe names the one"
    return BadInput(f"{place}: {what}, and {', '.join(names)} may say which is better; {cure}")


def winners_in(place: str, row: Row, what: str, sides: tuple[str, str]) -> dict[str, int | None]:
    """The columns of which one is 1, such as winner_model_a, _b and winner_tie, and the side that each names.

    https://huggingface.co/datasets/lmarena-ai/arena-human-preference-55k; none without a column of each side,
    or where the recipe names a label.

    Raises:
        BadInput: a column that is a label of its own stands beside them.
    """
    ends, found = [side[-1].lower() for side in sides], dict[str, int | None]()
    for name in row:
        whom = name.removeprefix(WINNER)
        if whom != name and TIE.fullmatch(whom.replace("_", " ").lower()):
            found[name] = None
        elif whom != name and (end := _end_of(whom)) in ends:
            found[name] = ends.index(end)
    if "label" in row or not {0, 1} <= set(found.values()):
        return {}
    if others := [name for name in LABELS if name in row]:
        raise _several(place, what, [*found, *others])
    return found


def verdict_of_columns(
    place: str, row: Row, winners: Mapping[str, int | None], sides: tuple[str, str]
) -> tuple[Verdict, str]:
    """What the columns of `winners_in` say of two responses, and how they were read, in words.

    Raises:
        BadInput: they are not one 1 and zeros.
    """
    names, values = ", ".join(winners), [row[name] for name in winners]
    told = f"of {sides[0]} and {sides[1]} the one whose column of {names} is 1 is chosen"
    if all(value is None for value in values):
        return ([], "no_label"), told
    plain = all(isinstance(value, bool | int | float) and value in (0, 1) for value in values)
    won = [side for side, value in zip(winners.values(), values, strict=True) if value == 1]
    if not plain or len(won) > 1 or (not won and None in winners.values()):
        said = ", ".join(map(str, values))
        raise BadInput(f"{place}: {names}: expected one 1 and zeros, got {said:.60}")
    numbers = [int(won == [0]), int(won == [1])]
    return (numbers, None) if any(numbers) else ([], "undecided"), told


def verdict(place: str, label: str, value: object, sides: tuple[str, str]) -> tuple[Verdict, str]:
    """What a label says of two responses, and how it was read, in words.

    Raises:
        BadInput: it names neither of the two.
    """
    first, second = sides
    if label in SIGNED:
        told = f"{first} is chosen where {label} is below 0, {second} where it is above"
        if not isinstance(value, int | float | None) or isinstance(value, bool):
            raise BadInput(f"{place}: {label}: expected a number, got {named(value)}")
        return _of_number(value), told
    if sides == SHP and label == "labels" and value in (0, 1, None):
        preference = None if value is None else 1 - 2 * int(value)
        return _of_number(preference), f"{first} is chosen where {label} is 1"
    told = f"of {first} and {second} the one that {label} names is chosen"
    if value is None:
        return ([], "no_label"), told
    if isinstance(value, str) and TIE.fullmatch(value.strip().lower()):
        return ([], "undecided"), told
    ends = [side[-1].lower() for side in sides]
    if (name := _end_of(value)) not in ends:
        plain = isinstance(value, str | int | float) and not isinstance(value, bool)
        said = repr(value) if plain else named(value)
        which = f"write {sides[0][-1]} where {first} is better and {sides[1][-1]} where {second} is"
        raise BadInput(f"{place}: {label}: {said:.40} names neither {first} nor {second}; {which}")
    return ([int(end == name) for end in ends], None), told


def _end_of(value: object) -> str | None:
    """What a label's value ends in: a of `model_a`, 1 of 1 and of `response1`."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    found = NAMED.fullmatch(text)
    return None if found is None else found[1].lower()


def _of_number(value: float | None) -> Verdict:
    if value is None or value != value:
        return [], "no_label"
    return ([], "undecided") if value == 0 else ([int(value < 0), int(value > 0)], None)
