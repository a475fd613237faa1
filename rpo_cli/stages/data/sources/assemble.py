"""From pairs and written responses to the pipeline's tables: clean, split by post, everything counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from rpo_cli.models import Row
from rpo_cli.stages.data.rows import row_id
from rpo_cli.stages.data.sources.base import Counts, Pair, Written

Item = TypeVar("Item", Pair, Written)
SPLITS = ("train", "validation", "test")


def clean(pairs: Iterable[Pair], counts: Counts) -> list[Pair]:
    """Pairs with two different, non-empty responses, each unordered pair once.

    Once, because after relabelling its order is the oracle's. Counted: `empty`, `ties` (the same response
    twice), `duplicates`, and `conflicts`, duplicates with the other response chosen.
    """
    kept: dict[tuple[str, ...], Pair] = {}
    for pair in pairs:
        counts["pairs/read"] += 1
        key = (pair.prompt, *sorted((pair.chosen, pair.rejected)))
        if not pair.chosen.strip() or not pair.rejected.strip():
            counts["pairs/empty"] += 1
        elif pair.chosen.strip() == pair.rejected.strip():
            counts["pairs/ties"] += 1
        elif key in kept:
            counts["pairs/duplicates" if kept[key].chosen == pair.chosen else "pairs/conflicts"] += 1
        else:
            kept[key] = pair
    return list(kept.values())


def place_of(post: str, seed: int) -> float:
    """Where a post falls in [0, 1): its own, whatever other posts there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{post}".encode()).digest()[:8], "big") / 2**64


def resplit(pairs: Sequence[Pair], share: float, seed: int, written: Sequence[Written]) -> list[Pair]:
    """Pairs in train, validation and test: as published, and what is not published held out of train by post.

    Where written responses bring the test prompts, held-out pairs are for validation alone.
    """
    published = {pair.split for pair in pairs}
    names = {split: split for split in published}
    drawn: dict[str, tuple[float, float]] = {}
    if any(row.split == "test" for row in written):
        names |= dict.fromkeys(published - {"train"}, "validation")
        drawn = {} if published - {"train"} else {"validation": (0, share)}
    elif not {"validation", "test"} <= published:
        names |= dict.fromkeys(published - {"train"}, "test")
        drawn = {"validation": (0, share)} | ({} if published - {"train"} else {"test": (share, 2 * share)})

    def split(pair: Pair) -> str:
        if pair.split == "train":
            at = place_of(pair.posts[0], seed)
            return next((name for name, (low, high) in drawn.items() if low <= at < high), "train")
        return names[pair.split]

    return [replace(pair, split=split(pair)) for pair in pairs]


def tables(
    pairs: Iterable[Pair],
    written: Sequence[Written],
    sizes: dict[str, int],
    share: float,
    seed: int,
    counts: Counts,
) -> dict[str, list[Row]]:
    """The tables of `schema.LOADED_TABLES`.

    No post of an evaluation table is in a training table, no test post in a validation table. `sizes`: at
    most so many rows of a table, those of posts drawn under the seed. `share`: see `resplit`.
    """

    def kept(items: Sequence[Item], posts: set[str], table: str) -> list[Item]:
        return _some(_without(items, posts, table, counts), sizes.get(table), seed)

    found = resplit(clean(pairs, counts), share, seed, written)
    parts = {split: [pair for pair in found if pair.split == split] for split in SPLITS}
    answers = {split: [row for row in written if row.split == split] for split in SPLITS}
    test_prompts = _some(_one_each(answers["test"] or parts["test"]), sizes.get("prompts_test"), seed)
    test = _posts(test_prompts)
    validation_prompts = _one_each(answers["validation"] or parts["validation"])
    validation_prompts = kept(validation_prompts, test, "prompts_validation")
    pairs_validation = kept(parts["validation"], test, "pairs_validation")
    evaluated = test | _posts(validation_prompts) | _posts(pairs_validation)
    train = kept(parts["train"], evaluated, "pairs")
    sft_train = kept(answers["train"] or _chosen(parts["train"]), evaluated, "sft_train")
    sft_validation = answers["validation"] or _chosen(parts["validation"])
    sft_validation = kept(sft_validation, test, "sft_validation")
    return {
        "sft_train": [_completion(row) for row in sft_train],
        "sft_validation": [_completion(row) for row in sft_validation],
        "pairs": [_pair(pair) for pair in train],
        "pairs_validation": [_pair(pair) for pair in pairs_validation],
        "prompts_validation": [_prompt(row) for row in validation_prompts],
        "prompts_test": [_prompt(row) for row in test_prompts],
    }


def _posts(items: Iterable[Pair | Written]) -> set[str]:
    return {post for item in items for post in item.posts}


def _one_each(items: Sequence[Pair] | Sequence[Written]) -> list[Written]:
    """One row for each post: its prompt, and the data's own response (a pair's chosen one) for a judge."""
    seen: set[str] = set()
    kept = []
    for item in items:
        if not seen & set(item.posts):
            own = item.chosen if isinstance(item, Pair) else item.completion
            kept.append(Written(item.split, item.posts, item.prompt, own))
        seen |= set(item.posts)
    return kept


def _without(items: Sequence[Item], posts: set[str], table: str, counts: Counts) -> list[Item]:
    kept = [item for item in items if not posts & set(item.posts)]
    counts[f"{table}/of_evaluated_posts"] += len(items) - len(kept)
    return kept


def _some(items: Sequence[Item], size: int | None, seed: int) -> list[Item]:
    """At most `size` items, those of the posts that come first under the seed; in the order they have."""
    if size is None or len(items) <= size:
        return list(items)
    chosen = sorted(range(len(items)), key=lambda i: (place_of(items[i].posts[0], seed + 1), i))[:size]
    return [items[i] for i in sorted(chosen)]


def _chosen(pairs: Sequence[Pair]) -> list[Written]:
    """The chosen responses as written ones, each once."""
    rows = (Written(pair.split, pair.posts, pair.prompt, pair.chosen) for pair in pairs)
    return list({(row.prompt, row.completion): row for row in rows}.values())


def _prompt(row: Written) -> Row:
    return {"id": row_id(row.prompt), "prompt": row.prompt, "completion": row.completion}


def _completion(row: Written) -> Row:
    return {"id": row_id(row.prompt, row.completion), "prompt": row.prompt, "completion": row.completion}


def _pair(pair: Pair) -> Row:
    texts = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    row: Row = {"id": row_id(*texts.values()), **texts}
    if pair.scores is not None:
        row |= {"chosen_score": pair.scores[0], "rejected_score": pair.scores[1]}
    return row
