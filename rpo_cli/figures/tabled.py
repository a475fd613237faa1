"""A comparison's numbers as lines for a terminal, and as a table for a spreadsheet or a paper."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from rpo_cli.errors import BadInput
from rpo_cli.text import aligned

if TYPE_CHECKING:  # pandas is imported when something is compared
    from rpo_cli.figures.numbers import Apart, Comparison, Told

FORMS = (".csv", ".md", ".tex")
BAR = r"\|"
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
       **{sign: f"\\{sign}" for sign in "&%$#_{}"}}  # fmt: skip


class Line(NamedTuple):
    """What was measured of one policy, in words: mean, its interval, difference and its interval."""

    policy: str
    mean: str
    ends: str
    apart: str
    apart_ends: str


def text_of(found: Comparison) -> Text:
    """A block for each measure, in it a line for each policy; as wide as the longest name asks."""
    blocks = list(_blocks(found))
    heads = ("", "mean", "95 %", f"against {found['against']}", "95 %")
    rows = [(f"  {line.policy}", *line[1:]) for _, lines in blocks for line in lines]
    head, *body = aligned([heads, *rows], range(1, len(heads))).splitlines(keepends=True)
    shown = Text(head, no_wrap=True, overflow="ignore")
    for measure, lines in blocks:
        shown.append(f"{measure['title']}, {measure['unit']}\n", "bold")
        shown.append("".join(body[: len(lines)]))
        del body[: len(lines)]
    shown.rstrip()
    return shown


def require_form(out: Path) -> None:
    """BadInput unless a file of this name can hold the table."""
    if out.is_dir() or out.suffix.lower() not in FORMS:
        page = "; rpo report writes a page" if out.suffix.lower() == ".html" else ""
        raise BadInput(f"--out {out}: name a file that ends in {', '.join(FORMS)}{page}")


def table_of(found: Comparison, form: str) -> bytes:
    """The numbers as a file of one of the FORMS.

    CSV has a row for each measure and policy, to six decimals; Markdown and LaTeX have what the terminal
    shows, and the notes: below the table, or before it as comments.
    """
    if form == ".csv":
        return _csv(found)
    head = ("measure", "policy", "mean", "95 % interval", f"against {found['against']}", "95 % interval")
    blocks = [
        [(f"{measure['title']}, {measure['unit']}" if number == 0 else "", *line)
         for number, line in enumerate(lines)]
        for measure, lines in _blocks(found)
    ]  # fmt: skip
    notes = [" ".join(note.split()) for note in (*found["notes"], *found["left_out"])]
    if form == ".md":
        rows = [head, ("---", "---", *["---:"] * 4), *(row for block in blocks for row in block)]
        lines = [f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""]).encode()
    inner = [
        _tex(head, numbers=False),
        *("".join(_tex(row, numbers=True) for row in rows) for rows in blocks),
    ]
    body = "\\midrule\n".join(inner)
    comments = "".join(f"% {note}\n" for note in ("needs \\usepackage{booktabs}", *notes))
    begun = "\\begin{tabular}{llrrrr}\n\\toprule\n"
    return f"{comments}{begun}{body}\\bottomrule\n\\end{{tabular}}\n".encode()


def _tex(row: Sequence[str], *, numbers: bool) -> str:
    """A row of LaTeX; a sign before a number, behind the first two cells, is a mathematical one."""
    cells = ["".join(TEX.get(sign, sign) for sign in cell) for cell in row]
    if numbers:
        cells[2:] = [re.sub(r"[-+]", r"$\g<0>$", cell) for cell in cells[2:]]
    return " & ".join(cells) + " \\\\\n"


def _csv(found: Comparison) -> bytes:
    import pandas as pd

    from rpo_cli.figures.results import to_csv

    measures = {measure["name"]: measure for measure in found["measures"]}
    order = list(measures)
    none: Apart = {"mean": None, "low": None, "high": None, "by_seed": []}
    rows = []
    for row in sorted(found["rows"], key=lambda row: order.index(row["measure"])):
        measure, apart = measures[row["measure"]], row["difference"] or none
        rows.append(
            {
                "measure": measure["title"], "unit": measure["unit"], "policy": row["policy"],
                "mean": row["mean"], "low": row["low"], "high": row["high"],
                "against": found["against"], "difference": apart["mean"],
                "difference_low": apart["low"], "difference_high": apart["high"],
                "seeds": len(found["seeds"]), "prompts": measure["prompts"],
            }
        )  # fmt: skip
    return to_csv(pd.DataFrame(rows), 6)


def _blocks(found: Comparison) -> Iterator[tuple[Told, list[Line]]]:
    """Each measure with a line for each policy that has it."""
    from rpo_cli.figures.numbers import ends

    for measure in found["measures"]:
        digits, lines = measure["digits"], []
        for row in found["rows"]:
            if row["measure"] != measure["name"]:
                continue
            apart = row["difference"]
            lines.append(
                Line(
                    row["policy"],
                    shown(row["mean"], digits) or "-",
                    _between(ends(row), digits),
                    "" if apart is None else shown(apart["mean"], digits, "+"),
                    _between(ends(apart), digits, "+"),
                )
            )
        yield measure, lines


def shown(value: float | None, digits: int, sign: str = "") -> str:
    """A number with so many decimals and no minus zero; nothing for none."""
    return "" if value is None else format(round(value, digits) + 0.0, f"{sign}.{digits}f")


def _between(known: tuple[float, float, float] | None, digits: int, sign: str = "") -> str:
    """The ends of an interval, in brackets; nothing where they are not known."""
    return "" if known is None else f"[{', '.join(shown(end, digits, sign) for end in known[1:])}]"
