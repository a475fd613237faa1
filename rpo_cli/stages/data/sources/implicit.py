"""Where the prompt ends in plain text that has it in both `chosen` and `rejected`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Set

from rpo_cli.stages.data.sources.base import is_conversation

# What a template or a habit writes before an answer.
TURN = re.compile(
    r"\n\nAssistant:|<\|im_start\|>assistant\n|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n"
    r"|<start_of_turn>model\n|<\|assistant\|>\n?|\[/INST\]|\bTL;DR:"
    r"|(?:^|(?<=\s))(?:### ?)?(?:Answer|Response|Assistant|Output):\n?(?=[^\n?]*\Z)"
    r"|(?:答|回答|答案|回复|助手|答え|답변|답)[:：]\n?(?=[^\n?？]*\Z)"
)
ENDS = re.compile(r"(?:\s|(?<!\d)[:?!>\]]|[：？！。])\Z")
COLUMN = re.compile(
    r"(?:prompt|question|instruction|query|input|context|message|conversation|dialog|history|post|problem"
    r"|request)(?!.*(?:ids?|hash|length|tokens?|type|source|model|score)$)",
    re.IGNORECASE,
)


def cut(chosen: str, rejected: str) -> tuple[int, bool]:
    """How long the prompt of two different texts is, and whether it is shorter than what they share.

    It ends at the last turn of the assistant that both begin; else at the last white space (or sentence, in
    scripts that write none), unless both part where a word or a line ends. One space before a response is the
    response's own, as in TRL.
    """
    shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - of texts
    end = len(shared)
    if turns := list(TURN.finditer(shared)):
        end = turns[-1].end()
    elif not ENDS.search(shared) and not all(text[end : end + 1].isspace() for text in (chosen, rejected)):
        end = max((found.end() for found in re.finditer(r"[\s：？！。]", shared)), default=0)
    end, longest = (at - (at > 0 and chosen[at - 1] == " ") for at in (end, len(shared)))
    return end, end < longest


def prompt_like(row: Mapping[str, object], shared: str, others: Set[str]) -> list[str]:
    """Columns of a row, besides these others, that look like a prompt and that its texts do not begin with.

    They hold messages, or are called so, or hold several words where what the texts share ends no turn.
    """
    asked = ENDS.search(shared.rstrip(" ")) or TURN.search(shared)

    def looks(name: str, value: object) -> bool:
        if not isinstance(value, str):
            return is_conversation(value)
        words = value.strip()
        if not words or words in shared:
            return False
        return bool(COLUMN.search(name)) or (not asked and (" " in words or words.endswith("?")))

    return sorted(name for name, value in row.items() if name not in others and looks(name, value))
