"""Plain text in files that are sampled for or scored: as it stands or as messages, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.sources.example import Example, in_messages, system_in
from rpo_cli.stages.data.sources.templated import Templated
from rpo_cli.stages.data.sources.told import DIALOGUES
from rpo_cli.stages.data.sources.transcripts import is_transcript, turns_of
from rpo_cli.stages.data.sources.turns import Part

Format = Literal["raw", "chat"] | None  # None: as until now, which is said where the model has a template


def in_chat(
    templated: Templated, place: str, prompt: Part, answers: Mapping[str, Part], row: Row, *, own: bool = True
) -> Example:
    """Prompt and answers as messages, as a data recipe with `prompt_format: chat` has them.

    templated: one that wraps; own: the prompt was a column of its own.

    Raises:
        BadInput: a template, or the roles of a transcript, wrote the prompt already.
    """
    found = in_messages(templated, {"prompt": prompt, **answers}, row, "rows", Ledger(), own=own)
    if found is None:
        marks = "has marks of a chat template or a transcript already, which would be written twice"
        raise BadInput(f"{place}: prompt: {marks}; --prompt-format raw takes it as it stands")
    return found


@dataclass
class Seen:
    """What of a file's rows the user must know, counted while they are checked.

    rows: read; plain: with a prompt of plain text; marked: with one that a template or a transcript's roles
    wrote, but no dialogue of hh-rlhf; system: with one beside a plain prompt; dialogues: that were made the
    messages of their turns.
    """

    rows: int = 0
    plain: int = 0
    marked: int = 0
    system: int = 0
    dialogues: int = 0

    def look(self, row: Row, prompt: Part, made: Part) -> None:
        """Count a row with its prompt as it is in the file, and as the model is given it."""
        self.rows += 1
        if not isinstance(prompt, str):
            return
        dialogue = turns_of(prompt) is not None
        self.dialogues += dialogue and not isinstance(made, str)
        self.marked += is_transcript(prompt) and not dialogue
        self.plain += not is_transcript(prompt)
        self.system += bool(system_in(row, [{"role": "user", "content": prompt}]))

    def notes(self, model: Path, given: Format, template: bool, wraps: bool) -> Iterator[str]:
        """A line on each that there are; `wraps`: unasked a template makes messages of plain text."""
        of = f"of {self.rows} rows"
        if self.dialogues:
            yield f"in {self.dialogues} {of} {DIALOGUES}"
        if given is None and template and wraps and (count := self.plain + self.marked):
            again = f"; it writes {self.marked} with marks of a template or a transcript once more"
            how = f"of which the chat template of {model} makes messages{again * bool(self.marked)}"
            yield f"{count} {of} are plain text, {how}; --prompt-format raw takes it as it stands"
        elif given is None and template and self.plain:
            how = "--prompt-format chat writes it with that, raw says that this is meant"
            stands = f"{self.plain} {of} are plain text, taken as it stands"
            yield f"{stands}, and {model} has a chat template; {how}"
        if self.system and given != "chat":
            cure = "; --prompt-format chat makes a message of it" * template
            yield f"in {self.system} {of} `system` beside a plain prompt is left out{cure}"
