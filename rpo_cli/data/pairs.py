"""The one row schema, and its tokens.

A preference row is {id, prompt, chosen, rejected}; a completion row {prompt, completion}. Responses are tokenised apart
from their prompt, so that the boundary is where generation has it, and end in EOS. Nothing is ever cut: rows longer than
max_length are an error or are dropped and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from rpo_cli.errors import BadInput

Row = dict[str, Any]
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


def read_rows(file: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    rows: list[Row] = pq.read_table(file).to_pylist()
    return rows


@dataclass(frozen=True)
class TokenRow:
    """One row's tokens: the prompt, and responses that end in EOS."""

    id: str
    prompt_ids: list[int]
    responses: list[list[int]]


def tokenise(
    rows: Sequence[Row],
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    overlong: Literal["error", "drop"],
    what: str,
) -> list[TokenRow]:
    """Tokens of every row: prompt, and each response column with EOS.

    Raises:
        BadInput: a row longer than max_length under overlong = error, or nothing is left.
    """
    texts = [row["prompt"] for row in rows]
    prompts = tokenizer(texts)["input_ids"] if texts else []
    responses = [tokenizer([row[c] for row in rows], add_special_tokens=False)["input_ids"] if texts else [] for c in columns]
    eos = tokenizer.eos_token_id
    result = []
    for index, row in enumerate(rows):
        answers = [[*ids[index], eos] for ids in responses]
        longest = len(prompts[index]) + max((len(a) for a in answers), default=0)
        if longest > max_length:
            if overlong == "error":
                raise BadInput(
                    f"{what}: row {row.get('id', index)} has {longest} tokens ({len(prompts[index])} of prompt), "
                    f"max_length is {max_length}; raise max_length, shorten the text, or set overlong: drop"
                )
            continue
        result.append(TokenRow(str(row.get("id", index)), list(prompts[index]), answers))
    if not result:
        raise BadInput(f"{what}: no rows" + (f" of at most {max_length} tokens" if rows else ""))
    return result
