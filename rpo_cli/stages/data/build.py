"""The data stage: the miniature's world, files, or a published set, as checked tables in one place."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rpo_cli.artifacts import Job, Report
from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.recipes.schema import DataRecipe, seed_of
from rpo_cli.stages.data.attributes import with_counts
from rpo_cli.stages.data.ledger import REASONS, Ledger, Sieve
from rpo_cli.stages.data.overlap import leaks, prompts_of, shared_prompts
from rpo_cli.stages.data.problems import Problems
from rpo_cli.stages.data.rows import (
    MESSAGES,
    PAIR_COLUMNS,
    columns_of,
    digest,
    row_id,
    write_places,
    write_rows,
)
from rpo_cli.stages.data.sources.base import beside, columns_in, is_conversation, named
from rpo_cli.stages.data.sources.records import rows_in
from rpo_cli.stages.data.sources.told import beside_prompt, read_as_dialogues
from rpo_cli.stages.data.sources.transcripts import turns_of

if TYPE_CHECKING:
    from rpo_cli.stages.data.sources.chat import Chat


def run(job: Job[DataRecipe], report: Report) -> dict[str, object]:
    """Write every table as Parquet (and the miniature's tokenizer).

    Metrics count rows read, kept and left out, and shared prompts.
    """
    recipe: DataRecipe = job.recipe
    ledger = Ledger()
    tables: Mapping[str, Iterable[Row]]
    if recipe.source == "miniature":
        from rpo_cli.stages.data import miniature

        if job.files:
            names = ", ".join(sorted(job.files))
            raise BadInput(f"source: miniature generates its tables; files: {names} has no meaning")
        world = miniature.World(recipe.entangled, recipe.polite)
        tables = miniature.generate(seed_of(recipe, "data"), miniature.TableSizes(**recipe.rows), world)
        miniature.build_tokenizer(world).save_pretrained(job.directory / "tokenizer")
    elif recipe.loaded:
        from rpo_cli.stages.data.sources.load import load

        tables = load(job, report, ledger)
    else:
        if not job.files:
            raise BadInput(
                f"{job.path}: source: files needs files:, which maps tables to JSONL or Parquet files"
            )
        chat = None
        if recipe.prompt_format == "chat":
            from rpo_cli.stages.data.sources.chat import Chat

            chat = Chat(job.inputs["tokenizer"], job.revisions.get("tokenizer"))
        tables = {
            table: read_table(Path(file), table, recipe, ledger, chat) for table, file in job.files.items()
        }
    if recipe.counts:
        tables = {table: with_counts(rows, recipe.counts) for table, rows in tables.items()}
    counts, prompts = {}, {}
    for index, (table, rows) in enumerate(sorted(tables.items())):
        file = job.directory / f"{table}.parquet"
        places: list[str] = []
        counts[f"rows/{table}"] = write_rows(noting(rows, ledger, places), file)
        write_places(places, file)
        prompts[table] = prompts_of(file)
        report(index + 1, len(tables))
    shared = shared_prompts(prompts)
    both = ("prompts_validation", "prompts_test")
    if both[0] in job.files and job.files[both[0]] == job.files.get(both[1]):
        del shared[both]  # one file for the two is what the recipe says
    for line in (*leaks(shared, prompts), *ledger.warnings()):
        report.warn(line)
    counts |= {f"shared_prompts/{one}/{other}": count for (one, other), count in shared.items()}
    return counts | ledger.metrics()


def noting(rows: Iterable[Row], ledger: Ledger, places: list[str]) -> Iterator[Row]:
    """The rows as they come; where each was read from, as far as that is known, goes into `places`."""
    for row in rows:
        places.append(ledger.place)
        yield row


def read_table(
    file: Path, table: str, recipe: DataRecipe, ledger: Ledger, chat: Chat | None = None
) -> Iterator[Row]:
    """Rows of one JSONL or Parquet file, checked and named, while they are read; at most those asked for.

    chat: makes text of messages, and of a prompt of plain text as the user's.

    Raises:
        BadInput: unreadable file, missing column, what is no text, an id twice, no rows; names file and line
            (or row), each of the first `MOST_PROBLEMS` on a line of its own.
    """
    problems, sieve, ids = Problems(file), Sieve(ledger, table), set[int]()
    most, needed = recipe.rows.get(table), columns_of(table)  # type: ignore[call-overload]
    columns: dict[str, str] = {ours: theirs for ours, theirs in recipe.columns.items() if ours in needed}
    first: tuple[str, ...] | None = None
    unread = 0
    for place, row in rows_in(file, table, ledger, columns):
        if isinstance(row, str):
            problems.add(place, row)
            continue
        # A reference response, for a judge to compare with.
        own = ("completion",) if table.startswith("prompts_") and "completion" in row else ()
        first = own if first is None else first
        kept: Row = {}
        wrong: list[str] = []
        try:
            if chat is not None:
                made = chat.text(place, row, (*needed, *own), table, ledger)
                if made is None:
                    continue
                row, told = made
                kept = {MESSAGES: told}
            wrong = _wrong(row, (*needed, *own))
            if not wrong and needed == PAIR_COLUMNS:
                kept |= beside(place, row, recipe)
        except BadInput as error:
            wrong.append(str(error).removeprefix(f"{place}: "))
        if own > first:
            wrong.append("completion: the first row has none; give one to every row or to none")
        problems.add(place, *wrong)
        if wrong or not sieve.keeps(*(row[column] for column in needed)):
            continue
        given = isinstance(row.get("id"), str | int)
        name = str(row["id"]) if given else row_id(*(row[column] for column in needed))
        if (known := digest(name)) in ids:
            problems.add(place, f"id {reprlib.repr(name)} belongs to another row as well")
        ids.add(known)
        if chat is None and "prompt" in needed:
            asked, *answers = (row[column] for column in sorted(needed, key=lambda name: name != "prompt"))
            if turns_of(asked, answers) is not None:
                ledger.counts[f"{table}/as_dialogues"] += 1
            unread += _has_unread_system(row)
        if most is None or len(ids) <= most:
            yield {"id": name, **{column: row[column] for column in (*needed, *own)}, **kept}
    if chat is not None:
        chat.tell(table, ledger)
    else:
        ledger.read_as += read_as_dialogues(ledger, table)
    if unread:
        ledger.notes.append(beside_prompt(table, {"system": unread}, raw=True))
    if not ids and not problems.count:
        read = ledger.records[table]
        problems.first.append(f"{file}: no rows" + (f" are left of {read}" if read else ""))
        for name, places in ledger.examples.items():
            kind, _, why = name.rpartition("/")
            problems.first += [f"{place}: {REASONS[why]}" for place in places if kind == table]
    problems.check()


def _has_unread_system(row: Row) -> bool:
    """Whether a row of plain text has a system prompt in a column of its own, which nothing reads."""
    system = row.get("system")
    return isinstance(system, str) and bool(system.strip()) and system.strip() not in row["prompt"]


def _wrong(row: Row, needed: tuple[str, ...]) -> list[str]:
    """What is wrong with a row, a sentence for each column."""
    problems = []
    for column in needed:
        if column not in row:
            problems.append(f"no column {column!r} (has: {columns_in(row)})")
        elif is_conversation(value := row[column]):
            reads = "`prompt_format: chat` with `tokenizer:` in the data recipe makes text of it"
            problems.append(f"{column}: expected text, got a conversation; {reads}")
        elif not isinstance(value, str):
            problems.append(f"{column}: expected text, got {named(value)}")
    if row.get("tools"):
        problems.append(
            "tools: plain text has no use for it; `prompt_format: chat` gives it to the chat template"
        )
    return problems
