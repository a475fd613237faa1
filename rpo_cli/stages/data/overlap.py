"""Prompts that two tables share: what is reported on must not have been trained or tuned on."""

from __future__ import annotations

from collections.abc import Collection, Mapping

LEARNT = ("sft_train", "prompts_train", "pairs", "train")
JUDGED = ("pairs_validation", "held_out", "prompts_validation", "prompts_test")


def shared_prompts(prompts: Mapping[str, Collection[str]]) -> dict[tuple[str, str], int]:
    """How many prompts each table that is learnt or tuned on shares, by text, with each that judges."""
    found = {table: set(texts) for table, texts in prompts.items()}
    pairs = [(one, other) for one in LEARNT for other in JUDGED] + [("prompts_validation", "prompts_test")]
    present = [(one, other) for one, other in pairs if one in found and other in found]
    return {(one, other): len(found[one] & found[other]) for one, other in present}


def leaks(shared: Mapping[tuple[str, str], int], prompts: Mapping[str, Collection[str]]) -> list[str]:
    """A line for each two tables that share prompts and should not."""
    return [
        f"leak: {count} of the {len(set(prompts[judge]))} prompts of {judge} are in {learnt} too; "
        "on them nothing is held out"
        for (learnt, judge), count in shared.items()
        if count
    ]
