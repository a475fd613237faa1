"""The one row schema: {id, prompt, chosen, rejected} of preferences, {prompt, completion} of completions.

Texts are stored once, in the tables of the data stage. What is made of them (relabelled pairs, splits) names
rows by their id and says something of each; `Rows` brings the two together again. Artifacts of older versions
hold texts of their own, which are read where they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rpo_cli.artifacts import MANIFEST, Job, read_json
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.recipes.schema import Recipe
from rpo_cli.stages.data.token_cache import TokenCache
from rpo_cli.text import percent

if TYPE_CHECKING:  # columns and scores are read without torch
    from transformers import PreTrainedTokenizerBase

    from rpo_cli.models import Row, TokenRow

PLACES = "places"  # folder beside tables, of where their rows were read from
AT_A_TIME, GROUP = 2**11, 2**15  # rows as mappings, which are ten times as large as their texts; as columns
PAIR_COLUMNS = ("prompt", "chosen", "rejected")
COMPLETION_COLUMNS = ("prompt", "completion")
PAIR = ("chosen", "rejected")
TEXTS = (*PAIR_COLUMNS, "completion")
MESSAGES = "messages"  # the conversation that a row's texts were made of, as JSON; empty where it had none
GIVEN = ("tools", "chat_template_kwargs")  # to chat templates; kept beside messages, for reward models'
OTHER = {"chosen": "rejected", "rejected": "chosen"}
UNLIMITED = 2**31
FEW = 0.05  # share of rows that may be left out for their length without a warning
NAMED = re.compile(r"row ([^\s,()]+(?:, [^\s,()]+)*)")  # as warnings name rows
Value = TypeVar("Value")


def dropped(count: int, of: int, max_length: int) -> str:
    """That so many rows are left out for their length."""
    return f"{count} of {of} rows ({percent(count / of)}) are left out: longer than max_length {max_length}"


def columns_of(table: str) -> tuple[str, ...]:
    """The text columns a table must have."""
    if table.startswith("prompts_"):
        return ("prompt",)
    return PAIR_COLUMNS if table in ("pairs", "pairs_validation", "warmup") else COMPLETION_COLUMNS


def row_id(*texts: str) -> str:
    """Name of a row by content, for rows that come without an id."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]


def digest(*texts: str) -> int:
    """64 bits of a content's hash: enough to tell many texts apart without keeping them."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).digest(), "big")


def write_rows(rows: Iterable[Row], file: Path) -> int:
    """Write rows as Parquet, while they come; how many. The first row has the columns of all."""
    batches, count = _batches(iter(rows)), 0
    first = next(batches)
    batches = chain([first], batches)
    with pq.ParquetWriter(file, first.schema) as writer:
        while group := list(islice(batches, GROUP // AT_A_TIME)):
            table = pa.Table.from_batches(group).combine_chunks()
            writer.write_table(table)
            count += len(table)
    return count


def _batches(rows: Iterator[Row]) -> Iterator[pa.RecordBatch]:
    """Rows in batches, the first of which may be empty."""
    batch = pa.RecordBatch.from_pylist(list(islice(rows, AT_A_TIME)))
    yield batch
    while some := list(islice(rows, AT_A_TIME)):
        yield pa.RecordBatch.from_pylist(some, schema=batch.schema)


def write_columns(columns: dict[str, object], file: Path) -> None:
    """Write columns as Parquet."""
    pq.write_table(pa.table(columns), file)


def write_places(places: Sequence[str], table: Path) -> None:
    """Keep where each row of a table was read from, beside it; no result rests on that."""
    if any(places):
        (table.parent / PLACES).mkdir(exist_ok=True)
        write_columns({"place": places}, table.parent / PLACES / table.name)


def read_rows(file: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    rows: list[Row] = pq.read_table(file).to_pylist()
    return rows


@dataclass(frozen=True)
class Rows:
    """Rows by reference, in their order: where their texts are, and what has been said of them since.

    file: the Parquet file with their texts; places: [n], which of its rows they are; turned: [n], whether
    `chosen` and `rejected` have changed places since, by relabelling; notes: their ids, and all columns that
    are no texts.
    """

    file: Path
    cache: TokenCache
    places: np.ndarray
    turned: np.ndarray
    notes: pa.Table

    def __len__(self) -> int:
        return len(self.places)

    @property
    def ids(self) -> list[str]:
        return [str(name) for name in self.notes["id"].to_pylist()]

    @property
    def columns(self) -> tuple[str, ...]:
        """The responses that the rows have."""
        return tuple(name for name in pq.read_schema(self.file).names if name in TEXTS[1:])

    @property
    def columns_of_numbers(self) -> list[str]:
        """What the data has beside the texts that can be counted with."""
        return [each.name for each in pq.read_schema(self.file) if pa.types.is_floating(each.type)]

    @property
    def talks(self) -> bool:
        """Whether some of them were conversations."""
        return MESSAGES in pq.read_schema(self.file).names

    def take(self, rows: Sequence[int] | np.ndarray) -> Rows:
        """Some of the rows, in the order given."""
        chosen = np.asarray(rows, dtype=np.int64)
        places, turned = self.places[chosen], self.turned[chosen]
        return replace(self, places=places, turned=turned, notes=self.notes.take(chosen))

    def only(self, kept: Sequence[TokenRow]) -> Rows:
        """The rows of which these are the tokens, in the order that they have here."""
        names = {row.id for row in kept}
        return self.take([place for place, name in enumerate(self.ids) if name in names])

    def named(self, ids: Sequence[str]) -> Rows:
        """The same rows under other names, and nothing else said of them."""
        return replace(self, notes=pa.table({"id": pa.array(ids, pa.string())}))

    def one_each(self) -> Rows:
        """One row for each prompt, prompts in the order in which they come first."""
        return self.take(list({prompt: row for row, prompt in enumerate(self.texts("prompt"))}.values()))

    def texts(self, column: str) -> list[str]:
        """One text of every row."""
        return self._of(column, lambda name: pq.read_table(self.file, columns=[name])[name].to_pylist())

    def conversations(self, columns: Sequence[str]) -> list[Row]:
        """Prompt and these responses of every row: messages where the data had messages, else texts.

        Beside them what else the chat template was given (`GIVEN`).
        """
        names = ("prompt", *columns)
        each = zip(*(self.texts(name) for name in names), strict=True)
        texts: list[Row] = [dict(zip(names, row, strict=True)) for row in each]
        if not self.talks:
            return texts
        told = [json.loads(found or "{}") for found in self.texts(MESSAGES)]
        for row, turns, turned in zip(texts, told, self.turned.tolist(), strict=True):
            of = {name: OTHER.get(name, name) if turned else name for name in (*names, *GIVEN)}
            row |= {name: turns[own] for name, own in of.items() if own in turns}
        return texts

    def numbers(self, columns: Sequence[str]) -> np.ndarray:
        """The numbers that the data has for chosen and rejected, which relabelling turns with them: [n, 2].

        Raises:
            BadInput: it kept no such columns.
        """
        for name in columns:
            if name not in self.columns_of_numbers:
                kept = f"has no column of numbers {name!r}; keep_columns: of the data recipe keeps one"
                raise BadInput(f"{self.file}: {kept}")
        table = pq.read_table(self.file, columns=list(columns))
        found = np.stack([table[name].to_numpy() for name in columns], axis=1)[self.places]
        turned: np.ndarray = np.where(self.turned[:, None], found[:, ::-1], found)
        return turned

    def tokens(
        self,
        columns: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        what: str,
        max_length: int = UNLIMITED,
        overlong: Literal["error", "drop"] = "error",
        warn: Callable[[str], None] | None = None,
    ) -> list[TokenRow]:
        """Tokens of the rows that fit, each with these responses; see `models.fitting` for what is raised.

        warn: is told what is odd in them, and of more than a few that do not fit.
        """
        from rpo_cli.models import TokenRow, fitting

        read = self.cache.reader(self.file, tokenizer)
        prompts, *responses = (self._of(column, read) for column in ("prompt", *columns))
        rows = zip(self.ids, prompts, strict=True)
        found = [TokenRow(name, prompt, [r[i] for r in responses]) for i, (name, prompt) in enumerate(rows)]
        try:
            kept = fitting(found, max_length, overlong, what)
        except BadInput as error:
            raise BadInput(self.placed(str(error))) from None
        if warn is not None:
            for line in self.odd(kept, tokenizer):
                warn(line)
            if len(kept) < (1 - FEW) * len(found):
                warn(dropped(len(found) - len(kept), len(found), max_length))
        return kept

    def odd(self, tokens: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """What to know of control tokens in these rows' texts; see `models.odd_tokens`."""
        from rpo_cli.models import odd_tokens

        templated: set[str] = set()
        if self.talks and (self.file.parent / PLACES / self.file.name).is_file():  # read from messages
            said = pc.not_equal(pq.read_table(self.file, columns=[MESSAGES])[MESSAGES], "").to_numpy()
            templated = {name for name, talked in zip(self.ids, said[self.places], strict=True) if talked}
        return [self.placed(line) for line in odd_tokens(tokens, tokenizer, templated)]

    def placed(self, line: str) -> str:
        """A line in which rows that are named are found by file and line, where these are known."""
        file = self.file.parent / PLACES / self.file.name
        if NAMED.search(line) is None or not file.is_file():
            return line
        read_from = pq.read_table(file)["place"].take(self.places).to_pylist()
        at = dict(zip(self.ids, read_from, strict=True))

        def named(found: re.Match[str]) -> str:
            return "row " + ", ".join(at.get(name) or name for name in found[1].split(", "))

        return NAMED.sub(named, line)

    def to_list(self) -> list[Row]:
        """The rows as mappings, with all their columns."""
        table = self.notes
        for column in ("prompt", *self.columns):
            table = table.append_column(column, pa.array(self.texts(column)))
        rows: list[Row] = table.to_pylist()
        return rows

    def _of(self, column: str, read: Callable[[str], Sequence[Value]]) -> list[Value]:
        """A column's values, where `read` has those of the whole file."""
        own = read(column)
        other = read(OTHER[column]) if column in OTHER and self.turned.any() else own
        rows = zip(self.places.tolist(), self.turned.tolist(), strict=True)
        return [other[place] if turned else own[place] for place, turned in rows]


def rows_of(job: Job[Recipe], table: str) -> Rows:
    """A table of the artifact that the job has its data from.

    Raises:
        BadInput: there is no such table.
    """
    if not (file := job.inputs["data"] / f"{table}.parquet").is_file():
        metrics = (read_json(file.with_name(MANIFEST)) or {}).get("metrics", {})
        if not {f"rows/{table}", f"{table}/size"}.isdisjoint(metrics):
            raise FileNotFoundError(f"no such file: {file}")
        hint = "" if table == "pairs" else "; add it to files: of the data recipe"
        raise BadInput(f"{job.inputs['data']}: has no table `{table}`{hint}")
    return find_rows(list(job.tables), table, TokenCache(job.root))


def by_id(file: Path, columns: tuple[str, str] = PAIR) -> dict[str, tuple[float, float]]:
    """Two numbers of each row of a table, by its id."""
    table = pq.read_table(file, columns=["id", *columns]).to_pydict()
    return dict(zip(table["id"], zip(*(table[name] for name in columns), strict=True), strict=True))


def margins_by_id(file: Path) -> dict[str, float]:
    """Number of the chosen minus that of the rejected response of each pair of a table, by its id."""
    return {name: chosen - rejected for name, (chosen, rejected) in by_id(file).items()}


def find_rows(folders: Sequence[Path], table: str, cache: TokenCache) -> Rows:
    """A table of the first of these artifacts; where it holds no texts, it names pairs of the next.

    Raises:
        RunFailed: it names a row that is not there.
    """
    file = folders[0] / f"{table}.parquet"
    names = pq.read_schema(file).names
    notes = pq.read_table(file, columns=[name for name in names if name not in (*TEXTS, MESSAGES)])
    if "prompt" in names:
        return Rows(file, cache, np.arange(len(notes)), np.zeros(len(notes), dtype=bool), notes)
    below = find_rows(folders[1:], "pairs", cache)
    found = pc.index_in(notes["id"], value_set=below.notes["id"])
    if found.null_count:
        raise RunFailed(f"{file}: names {found.null_count} rows that {below.file} does not have")
    rows = below.take(found.to_numpy())
    if "swapped" in names:  # what was said of chosen and rejected before does not hold any more
        return replace(rows, turned=rows.turned ^ notes["swapped"].to_numpy(), notes=notes)
    for name in notes.column_names[1:]:
        rows = replace(rows, notes=rows.notes.append_column(name, notes[name]))
    return rows
