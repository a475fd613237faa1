"""The weight of the forward KL: annealed, constant, none."""

from __future__ import annotations

from rpo_cli.figures.drawing import Picture, draw_lines
from rpo_cli.figures.kinds.base import FigureKind


def draw(picture: Picture) -> None:
    """Advantage against rho, a panel for each objective."""
    panels = picture.figure.subplots(1, len(picture.panels), squeeze=False, sharey=True)[0]
    picture.figure.subplots_adjust(left=0.06, right=0.985, top=0.76, bottom=0.1, wspace=0.08)
    place: dict[str, object] = {"loc": "upper left", "bbox_to_anchor": (0, 1.09), "borderaxespad": 0}
    for axes, (title, policies) in zip(panels, picture.panels.items(), strict=True):
        draw_lines(axes, picture.rows(policies), picture.looks, "advantage")
        axes.set_xlabel(picture.rho)
        axes.legend(frameon=False, ncols=3, columnspacing=1.2, **place)
        axes.set_title(title, pad=30)
    panels[0].set_ylabel(f"advantage over π$_{{SFT}}$, {picture.unit}")


KIND = FigureKind("gamma", draw)
