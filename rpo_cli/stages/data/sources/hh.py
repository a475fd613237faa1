"""Anthropic's hh-rlhf: two whole dialogues that differ in their last answer."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.sources.base import Records, text
from rpo_cli.stages.data.sources.transcripts import ASSISTANT, HUMAN, TURN


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
