"""What can be counted in responses and may be biased in pairs: lists, bold text, exclamation marks.

Length is counted in tokens, elsewhere. The patterns are of the kinds that Zhang et al. found preferred by
people and reward models ("From Lists to Emojis", ACL 2025); that these expressions find them is ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rpo_cli.models import Row
from rpo_cli.stages.data.rows import MESSAGES, PAIR, PAIR_COLUMNS, Rows
from rpo_cli.statistics import Interval, wilson

PATTERNS = {
    "bold": r"\*\*(?=\S)[^*\n]+(?<=\S)\*\*|\b__(?=\S)[^_\n]+(?<=\S)__\b",
    "lists": r"(?m)^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+\S",
    "headings": r"(?m)^#{1,6}[ \t]+\S",
    "links": r"\[[^\[\]\n]+\]\([^()\s]+\)|https?://\S+",
    "emojis": "[\u2600-\u27bf\U0001f300-\U0001faff]",
    "exclamations": r"!",
    "affirmative": r"(?i)\A\s*(?:sure|certainly|of course|absolutely|yes)\b",
}


@dataclass(frozen=True)
class Balance:
    """Which response of pairs is preferred by one attribute, of which one has more than the other.

    pairs: in which the two differ. more: in how large a share the chosen one has more; its 95 % interval is
    Wilson's. level: the same of pairs whose responses are about equally long.
    """

    pairs: int
    more: float
    interval: Interval
    level_pairs: int
    level: float | None


def counts_of(texts: Iterable[str], pattern: str) -> np.ndarray:
    """How often a pattern is found in each text, white space around it aside: float64 [n]."""
    found = re.compile(pattern)
    return np.array([sum(1 for _ in found.finditer(text.strip())) for text in texts], dtype=np.float64)


def answer(row: Row, side: str) -> str:
    """A response without its chat template: of messages what their turns say."""
    told = json.loads(row.get(MESSAGES) or "{}").get(side)
    return said(row[side] if told is None else told)


def said(text: str | Sequence[Mapping[str, object]]) -> str:
    """A text, or what the turns of a conversation say."""
    if isinstance(text, str):
        return text
    contents = (turn.get("content") for turn in text)
    return "\n".join(each for each in contents if isinstance(each, str))


def with_counts(rows: Iterable[Row], patterns: Mapping[str, str]) -> Iterator[Row]:
    """Rows of pairs, with what is counted in their responses in columns chosen_NAME and rejected_NAME."""
    for row in rows:
        if all(name in row for name in PAIR_COLUMNS):
            row = row | {
                f"{side}_{name}": float(counts_of([answer(row, side)], pattern)[0])
                for name, pattern in patterns.items()
                for side in PAIR
            }
        yield row


def balances(rows: Rows, longer: np.ndarray, apart: Collection[str] = ()) -> dict[str, Balance]:
    """What chosen responses of a table of pairs have more or less of than rejected ones, if any pair differs.

    Length comes first; then the patterns above, and what the table has in columns chosen_NAME and
    rejected_NAME. longer: [n], 1 where the chosen response is the longer one, -1 where the rejected one is, 0
    where they are about equally long. apart: columns that say how good a response is, and are no attribute.
    """
    talks = rows.conversations(PAIR)
    chosen, rejected = ([said(row[side]) for row in talks] for side in PAIR)
    found = {
        name: counts_of(chosen, pattern) - counts_of(rejected, pattern) for name, pattern in PATTERNS.items()
    }
    names = _counted(rows, apart)
    found |= {name: rows.numbers([f"{side}_{name}" for side in PAIR]) @ (1, -1) for name in names}
    every = {"tokens": longer, **found}
    return {name: balance(more, longer) for name, more in every.items() if more.any()}


def balance(differences: np.ndarray, longer: np.ndarray) -> Balance:
    """The balance of [n] differences of chosen less rejected, not all 0; longer: as of `balances`."""
    more, differ = differences > 0, differences != 0
    level = differ & (longer == 0)
    return Balance(
        pairs=int(differ.sum()),
        more=float(more[differ].mean()),
        interval=wilson(int(more.sum()), int(differ.sum())),
        level_pairs=int(level.sum()),
        level=float(more[level].mean()) if level.any() else None,
    )


def _counted(rows: Rows, apart: Collection[str]) -> list[str]:
    """The names of a table's columns of numbers of chosen and rejected."""
    names = set(rows.columns_of_numbers) - set(apart)
    chosen = sorted(name.removeprefix("chosen_") for name in names if name.startswith("chosen_"))
    return [name for name in chosen if f"rejected_{name}" in names]
