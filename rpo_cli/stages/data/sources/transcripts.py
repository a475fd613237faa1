"""Prompts of plain text that a chat template, or the roles of a transcript, wrote already."""

from __future__ import annotations

import re

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
