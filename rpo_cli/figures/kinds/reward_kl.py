"""Reward against KL: what each policy gained for its distance from the reference."""

from __future__ import annotations

from rpo_cli.figures.drawing import KL, Picture, draw_cross, legend_above, panels_below, zero_line
from rpo_cli.figures.kinds.base import FigureKind

COLUMNS = 3


def draw(picture: Picture) -> None:
    """Advantage against KL, a panel for each rho; variants of one line are joined."""
    by_rho = picture.by_rho
    columns = min(COLUMNS, len(by_rho))
    panels = panels_below(picture.figure, -(-len(by_rho) // columns), columns, len(picture.lines)).ravel()
    for axes, (title, rows) in zip(panels, by_rho.items(), strict=False):
        for row in rows.to_dict("records"):
            draw_cross(axes, row, picture, "kl", "advantage")
        for policies in picture.lines.values():
            own = rows.set_index("policy").reindex(policies)
            axes.plot(own["kl"], own["advantage"], color=picture.looks[policies[0]][0], linewidth=1)
        zero_line(axes)
        axes.set(title=title, xlabel=KL)
    for axes in panels[len(by_rho) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel(f"advantage over π$_{{SFT}}$, {picture.unit}")
    legend_above(picture.figure, panels[0])


KIND = FigureKind("reward-kl", draw, reads=("figure2", "gamma", "ensemble", "unbiased"), lines=True)
