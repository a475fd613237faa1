"""New columns for the rows of a plain file, made in parts that are kept until all are there, so that a run
that was interrupted goes on.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from rpo_cli.artifacts import hash_of, hash_path, read_json, write_json
from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.models.score import Done
from rpo_cli.recipes.whole import whole
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.sources.records import form_of, records

PART = 1024  # rows
OF_PARTS = re.compile(r"\.?(\d{6}|of)\.json.*")
Item = TypeVar("Item")
Columns = dict[str, Any]  # the new ones of a row
Make = Callable[[Sequence[tuple[str, Row]], Done], list[Columns]]


def behind(before: int, done: Done, each: int = 1) -> Done:
    """What tells of rows behind others, `each` responses a row."""
    return lambda count: done(before + count // each)


def in_parts(rows: Iterable[Item]) -> Iterator[list[Item]]:
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
    for number, rows in enumerate(in_parts(table.rows())):
        file = parts / f"{number:06}.json"
        kept = (read_json(file) or {}).get("rows")
        if kept is None:
            kept = make(rows, behind(len(made), done))
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
                for some in in_parts(rows):
                    writer.write_table(pa.Table.from_pylist(some, schema=schema))
        else:
            for row in rows:
                file.write((json.dumps(row, ensure_ascii=False, default=str) + "\n").encode())
