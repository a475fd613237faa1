"""All objectives on the pairs as they are, without resampling."""

from __future__ import annotations

from rpo_cli.figures.drawing import Picture, draw_points, zero_line
from rpo_cli.figures.kinds.base import FigureKind


def draw(picture: Picture) -> None:
    """Advantage and length of each policy."""
    left, right = picture.figure.subplots(1, 2)
    picture.figure.subplots_adjust(left=0.06, right=0.985, top=0.8, bottom=0.08, wspace=0.14)
    draw_points(left, picture.table, picture.looks, "advantage")
    zero_line(left)
    left.set_title(picture.advantage)
    draw_points(right, picture.table, picture.looks, "tokens")
    right.set_title("Mean length in tokens")


KIND = FigureKind("unbiased", draw)
