"""Rows of listed files in a model's chat format: messages, or a prompt of plain text as the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rpo_cli.errors import BadInput
from rpo_cli.models import Row, load_tokenizer
from rpo_cli.stages.data.ledger import Ledger, visible
from rpo_cli.stages.data.rows import PAIR
from rpo_cli.stages.data.sources.example import (
    Example,
    are_whole,
    in_messages,
    is_sound,
    prompt_in,
    whole_pair,
)
from rpo_cli.stages.data.sources.preference import made_or_left_out
from rpo_cli.stages.data.sources.templated import Templated, given_to_template
from rpo_cli.stages.data.sources.told import read_as_dialogues
from rpo_cli.stages.data.sources.turns import AS_TEXT, as_json, is_told_as_text, part


class Chat:
    """Makes text of rows by a tokenizer's chat template."""

    def __init__(self, tokenizer: Path, revision: str | None) -> None:
        self._templated = Templated(
            load_tokenizer(tokenizer, revision=revision, need_pad=False), None, wraps=True
        )

    def text(
        self, place: str, row: Row, columns: Sequence[str], table: str, ledger: Ledger
    ) -> tuple[Row, str] | None:
        """The row with texts for its messages, and the messages as JSON; where a column lacks, as it is.

        columns: a prompt and the responses to it. None: the row is left out, which the ledger is told.

        Raises:
            BadInput: what is neither text nor messages.
        """
        asked, given = prompt_in(place, row), [name for name in columns if name != "prompt" and name in row]
        sides = {name: part(place, name, row[name]) for name in given}
        if sides.keys() == {*PAIR} and are_whole(*sides.values()):
            example = whole_pair(place, row, asked, [*sides.values()], table, ledger)
            return self._made(place, row, example, example, table, ledger)
        if asked is None or len(sides) < len(columns) - 1:
            return row, ""
        if isinstance(asked, str):
            if is_told_as_text(asked):
                raise BadInput(f"{place}: prompt: {AS_TEXT}")
            if not visible(asked):  # it is left out, and counted
                return row, ""
        example = in_messages(self._templated, {"prompt": asked, **sides}, row, table, ledger)
        if example is None:
            return None
        kept: Example = example if len(given) == 2 else {"prompt": example["prompt"]}
        return self._made(place, row, example, kept, table, ledger)

    def _made(
        self, place: str, row: Row, example: Example | None, kept: Example | None, table: str, ledger: Ledger
    ) -> tuple[Row, str] | None:
        """The row with the texts of an example, and as JSON the messages that are kept beside them."""
        if example is None or kept is None or not is_sound(example, table, ledger):
            return None
        made = made_or_left_out(self._templated, place, example, row, table, ledger)
        told = as_json(kept, **given_to_template(row))
        return None if made is None else ({**row, "tools": None, **made}, told or "")

    def tell(self, table: str, ledger: Ledger) -> None:
        """What the user must know of the rows that were read since the last time."""
        ledger.notes += self._templated.notes(table)
        ledger.read_as += read_as_dialogues(ledger, table)
