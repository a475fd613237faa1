"""Rewards of, and samples for, the rows of a plain file: new columns, made in parts that are kept until all
are there, so that a run that was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rpo_cli import devices
from rpo_cli.artifacts import below_adapters, hash_of, hash_path, read_json, write_json
from rpo_cli.errors import BadInput
from rpo_cli.models import (
    Row,
    Sampling,
    config_at,
    encode,
    load_causal,
    load_tokenizer,
    pair_rewards,
    room,
    sample,
)
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.recipes.whole import whole
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import GIVEN
from rpo_cli.stages.data.sources.base import columns_in
from rpo_cli.stages.data.sources.hh import HUMAN, messages
from rpo_cli.stages.data.sources.implicit import cut
from rpo_cli.stages.data.sources.preference import (
    CONVERSATIONS,
    aligned,
    are_whole,
    prompt_in,
    system_in,
    with_context,
)
from rpo_cli.stages.data.sources.records import form_of, records
from rpo_cli.stages.data.sources.templated import Templated, given_to_template
from rpo_cli.stages.data.sources.turns import AS_TEXT, Message, Part, TemplateRefuses, is_told_as_text, part
from rpo_cli.stages.plain_text import Format, Seen, in_chat
from rpo_cli.stages.reading import Reading, row_of

PART = 1024  # rows
MOST_NEW = 256  # tokens of a response, unless it is said
SIDES = ("prompt", "completion")
OF_PARTS = re.compile(r"\.?(\d{6}|of)\.json.*")
# The columns that hold responses, and those of their rewards; the first of these that a row has.
FORMS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("chosen", "rejected"): ("reward_chosen", "reward_rejected"),
    ("responses",): ("rewards",),
    **{(name,): ("reward",) for name in ("response", "completion", *CONVERSATIONS)},
}
Item = TypeVar("Item")
Columns = dict[str, Any]  # the new ones of a row
Done = Callable[[int], None]  # told how many rows are
Make = Callable[[Sequence[tuple[str, Row]], Done], list[Columns]]


def _behind(before: int, done: Done, each: int = 1) -> Done:
    """What tells of rows behind others, `each` responses a row."""
    return lambda count: done(before + count // each)


def _in_parts(rows: Iterable[Item]) -> Iterator[list[Item]]:
    left = iter(rows)
    while some := list(islice(left, PART)):
        yield some


@dataclass(frozen=True)
class Table:
    """A file of rows, or several of one kind. `ledger`: what is left out of them, each time they are read.

    Raises:
        BadInput: files of different kinds.
    """

    files: Sequence[Path]
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        if len({self._is_parquet(file) for file in self.files}) > 1:
            raise BadInput(f"{self.files[0].parent}: holds Parquet and JSON lines; name one of the files")

    @staticmethod
    def _is_parquet(file: Path) -> bool:
        return (form_of(file) or ("",))[0] == "parquet"

    @property
    def suffix(self) -> str:
        return ".parquet" if self._is_parquet(self.files[0]) else ".jsonl"

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Place and row of all that can be read; rows in which a key stands twice are left out.

        Raises:
            BadInput: a row that cannot be read.
        """
        for place, _, row in records(self.files, "rows", self.ledger, {}, every=True):
            yield place, row

    def check(self, new: Sequence[str], look: Callable[[str, Row], object]) -> int:
        """How many rows there are, each of them looked at.

        Raises:
            BadInput: none; one that has a column of the new ones already.
        """
        count = 0
        for place, row in self.rows():
            look(place, row)
            if taken := [name for name in new if name in row]:
                raise BadInput(f"{place}: has a column {taken[0]} already, which would be lost; rename it")
            count += 1
        if not count:
            raise BadInput(f"{self.files[0]}: no rows")
        return count


def extend(table: Table, out: Path, make: Make, identity: Mapping[str, object], done: Done) -> list[Columns]:
    """Write the rows with the new columns that `make` gives them; those columns.

    identity: all that they depend on beside the files: parts of another are made again.

    Raises:
        BadInput: something else is where the parts would be.
    """
    parts = out.with_name(f"{out.name}.parts")
    if strange := [file for file in parts.glob("*") if not OF_PARTS.fullmatch(file.name)]:
        raise BadInput(f"{strange[0]}: the folder is for the parts of {out.name}; move what else it holds")
    name = hash_of({**identity, "files": [hash_path(file) for file in table.files], "part": PART})
    if (read_json(parts / "of.json") or {}).get("key") != name:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        write_json(parts / "of.json", {"key": name})
    made: list[Columns] = []
    for number, rows in enumerate(_in_parts(table.rows())):
        file = parts / f"{number:06}.json"
        kept = (read_json(file) or {}).get("rows")
        if kept is None:
            kept = make(rows, _behind(len(made), done))
            write_json(file, {"rows": kept})
        made += kept
        done(len(made))
    new = zip((row for _, row in table.rows()), made, strict=True)
    _write((row | columns for row, columns in new), table, out, pa.Table.from_pylist(made).schema)
    shutil.rmtree(parts)
    return made


def _write(rows: Iterable[Row], table: Table, out: Path, new: pa.Schema) -> None:
    """Write rows as Parquet or JSON lines, whole or not at all."""
    with whole(out) as file:
        if out.suffix == ".parquet":
            schemas = [pq.read_schema(file).remove_metadata() for file in table.files]
            schema = pa.unify_schemas([*schemas, new], promote_options="permissive")
            with pq.ParquetWriter(file, schema) as writer:
                for some in _in_parts(rows):
                    writer.write_table(pa.Table.from_pylist(some, schema=schema))
        else:
            for row in rows:
                file.write((json.dumps(row, ensure_ascii=False, default=str) + "\n").encode())


# Rewards


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
                _behind(finished, done, count),
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
            fits = self.room - (longest if longest < self.room else shortest)
            cure = f"give at most {fits}" if asked and fits > 0 else "no prompt is short enough"
            both = f"a prompt of {longest} tokens ({place}) and --max-new-tokens {most}"
            raise BadInput(f"{both} exceed the model's {self.room} positions; {cure}")
        if most == (asked or MOST_NEW):
            return most, None
        of = f"the model has {self.room} positions, and the longest prompt ({place}) {longest} tokens"
        return most, f"--max-new-tokens {most}, not {MOST_NEW}: {of}"

    def _lengths(self, rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, int]]:
        """The tokens of prompts, as far as the chat template does not refuse them."""
        for some in _in_parts(rows):
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
            _behind(0, done, self.count),
        )
        decoded = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        of = {text: decoded[i * self.count : (i + 1) * self.count] for i, text in enumerate(fitting)}
        return [{"responses": None if text is None else of.get(text)} for text in texts]
