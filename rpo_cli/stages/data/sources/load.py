"""The tables of a data recipe whose source is a data set."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from rpo_cli.artifacts import Job, Report, snapshots
from rpo_cli.errors import BadInput
from rpo_cli.models import Row, load_tokenizer
from rpo_cli.recipes.schema import DataRecipe, seed_of
from rpo_cli.stages.data.sources.assemble import tables
from rpo_cli.stages.data.sources.base import Counts, Pair, Records, Sets, Written
from rpo_cli.stages.data.sources.records import records

NEEDED = ("sft_train", "pairs", "prompts_validation", "prompts_test")


def load(job: Job[DataRecipe], report: Report) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """Every table, and what was left out of which and why.

    Raises:
        BadInput: the set cannot be read, is of another kind, or leaves a table without rows.
    """
    recipe: DataRecipe = job.recipe
    counts, tokenizer = Counts(), None
    if "tokenizer" in job.inputs:
        revision = job.revisions.get("tokenizer")
        tokenizer = load_tokenizer(job.inputs["tokenizer"], revision=revision, need_pad=False)
    pairs_of, written_of = (_records(job, name, report) for name in ("dataset", "sft_dataset"))
    pairs, written = _reader(recipe)(Sets(recipe, tokenizer, pairs_of, written_of, counts))
    sizes = {str(table): size for table, size in recipe.rows.items()}
    found = tables(pairs, written, sizes, recipe.validation_share, seed_of(recipe, "data"), counts)
    left_out = {name: count for name, count in sorted(counts.items()) if count}
    for table in NEEDED:
        if not found[table]:
            left = ", ".join(f"{name} {count}" for name, count in left_out.items())
            raise BadInput(f"{job.path}: no rows for {table} ({left or 'nothing was read'})")
    return {table: rows for table, rows in found.items() if rows}, left_out


def _reader(recipe: DataRecipe) -> Callable[[Sets], tuple[list[Pair], list[Written]]]:
    """The function that the source's row names."""
    module, _, function = (recipe.of.reads or "").partition(":")
    reader: Callable[[Sets], tuple[list[Pair], list[Written]]] = getattr(
        import_module(f"rpo_cli.stages.data.sources.{module}"), function
    )
    return reader


def _records(job: Job[DataRecipe], name: str, report: Report) -> Records:
    """Records of one of the job's data sets, from disk or the hub's cache; none where it has no such set."""
    if name not in job.inputs:
        return
    recipe: DataRecipe = job.recipe
    folders = recipe.folders if name == "dataset" else []
    place = snapshots.dataset_folder(str(job.inputs[name]), job.revisions.get(name), folders)
    for number, record in enumerate(records(Path(place), folders)):
        if number % 1000 == 0:
            report(number, number + 1000)
        yield record
