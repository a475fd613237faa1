"""Tokens of rows: responses apart from their prompt, so that the boundary is where generation has it, each with EOS.

Nothing is ever cut: rows longer than max_length are an error or are dropped and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from rpo_cli.errors import BadInput

Row = dict[str, Any]


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
    responses = [
        tokenizer([row[c] for row in rows], add_special_tokens=False)["input_ids"] if texts else []
        for c in columns
    ]
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


def pad_id(tokenizer: Any) -> int:
    """The padding token's id; `load_tokenizer` made sure there is one."""
    return int(tokenizer.pad_token_id)
