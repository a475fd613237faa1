"""Descriptions of a Debian archive's packages, with the one-line summaries that their maintainers wrote.

Read from the indices `Packages` and `Translation-en` of any release (any compression): of a mirror, or what
apt keeps in /var/lib/apt/lists. A post is named by its source package, so that packages built from one source
are on one side of every split. Left out are posts and summaries shorter or longer than below, summaries that
stand in their post, descriptions that were read before (those of another architecture or release), all but
the first of one source's packages that begin alike (libraries, languages), and packages that only ease an
upgrade.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.ledger import visible
from rpo_cli.stages.data.rows import digest
from rpo_cli.stages.data.sources.base import Pair, Sets, Written, text

POST = (140, 700)  # characters
SUMMARY = (12, 100)  # characters
LEAST_WORDS = 3  # of a summary
FIGURES = re.compile(r"\S*\d\S*")  # versions and architectures
EMPTY = re.compile(r"\b(dummy|transitional|metapackage|meta-package)\b", re.I)


def read(sets: Sets) -> tuple[Iterator[Pair], Iterator[Written]]:
    """A post and its summary of each package."""
    return iter(()), _written(sets)


def _written(sets: Sets) -> Iterator[Written]:
    source_of: dict[str, str] = {}
    described: dict[str, tuple[str, str]] = {}
    seen: set[int] = set()
    place = ""
    for place, _, row in sets.written:
        name = text(place, row, "Package")
        if row.get("Version") is not None:  # a paragraph of Packages; Translation-en has none
            source_of[name] = (row.get("Source") or name).split(" ")[0]
        full = row.get("Description-en") or row.get("Description") or ""
        summary, _, body = full.partition("\n")
        if not body:
            continue  # Packages beside a Translation-en
        found = post_of(body), summary.strip()
        if why := _unfit(*found, seen):
            sets.ledger.leave_out(f"sft/{why}")
        else:
            described.setdefault(name, found)
    if source_of and not described:
        raise BadInput(
            f"{place}: these indices hold no long descriptions, which stand in Translation-en: "
            "apt-get -o Acquire::Languages=en update, or fetch main/i18n/Translation-en.xz of a mirror"
        )
    sets.ledger.place = ""  # of the last paragraph
    families: set[tuple[str, str]] = set()
    for name, (post, summary) in described.items():
        source = source_of.get(name, name)
        family = source, FIGURES.sub("", post.split("\n")[0])
        if family in families:
            sets.ledger.counts["sft/family"] += 1
            continue
        families.add(family)
        prompt = f"PACKAGE: {name}\n\nPOST: {post}\n\nTL;DR:"
        yield Written("train", (source,), prompt, f" {summary}")


def post_of(body: str) -> str:
    """The text of a description: a line for each paragraph, none for what is laid out by hand.

    Debian Policy 5.6.13: a line `.` parts paragraphs; a line that begins with a further space is verbatim.
    """
    paragraphs = re.split(r"\n \.(?=\n|$)", f"\n{body}")
    return "\n".join(
        " ".join(lines)
        for paragraph in paragraphs
        if (lines := [line.strip() for line in paragraph.split("\n") if line.strip() and line[:2] != "  "])
    )


def _unfit(post: str, summary: str, seen: set[int]) -> str | None:
    """Why a description is left out, as the ledger names it."""
    if EMPTY.search(summary) or EMPTY.search(post):
        return "upgrade"
    if not (POST[0] <= len(post) <= POST[1] and SUMMARY[0] <= len(summary) <= SUMMARY[1]):
        return "another_length"
    if len(summary.split()) < LEAST_WORDS:
        return "another_length"
    if visible(summary).lower() in visible(post).lower():
        return "copied"
    if (known := digest(post)) in seen:
        return "duplicates"
    seen.add(known)
    return None
