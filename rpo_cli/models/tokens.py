"""Tokens of rows: responses with EOS, apart from their prompt: the boundary is where generation has it.

Nothing is ever cut: rows longer than max_length are an error or are dropped and counted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Sequence
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
SHOWN = 3  # tokens and rows that a warning names
AT_A_TIME = 1000  # texts: a tokenizer's own answer is ten times as large as the tokens in it


@dataclass(frozen=True)
class TokenRow:
    """One row's tokens: the prompt, and responses that end in EOS; views of a table's columns, if any."""

    id: str
    prompt_ids: Tokens
    responses: Sequence[Tokens]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longest response."""
        return len(self.prompt_ids) + max(map(len, self.responses), default=0)


def added(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before every text and after it: BOS; EOS, where it has add_eos_token."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    starts = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    start = next(starts, 0) if bare else int(whole[:1] == [tokenizer.bos_token_id])
    return whole[:start], whole[start + len(bare) :]


def without_end(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A response without the EOS that is written at its end, and the blanks after it."""
    end = str(tokenizer.eos_token)
    while (shorter := text.rstrip()).endswith(end):
        text = shorter.removesuffix(end)
    return text


def encode(column: str, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> pa.ChunkedArray:
    """Tokens of a column's texts, int32: `prompt` as the tokenizer begins texts, others with EOS.

    Each once: what of them a text has already, from a chat template, counts. A prompt goes on, so it ends in
    no token of the tokenizer's own.
    """
    before, after = added(tokenizer)
    chunks = []

    def prompt(ids: list[int]) -> list[int]:
        ids = ids[: len(ids) - len(after)]
        while before and ids[len(before) : 2 * len(before)] == before:
            ids = ids[len(before) :]
        return ids

    for start in range(0, len(texts), AT_A_TIME):
        some = list(texts[start : start + AT_A_TIME])
        if column == "prompt":
            lists = [prompt(ids) for ids in tokenizer(some, return_attention_mask=False)["input_ids"]]
        else:
            bare = [without_end(text, tokenizer) for text in some]
            found = tokenizer(bare, add_special_tokens=False, return_attention_mask=False)["input_ids"]
            lists = [[*ids, tokenizer.eos_token_id] for ids in found]
        chunks.append(pa.array(lists, type=LISTS))
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
        if row.longest <= max_length:
            result.append(row)
        elif overlong == "error":
            raise BadInput(
                f"{what}: row {row.id} has {row.longest} tokens ({len(row.prompt_ids)} of prompt), "
                f"max_length is {max_length}; raise max_length, shorten the text, or set overlong: drop"
            )
    if not result:
        raise BadInput(
            f"{what}: no rows" + (f" of at most {max_length} tokens; raise max_length" if rows else "")
        )
    return result


def odd_tokens(
    rows: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase, templated: Collection[str] = ()
) -> list[str]:
    """What to know of control tokens in the text of these rows, of a tokenizer that ends it, of ties: lines.

    In a response that is each but its last EOS. In a prompt, where a chat template marks turns with such
    tokens, it is padding, a second BOS, and an EOS at the end. templated: rows in whose responses a chat
    template wrote them; those that a person typed there were told when the messages were read.
    """
    before, after = added(tokenizer)
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    control = ({*special, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}) | {bos, eos, pad}
    prompts = [(row.id, row.prompt_ids[len(before) :]) for row in rows]
    responses = [(row.id, ids[:-1]) for row in rows if row.id not in templated for ids in row.responses]
    places = (
        ("inside a response", responses, control),
        ("in a prompt", prompts, {pad, *({bos} & {*before})} - {eos}),
        ("at the end of a prompt", [(name, ids[-1:]) for name, ids in prompts], {eos}),
    )
    lines = [_said(place, _holders(texts, wanted), rows, tokenizer) for place, texts, wanted in places]
    if after:
        ends = "".join(tokenizer.convert_ids_to_tokens(after))
        lines.append(f"the tokenizer puts {ends} after every text (add_eos_token); prompts are read without")
    same = [
        row.id
        for row in rows
        if len(row.responses) == 2 and np.array_equal(row.responses[0], row.responses[1])
    ]
    if same:
        names = ", ".join(same[:SHOWN])
        lines.append(f"{len(same)} of {len(rows)} rows have the same tokens in both responses (row {names})")
    return [line for line in lines if line]


def _holders(texts: Sequence[tuple[str, Tokens]], wanted: set[int | None]) -> dict[int, set[str]]:
    """Token -> names of the rows in whose texts it is; of the tokens wanted."""
    found: dict[int, set[str]] = {}
    ids = np.array([token for token in wanted if token is not None])
    for start in range(0, len(texts), AT_A_TIME):
        some = texts[start : start + AT_A_TIME]
        flat = np.concatenate([np.asarray(tokens, dtype=np.int64) for _, tokens in some])
        hits = np.flatnonzero(np.isin(flat, ids))
        places = np.searchsorted(np.cumsum([len(tokens) for _, tokens in some]), hits, side="right")
        for token, place in zip(flat[hits].tolist(), places.tolist(), strict=True):
            found.setdefault(token, set()).add(some[place][0])
    return found


def _said(
    place: str, found: dict[int, set[str]], rows: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Which control tokens so many rows have there, and what it means; nothing where there are none."""
    if not found:
        return ""
    roles = {tokenizer.pad_token_id: " (padding)", tokenizer.eos_token_id: " (EOS)"}
    listed = [
        f"{tokenizer.convert_ids_to_tokens(token)}{roles.get(token, '')} in {len(names)}"
        for token, names in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
    tokens = ", ".join(listed[:SHOWN])
    holders = {name for names in found.values() for name in names}
    names = [row.id for row in rows if row.id in holders]
    means = "; a policy ends its answer there" if "(EOS)" in tokens else ""
    written = tokenizer.chat_template or ""
    ours = all(tokenizer.convert_ids_to_tokens(token) in str(written) for token in found)
    cure = "take them out of the text" + (", unless the chat template wrote them" if ours else "")
    if "(padding)" in tokens:
        cure += ", or set pad_token: to one that no text holds, such as '[PAD]'"
    head = f"{len(names)} of {len(rows)} rows have control tokens {place}: {tokens}"
    return f"{head} (row {', '.join(names[:SHOWN])}){means}; {cure}"


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
