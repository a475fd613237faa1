"""Plain text that is a conversation already: a template's, a transcript's, a dialogue of hh-rlhf."""

from __future__ import annotations

import re
from collections.abc import Iterable

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
BEGINS = re.compile(
    r"\s*(?:(?:<s>|<bos>)\s*)?"
    r"(?:<\|\w+\|>|<｜[^｜\s]+｜>|<start_of_turn>|\[INST\]|<<SYS>>|Human:|### (?:Human|User|Instruction):)"
)
ENDS = re.compile(
    r"(?:<\|\w+\|>(?:assistant)?|<｜[^｜\s]+｜>|<start_of_turn>model|\[/INST\]|\bAssistant:|\bASSISTANT:"
    r"|### (?:Assistant|Response):)\s*\Z"
)


def is_transcript(prompt: str) -> bool:
    """Whether a prompt begins as a written conversation does, or ends where an assistant is to go on."""
    return bool(BEGINS.match(prompt) or ENDS.search(prompt))


def are_dialogues(chosen: object, rejected: object) -> bool:
    """Whether both are whole dialogues as hh-rlhf writes them."""
    sides = (chosen, rejected)
    return all(isinstance(text, str) and text.startswith(HUMAN) and ASSISTANT in text for text in sides)


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
