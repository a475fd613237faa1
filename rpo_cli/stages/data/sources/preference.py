"""Any set in TRL's preference formats: explicit or implicit prompt, plain text or conversations.

https://huggingface.co/docs/trl/dataset_formats; the conversions are TRL's own functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trl.data_utils import apply_chat_template, is_conversational, maybe_extract_prompt

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.sources.base import Counts, Pair, Records, Sets, Written, column, named
from rpo_cli.stages.data.sources.hh import dialogues, messages


@dataclass
class Templated:
    """Turns conversations into text by a tokenizer's chat template, and tells which prompts are too long."""

    tokenizer: Any
    limit: int | None

    def text(self, place: str, example: dict[str, Any]) -> dict[str, str]:
        """Every part of the example as text; plain text stays as it is.

        Raises:
            BadInput: a conversation without a tokenizer that has a chat template, or one that the template
                refuses.
        """
        if not is_conversational(example):
            for name, value in example.items():
                if not isinstance(value, str):
                    expected = "expected text or messages with role and content"
                    raise BadInput(f"{place}: {name}: {expected}, got {named(value)}")
            return example
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise BadInput(f"{place}: holds a conversation: name a tokenizer: that has a chat template")
        try:
            made = apply_chat_template(example, self.tokenizer)
        except Exception as error:  # templates raise what they like
            why = str(error).splitlines()[0]
            raise BadInput(f"{place}: the chat template refuses it: {why}") from error
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token
        # BOS and EOS are added where rows are tokenised; twice they would be another text.
        if bos and (self.tokenizer("")["input_ids"] or [None])[0] == self.tokenizer.bos_token_id:
            made["prompt"] = made["prompt"].removeprefix(bos)
        for name in set(made) - {"prompt"}:
            if eos and made[name].rstrip().endswith(eos):
                made[name] = made[name].rstrip().removesuffix(eos)
        return {name: str(value) for name, value in made.items()}

    def fits(self, prompt: str) -> bool:
        """Whether a prompt has at most the allowed number of tokens."""
        return self.limit is None or len(self.tokenizer(prompt)["input_ids"]) <= self.limit


def read(sets: Sets) -> tuple[list[Pair], list[Written]]:
    """A set in TRL's preference formats."""
    templated = Templated(sets.tokenizer, sets.recipe.max_prompt_tokens)
    found = list(pairs(sets.pairs, templated, sets.counts))
    return found, list(written(sets.written, templated, sets.counts))


def read_dialogues(sets: Sets) -> tuple[list[Pair], list[Written]]:
    """Anthropic's hh-rlhf."""
    templated = Templated(sets.tokenizer, sets.recipe.max_prompt_tokens)
    found = list(hh_pairs(sets.pairs, templated, sets.recipe.prompt_format == "chat", sets.counts))
    return found, list(written(sets.written, templated, sets.counts))


def pairs(records: Records, templated: Templated, counts: Counts) -> Iterator[Pair]:
    """Rows with chosen and rejected, and a prompt or what both have in common."""
    for place, split, row in records:
        example = {name: row[name] for name in ("prompt", "chosen", "rejected") if row.get(name) is not None}
        for name in ("chosen", "rejected"):
            column(place, example, name)
        one, other = example["chosen"], example["rejected"]
        if one == other:
            counts["pairs/ties"] += 1
            continue
        if "prompt" not in example and (one[: len(other)] == other or other[: len(one)] == one):
            # One is the beginning of the other: nothing tells where the prompt ends.
            counts["pairs/no_boundary"] += 1
            continue
        example = maybe_extract_prompt(example)
        if not example["prompt"]:
            counts["pairs/no_prompt"] += 1
            continue
        made = templated.text(place, example)
        posts = (post_name(made["prompt"]),)
        pair = Pair(split or "train", posts, made["prompt"], made["chosen"], made["rejected"])
        yield from _fitting(pair, templated, counts)


def hh_pairs(records: Records, templated: Templated, chat: bool, counts: Counts) -> Iterator[Pair]:
    """Anthropic's dialogues, as published or through the chat template."""
    for split, prompt, chosen, rejected in dialogues(records, counts):
        made = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if chat and chosen and rejected:
            sides = ("chosen", "rejected")
            answers = {name: [{"role": "assistant", "content": made[name].strip()}] for name in sides}
            made = templated.text("hh-rlhf", {"prompt": messages(prompt), **answers})
        pair = Pair(split, (post_name(prompt),), made["prompt"], made["chosen"], made["rejected"])
        yield from _fitting(pair, templated, counts)


def written(records: Records, templated: Templated, counts: Counts) -> Iterator[Written]:
    """Rows with prompt and completion, or with messages that end in an answer."""
    for place, split, row in records:
        if row.get("messages") is not None:
            turns = row["messages"]
            if not turns or turns[-1]["role"] != "assistant" or len(turns) < 2:
                counts["sft/no_answer"] += 1
                continue
            example = {"prompt": turns[:-1], "completion": turns[-1:]}
        else:
            example = {name: column(place, row, name) for name in ("prompt", "completion")}
        made = templated.text(place, example)
        if not made["completion"].strip():
            counts["sft/empty"] += 1
        elif templated.fits(made["prompt"]):
            yield Written(split or "train", (post_name(made["prompt"]),), made["prompt"], made["completion"])
        else:
            counts["sft/long_prompt"] += 1


def _fitting(pair: Pair, templated: Templated, counts: Counts) -> Iterator[Pair]:
    if templated.fits(pair.prompt):
        yield pair
    else:
        counts["pairs/long_prompt"] += 1


def post_name(prompt: str) -> str:
    """A prompt by content, whatever its white space."""
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()[:16]
