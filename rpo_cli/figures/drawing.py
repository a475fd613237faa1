"""What pictures of every kind share: style, colours, lines and points with bars. Tables in, files out."""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rpo_cli.artifacts import publish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


STYLE: dict[str, object] = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#888888", "axes.labelcolor": "#222222", "axes.titlesize": 11,
    "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "xtick.color": "#444444", "ytick.color": "#444444",
    "hatch.linewidth": 1.0, "svg.hashsalt": "rpo", "figure.facecolor": "white", "savefig.dpi": 170,
}  # fmt: skip
LOOKS = {  # Okabe and Ito's palette, legible to the colour-blind; the marker repeats what the colour says
    "dpo": ("#000000", "o"), "ipo": ("#999999", "s"), "p-dpo": ("#E69F00", "^"), "d-dpo": ("#0072B2", "D"),
    "dp-dpo": ("#56B4E9", "v"), "e-dpo": ("#D55E00", "*"),
}  # fmt: skip
SPARE = (
    ("#009E73", "P"), ("#CC79A7", "X"), ("#8C6D1F", "h"), ("#5E3C99", "p"),
    ("#B2182B", "<"), ("#1B7837", ">"), ("#80CDC1", "d"), ("#BF812D", "H"),
)  # fmt: skip
# Without dates or versions: the same picture is the same bytes.
FORMATS: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
RHO = "ρ, share of training pairs whose longer response is preferred"
KL = "KL(π$_θ$ ‖ π$_{ref}$), nats"
IN_A_LINE = 6  # names of variants in a line of a legend
Looks = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """What to draw, and into what: the numbers, colour and marker of every policy, further tables."""

    figure: Figure
    table: pd.DataFrame
    looks: Looks
    meta: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]

    @property
    def unit(self) -> str:
        """What the advantage is measured in."""
        return "in its sd" if self.meta.get("unit") == "sd" else "oracle reward"

    @property
    def rho(self) -> str:
        """What rho is, along an axis."""
        to = self.meta.get("biased_to")
        return RHO if to is None else f"ρ, share of training pairs in which {to} is preferred"

    @property
    def advantage(self) -> str:
        """The title of a panel of the advantage."""
        return f"Advantage over π$_{{\\mathbf{{SFT}}}}$, {self.unit}"

    @property
    def lines(self) -> dict[str, list[str]]:
        """The policies of each line; one without a line is a line of its own."""
        return self._by(lambda policy: line_of(policy, self.meta))

    @property
    def panels(self) -> dict[str, list[str]]:
        """The policies of each panel, by its title."""
        return self._by(self.meta["panels"].__getitem__)

    def _by(self, of: Callable[[str], str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for policy in self.looks:
            found.setdefault(of(policy), []).append(policy)
        return found

    @property
    def by_rho(self) -> dict[str, pd.DataFrame]:
        """The table's rows of each rho, by what a panel of them is called."""
        rhos = self.table["rho"].fillna(0.0)
        return {f"ρ {rho:g}" if rho else "all pairs": self.table[rhos == rho] for rho in rhos.unique()}

    def rows(self, policies: Sequence[str]) -> pd.DataFrame:
        return self.table[self.table["policy"].isin(policies)]


def publish_picture(figure: Figure, stem: Path) -> list[Path]:
    """PNG, SVG and PDF beside each other."""
    paths = []
    for suffix, metadata in FORMATS.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=metadata)
        paths.append(publish(stem.with_suffix(suffix), buffer.getvalue()))
    return paths


def line_of(policy: str, meta: Mapping[str, Any]) -> str:
    """The line that a policy is a point of; its name where it is of none."""
    return str(meta.get("lines", {}).get(policy, policy))


def looks_of(policies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each policy of a figure; names of one's own get spare ones in order.

    More of them than there are colours have each colour again, with the next one's marker.
    """
    count, own = len(SPARE), [policy for policy in policies if policy not in LOOKS]
    spare = {
        policy: (SPARE[place % count][0], SPARE[(place + place // count) % count][1])
        for place, policy in enumerate(own)
    }
    return {policy: LOOKS.get(policy) or spare[policy] for policy in policies}


def looks_of_lines(policies: Sequence[str], meta: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each policy of a figure: those of its line."""
    lines = {policy: line_of(policy, meta) for policy in policies}
    own = looks_of(list(dict.fromkeys(lines.values())))
    return {policy: own[line] for policy, line in lines.items()}


def heading(figure: Figure, title: str, subtitle: str, heights: tuple[float, float]) -> None:
    """Title and subtitle at these heights; a long title, of a reduced figure, gets smaller letters."""
    size = min(14.0, 14 * 88 / max(1, len(title)))
    figure.text(0.06, heights[0], title, fontsize=size, weight="bold", va="top")
    figure.text(0.06, heights[1], subtitle, fontsize=9.5, color="#555555", va="top")


def legend(figure: Figure, axes: Axes, height: float, columns: int) -> None:
    """One legend for all panels, under the heading."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(reversed(labels), reversed(handles), strict=True))  # points of a line: the first of them
    labels = list(dict.fromkeys(labels))
    handles = [once[label] for label in labels]
    place: dict[str, object] = {"loc": "upper left", "bbox_to_anchor": (0.056, height), "borderaxespad": 0}
    look: dict[str, object] = {"frameon": False, "columnspacing": 1.8, "handlelength": 2.2}
    figure.legend(handles, labels, ncols=min(columns, len(labels)), **look, **place)


def panels_below(figure: Figure, rows: int, columns: int, names: int) -> np.ndarray:
    """Panels [rows, columns] below the heading and a legend of so many names, which `legend_above` draws."""
    figure.set_size_inches(11, 1.6 + 4.0 * rows)
    height = figure.get_size_inches()[1]
    panels: np.ndarray = figure.subplots(rows, columns, squeeze=False)
    top = 0.918 - (0.75 + 0.2 * -(-names // IN_A_LINE)) / height
    figure.subplots_adjust(left=0.08, right=0.985, top=top, bottom=0.6 / height, wspace=0.24, hspace=0.4)
    return panels


def legend_above(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, between them and the heading."""
    legend(figure, axes, 0.918 - 0.28 / figure.get_size_inches()[1], IN_A_LINE)


def zero_line(axes: Axes, height: float = 0.0, label: str | None = None) -> None:
    """What the values are compared with."""
    axes.axhline(height, color="#444444", linewidth=1, linestyle="--", label=label)


def draw_lines(axes: Axes, rows: pd.DataFrame, looks: Looks, measure: str, apart: float = 0.05) -> None:
    """One line with bars for each policy against rho, set apart so that bars do not hide each other."""
    rows = rows.assign(rho=rows["rho"].fillna(0.0))
    policies, rhos = list(rows["policy"].unique()), np.sort(rows["rho"].unique())
    apart = min(apart, 0.6 / len(policies))
    step = float(np.diff(rhos).min()) if len(rhos) > 1 else 0.1
    seeds = int(rows["seeds"].max())
    for index, policy in enumerate(policies):
        (colour, marker), ours = looks[policy], policy == "e-dpo"
        own = rows[rows["policy"] == policy].sort_values("rho")
        place = step * (index - (len(policies) - 1) / 2)
        x, y = own["rho"].to_numpy() + apart * place, own[measure].to_numpy(np.float64)
        order, size = (10, 12) if ours else (3, 5)
        edge, width = ("white", 2.6) if ours else (colour, 1.3)
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": size}
        axes.plot(x, y, **look, linewidth=width, zorder=order,
                  markeredgecolor=edge, markeredgewidth=0.8, label=policy)  # fmt: skip
        low, high, width = own[f"{measure}_low"], own[f"{measure}_high"], 1.6 if ours else 1.0
        axes.vlines(x, low, high, color=colour, linewidth=width, alpha=0.85, zorder=order - 1)
        partial = ((own["seeds"] > 0) & (own["seeds"] < seeds)).to_numpy()
        hollow = {**look, "linestyle": "none", "markerfacecolor": "white"}
        axes.plot(x[partial], y[partial], **hollow, zorder=order + 1)
        _gaps(axes, own["rho"].to_numpy()[~np.isfinite(y)] + 0.09 * place, step * 0.09, colour, order)
    axes.use_sticky_edges = False
    axes.set_xticks(rhos, [f"{rho:g}" if rho else "none" for rho in rhos])
    axes.set_xlim(rhos[0] - step * 0.5, rhos[-1] + step * 0.5)


def draw_cross(axes: Axes, row: Mapping[Hashable, Any], picture: Picture, x: str, y: str) -> None:
    """A policy's point in a plane of two measures, with a bar along each that has an interval."""
    (colour, marker), order = picture.looks[row["policy"]], 3
    axes.hlines(row[y], row[f"{x}_low"], row[f"{x}_high"], color=colour, linewidth=1.2, zorder=order)
    axes.vlines(row[x], row[f"{y}_low"], row[f"{y}_high"], color=colour, linewidth=1.2, zorder=order)
    look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 8}
    axes.plot(row[x], row[y], label=line_of(row["policy"], picture.meta), zorder=order + 1, **look)


def draw_points(axes: Axes, table: pd.DataFrame, looks: Looks, measure: str) -> None:
    """One point with its bar for each policy."""
    for place, row in enumerate(table.to_dict("records")):
        (colour, marker), partial = looks[row["policy"]], row["seeds"] < table["seeds"].max()
        axes.vlines(place, row[f"{measure}_low"], row[f"{measure}_high"], color=colour, linewidth=2)
        face = "white" if partial else colour
        axes.plot(place, row[measure], marker=marker, color=colour, markersize=9, markerfacecolor=face)
        if not np.isfinite(row[measure]):
            _gaps(axes, np.array([float(place)]), 0.3, colour, 3)
    axes.set_xticks(range(len(table)), list(table["policy"]))
    axes.set_xlim(-0.6, len(table) - 0.4)


def _gaps(axes: Axes, places: np.ndarray, width: float, colour: str, order: int) -> None:
    """A hatched box on the floor of the panel for each cell that no seed has."""
    axes.bar(places, 0.06, width=width, transform=axes.get_xaxis_transform(), color="white",
             edgecolor=colour, hatch="//////", linewidth=0.8, zorder=order)  # fmt: skip
