"""A kind of figure: how its numbers are gathered, summed up and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from rpo_cli.artifacts import Workspace
from rpo_cli.figures.cells import Cell
from rpo_cli.figures.drawing import Picture
from rpo_cli.figures.gather import Gathered, evaluations
from rpo_cli.figures.table import Axes, Bootstrap, summary


@dataclass(frozen=True)
class FigureKind:
    """What one kind does of its own; which measures it has stands in recipes/schema/figure.py.

    draw: panels, axes and legend, into a figure that has its heading. beside: the summary with what follows
    from it, or from further tables. also: further pictures, of the ensembles' choices. reads: other kinds
    whose results it draws, too. prompts: what was measured. columns: the table's columns in CSV and JSON,
    those of them that there are, with the names that they have there; None: as they are. rows: the name of
    the claims in JSON. title: of a recipe without one. bars: what lines and bars mean, if not the intervals.
    lines: variants of one line have one colour.
    """

    name: str
    draw: Callable[[Picture], None]
    gather: Callable[[Sequence[Cell], Workspace], Gathered] = evaluations
    summary: Callable[[pd.DataFrame, Axes, Bootstrap], pd.DataFrame] = summary
    beside: Callable[[pd.DataFrame, Mapping[str, pd.DataFrame]], pd.DataFrame] | None = None
    also: Callable[[pd.DataFrame, Path], list[Path]] | None = None
    reads: tuple[str, ...] = ()
    prompts: str = "test prompts"
    columns: Mapping[str, str] | None = None
    rows: Literal["claims", "orderings"] = "claims"
    title: str = ""
    bars: str = ""
    lines: bool = False
    height: float = 5.6
    heading: tuple[float, float] = (0.975, 0.918)
