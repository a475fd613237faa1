"""Prompts that two tables share: what is reported on must not have been trained or tuned on."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

import pyarrow.parquet as pq

from rpo_cli.stages.data.rows import digest

LEARNT = ("sft_train", "prompts_train", "pairs", "train")
JUDGED = ("pairs_validation", "held_out", "prompts_validation", "prompts_test")


def prompts_of(file: Path) -> set[int]:
    """A table's prompts, each by the digest of its text."""
    batches = pq.ParquetFile(file).iter_batches(columns=["prompt"])
    return {digest(prompt) for batch in batches for prompt in batch["prompt"].to_pylist()}


def shared_prompts(prompts: Mapping[str, Set[int]]) -> dict[tuple[str, str], int]:
    """How many prompts each table that is learnt or tuned on shares, by digest, with each that judges."""
    pairs = [(one, other) for one in LEARNT for other in JUDGED] + [("prompts_validation", "prompts_test")]
    present = [(one, other) for one, other in pairs if one in prompts and other in prompts]
    return {(one, other): len(prompts[one] & prompts[other]) for one, other in present}


def leaks(shared: Mapping[tuple[str, str], int], prompts: Mapping[str, Set[int]]) -> list[str]:
    """A line for each two tables that share prompts and should not."""
    return [
        f"leak: {count} of the {len(prompts[judge])} prompts of {judge} are in {learnt} too; "
        "on them nothing is held out"
        for (learnt, judge), count in shared.items()
        if count
    ]
