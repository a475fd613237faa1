"""Conversations as text, by a tokenizer's chat template and TRL's own function."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase
from trl.data_utils import apply_chat_template
from trl.trainer.utils import remove_none_values

from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.stages.data.ledger import EXAMPLES, Ledger
from rpo_cli.stages.data.rows import GIVEN
from rpo_cli.stages.data.sources.base import named
from rpo_cli.stages.data.sources.turns import Part, TemplateRefuses
from rpo_cli.text import first_line


@dataclass
class Templated:
    """Turns conversations into text by a tokenizer's chat template, and tells which prompts are too long."""

    tokenizer: PreTrainedTokenizerBase
    limit: int | None
    wraps: bool = False  # plain text as well, as messages of the user and the assistant
    unread: set[str] = field(default_factory=set)  # what was said not to be read
    typed: dict[str, list[str]] = field(default_factory=dict)  # control tokens in messages: places
    told: Counter[str] = field(default_factory=Counter)  # rows of messages by what they are, such as pairs
    cut: list[str] = field(default_factory=list)  # rows whose prompt is written otherwise before an answer

    def text(self, place: str, example: Mapping[str, Part], row: Row | None = None) -> dict[str, str]:
        """Every part of the example as text; plain text stays as it is.

        row: what else the template is given (`GIVEN`).

        Raises:
            BadInput: a conversation without a tokenizer that has a chat template; a column of the row that
                nothing has a use for.
            TemplateRefuses: the template takes no such conversation.
        """
        more = {name: row[name] for name in (*GIVEN, "images") if row and row.get(name)}
        plain = {name: value for name, value in example.items() if isinstance(value, str)}
        if unused := sorted(more.keys() if plain else more.keys() - {*GIVEN}):
            why = "only text is read" if unused == ["images"] else "plain text has no use for it"
            raise BadInput(f"{place}: {', '.join(unused)}: {why}; give messages, or leave the column out")
        if plain:
            return plain
        if getattr(self.tokenizer, "chat_template", None) is None:
            whose = getattr(self.tokenizer, "name_or_path", None)
            lacks = f"the tokenizer of {whose} has none" if whose else "no `tokenizer:` is named"
            what = f"holds messages, of which a chat template makes text, and {lacks}"
            raise BadInput(f"{place}: {what}; an instruct model's tokenizer has one")
        self._look_for_control(place, example)
        tools, kwargs = _tools(place, more), _kwargs(place, more)
        if tools and not self._reads("tools"):
            raise BadInput(f"{place}: tools: the chat template does not read it; leave it out")
        for name in kwargs.keys() - self.unread:
            if not self._reads(name):
                self.unread.add(name)
                what = f"chat_template_kwargs: {name}: the chat template does not read it"
                logging.getLogger("rpo").warning("%s (first in %s)", what, place)
        try:
            made = apply_chat_template({**example, "chat_template_kwargs": kwargs}, self.tokenizer, tools)
            made = self._cut_before_answers(place, example, made, kwargs, tools)
        except Exception as error:  # templates raise what they like
            raise TemplateRefuses(f"{place}: the chat template refuses it: {first_line(error)}") from error
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token
        # BOS and EOS are added where rows are tokenised; twice they would be another text.
        if bos and (self.tokenizer("")["input_ids"] or [None])[0] == self.tokenizer.bos_token_id:
            made["prompt"] = made["prompt"].removeprefix(bos)
        for name in set(made) - {"prompt"}:
            if eos and made[name].rstrip().endswith(eos):
                made[name] = made[name].rstrip().removesuffix(eos)
        return {name: str(value) for name, value in made.items()}

    def _cut_before_answers(
        self,
        place: str,
        example: Mapping[str, Part],
        made: dict[str, str],
        kwargs: dict[str, object],
        tools: list[object] | None,
    ) -> dict[str, str]:
        """Texts whose prompt ends where answers begin, whatever they say.

        TRL ends it where the prompt alone and the answers part. A template that begins a thought which an
        answer need not have (DeepSeek-R1's `<think>`) parts from it inside of what the answer says.
        """
        if len(made) == 1 or "prompt" not in made:
            return made

        def prompt(**more: object) -> str:
            given = {"prompt": example["prompt"], "chat_template_kwargs": kwargs, **more}
            return str(apply_chat_template(given, self.tokenizer, tools)["prompt"])

        if prompt() == made["prompt"]:
            return made
        self.cut.append(place)
        # Of two answers that share no letter: neither with what the template begins for them.
        neutral = [prompt(completion=[{"role": "assistant", "content": letter}]) for letter in "A0"]
        common = os.path.commonprefix([made["prompt"], *neutral])  # noqa: RUF071 - of texts
        if not common:
            return made
        rest = made["prompt"][len(common) :]
        return {name: common if name == "prompt" else rest + text for name, text in made.items()}

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        """The texts that the tokenizer reads as control tokens: a template may write them, a person not."""
        decoder = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in decoder if token.special} | {*self.tokenizer.all_special_tokens}
        special -= {str(self.tokenizer.unk_token)}
        ordered = sorted(special, key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def _look_for_control(self, place: str, example: Mapping[str, Part]) -> None:
        """Remember the control tokens that stand in what the messages themselves say."""
        turns = (turn for part in example.values() if not isinstance(part, str) for turn in part)
        if self._control is None:
            return
        for token in {token for turn in turns for token in self._control.findall(turn.get("content") or "")}:
            self.typed.setdefault(token, []).append(place)

    def notes(self, kind: str) -> Iterator[str]:
        """What the user must know of the messages that were read since the last time."""
        typed, self.typed = self.typed, {}
        for token, places in sorted(typed.items()):
            shown = ", ".join(places[:EXAMPLES]) + (", …" if len(places) > EXAMPLES else "")
            yield (
                f"{kind}: in {len(places)} rows a message itself holds the control token {token}, which no "
                f"chat template wrote ({shown}); the model takes it for an end or a beginning: take it "
                "out of the text"
            )
        cut, self.cut = self.cut, []
        if cut:
            shown = ", ".join(cut[:EXAMPLES]) + (", …" if len(cut) > EXAMPLES else "")
            yield (
                f"{kind}: in {len(cut)} rows the chat template begins an answer otherwise than the data do "
                f"({shown}): the context that is learnt differs from inference; the prompt ends where every "
                "answer begins"
            )

    def _reads(self, name: str) -> bool:
        """Whether any of the tokenizer's chat templates names a variable."""
        template = self.tokenizer.chat_template
        return name in (template if isinstance(template, str) else " ".join(map(str, template.values())))

    def fits(self, prompt: str, kind: str, ledger: Ledger) -> bool:
        """Whether a prompt has at most the allowed number of tokens; one that has more is counted."""
        fits = self.limit is None or len(self.tokenizer(prompt)["input_ids"]) <= self.limit
        if not fits:
            ledger.leave_out(f"{kind}/long_prompt")
        return fits


def given_to_template(row: Row) -> dict[str, object]:
    """What a row has beside its messages that a chat template is given."""
    return {name: row[name] for name in GIVEN if row.get(name)}


def _tools(place: str, row: Row) -> list[object] | None:
    """Schemas of functions, which may be one text of JSON."""
    tools = row.get("tools")
    try:
        found = json.loads(tools) if isinstance(tools, str) else tools
    except (ValueError, RecursionError):
        raise BadInput(f"{place}: tools: the text is no JSON") from None
    if not isinstance(found, list | None):
        raise BadInput(f"{place}: tools: expected a list of functions, got {named(found)}")
    return None if found is None else list(remove_none_values(found))


def _kwargs(place: str, row: Row) -> dict[str, object]:
    found = row.get("chat_template_kwargs", {})
    if not isinstance(found, dict):
        raise BadInput(f"{place}: chat_template_kwargs: expected an object, got {named(found)}")
    return dict(remove_none_values(found))
