"""The data stage: the miniature's world, files, or a published set, as checked tables in one place."""

from __future__ import annotations

import json
from itertools import chain, count
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow.parquet as pq

from rpo_cli.artifacts import Job, Report
from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.recipes.schema import DataRecipe, seed_of
from rpo_cli.stages.data.overlap import leaks, shared_prompts
from rpo_cli.stages.data.rows import columns_of, row_id, write_rows
from rpo_cli.stages.data.sources.base import is_conversation, named

MOST_PROBLEMS = 10  # of a file: they tend to be alike


def run(job: Job[DataRecipe], report: Report) -> dict[str, Any]:
    """Write every table as Parquet (and the miniature's tokenizer); metrics count rows and shared prompts."""
    recipe: DataRecipe = job.recipe
    duplicates: dict[str, int] = {}
    left_out: dict[str, int] = {}
    if recipe.source == "miniature":
        from rpo_cli.stages.data import miniature

        if job.files:
            names = ", ".join(sorted(job.files))
            raise BadInput(f"source: miniature generates its tables; files: {names} has no meaning")
        tables = miniature.generate(seed_of(recipe, "data"), miniature.Sizes(**recipe.rows))
        miniature.build_tokenizer().save_pretrained(job.directory / "tokenizer")
    elif recipe.loaded:
        from rpo_cli.stages.data.sources.load import load

        tables, left_out = load(job, report)
    else:
        if not job.files:
            raise BadInput(
                f"{job.path}: source: files needs files:, which maps tables to JSONL or Parquet files"
            )
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
    counts |= {f"duplicates/{table}": count for table, count in sorted(duplicates.items()) if count}
    return counts | left_out


def read_table(file: Path, table: str) -> tuple[list[Row], int]:
    """Rows of one JSONL or Parquet file, checked and named, and how many exact duplicates were left out.

    Raises:
        BadInput: unreadable file, missing or empty column, equal responses, no rows; names file and line (or
            row), each of the first `MOST_PROBLEMS` on a line of its own.
    """
    problems: list[str] = []
    if file.suffix == ".parquet":
        try:
            found = pq.read_table(file).to_pylist()
        except (OSError, ValueError) as error:
            raise BadInput(f"{file}: not a Parquet file: {error}") from error
        raw: list[tuple[str, Any]] = [(f"{file}: row {number}", row) for number, row in enumerate(found, 1)]
    elif file.suffix in (".jsonl", ".json"):
        numbered = [(f"{file}:{number}", line) for number, line in enumerate(_lines(file), 1) if line.strip()]
        raw = [(place, _parse(line)) for place, line in numbered]
    else:
        raise BadInput(f"{file}: expected a .jsonl or .parquet file")
    if not raw:
        raise BadInput(f"{file}: no rows")
    rows: dict[str, Row] = {}
    duplicates = 0
    needed = columns_of(table)
    for place, row in raw:
        # A reference response, for a judge to compare with.
        columns = (*needed, "completion") if table.startswith("prompts_") and "completion" in row else needed
        if wrong := [row] if isinstance(row, str) else _wrong(row, columns):
            problems += [f"{place}: {problem}" for problem in wrong]
            continue
        given = isinstance(row.get("id"), str | int)
        name = str(row["id"]) if given else row_id(*(row[column] for column in needed))
        if name not in rows:
            rows[name] = {"id": name, **{column: row[column] for column in columns}}
        elif all(rows[name][column] == row[column] for column in needed):
            duplicates += 1
        else:
            problems.append(f"{place}: id {name!r} belongs to another row as well")
    if problems:
        more = len(problems) - MOST_PROBLEMS
        last = [f"{file}: and {more} more problems"] if more > 0 else []
        raise BadInput("\n".join(problems[:MOST_PROBLEMS] + last))
    return list(rows.values()), duplicates


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{file}:{line}: not UTF-8: {error.reason}") from error
    if text.lstrip().startswith("["):
        # The shell empties what it redirects to before jq reads: the command must name no file that there is.
        endings = chain(("", "-lines"), (f"-lines-{number}" for number in count(2)))
        paths = (file.with_name(f"{file.stem}{end}.jsonl") for end in endings)
        target = next(path for path in paths if not path.exists())
        raise BadInput(
            f"{file}:1: a JSON array; expected JSON Lines, an object on each line: "
            f"jq -c '.[]' {quote(str(file))} > {quote(str(target))}, then name {target.name} in files:"
        )
    return text.split("\n")


def _parse(line: str) -> Row | str:
    """The object on a line, or what is wrong with the line."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg}"
    return row if isinstance(row, dict) else f"expected an object with columns, got {named(row)}"


def _wrong(row: Row, needed: tuple[str, ...]) -> list[str]:
    """What is wrong with a row, a sentence for each column."""
    problems = []
    for column in needed:
        if column not in row:
            problems.append(f"no column {column!r} (has: {', '.join(sorted(row))})")
        elif is_conversation(value := row[column]):
            problems.append(f"{column}: expected text, got a conversation; `source: preference` reads those")
        elif not isinstance(value, str):
            problems.append(f"{column}: expected text, got {named(value)}")
        elif not value.strip():
            problems.append(f"{column}: empty")
        elif any("\ud800" <= sign <= "\udfff" for sign in value):
            problems.append(f"{column}: holds half of a surrogate pair, which is no text")
    if not problems and "chosen" in needed and row["chosen"] == row["rejected"]:
        problems.append("chosen and rejected are the same text, so there is no preference to learn")
    return problems
