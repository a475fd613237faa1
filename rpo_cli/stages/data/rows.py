"""The one row schema: a preference row is {id, prompt, chosen, rejected}, a completion row {prompt, completion}."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rpo_cli.artifacts import Job
from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.recipes.schema import Recipe

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
COMPLETION_COLUMNS = ("prompt", "completion")


def columns_of(table: str) -> tuple[str, ...]:
    """The text columns a table must have."""
    if table.startswith("prompts_"):
        return ("prompt",)
    return PAIR_COLUMNS if table in ("pairs", "pairs_validation", "warmup") else COMPLETION_COLUMNS


def row_id(*texts: str) -> str:
    """Name of a row by content, for rows that come without an id."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """Write rows as Parquet."""
    pq.write_table(pa.Table.from_pylist(list(rows)), file)


def write_columns(columns: dict[str, Any], file: Path) -> None:
    """Write columns as Parquet."""
    pq.write_table(pa.table(columns), file)


def read_rows(file: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    rows: list[Row] = pq.read_table(file).to_pylist()
    return rows


def pairs_file(job: Job[Recipe]) -> Path:
    """The labelled pairs: what the relabel stage wrote, or the data stage."""
    file = job.inputs["data"] / "pairs.parquet"
    if not file.is_file():
        raise BadInput(f"{job.inputs['data']}: has no table `pairs`")
    return file


def table_of(job: Job[Recipe], table: str) -> list[dict[str, Any]]:
    """Rows of a table that the data stage wrote."""
    file = job.inputs["data"] / f"{table}.parquet"
    if not file.is_file():
        raise BadInput(f"{job.inputs['data']}: has no table `{table}`; add it to files: of the data recipe")
    return read_rows(file)
