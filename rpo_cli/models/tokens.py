"""Tokens of rows: responses with EOS, apart from their prompt: the boundary is where generation has it.

Nothing is ever cut: rows longer than max_length are an error or are dropped and counted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from rpo_cli.artifacts import hash_of, hash_path
from rpo_cli.errors import BadInput

Row = dict[str, Any]
Tokens = Sequence[int] | np.ndarray
LISTS = pa.large_list(pa.int32())
AT_A_TIME = 1000  # texts: a tokenizer's own answer is ten times as large as the tokens in it


@dataclass(frozen=True)
class TokenRow:
    """One row's tokens: the prompt, and responses that end in EOS; views of a table's columns, if any."""

    id: str
    prompt_ids: Tokens
    responses: Sequence[Tokens]


def encode(column: str, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> pa.ChunkedArray:
    """Tokens of a column's texts, int32: `prompt` as the tokenizer begins texts, others with EOS."""
    prompt, end = column == "prompt", [] if column == "prompt" else [tokenizer.eos_token_id]
    chunks = []
    for start in range(0, len(texts), AT_A_TIME):
        some = list(texts[start : start + AT_A_TIME])
        lists = tokenizer(some, add_special_tokens=prompt, return_attention_mask=False)["input_ids"]
        chunks.append(pa.array([[*ids, *end] for ids in lists], type=LISTS))
    return pa.chunked_array(chunks, type=LISTS)


def views(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Each list of a column as a view of its numbers, of which nothing is copied."""
    lists = column.combine_chunks()
    numbers, ends = lists.values.to_numpy(), lists.offsets.to_numpy()
    return [numbers[start:end] for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]


def fitting(
    rows: Sequence[TokenRow], max_length: int, overlong: Literal["error", "drop"], what: str
) -> list[TokenRow]:
    """The rows of at most max_length tokens, prompt and longest response together.

    Raises:
        BadInput: a row longer than max_length under overlong = error, or nothing is left.
    """
    result = []
    for row in rows:
        longest = len(row.prompt_ids) + max(map(len, row.responses), default=0)
        if longest <= max_length:
            result.append(row)
        elif overlong == "error":
            raise BadInput(
                f"{what}: row {row.id} has {longest} tokens ({len(row.prompt_ids)} of prompt), max_length is "
                f"{max_length}; raise max_length, shorten the text, or set overlong: drop"
            )
    if not result:
        raise BadInput(f"{what}: no rows" + (f" of at most {max_length} tokens" if rows else ""))
    return result


def tokenise(
    rows: Sequence[Row],
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    overlong: Literal["error", "drop"],
    what: str,
) -> list[TokenRow]:
    """Tokens of rows that are in no workspace, as plain lists: prompt, response columns; see `fitting`."""
    prompts, *responses = (
        encode(column, [row[column] for row in rows], tokenizer).to_pylist()
        for column in ("prompt", *columns)
    )
    found = [
        TokenRow(str(row.get("id", index)), prompts[index], [ids[index] for ids in responses])
        for index, row in enumerate(rows)
    ]
    return fitting(found, max_length, overlong, what)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides a text's tokens: class, vocabulary, rules, special tokens, versions."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content = {name: value for name, value in content.items() if name not in ("padding", "truncation")}
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            content = hash_path(Path(folder))
    return hash_of(
        {
            "class": type(tokenizer).__qualname__,
            "content": content,
            "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "split_special_tokens": getattr(tokenizer, "split_special_tokens", False),
            "versions": [tokenizers.__version__, transformers.__version__],
        }
    )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token's id; `load_tokenizer` made sure there is one."""
    return int(tokenizer.pad_token_id)
