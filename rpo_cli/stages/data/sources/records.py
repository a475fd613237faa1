"""Records of a data set in files: Parquet, JSON lines, either compressed, in the layouts that the hub has."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rpo_cli.errors import BadInput

SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
# data/train-00000-of-00007-3d41a76ca5845f49.parquet
SHARD = re.compile(r"(?P<split>[\w.]+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
VALIDATION = ("validation", "valid", "val", "eval", "dev")
SPLITS = {"train": "train", "test": "test", **dict.fromkeys(VALIDATION, "validation")}


def data_files(source: Path, folders: Sequence[str] = ()) -> list[Path]:
    """The files with records of a directory (in these folders of it), or the one file.

    Raises:
        BadInput: none there.
    """
    if source.is_file():
        return [source]

    def bookkeeping(file: Path) -> bool:
        """Whether a file is a repository's own: dataset_infos.json, .cache/..."""
        hidden = any(part.startswith(".") for part in file.relative_to(source).parts)
        return hidden or file.name == "dataset_infos.json"

    places = [source / folder for folder in folders] or [source]
    files = [file for place in places for file in sorted(place.rglob("*")) if file.is_file()]
    found = [file for file in files if file.name.endswith(SUFFIXES) and not bookkeeping(file)]
    if not found:
        raise BadInput(f"{', '.join(map(str, places))}: holds no Parquet or JSON lines files")
    return found


def split_of(file: Path) -> str | None:
    """The split that a file's name tells, if any: `train-00000-of-00001`, `train/0000`, `x-train`, `test`."""
    stem = file.name.split(".")[0]
    if shard := SHARD.match(stem):
        return shard["split"]
    if re.fullmatch(r"(part-)?\d+", stem):
        return file.parent.name
    return next((SPLITS[part] for part in (stem, re.split(r"[-_]", stem)[-1]) if part in SPLITS), None)


def records(source: Path, folders: Sequence[str] = ()) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """(place, split as published or None, record) of every record, files in the order of their names.

    Raises:
        BadInput: a file that cannot be read, with the line or row.
    """
    for file in data_files(source, folders):
        split = split_of(file)
        for place, row in _parquet(file) if file.suffix == ".parquet" else _json(file):
            yield place, SPLITS.get(split or "", split), row


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        # Batches: the pre-tokenised columns of some derivatives are many times their text.
        opened = pq.ParquetFile(file)
        others = ("_token", "_label", "_token_len")
        columns = [name for name in opened.schema_arrow.names if not name.endswith(others)]
        rows = (row for batch in opened.iter_batches(columns=columns) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{file}: row {number}", row
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: not a Parquet file: {error}") from error


def _json(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    open_file = gzip.open if file.suffix == ".gz" else open
    number = 0
    try:
        with open_file(file, "rt", encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        kind = type(row).__name__
                        raise BadInput(f"{file}:{number}: expected an object with columns, got {kind}")
                    yield f"{file}:{number}", row
    except json.JSONDecodeError as error:
        raise BadInput(f"{file}:{number}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}:{number + 1}: not UTF-8: {error.reason}") from error
    except (OSError, EOFError) as error:
        raise BadInput(f"{file}: cannot be read: {error}") from error
