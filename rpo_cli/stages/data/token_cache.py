"""Tokens of stored texts, made once in a workspace for each tokenizer."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from rpo_cli.artifacts import hash_of, hash_path, publish

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = ".tokens"


@dataclass(frozen=True)
class TokenCache:
    """A workspace's tokens: a Parquet file for each column of texts, named by the content of both."""

    root: Path

    def reader(self, file: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[np.ndarray]]:
        """What gives the tokens of a column of a Parquet file, int32, a list for each row."""
        from rpo_cli.models import fingerprint, views

        texts_and_tokenizer = {"file": hash_path(file), "tokenizer": fingerprint(tokenizer), "encode": 2}

        @cache
        def read(column: str) -> list[np.ndarray]:
            name = hash_of({**texts_and_tokenizer, "column": column})[:32]
            return views(self._column(name, file, column, tokenizer))

        return read

    def _column(
        self, name: str, file: Path, column: str, tokenizer: PreTrainedTokenizerBase
    ) -> pa.ChunkedArray:
        from rpo_cli.models import encode

        kept, locks = self.root / FOLDER / f"{name}.parquet", self.root / ".locks"
        if (found := _read(kept)) is None:
            locks.mkdir(exist_ok=True)
            with FileLock(locks / f"tokens-{name}.lock"):
                if (found := _read(kept)) is None:  # nor has another process made it meanwhile
                    found = encode(
                        column, pq.read_table(file, columns=[column])[column].to_pylist(), tokenizer
                    )
                    content = io.BytesIO()
                    table = pa.table({f"{column}_ids": found})
                    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
                    publish(kept, content.getvalue())
        return found


def _read(kept: Path) -> pa.ChunkedArray | None:
    """The one column of a file; None where there is none, or not as it was written."""
    try:
        return pq.read_table(kept, memory_map=True, page_checksum_verification=True)[0]
    except (OSError, pa.ArrowException):
        return None
