"""Rewards of the rows of a plain file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rpo_cli.errors import BadInput
from rpo_cli.models import Row, pair_rewards
from rpo_cli.stages.data.rows import GIVEN
from rpo_cli.stages.data.sources.base import columns_in
from rpo_cli.stages.data.sources.example import (
    CONVERSATIONS,
    aligned,
    are_whole,
    prompt_in,
    system_in,
    with_context,
)
from rpo_cli.stages.data.sources.implicit import cut
from rpo_cli.stages.data.sources.templated import Templated, given_to_template
from rpo_cli.stages.data.sources.transcripts import HUMAN, messages
from rpo_cli.stages.data.sources.turns import AS_TEXT, Message, Part, TemplateRefuses, is_told_as_text, part
from rpo_cli.stages.files.plain_text import Format, Seen, in_chat
from rpo_cli.stages.files.table import Columns, Done, behind
from rpo_cli.stages.reading import Reading, row_of

SIDES = ("prompt", "completion")
# The columns that hold responses, and those of their rewards; the first of these that a row has.
FORMS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("chosen", "rejected"): ("reward_chosen", "reward_rejected"),
    ("responses",): ("rewards",),
    **{(name,): ("reward",) for name in ("response", "completion", *CONVERSATIONS)},
}


def form_in(place: str, row: Row) -> tuple[str, ...]:
    """The columns of a row that hold responses.

    Raises:
        BadInput: none do.
    """
    for form in FORMS:
        if all(row.get(name) is not None for name in form):
            return form
    has = columns_in({name: value for name, value in row.items() if value is not None})
    known = "chosen and rejected, messages, or prompt with completion, response or responses"
    raise BadInput(f"{place}: expected {known} (has: {has})")


def unanswered(row: Row) -> bool:
    """Whether a row has a place for responses and none in it: a prompt that `rpo sample` could not answer."""
    return row.get("responses", ()) is None and not any(row.get(name) for form in FORMS for name in form)


def exchanges(place: str, row: Row, form: Sequence[str], *, raw: bool = False) -> list[tuple[Part, Part]]:
    """Prompt and response of everything in a row that gets a reward.

    raw: dialogues of hh-rlhf are text, too.

    Raises:
        BadInput: no prompt, or what is neither text nor messages.
    """
    if form[0] in CONVERSATIONS:
        turns = part(place, form[0], row[form[0]])
        return [_last(place, form[0], [*system_in(row, turns), *turns] if isinstance(turns, list) else turns)]
    given = row[form[0]] if form == ("responses",) else [row[name] for name in form]
    if not isinstance(given, list):
        raise BadInput(f"{place}: responses: expected a list")
    answers = [part(place, form[-1], value) for value in given]
    if given and all(map(is_told_as_text, answers)):
        raise BadInput(f"{place}: {', '.join(form)}: {AS_TEXT}")
    prompt = prompt_in(place, row)
    if form == ("chosen", "rejected") and are_whole(*answers):
        found = with_context(place, row, prompt, answers)
        return [_last(place, name, side) for name, side in zip(form, found, strict=True)]
    if form == ("chosen", "rejected") and prompt is None:
        chosen, rejected = answers
        if isinstance(chosen, str) and isinstance(rejected, str) and (raw or not chosen.startswith(HUMAN)):
            end, _ = cut(chosen, rejected)
            if end == 0:
                raise BadInput(f"{place}: no column 'prompt', and chosen and rejected begin with none")
            return [(text[:end], text[end:]) for text in (chosen, rejected)]
        return [_last(place, name, side) for name, side in zip(form, answers, strict=True)]
    if prompt is None:
        raise BadInput(f"{place}: no column 'prompt' (has: {columns_in(row)})")
    examples = [aligned(prompt, {"response": text}) for text in answers]
    return [(each["prompt"], each["response"]) for each in examples]


def _last(place: str, name: str, side: Part) -> tuple[list[Message], list[Message]]:
    """A whole conversation before and in its last message."""
    turns = messages(side) if isinstance(side, str) and side.startswith(HUMAN) else side
    if isinstance(turns, str) or len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise BadInput(f"{place}: {name}: expected a prompt and messages that end in an answer")
    return turns[:-1], turns[-1:]


@dataclass(frozen=True)
class Scorer:
    """A reward model reading rows of files; lengths: of the longest response of each row that it read."""

    reading: Reading
    form: Sequence[str]
    prompt_format: Format = None
    lengths: list[int] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)

    def notes(self) -> Iterator[str]:
        """What the user must know of the rows that were checked."""
        reading = self.reading
        template = reading.tokenizer.chat_template is not None
        return self.seen.notes(reading.source, self.prompt_format, template, reading.own)

    def check(self, place: str, row: Row) -> None:
        """Raise BadInput for a row that has another form than the first, or that the model cannot read."""
        if self.form == ("responses",) and unanswered(row):
            return
        if (form := form_in(place, row)) != self.form:
            raise BadInput(f"{place}: has {', '.join(form)}, and the first row {', '.join(self.form)}")
        found = self._exchanges(place, row)
        if found:
            self.seen.look(row, exchanges(place, row, form, raw=self._raw)[0][0], found[0][0])
        for prompt, response in found:
            if self.reading.tokenizer.chat_template is None and not isinstance(prompt, str):
                self.reading.text({"prompt": prompt}, response)
            if (self._raw or not self.reading.own) and any(row.get(name) for name in (*GIVEN, "images")):
                with contextlib.suppress(TemplateRefuses):
                    self._templated.text(place, dict(zip(SIDES, (prompt, response), strict=True)), row)

    @property
    def _raw(self) -> bool:
        return self.prompt_format == "raw"

    def _exchanges(self, place: str, row: Row) -> list[tuple[Part, Part]]:
        """Prompt and response of everything in a row that gets a reward, in the form that is asked for."""
        found = exchanges(place, row, self.form, raw=self._raw)
        if self.prompt_format != "chat":
            return found
        own = prompt_in(place, row) is not None
        told = (
            in_chat(self._templated, place, prompt, {"response": response}, row, own=own)
            for prompt, response in found
        )
        return [(each["prompt"], each["response"]) for each in told]

    def rewards(self, rows: Sequence[tuple[str, Row]], done: Done) -> list[Columns]:
        """The new columns of rows; null for those that have no response or cannot be read."""
        asked = [None if unanswered(row) else self._exchanges(place, row) for place, row in rows]
        tokens = self._tokens(rows, asked)
        names = FORMS[tuple(self.form)]
        found: list[list[float] | None] = [None if each is None else [] for each in tokens]
        recipe, finished = self.reading.recipe, 0
        self.lengths.extend(max(map(len, each)) for each in tokens if each)
        # Rows with as many responses go together.
        for count in sorted({len(each) for each in tokens if each}):
            places = [place for place, each in enumerate(tokens) if each and len(each) == count]
            values = pair_rewards(
                self.reading.model,
                [row_of(str(place), tokens[place] or []) for place in places],
                recipe.per_device_eval_batch_size,
                behind(finished, done, count),
            )
            finished += len(places)
            for place, rewards in zip(places, values.astype(np.float64).tolist(), strict=True):
                # Of equal responses, whose places in the row would round differently, one.
                first = [(tokens[place] or []).index(each) for each in tokens[place] or []]
                found[place] = [rewards[number] for number in first]
        if names == ("rewards",):
            return [{"rewards": values} for values in found]
        return [
            dict.fromkeys(names) if values is None else dict(zip(names, values, strict=True))
            for values in found
        ]

    def _tokens(
        self, rows: Sequence[tuple[str, Row]], asked: Sequence[Sequence[tuple[Part, Part]] | None]
    ) -> list[list[list[int]] | None]:
        """The tokens of each row's exchanges, whole sequences; None where they cannot all be read."""
        reading = self.reading
        texts: list[list[Any] | None] = []
        for (place, row), each in zip(rows, asked, strict=True):
            try:
                if each is None:
                    texts.append(None)
                elif reading.own:
                    texts.append([self._own_text(row, *one) for one in each])
                else:
                    examples = [dict(zip(SIDES, one, strict=True)) for one in each]
                    texts.append([self._templated.text(place, one, row) for one in examples])
            except TemplateRefuses:
                texts.append(None)
        flat = [text for row in texts if row is not None for text in row]
        if reading.own:
            found = self._own_tokens(flat)
        else:
            sides = ([text[side] for text in flat] for side in SIDES)
            found = iter(reading.as_here(*sides))
        tokens = [None if row is None else [next(found) for _ in row] for row in texts]
        most = min(reading.most, reading.recipe.max_length)

        def may_be_read(row: list[list[int]] | None) -> bool:
            return row is not None and all(2 <= len(tokens) <= most for tokens in row)

        return [row if may_be_read(row) else None for row in tokens]

    def _own_text(self, row: Row, prompt: Part, answer: Part) -> tuple[str, bool]:
        """What a model that reads in its own way reads, and whether its template wrote it."""
        if self._raw and isinstance(prompt, str) and isinstance(answer, str):
            return prompt + answer, False
        return self.reading.text({"prompt": prompt, **given_to_template(row)}, answer), True

    def _own_tokens(self, texts: Sequence[tuple[str, bool]]) -> Iterator[list[int]]:
        """The tokens of each of such texts."""
        each = {
            templated: iter(self.reading.tokens(some, templated=templated))
            for templated in (True, False)
            if (some := [text for text, how in texts if how is templated])
        }
        return (next(each[templated]) for _, templated in texts)

    @cached_property
    def _templated(self) -> Templated:
        return Templated(self.reading.tokenizer, None, self.prompt_format == "chat")


# Samples
