"""Rows of listed files in a model's chat format: messages, or a prompt of plain text as the user's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rpo_cli.errors import BadInput
from rpo_cli.models import Row, load_tokenizer
from rpo_cli.stages.data.ledger import visible
from rpo_cli.stages.data.sources.preference import aligned, prompt_in
from rpo_cli.stages.data.sources.templated import Templated, given_to_template
from rpo_cli.stages.data.sources.turns import AS_TEXT, as_json, is_told_as_text, part


class Chat:
    """Makes text of rows by a tokenizer's chat template."""

    def __init__(self, tokenizer: Path, revision: str | None) -> None:
        self._templated = Templated(load_tokenizer(tokenizer, revision=revision, need_pad=False), None)

    def text(self, place: str, row: Row, columns: Sequence[str]) -> tuple[Row, str]:
        """The row with texts for its messages, and the messages as JSON; where a column lacks, as it is.

        columns: a prompt and the responses to it.

        Raises:
            BadInput: what is neither text nor messages, or what the template refuses.
        """
        asked, given = prompt_in(place, row), [name for name in columns if name != "prompt" and name in row]
        if asked is None or len(given) < len(columns) - 1:
            return row, ""
        if isinstance(asked, str):
            if is_told_as_text(asked):
                raise BadInput(f"{place}: prompt: {AS_TEXT}")
            if not visible(asked):  # it is left out, and counted
                return row, ""
            asked = [{"role": "user", "content": asked}]
        example = aligned(asked, {name: part(place, name, row[name]) for name in given})
        made = self._templated.text(place, example, row)
        told = as_json(example if len(given) == 2 else {"prompt": asked}, **given_to_template(row))
        return {**row, "tools": None, **made}, told or ""

    def notes(self, table: str) -> Iterator[str]:
        """What the user must know of the rows that were read since the last time."""
        return self._templated.notes(table)
