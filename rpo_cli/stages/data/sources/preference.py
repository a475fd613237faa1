"""Any set in TRL's preference formats: explicit or implicit prompt, plain text or conversations.

https://huggingface.co/docs/trl/dataset_formats; messages may be ShareGPT's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.recipes.schema import DataRecipe
from rpo_cli.stages.data.ledger import Ledger, visible
from rpo_cli.stages.data.rows import PAIR, row_id
from rpo_cli.stages.data.sources.base import Pair, Records, Sets, Written, beside, lacking
from rpo_cli.stages.data.sources.hh import dialogues
from rpo_cli.stages.data.sources.implicit import cut, prompt_like
from rpo_cli.stages.data.sources.ranked import paired
from rpo_cli.stages.data.sources.templated import Templated, given_to_template
from rpo_cli.stages.data.sources.told import (
    READ,
    beside_prompt,
    cure,
    likely,
    no_prompt,
    notes,
    read_as_dialogues,
)
from rpo_cli.stages.data.sources.transcripts import are_dialogues, is_transcript, messages, turns_of
from rpo_cli.stages.data.sources.turns import (
    AS_TEXT,
    Message,
    Part,
    PromptElsewhere,
    TemplateRefuses,
    answer,
    as_json,
    goes_on,
    is_blank,
    is_told_as_text,
    part,
)

CONVERSATIONS = ("messages", "conversations", "conversation")
CONTEXT = ("system", "context", "input", "instruction")  # columns that others read as parts of a prompt
# What published sets call the scores of chosen and rejected.
SCORED = [(f"{one}_chosen", f"{one}_rejected") for one in ("score", "rating")]
SCORED += [(f"chosen_{one}", f"rejected_{one}") for one in ("score", "rating")]
Example = dict[str, Part]


def read(sets: Sets) -> tuple[Iterator[Pair], Iterator[Written]]:
    """A set in TRL's preference formats."""
    chat = sets.recipe.prompt_format == "chat"
    if chat and sets.tokenizer.chat_template is None:
        whose = sets.recipe.tokenizer
        raise BadInput(f"tokenizer: {whose} has no chat template, which prompt_format: chat needs")
    templated = Templated(sets.tokenizer, sets.recipe.max_prompt_tokens, chat)
    found = pairs(sets.pairs, templated, sets.ledger, sets.recipe)
    return found, written(sets.written, templated, sets.ledger)


def read_dialogues(sets: Sets) -> tuple[Iterator[Pair], Iterator[Written]]:
    """Anthropic's hh-rlhf."""
    templated = Templated(sets.tokenizer, sets.recipe.max_prompt_tokens)
    found = hh_pairs(sets.pairs, templated, sets.recipe.prompt_format == "chat", sets.ledger)
    return found, written(sets.written, templated, sets.ledger)


def pairs(
    records: Records, templated: Templated, ledger: Ledger, recipe: DataRecipe | None = None
) -> Iterator[Pair]:
    """Rows with chosen and rejected, and a prompt or what both begin with, or with responses and numbers.

    recipe: what else is kept.
    """
    unread, seen = Counter[str](), Counter[str]()
    columns: dict[str, str] = (
        {} if recipe is None else {str(ours): theirs for ours, theirs in recipe.columns.items()}
    )
    for place, split, row, ranked in paired(records, ledger, columns):
        chosen, rejected = (_given(place, row, name) for name in PAIR)
        if is_told_as_text(chosen) and is_told_as_text(rejected):
            raise BadInput(f"{place}: chosen, rejected: {AS_TEXT}")
        if chosen == rejected:
            ledger.leave_out("pairs/ties")
            continue
        prompt = prompt_in(place, row)
        example: Example | None
        if are_whole(chosen, rejected):
            example = whole_pair(place, row, prompt, (chosen, rejected), "pairs", ledger)
        elif prompt is None:
            if ranked and not are_dialogues(chosen, rejected):
                raise BadInput(f"{place}: {no_prompt(row)}")
            example = _split_off(place, row, chosen, rejected, "pairs", ledger)
        else:
            example = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            texts = [side for side in (prompt, chosen, rejected) if isinstance(side, str) and side]
            if len(texts) == 3 and all(text.startswith(texts[0]) for text in texts):
                ledger.counts["pairs/prompt_again"] += 1
        if example is not None:
            example = in_messages(templated, example, row, "pairs", ledger, own=prompt is not None)
        if example is None or not is_sound(example, "pairs", ledger):
            continue
        unread.update(_unread(row, example["prompt"]))
        seen["not_above"] += _not_above(row)
        made = made_or_left_out(templated, place, example, row, "pairs", ledger)
        if made is None:
            continue
        seen["plain" if isinstance(example["prompt"], str) else "told"] += 1
        seen["begun"] += goes_on(example["prompt"])
        if templated.fits(made["prompt"], "pairs", ledger):
            posts = (post_name(made["prompt"]),)
            each = made["prompt"], made["chosen"], made["rejected"]
            told = as_json(example, **given_to_template(row))
            kept = {} if recipe is None else beside(place, row, recipe)
            yield Pair(split or "train", posts, *each, messages=told, kept=kept)
    templated.told["pairs"] = seen["told"]
    ledger.notes += [*notes(ledger, unread, seen, templated.wraps), *templated.notes("pairs")]
    ledger.read_as += read_as_dialogues(ledger, "pairs")


def made_or_left_out(
    templated: Templated, place: str, example: Mapping[str, Part], row: Row, kind: str, ledger: Ledger
) -> dict[str, str] | None:
    """The example's texts; None where the chat template refuses it, which is counted, the first in its words.

    Roles that do not alternate are usual: nine of 2,354 published dialogues.
    """
    try:
        return templated.text(place, example, row)
    except TemplateRefuses as error:
        if not ledger.counts[f"{kind}/refused"]:
            ledger.notes.append(f"{kind}: left out: {error}")
        ledger.leave_out(f"{kind}/refused")
        return None


def _given(place: str, row: Row, name: str) -> Part:
    """A column that a row must have, as text or messages."""
    if row.get(name) is None:
        raise BadInput(f"{place}: {lacking(row, name)}{'' if name in row else cure(row, name)}")
    return part(place, name, row[name])


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
    return _split_off(place, row, chosen, rejected, kind, ledger)


def _not_above(row: Row) -> bool:
    """Whether a row's own scores do not prefer its chosen response."""
    for one, other in SCORED:
        chosen, rejected = row.get(one), row.get(other)
        if isinstance(chosen, int | float) and isinstance(rejected, int | float):
            return chosen <= rejected
    return False


def _unread(row: Row, prompt: Part) -> set[str]:
    """Columns of a row that others read as parts of a prompt, and whose text is not in this one."""
    said = prompt if isinstance(prompt, str) else "\n".join(turn["content"] or "" for turn in prompt)
    texts = {name: row[name].strip() for name in CONTEXT if isinstance(row.get(name), str)}
    return {name for name, text in texts.items() if text and text not in said}


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


def _split_off(
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


def hh_pairs(records: Records, templated: Templated, chat: bool, ledger: Ledger) -> Iterator[Pair]:
    """Anthropic's dialogues, as published or through the chat template."""
    for split, prompt, chosen, rejected in dialogues(records, ledger):
        made = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        turns = messages(prompt) if chat else None
        ledger.counts["pairs/as_dialogues"] += not chat
        yield from dialogue_pair(split, (post_name(prompt),), made, turns, templated, ledger)
    ledger.notes += templated.notes("pairs")
    ledger.read_as += read_as_dialogues(ledger, "pairs")


def dialogue_pair(
    split: str,
    posts: tuple[str, ...],
    made: dict[str, str],
    turns: list[Message] | None,
    templated: Templated,
    ledger: Ledger,
) -> Iterator[Pair]:
    """The pair of these texts, or of what the chat template makes of `turns` with them, if it is kept."""
    told = None
    if turns is not None and all(made[name].strip() for name in PAIR):
        example = {"prompt": turns, **{name: answer(made[name].strip()) for name in PAIR}}
        texts = made_or_left_out(templated, ledger.place, example, {}, "pairs", ledger)
        if texts is None:
            return
        made, told = texts, as_json(example)
    if templated.fits(made["prompt"], "pairs", ledger):
        yield Pair(split, posts, made["prompt"], made["chosen"], made["rejected"], messages=told)


def written(records: Records, templated: Templated, ledger: Ledger) -> Iterator[Written]:
    """Rows with prompt and completion, or with messages that end in an answer."""
    plain = unread = 0
    for place, split, row in records:
        name = next((name for name in CONVERSATIONS if row.get(name) is not None), None)
        if name is not None:
            turns = part(place, name, row[name] or [])
            if not isinstance(turns, list):
                raise BadInput(f"{place}: {name}: expected messages with role and content, got text")
            if turns[-1]["role"] != "assistant" or len(turns) < 2:
                ledger.leave_out("sft/no_answer")
                continue
            example: Example | None
            example = {"prompt": [*system_in(row, turns), *turns[:-1]], "completion": turns[-1:]}
        else:
            prompt, completion = (_given(place, row, name) for name in ("prompt", "completion"))
            example = {"prompt": prompt, "completion": completion}
            example = in_messages(templated, example, row, "sft", ledger)
            unread += example is not None and "system" in _unread(row, example["prompt"])
        if example is None or not is_sound(example, "sft", ledger):
            continue
        plain += isinstance(example["prompt"], str)
        made = made_or_left_out(templated, place, example, row, "sft", ledger)
        if made is None:
            continue
        if templated.fits(made["prompt"], "sft", ledger):
            told = as_json(example, **given_to_template(row))
            yield Written(split or "train", (post_name(made["prompt"]),), **made, messages=told)
    if plain and templated.told["pairs"]:
        ledger.notes.append(
            f"sft: {plain} rows are plain text and {templated.told['pairs']} pairs are messages; the chat "
            "template writes only these: a model would learn another form than it answers in; "
            "`prompt_format: chat` in the data recipe has it write both"
        )
    if unread:
        ledger.notes.append(beside_prompt("sft", {"system": unread}, not templated.wraps))
    ledger.notes += templated.notes("sft")
    ledger.read_as += read_as_dialogues(ledger, "sft")


def post_name(prompt: str) -> str:
    """A prompt by content, whatever its white space."""
    return row_id(" ".join(prompt.split()))
