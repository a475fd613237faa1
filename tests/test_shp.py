"""Stanford Human Preferences: its own schema, the voted answer chosen, a post on one side of a split."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import published
import pytest
from published import write_jsonl
from test_sources import make

from rpo_cli.errors import BadInput

SPLITS = {"train": 12, "validation": 4, "test": 4}


def row(split: str, post: int, pair: int, **changed: Any) -> dict[str, Any]:
    """A record with the columns of stanfordnlp/SHP, A preferred in every second pair of a post."""
    label = pair % 2
    scores = (30, 10) if label == 1 else (10, 30)
    return {
        "post_id": f"{split[:2]}{post}",
        "domain": f"askscience_{split}",
        "upvote_ratio": 0.98,
        "history": f"Why is the sky of {split} {post} blue?\nI wonder.",
        "c_root_id_A": f"a{post}{pair}",
        "c_root_id_B": f"b{post}{pair}",
        "created_at_utc_A": 1_600_000_000,
        "created_at_utc_B": 1_600_000_060,
        "score_A": scores[0],
        "score_B": scores[1],
        "human_ref_A": f"A says {split} {post} {pair}",
        "human_ref_B": f"B says {split} {post} {pair} ",
        "labels": label,
        "seconds_difference": 60.0,
        "score_ratio": 3.0,
    } | changed


def write(folder: Path, more: tuple[dict[str, Any], ...] = ()) -> str:
    """A subreddit's three files, three pairs to a post; the recipe that reads it and no other."""
    for split, posts in SPLITS.items():
        rows = [row(split, post, pair) for post in range(posts) for pair in range(3)]
        write_jsonl(folder / f"askscience/{split}.json", [*rows, *(more if split == "train" else ())])
        write_jsonl(folder / f"askbaking/{split}.json", [{"another": "schema"}])
    return f"source: shp\ndataset: {folder}\ndata_dir: askscience\n"


def test_the_answer_with_the_label_is_chosen_and_answers_begin_with_one_space(tmp_path: Path) -> None:
    tables, _ = make(tmp_path, write(tmp_path / "shp"))
    first = tables["pairs"][0]
    assert first["prompt"] == "\n\nHuman: Why is the sky of train 0 blue?\nI wonder.\n\nAssistant:"
    for pair in tables["pairs"]:
        preferred = "A" if int(pair["chosen"][-1]) % 2 else "B"
        assert pair["chosen"].startswith(f" {preferred} says train") and not pair["rejected"].endswith(" ")
    assert len(tables["pairs"]) == 3 * SPLITS["train"]


def test_the_published_splits_are_kept_and_no_post_is_in_two(tmp_path: Path) -> None:
    again = row(
        "test", 0, 0, history="Why is the sky of test 0 blue?\nI wonder. EDIT: thanks!", human_ref_A="late"
    )
    tables, counts = make(tmp_path, write(tmp_path / "shp", (again,)))
    assert {len(tables[f"prompts_{name}"]) for name in ("validation", "test")} == {4}  # a post once
    assert counts["pairs/of_evaluated_posts"] == 1  # though its text was edited: by post_id
    told = {table: {re.findall(r"(train|validation|test) \d", r["prompt"])[0] for r in rows}
            for table, rows in tables.items()}  # fmt: skip
    assert told["pairs"] == told["sft_train"] == {"train"}
    assert told["pairs_validation"] == told["prompts_validation"] == {"validation"}
    assert told["prompts_test"] == {"test"}


def test_empty_and_equal_answers_and_long_posts_are_left_out_and_counted(tmp_path: Path) -> None:
    published.word_tokenizer(tmp_path / "tokenizer", published.CHAT, ["<user>", "<assistant>"])
    more = (
        row("train", 90, 0, human_ref_A=" "),
        row("train", 91, 0, human_ref_A="the same", human_ref_B="the same "),
        row("train", 92, 0, history="long " * 100),
    )
    recipe = write(tmp_path / "shp", more) + f"tokenizer: {tmp_path}/tokenizer\nmax_prompt_tokens: 60\n"
    tables, counts = make(tmp_path, recipe)
    assert [counts[f"pairs/{why}"] for why in ("empty", "ties", "long_prompt")] == [1, 1, 1]
    assert len(tables["pairs"]) == 3 * SPLITS["train"]


def test_a_chat_template_makes_one_turn_of_the_post(tmp_path: Path) -> None:
    published.word_tokenizer(tmp_path / "tokenizer", published.CHAT, ["<user>", "<assistant>"])
    recipe = write(tmp_path / "shp") + f"tokenizer: {tmp_path}/tokenizer\nprompt_format: chat\n"
    first = make(tmp_path, recipe)[0]["pairs"][0]
    assert first["prompt"].startswith("<user>") and first["prompt"].count("<user>") == 1
    assert "Human:" not in first["prompt"] and "B says train 0 0" in first["chosen"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"labels": 2}, "train.json:37: labels: expected 1 (A preferred) or 0 (B), got 2"),
        ({"history": None}, "train.json:37: history is null"),
    ],
)
def test_a_row_of_another_kind_is_named_with_its_line(
    changed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=re.escape(says)):
        make(tmp_path, write(tmp_path / "shp", (row("train", 9, 9, **changed),)))
