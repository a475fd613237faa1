"""All files of a figure from what a run kept, and nothing else. Never trains, never samples."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rpo_cli.artifacts import publish
from rpo_cli.errors import BadInput
from rpo_cli.figures.claims import Verdict, judge
from rpo_cli.figures.drawing import STYLE, Picture, heading, looks_of_lines, publish_picture
from rpo_cli.figures.kinds import KINDS, FigureKind
from rpo_cli.figures.results import Results, load_results, to_json
from rpo_cli.figures.table import Missing, missing, that_are_missing
from rpo_cli.recipes import schema
from rpo_cli.text import counted


def redraw(
    folder: Path, out: Path, kind: str, *, allow_missing: bool = False
) -> tuple[list[Path], list[Verdict]]:
    """KIND.png, .svg, .pdf, .csv (the table) and .json (table, claims, provenance); their paths, the claims.

    A cell without any seed leaves a gap and a hatched box on the floor of the panel, one without some seeds a
    hollow marker, and both are listed in the JSON.

    Raises:
        BadInput: results of another kind, or without a measure, or cells are missing, unless allow_missing.
    """
    results, row = load_results(folder), KINDS[kind]
    if results.kind not in (kind, *row.reads):
        raise BadInput(f"{folder}: holds results of {results.kind}; use rpo figure {results.kind}")
    if lacks := [name for name in schema.MEASURES[kind] if name not in results.measures]:
        raise BadInput(f"{folder}: its cells have no {lacks[0]}, which rpo figure {kind} draws")
    absent = missing(results.cells, results.axes)
    if absent and not allow_missing:
        raise BadInput(f"{that_are_missing(absent)} (--allow-missing draws them as gaps)")
    table = row.summary(results.cells, results.axes, results.bootstrap)
    if row.beside is not None:
        table = row.beside(table, results.tables)
    brief = row.rows == "orderings"
    claims = judge(results.cells, results.axes, results.claims, results.bootstrap, brief=brief)
    paths = draw(row, results, table, absent, out)
    told = table
    if row.columns is not None:
        kept = [name for name in row.columns if name in table]
        told = table[kept].rename(columns=dict(row.columns))
    content: dict[str, object] = {
        "table": told.to_dict("records"),
        row.rows: claims,
        "provenance": results.meta,
    }
    if absent or brief:
        content["missing"] = [dict(zip(("policy", "rho", "seed"), cell, strict=True)) for cell in absent]
    csv = told.to_csv(index=False, float_format="%.6f", lineterminator="\n").encode()
    paths += [publish(out / f"{kind}.csv", csv), publish(out / f"{kind}.json", to_json(content))]
    return [*paths, *(row.also(results.choices, out) if row.also else [])], claims


def draw(row: FigureKind, results: Results, table: pd.DataFrame, absent: Missing, out: Path) -> list[Path]:
    """The picture itself."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    looks = looks_of_lines(results.axes.policies, results.meta if row.lines else {})
    title = results.meta.get("title") or row.title
    with rc_context(STYLE):
        figure = Figure(figsize=(11, row.height))
        row.draw(Picture(figure, table, looks, results.meta, results.tables))
        heading(figure, title, _subtitle(row, table, absent, results.bootstrap.student), row.heading)
        return publish_picture(figure, out / row.name)


def _subtitle(row: FigureKind, table: pd.DataFrame, absent: Missing, student: bool) -> str:
    """How much was measured, and what lines and bars mean."""
    seeds = int(table["seeds"].max())
    counts = sorted({int(count) for count in table["prompts"] if count})
    prompts = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    over = "prompts and seeds" if seeds > 1 else "prompts only (one seed)"
    if student and seeds > 1:
        over = "seeds, Student's t"
    bars = row.bars or f"bars: 95 % {'' if student and seeds > 1 else 'bootstrap '}intervals over {over}"
    said = f"{prompts} {row.prompts} × {counted(seeds, 'seed')}; {bars}"
    if absent:
        said += f"; {len(absent)} cells not measured (hatched: none of the seeds, hollow: not all)"
    return said
