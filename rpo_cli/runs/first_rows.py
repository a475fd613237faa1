"""What the rows below a stage are like, as far as the first line of a user's file says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rpo_cli.artifacts import Stage
from rpo_cli.recipes import schema
from rpo_cli.recipes.schema.data import OWN


def hold_messages(stage: Stage) -> bool:
    """Whether the rows below a stage are conversations, as far as the first line of a file says."""
    data = data_below(stage)
    row = None if data is None else first_row(data)
    told = row is not None and any(isinstance(row.get(name), list) for name in ("prompt", "chosen"))
    return told or wrapped(stage)


def wrapped(stage: Stage) -> bool:
    """Whether the rows below a stage are made conversations."""
    data = data_below(stage)
    return data is not None and getattr(data.recipe, "prompt_format", None) == "chat"


def data_below(stage: Stage) -> Stage | None:
    """The data stage whose texts a stage reads."""
    found = [table for table in stage.tables() if isinstance(table.recipe, schema.DataRecipe)]
    return found[-1] if found else None


def first_row(data: Stage) -> Mapping[str, Any] | None:
    """The first row of a user's pairs in a file, by our names for its columns; None: it is not known here.

    Known is that of a local .jsonl or .parquet file, whatever stands in later rows; not of a folder, a packed
    file, or a set of the hub.
    """
    recipe = data.recipe
    if not isinstance(recipe, schema.DataRecipe) or recipe.source not in OWN:
        return None
    file = Path(str(recipe.files.get("pairs") if recipe.source == "files" else recipe.dataset))
    try:
        row = _first_in(file, file.stat().st_mtime_ns)
    except (OSError, ValueError, RecursionError, StopIteration, NotImplementedError):
        return None  # the stage that reads it says what is wrong
    named = recipe.columns.items()
    return {**row, **{ours: row.get(theirs) for ours, theirs in named}} if isinstance(row, dict) else None


@lru_cache(maxsize=8)
def _first_in(file: Path, changed: int) -> object:
    """What stands first in a file that was `changed` then, read once for all stages of a plan."""
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        return next(pq.ParquetFile(file).iter_batches(1)).to_pylist()[0]
    if file.suffix != ".jsonl":
        return None
    with file.open(encoding="utf-8-sig") as lines:
        return json.loads(lines.readline())
