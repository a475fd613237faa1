"""Write the tables of docs from committed results: what stands between the marks of a page is never typed.

python -m tools.results            writes them
python -m tools.results --check    exits 1 if a page is not what would be written

A mark is `<!-- cells of FOLDER -->`, a folder of results/, or another of TABLES; `<!-- end -->` ends it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tools.tables import curves, experiments, teachers

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]
MARKED = re.compile(r"(<!-- (\w+) of ([\w/-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


TABLES: dict[str, Callable[[Path], Iterator[Sequence[str]]]] = {
    "cells": experiments.cells,
    "claims": experiments.claims,
    "primary": experiments.primary,
    "slopes": curves.slopes,
    "ends": curves.ends,
    "lengths": curves.lengths,
    "teachers": teachers.teachers,
    "even": teachers.even,
    "equal_kl": curves.equal_kl,
    "advantage": partial(experiments.compared, measure="advantage"),
    "utility": partial(experiments.compared, measure="utility"),
    "across": experiments.across,
    "again": experiments.again,
    "below": experiments.below,
    "beside": experiments.beside,
    "above": partial(experiments.beside, above=0.5),
    "control": experiments.control,
    "by_size": experiments.by_size,
    "longer": experiments.longer,
    "without": experiments.without,
    "kept": experiments.kept,
    "paid": teachers.paid,
    "taken": experiments.taken,
    "costs": experiments.costs,
    "afterwards": experiments.afterwards,
    "chosen": experiments.chosen,
    "leads": experiments.leads,
    "apart": teachers.apart,
    "teaching": teachers.teaching,
    "known": teachers.known,
    "taught_by": teachers.taught_by,
    "trained": teachers.trained,
    "wrong": teachers.wrong,
    "overlap": experiments.overlap,
    "smallest": teachers.smallest,
    "sizes": experiments.sizes,
    "ended": partial(experiments.compared, measure="utility", ended=True),
}


def written(text: str) -> str:
    """A page with its tables as the committed results have them."""

    def table(found: re.Match[str]) -> str:
        begin, what, folder, end = found.groups()
        head, *rows = TABLES[what](REPOSITORY / "results" / folder)
        lines = ["", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)), "", ""]
        return begin + "\n".join(lines) + end

    return MARKED.sub(table, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or with --check name those that are stale; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    stale = [page for page in PAGES if written(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{page.relative_to(REPOSITORY)}: {'stale; python -m tools.results' if check else 'written'}")
        if not check:
            page.write_text(written(page.read_text()))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
