"""Anthropic's hh-rlhf: two whole dialogues that differ in their last answer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.sources.base import Records, text

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def dialogues(records: Records, ledger: Ledger) -> Iterator[tuple[str, str, str, str]]:
    """(split, prompt, chosen, rejected): the prompt ends in `\\n\\nAssistant:`, responses begin with a space.

    Left out and counted: dialogues without an answer of the assistant, and those that part before the last
    answer, of which the rest of the dialogue would become the response.
    """
    for place, split, row in records:
        chosen, rejected = text(place, row, "chosen"), text(place, row, "rejected")
        # Cut back to the last turn of the assistant that both begin.
        end = os.path.commonprefix([chosen, rejected]).rfind(ASSISTANT)  # noqa: RUF071 - of texts
        if end < 0 or not chosen.startswith(HUMAN):
            ledger.leave_out("pairs/no_dialogue")
            continue
        end += len(ASSISTANT)
        answers = [dialogue[end:] for dialogue in (chosen, rejected)]
        if any(TURN.search(answer) for answer in answers):
            ledger.leave_out("pairs/part_early")
            continue
        first, second = (f" {answer.strip()}" if answer.strip() else "" for answer in answers)
        yield split or "train", chosen[:end], first, second


def turns_of(prompt: str, answers: Iterable[object] = ()) -> list[dict[str, str]] | None:
    """The turns of a prompt that can be nothing but a dialogue; None: anything else.

    It begins with `Human:`, Human and Assistant alternate, each says something, and it ends in a Human's
    words or `\\n\\nAssistant:`. Nobody else speaks in the answers to it.
    """
    whole = f"\n\n{prompt}" if prompt.startswith(HUMAN.strip()) else prompt
    if not whole.startswith(HUMAN) or ASSISTANT not in whole:
        return None
    turns = messages(whole.rstrip())
    speakers = [ROLES[("Human", "Assistant")[number % 2]] for number in range(len(turns))]
    alternate = len(turns) % 2 == 1 and [turn["role"] for turn in turns] == speakers
    alone = not any(isinstance(text, str) and TURN.search(text) for text in answers)
    return turns if alternate and alone and all(turn["content"] for turn in turns) else None


def messages(prompt: str) -> list[dict[str, str]]:
    """The turns of a prompt that ends in `\\n\\nAssistant:`, as chat templates want them."""
    parts = TURN.split(prompt.removesuffix(ASSISTANT))
    return [
        {"role": ROLES[role], "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
