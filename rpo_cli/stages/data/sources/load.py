"""The tables of a data recipe whose source is a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rpo_cli.artifacts import Job, Report, snapshots
from rpo_cli.errors import BadInput
from rpo_cli.models import Row, load_tokenizer
from rpo_cli.recipes.schema import DataRecipe, seed_of
from rpo_cli.stages.data.sources import preference, tldr
from rpo_cli.stages.data.sources.assemble import tables
from rpo_cli.stages.data.sources.base import Counts, Pair, Written
from rpo_cli.stages.data.sources.records import records

NEEDED = ("sft_train", "pairs", "prompts_validation", "prompts_test")


def load(job: Job[DataRecipe], report: Report) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """Every table, and what was left out of which and why.

    Raises:
        BadInput: the set cannot be read, is of another kind, or leaves a table without rows.
    """
    recipe: DataRecipe = job.recipe
    counts = Counts()
    tokenizer = None
    if "tokenizer" in job.inputs:
        tokenizer = load_tokenizer(
            job.inputs["tokenizer"], revision=job.revisions.get("tokenizer"), need_pad=False
        )
    pairs, written = (
        _tldr(job, tokenizer, counts, report)
        if recipe.source.startswith("tldr")
        else _others(job, tokenizer, counts, report)
    )
    found = tables(
        pairs,
        written,
        {str(k): v for k, v in recipe.rows.items()},
        recipe.validation_share,
        seed_of(recipe, "data"),
        counts,
    )
    for table in NEEDED:
        if not found[table]:
            left = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)
            raise BadInput(f"{job.path}: no rows for {table} ({left or 'nothing was read'})")
    return {table: rows for table, rows in found.items() if rows}, {
        name: count for name, count in sorted(counts.items()) if count
    }


def _tldr(job: Job[DataRecipe], tokenizer: Any, counts: Counts, report: Report) -> tuple[list[Pair], list[Written]]:
    recipe: DataRecipe = job.recipe
    writer = tldr.Writer(tokenizer, recipe.max_prompt_tokens, recipe.newlines, counts)
    read = tldr.comparisons if recipe.source == "tldr-comparisons" else tldr.preference
    pairs = list(read(_records(job, "dataset", report), writer, counts))
    written = (
        list(tldr.written(_records(job, "sft_dataset", report), writer, counts))
        if "sft_dataset" in job.inputs
        else []
    )
    tldr.require_one_normalisation(pairs, written)
    return pairs, written


def _others(job: Job[DataRecipe], tokenizer: Any, counts: Counts, report: Report) -> tuple[list[Pair], list[Written]]:
    recipe: DataRecipe = job.recipe
    templated = preference.Templated(tokenizer, recipe.max_prompt_tokens)
    rows = _records(job, "dataset", report)
    if recipe.source == "hh-rlhf":
        pairs = list(preference.hh_pairs(rows, templated, recipe.prompt_format == "chat", counts))
    else:
        pairs = list(preference.pairs(rows, templated, counts))
    written = (
        list(preference.written(_records(job, "sft_dataset", report), templated, counts))
        if "sft_dataset" in job.inputs
        else []
    )
    return pairs, written


def _records(job: Job[DataRecipe], name: str, report: Report) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Records of one of the job's data sets, from disk or the hub's cache."""
    recipe: DataRecipe = job.recipe
    folders = recipe.folders if name == "dataset" else []
    place = snapshots.dataset_folder(str(job.inputs[name]), job.revisions.get(name), folders)
    for number, record in enumerate(records(Path(place), folders)):
        if number % 1000 == 0:
            report(number, number + 1000)
        yield record
