"""Stanford Human Preferences: two answers to one post of a subreddit, of which the community preferred one.

Ethayarajh et al., 2022, https://huggingface.co/datasets/stanfordnlp/SHP: a folder for each of 18 subreddits;
many pairs have one post. The prompt is the post as one turn, in hh-rlhf's form or the template's.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.ledger import visible
from rpo_cli.stages.data.sources.base import Pair, Sets, Written, column, text
from rpo_cli.stages.data.sources.preference import Templated, dialogue_pair, post_name, written
from rpo_cli.stages.data.sources.transcripts import ASSISTANT, HUMAN


def read(sets: Sets) -> tuple[Iterator[Pair], Iterator[Written]]:
    """Pairs of every split; `assemble.clean` leaves out empty and equal answers, and counts them."""
    templated = Templated(sets.tokenizer, sets.recipe.max_prompt_tokens)
    return _pairs(sets, templated), written(sets.written, templated, sets.ledger)


def _pairs(sets: Sets, templated: Templated) -> Iterator[Pair]:
    chat = sets.recipe.prompt_format == "chat"
    for place, split, row in sets.pairs:
        post = text(place, row, "history").strip()
        answers = [text(place, row, name).strip() for name in ("human_ref_A", "human_ref_B")]
        label = column(place, row, "labels")
        if label not in (0, 1):
            raise BadInput(f"{place}: labels: expected 1 (A preferred) or 0 (B), got {reprlib.repr(label)}")
        chosen, rejected = answers if label == 1 else reversed(answers)
        sides = {"chosen": chosen, "rejected": rejected}
        made = {"prompt": f"{HUMAN} {post}{ASSISTANT}"} | {side: f" {own}" for side, own in sides.items()}
        if not visible(post):
            sets.ledger.leave_out("pairs/no_prompt")
            continue
        turns = [{"role": "user", "content": post}] if chat else None
        posts = (text(place, row, "post_id"), post_name(post))
        yield from dialogue_pair(split or "train", posts, made, turns, templated, sets.ledger)
    sets.ledger.notes += templated.notes("pairs")
