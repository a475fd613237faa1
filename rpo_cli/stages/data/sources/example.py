"""What a row holds: which of its columns are the prompt and the answers, all of them text or all messages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.stages.data.ledger import Ledger, visible
from rpo_cli.stages.data.rows import PAIR
from rpo_cli.stages.data.sources.hh import dialogues
from rpo_cli.stages.data.sources.implicit import cut, prompt_like
from rpo_cli.stages.data.sources.templated import Templated
from rpo_cli.stages.data.sources.told import READ, likely
from rpo_cli.stages.data.sources.transcripts import are_dialogues, is_transcript, turns_of
from rpo_cli.stages.data.sources.turns import Message, Part, PromptElsewhere, answer, is_blank, part

CONVERSATIONS = ("messages", "conversations", "conversation")
Example = dict[str, Part]


def prompt_in(place: str, row: Row) -> Part | None:
    """The prompt that a row has in a column of its own: ShareGPT's conversation may be it, with `system`."""
    if row.get("prompt") is not None:
        return None if row["prompt"] == [] else part(place, "prompt", row["prompt"])
    for name in CONVERSATIONS:
        if isinstance(row.get(name), list) and row[name]:
            turns = part(place, name, row[name])
            if isinstance(turns, list) and turns[-1]["role"] != "assistant":
                return [*system_in(row, turns), *turns]
    return None


def system_in(row: Row, turns: list[Message]) -> list[Message]:
    """What stands beside a conversation as its system prompt."""
    text = row.get("system")
    if not isinstance(text, str) or not text.strip() or turns[0]["role"] == "system":
        return []
    return [{"role": "system", "content": text}]


def are_whole(chosen: Part, rejected: Part) -> bool:
    """Whether both are whole conversations, whatever else is called a prompt."""
    return all(
        isinstance(side, list) and side[0]["role"] in ("user", "system") for side in (chosen, rejected)
    )


def with_context(place: str, row: Row, prompt: Part | None, sides: Sequence[Part]) -> list[list[Message]]:
    """Whole conversations with what stands beside them: messages that they go on from, and a system prompt.

    A prompt of messages that all begin with stands there already; else it is put before each, as TRL does.

    Raises:
        PromptElsewhere: a prompt of text that is no turn of all of them.
    """
    told = [side for side in sides if isinstance(side, list)]
    if isinstance(prompt, list):
        both = [(side, [*system_in(row, side), *side]) for side in told]
        if not all(prompt in (side[: len(prompt)], led[: len(prompt)]) for side, led in both):
            told = [[*prompt, *side] for side in told]
    elif prompt is not None and visible(prompt):
        words = prompt.split()
        for side in told:
            if not any((turn["content"] or "").split() == words for turn in side):
                cure = "leave the column out, or put its text into the messages"
                why = f"its text is no turn of the conversations beside it; {cure}"
                raise PromptElsewhere(f"{place}: prompt: {why}")
    return [[*system_in(row, side), *side] for side in told]


def whole_pair(
    place: str, row: Row, prompt: Part | None, sides: Sequence[Part], kind: str, ledger: Ledger
) -> Example | None:
    """Two whole conversations as what both begin with and the rest of each; None: counted as left out."""
    if sides[0] == sides[1]:
        ledger.leave_out(f"{kind}/ties")
        return None
    try:
        chosen, rejected = with_context(place, row, prompt, sides)
    except PromptElsewhere:
        ledger.leave_out(f"{kind}/prompt_elsewhere")
        return None
    return split_off(place, row, chosen, rejected, kind, ledger)


def split_off(
    place: str, row: Row, chosen: Part, rejected: Part, kind: str, ledger: Ledger
) -> Example | None:
    """The prompt that both texts or conversations begin with, and the rest; None: there is none, counted."""
    sides: Any = list(aligned("", {"chosen": chosen, "rejected": rejected}).values())[1:]
    texts = isinstance(sides[0], str)
    shared: Any = os.path.commonprefix(sides) if texts else _common(*sides)  # noqa: RUF071 - of texts
    if are_dialogues(*sides):
        found = next(dialogues([(place, None, row)], ledger), None)
        return None if found is None else dict(zip(("prompt", *PAIR), found[1:], strict=True))
    end, moved = cut(*sides) if texts else (len(shared), False)
    asked = not texts and any(turn["role"] == "user" for turn in shared)
    if not asked and (names := prompt_like(row, shared[:end] if texts else "", READ)):
        also = "(or, where chosen and rejected begin with the prompt, leave that column out)"
        raise BadInput(f"{place}: {likely(names)} {also}")
    if len(shared) == min(map(len, sides)):
        # One is the beginning of the other: nothing tells where the prompt ends.
        ledger.leave_out(f"{kind}/no_boundary")
        return None
    if texts:
        ledger.counts["pairs/implicit_prompts"] += 1
        ledger.counts["pairs/cut_back"] += moved
    if end == 0:
        ledger.leave_out(f"{kind}/no_prompt")
        return None
    return {"prompt": sides[0][:end], "chosen": sides[0][end:], "rejected": sides[1][end:]}


def _common(one: list[Message], other: list[Message]) -> list[Message]:
    """The messages that both begin with."""
    return [turn for turn, _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False))]


def aligned(prompt: Part, answers: Mapping[str, Part]) -> Example:
    """All parts plain text, or all messages: text beside messages is the user's or the assistant's."""
    if isinstance(prompt, str) and all(isinstance(text, str) for text in answers.values()):
        return {"prompt": prompt, **answers}
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    turns = {name: answer(text) if isinstance(text, str) else text for name, text in answers.items()}
    return {"prompt": asked, **turns}


def in_messages(
    templated: Templated, example: Example, row: Row, kind: str, ledger: Ledger, *, own: bool = True
) -> Example | None:
    """The parts in one form; plain text as messages, to the byte, where the template writes it too.

    A prompt is the user's, behind the row's `system`; a dialogue of hh-rlhf (`turns_of`) has its own turns,
    without the white space around them. own: the prompt was a column of its own; white space at which it was
    cut off is nobody's. None: a written conversation, which would be written into another; it is counted.
    """
    answers = {name: text for name, text in example.items() if name != "prompt"}
    asked = example["prompt"]
    if not isinstance(asked, str):
        return aligned(asked, answers)
    turns = turns_of(asked, answers.values())
    as_it_stands = not templated.wraps
    if as_it_stands:
        if turns is not None:
            ledger.counts[f"{kind}/as_dialogues"] += 1
        return aligned(asked, answers)
    if turns is None and is_transcript(asked):
        ledger.leave_out(f"{kind}/transcript")
        return None
    if turns is not None or not own:
        asked, answers = asked.strip(), {name: _stripped(text) for name, text in answers.items()}
    ledger.counts[f"{kind}/dialogues"] += turns is not None
    ledger.counts[f"{kind}/begin_with_space"] += bool(answers) and all(
        isinstance(text, str) and text[:1].isspace() for text in answers.values()
    )
    turns = turns or [{"role": "user", "content": asked}]
    return aligned([*system_in(row, turns), *turns] if visible(asked) else turns, answers)


def _stripped(text: Part) -> Part:
    return text.strip() if isinstance(text, str) else text


def is_sound(example: Example, kind: str, ledger: Ledger) -> bool:
    """Whether a conversation has a prompt and nothing but answers after it; one that has not is counted."""
    prompt, *answers = example.values()
    if isinstance(prompt, str):  # `assemble.clean` looks at texts
        return True
    why = None
    if is_blank(prompt):
        why = "no_prompt"
    elif any(turn["role"] == "user" for turns in answers for turn in turns if isinstance(turn, dict)):
        why = "part_early"
    elif any(isinstance(turns[0], dict) and turns[0]["role"] != "assistant" for turns in answers):
        why = "no_answer"
    elif any(map(is_blank, answers)):
        why = "empty"
    if why is not None:
        ledger.leave_out(f"{kind}/{why}")
    return why is None
