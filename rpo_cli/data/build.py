"""The data stage: the miniature's world, files, or a published set, as checked tables in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rpo_cli.data.overlap import leaks, shared_prompts
from rpo_cli.data.pairs import Row, columns_of, row_id, write_rows
from rpo_cli.errors import BadInput
from rpo_cli.jobs import Job
from rpo_cli.schema import DataRecipe, seed_of
from rpo_cli.tracking import Report


def run(job: Job, report: Report) -> dict[str, Any]:
    """Write every table as Parquet (and the miniature's tokenizer); metrics are counts of rows and of prompts that tables share."""
    recipe: DataRecipe = job.recipe
    duplicates: dict[str, int] = {}
    left_out: dict[str, int] = {}
    if recipe.source == "miniature":
        from rpo_cli.data import miniature

        unknown = set(job.files)
        if unknown:
            raise BadInput(f"source: miniature generates its tables; files: {', '.join(sorted(unknown))} has no meaning")
        tables = miniature.generate(seed_of(recipe, "data"), miniature.Sizes(**recipe.rows))
        miniature.build_tokenizer().save_pretrained(job.directory / "tokenizer")
    elif recipe.loaded:
        from rpo_cli.data.sources.load import load

        tables, left_out = load(job, report)
    else:
        if not job.files:
            raise BadInput(f"{job.path}: source: files needs files:, which maps tables to JSONL or Parquet files")
        tables = {}
        for table, file in job.files.items():
            rows, duplicates[table] = read_table(Path(file), table)
            tables[table] = rows[: recipe.rows.get(table)]  # type: ignore[call-overload]
    for index, (table, rows) in enumerate(sorted(tables.items())):
        write_rows(rows, job.directory / f"{table}.parquet")
        report(index + 1, len(tables))
    counts = {f"rows/{table}": len(rows) for table, rows in sorted(tables.items())}
    prompts = {table: [row["prompt"] for row in rows] for table, rows in tables.items()}
    shared = shared_prompts(prompts)
    for line in leaks(shared, prompts):
        report.warn(line)
    counts |= {f"shared_prompts/{one}/{other}": count for (one, other), count in shared.items()}
    return counts | {f"duplicates/{table}": count for table, count in sorted(duplicates.items()) if count} | left_out


def read_table(file: Path, table: str) -> tuple[list[Row], int]:
    """Rows of one JSONL or Parquet file, checked and named, and how many exact duplicates were left out.

    Raises:
        BadInput: unreadable file, missing or empty column, equal responses, no rows; names file and line (or row).
    """
    if file.suffix == ".parquet":
        try:
            raw = [(f"{file}: row {i + 1}", row) for i, row in enumerate(pq.read_table(file).to_pylist())]
        except (OSError, ValueError) as error:
            raise BadInput(f"{file}: not a Parquet file: {error}") from error
    elif file.suffix in (".jsonl", ".json"):
        raw = [(f"{file}:{number}", _parse(f"{file}:{number}", line)) for number, line in enumerate(_lines(file), 1) if line.strip()]
    else:
        raise BadInput(f"{file}: expected a .jsonl or .parquet file")
    if not raw:
        raise BadInput(f"{file}: no rows")
    rows: dict[str, Row] = {}
    duplicates = 0
    for place, row in raw:
        needed = columns_of(table)
        checked = _check(place, row, needed)
        if table.startswith("prompts_") and "completion" in row:
            # A reference response, for a judge to compare with.
            checked |= _check(place, row, (*needed, "completion")) | {"id": checked["id"]}
        if checked["id"] not in rows:
            rows[checked["id"]] = checked
        elif all(rows[checked["id"]][column] == checked[column] for column in needed):
            duplicates += 1
        else:
            raise BadInput(f"{place}: id {checked['id']!r} belongs to another row as well")
    return list(rows.values()), duplicates


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{file}:{line}: not UTF-8: {error.reason}") from error
    if text.lstrip().startswith("["):
        jsonl = file.with_suffix(".jsonl").name
        raise BadInput(f"{file}:1: a JSON array; expected JSON Lines, an object on each line: jq -c '.[]' {file.name} > {jsonl}")
    return text.split("\n")


def _parse(place: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{place}: not JSON: {error.msg}") from error
    if not isinstance(row, dict):
        raise BadInput(f"{place}: expected an object with columns, got {type(row).__name__}")
    return row


def _check(place: str, row: Row, needed: tuple[str, ...]) -> Row:
    for column in needed:
        if column not in row:
            raise BadInput(f"{place}: no column {column!r} (has: {', '.join(sorted(row))})")
        if not isinstance(row[column], str):
            raise BadInput(f"{place}: {column}: expected text, got {type(row[column]).__name__}")
        if not row[column].strip():
            raise BadInput(f"{place}: {column}: empty")
        if any("\ud800" <= sign <= "\udfff" for sign in row[column]):
            raise BadInput(f"{place}: {column}: holds half of a surrogate pair, which is no text")
    if "chosen" in needed and row["chosen"] == row["rejected"]:
        raise BadInput(f"{place}: chosen and rejected are the same text, so there is no preference to learn")
    given = isinstance(row.get("id"), str | int)
    name = str(row["id"]) if given else row_id(*(row[column] for column in needed))
    return {"id": name, **{column: row[column] for column in needed}}
