"""From pairs and written responses to the pipeline's tables: clean, split by post, everything counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from rpo_cli.models import Row
from rpo_cli.stages.data.ledger import Ledger, Sieve
from rpo_cli.stages.data.rows import GIVEN, digest, row_id
from rpo_cli.stages.data.sources.base import Pair, Written

Item = TypeVar("Item", Pair, Written)
SPLITS = ("train", "validation", "test")


def clean(pairs: Iterable[Pair], ledger: Ledger) -> list[Pair]:
    """The pairs that are kept (`ledger.Sieve`), read on the way; `pairs/read` counts what comes here."""
    sieve, kept = Sieve(ledger, "pairs"), []
    for pair in pairs:
        ledger.counts["pairs/read"] += 1
        if sieve.keeps(pair.prompt, pair.chosen, pair.rejected):
            kept.append(replace(pair, place=ledger.place))
    return kept


def clean_written(written: Iterable[Written], ledger: Ledger) -> list[Written]:
    """The written responses that are kept, read on the way."""
    sieve = Sieve(ledger, "sft")
    kept = (row for row in written if sieve.keeps(row.prompt, row.completion))
    return [replace(row, place=ledger.place) for row in kept]


def place_of(post: str, seed: int) -> float:
    """Where a post falls in [0, 1): its own, whatever other posts there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{post}".encode()).digest()[:8], "big") / 2**64


def resplit(pairs: Sequence[Item], share: float, seed: int, written: Sequence[Written]) -> list[Item]:
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

    def split(pair: Item) -> str:
        if pair.split == "train":
            at = place_of(pair.posts[0], seed)
            return next((name for name, (low, high) in drawn.items() if low <= at < high), "train")
        return names[pair.split]

    return [pair if split(pair) == pair.split else replace(pair, split=split(pair)) for pair in pairs]


def tables(
    pairs: Iterable[Pair],
    written: Iterable[Written],
    sizes: dict[str, int],
    share: float,
    seed: int,
    ledger: Ledger,
) -> dict[str, list[Pair] | list[Written]]:
    """The tables of `schema.LOADED_TABLES`, of which `table_rows` makes rows.

    No post of an evaluation table is in a training table, no test post in a validation table. `sizes`: at
    most so many rows of a table, those of posts drawn under the seed. `share`: see `resplit`.
    """

    def kept(items: Sequence[Item], posts: set[str], table: str) -> list[Item]:
        return _some(_without(items, posts, table, ledger), sizes.get(table), seed)

    cleaned, responses = clean(pairs, ledger), clean_written(written, ledger)
    found = resplit(cleaned, share, seed, responses)
    parts = {split: [pair for pair in found if pair.split == split] for split in SPLITS}
    answers = {split: [row for row in responses if row.split == split] for split in SPLITS}
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
        "sft_train": sft_train,
        "sft_validation": sft_validation,
        "pairs": train,
        "pairs_validation": pairs_validation,
        "prompts_validation": validation_prompts,
        "prompts_test": test_prompts,
    }


def tables_of_written(
    written: Iterable[Written],
    sizes: dict[str, int],
    share: float,
    sft_share: float,
    seed: int,
    ledger: Ledger,
) -> dict[str, list[Pair] | list[Written]]:
    """The tables of `schema.WRITTEN_TABLES`: some training posts are for SFT, the others to sample from.

    Posts are held out as in `tables`.
    """
    found = resplit(clean_written(written, ledger), share, seed, ())
    parts = {split: [row for row in found if row.split == split] for split in SPLITS}
    test_prompts = _some(_one_each(parts["test"]), sizes.get("prompts_test"), seed)
    unseen, evaluated = _posts(parts["test"]), _posts(parts["test"] + parts["validation"])
    validation = _without(parts["validation"], unseen, "prompts_validation", ledger)
    train = _without(parts["train"], evaluated, "sft_train", ledger)
    of_sft = {post for post in _posts(train) if place_of(post, seed + 2) < sft_share}
    sorted_out: dict[str, list[Written]] = {
        "sft_train": [row for row in train if row.posts[0] in of_sft],
        "sft_validation": validation,
        "prompts_train": _one_each([row for row in train if row.posts[0] not in of_sft]),
        "prompts_validation": _one_each(validation),
    }
    kept = {table: _some(rows, sizes.get(table), seed) for table, rows in sorted_out.items()}
    return {**kept, "prompts_test": test_prompts}


def _posts(items: Iterable[Pair | Written]) -> set[str]:
    return {post for item in items for post in item.posts}


def _one_each(items: Sequence[Pair] | Sequence[Written]) -> list[Written]:
    """One row for each post: its prompt, and the data's own response (a pair's chosen one) for a judge."""
    seen: set[str] = set()
    kept = []
    for item in items:
        if not seen & set(item.posts):
            own = item.chosen if isinstance(item, Pair) else item.completion
            kept.append(Written(item.split, item.posts, item.prompt, own, item.messages, item.place))
        seen |= set(item.posts)
    return kept


def _without(items: Sequence[Item], posts: set[str], table: str, ledger: Ledger) -> list[Item]:
    kept = [item for item in items if not posts & set(item.posts)]
    ledger.counts[f"{table}/of_evaluated_posts"] += len(items) - len(kept)
    return kept


def _some(items: Sequence[Item], size: int | None, seed: int) -> list[Item]:
    """At most `size` items, those of the posts that come first under the seed; in the order they have."""
    if size is None or len(items) <= size:
        return list(items)
    chosen = sorted(range(len(items)), key=lambda i: (place_of(items[i].posts[0], seed + 1), i))[:size]
    return [items[i] for i in sorted(chosen)]


def _chosen(pairs: Sequence[Pair]) -> list[Written]:
    """The chosen responses as written ones, each once."""
    rows = (
        Written(pair.split, pair.posts, pair.prompt, pair.chosen, pair.messages, pair.place) for pair in pairs
    )
    return list({digest(row.prompt, row.completion): row for row in rows}.values())


def table_rows(items: Sequence[Pair | Written], table: str) -> Iterator[Row]:
    """A table's rows; where one of them was a conversation all have the column `messages`."""
    talk = any(item.messages is not None for item in items)
    return (table_row(item, table) | ({"messages": _messages(item)} if talk else {}) for item in items)


def _messages(item: Pair | Written) -> str:
    """A pair's conversation, of a written response its prompt's turns, for other templates; empty: none."""
    if isinstance(item, Pair) or item.messages is None:
        return item.messages or ""
    told = json.loads(item.messages)
    return json.dumps({name: told[name] for name in ("prompt", *GIVEN) if name in told}, ensure_ascii=False)


def table_row(item: Pair | Written, table: str) -> Row:
    """A table's row, named by its texts."""
    if isinstance(item, Written):
        name = row_id(item.prompt) if table.startswith("prompts_") else row_id(item.prompt, item.completion)
        return {"id": name, "prompt": item.prompt, "completion": item.completion}
    texts = {"prompt": item.prompt, "chosen": item.chosen, "rejected": item.rejected}
    row: Row = {"id": row_id(*texts.values()), **texts, **item.kept}
    if item.scores is not None:
        row |= {"chosen_score": item.scores[0], "rejected_score": item.scores[1]}
    return row
