"""Responses to the prompts of a plain file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rpo_cli import devices
from rpo_cli.artifacts import below_adapters
from rpo_cli.errors import BadInput
from rpo_cli.models import Row, Sampling, config_at, encode, load_causal, load_tokenizer, room, sample
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.stages.data.sources.base import columns_in
from rpo_cli.stages.data.sources.example import prompt_in
from rpo_cli.stages.data.sources.templated import Templated
from rpo_cli.stages.data.sources.turns import Part, TemplateRefuses
from rpo_cli.stages.files.plain_text import Format, Seen, in_chat
from rpo_cli.stages.files.table import Columns, Done, behind, in_parts
from rpo_cli.text import counted

MOST_NEW = 256  # tokens of a response, unless it is said


@dataclass(frozen=True)
class Sampler:
    """A model answering the prompts of files; one prompt has the same answers wherever it stands."""

    source: Path
    revision: str | None
    recipe: ScoringRecipe
    count: int
    prompt_format: Format = None
    seen: Seen = field(default_factory=Seen)

    def check(self, place: str, row: Row) -> None:
        """Raise BadInput for a row whose prompt the model cannot be given."""
        self.prompt(place, row)
        self.seen.look(row, self._asked(place, row, wraps=False), self._asked(place, row))

    def notes(self) -> Iterator[str]:
        """What the user must know of the rows that were checked."""
        template = self.tokenizer.chat_template is not None
        return self.seen.notes(self.source, self.prompt_format, template, wraps=False)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        found = load_tokenizer(self.source, self.recipe, self.revision, need_pad=False)
        found.pad_token = found.pad_token or found.eos_token  # masks hide it
        return found

    @cached_property
    def model(self) -> PreTrainedModel:
        device = devices.choose(self.recipe)
        return load_causal(self.source, self.recipe, device, self.tokenizer, self.revision)

    def fit(self, rows: Iterable[tuple[str, Row]], asked: int | None) -> tuple[int, str | None]:
        """How many tokens a response may have, and what to say of it.

        asked: for these; None: for `MOST_NEW`, or fewer where that leaves the longest prompt no room, but a
        quarter of the model's positions at least. Prompts that then do not fit get no response.

        Raises:
            BadInput: no prompt fits.
        """
        most = asked or MOST_NEW
        if self.room is None or not (lengths := [(n, place) for place, n in self._lengths(rows)]):
            return most, None
        (shortest, _), (longest, place) = min(lengths), max(lengths)
        if asked is None:
            most = min(most, max(self.room - longest, self.room // 4))
        if shortest + most > self.room:
            raise BadInput(self._no_room(sorted(lengths), most, asked is not None))
        if most == (asked or MOST_NEW):
            return most, None
        of = f"the model has {self.room} positions, and the longest prompt ({place}) {longest} tokens"
        return most, f"--max-new-tokens {most}, not {MOST_NEW}: {of}"

    def _no_room(self, lengths: Sequence[tuple[int, str]], most: int, asked: bool) -> str:
        """Why not even the shortest of these prompts fits, and what is to be given instead."""
        assert self.room is not None
        (shortest, place), (longest, _) = lengths[0], lengths[-1]
        what = f"the shortest prompt of {shortest} tokens ({place}) and --max-new-tokens {most}"
        cure = "no prompt is short enough"
        if asked and longest < self.room:
            cure = f"give at most {self.room - longest}, which leaves room for all"
        elif asked and shortest < self.room:
            longer = sum(length > shortest for length, _ in lengths)
            none = f"{counted(longer, 'longer one gets', 'longer ones get')} no response"
            cure = f"give at most {self.room - shortest}; {none}"
        return f"{what} exceed the model's {self.room} positions; {cure}"

    def _lengths(self, rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, int]]:
        """The tokens of prompts, as far as the chat template does not refuse them."""
        for some in in_parts(rows):
            texts = {place: text for place, row in some if (text := self.prompt(place, row)) is not None}
            tokens = encode("prompt", list(texts.values()), self.tokenizer)
            yield from zip(texts, map(len, tokens.to_pylist()), strict=True)

    @cached_property
    def room(self) -> int | None:
        """How many tokens a prompt and its response may have, as far as a config says that is there."""
        try:
            found = room(config_at(below_adapters(self.source), self.revision))
        except (OSError, ValueError):  # an adapter on the hub has none
            return None
        return None if found == sys.maxsize else found

    def prompt(self, place: str, row: Row) -> str | None:
        """A row's prompt as the text that the model goes on with; None where the chat template refuses it.

        Raises:
            BadInput: it has none, or messages for which there is no chat template.
        """
        prompt = self._asked(place, row)
        try:
            text = self._templated.text(place, {"prompt": prompt}, row)["prompt"]
        except TemplateRefuses:
            return None
        if not text and not self.tokenizer("")["input_ids"]:
            raise BadInput(f"{place}: prompt: empty, and the tokenizer puts nothing before a text")
        return text

    def _asked(self, place: str, row: Row, *, wraps: bool = True) -> Part:
        """A row's prompt; with `wraps` in messages, where that is asked for."""
        prompt = prompt_in(place, row)
        if prompt is None:
            raise BadInput(f"{place}: no prompt (has: {columns_in(row)})")
        return in_chat(self._templated, place, prompt, {}, row)["prompt"] if wraps else prompt

    @cached_property
    def _templated(self) -> Templated:
        return Templated(self.tokenizer, None, self.prompt_format == "chat")

    def responses(self, how: Sampling, rows: Sequence[tuple[str, Row]], done: Done) -> list[Columns]:
        """The new column `responses`; null where the chat template refuses or the model has no room."""
        texts = [self.prompt(place, row) for place, row in rows]
        found = list(dict.fromkeys(text for text in texts if text is not None))
        tokens = zip(found, encode("prompt", found, self.tokenizer).to_pylist(), strict=True)
        most = room(self.model.config) - how.max_new_tokens
        fitting = {text: ids for text, ids in tokens if len(ids) <= most}
        answers = sample(
            self.model,
            self.tokenizer,
            [prompt for prompt in fitting.values() for _ in range(self.count)],
            how,
            behind(0, done, self.count),
        )
        decoded = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        of = {text: decoded[i * self.count : (i + 1) * self.count] for i, text in enumerate(fitting)}
        return [{"responses": None if text is None else of.get(text)} for text in texts]
