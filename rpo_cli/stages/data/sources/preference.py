"""Any set in TRL's preference formats: explicit or implicit prompt, plain text or conversations.

https://huggingface.co/docs/trl/dataset_formats; messages may be ShareGPT's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.recipes.schema import DataRecipe
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import PAIR, row_id
from rpo_cli.stages.data.sources.base import Pair, Records, Sets, Written, beside, lacking
from rpo_cli.stages.data.sources.example import (
    CONVERSATIONS,
    Example,
    are_whole,
    in_messages,
    is_sound,
    prompt_in,
    split_off,
    system_in,
    whole_pair,
)
from rpo_cli.stages.data.sources.hh import dialogues
from rpo_cli.stages.data.sources.ranked import paired
from rpo_cli.stages.data.sources.templated import Templated, given_to_template
from rpo_cli.stages.data.sources.told import (
    beside_prompt,
    cure,
    no_prompt,
    notes,
    read_as_dialogues,
)
from rpo_cli.stages.data.sources.transcripts import are_dialogues, messages
from rpo_cli.stages.data.sources.turns import (
    AS_TEXT,
    Message,
    Part,
    TemplateRefuses,
    answer,
    as_json,
    goes_on,
    is_told_as_text,
    part,
)

CONTEXT = ("system", "context", "input", "instruction")  # columns that others read as parts of a prompt
# What published sets call the scores of chosen and rejected.
SCORED = [(f"{one}_chosen", f"{one}_rejected") for one in ("score", "rating")]
SCORED += [(f"chosen_{one}", f"rejected_{one}") for one in ("score", "rating")]


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
            example = split_off(place, row, chosen, rejected, "pairs", ledger)
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
