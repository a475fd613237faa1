"""Pictures of evaluated cells. Tables in, files out; never trains, never samples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rpo_cli.artifacts import publish
from rpo_cli.figures.claims import orderings
from rpo_cli.figures.results import load_results, to_json
from rpo_cli.figures.table import MissingCells, missing, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#888888", "axes.labelcolor": "#222222", "axes.titlesize": 11, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "xtick.color": "#444444", "ytick.color": "#444444",
    "hatch.linewidth": 1.0, "svg.hashsalt": "rpo", "figure.facecolor": "white", "savefig.dpi": 170,
}  # fmt: skip
DEFAULT_TITLE = "Reward gained over π$_{\\mathbf{SFT}}$ as the length bias of the preferences varies"
LOOKS = {  # Okabe and Ito's palette, legible to the colour-blind; the marker repeats what the colour says
    "dpo": ("#000000", "o"), "ipo": ("#999999", "s"), "p-dpo": ("#E69F00", "^"), "d-dpo": ("#0072B2", "D"),
    "dp-dpo": ("#56B4E9", "v"), "e-dpo": ("#D55E00", "*"),
}  # fmt: skip
SPARE = (
    ("#009E73", "P"), ("#CC79A7", "X"), ("#8C6D1F", "h"), ("#5E3C99", "p"), ("#B2182B", "<"), ("#1B7837", ">"), ("#80CDC1", "d"),
    ("#BF812D", "H"),
)  # fmt: skip


def publish_picture(figure: Figure, stem: Path) -> list[Path]:
    """PNG and SVG beside each other, without dates or versions."""
    paths = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=metadata)
        paths.append(publish(stem.with_suffix(suffix), buffer.getvalue()))
    return paths


def looks(policies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each policy; names of one's own get spare ones in order."""
    spare = iter(SPARE * len(policies))
    return {policy: LOOKS[policy] if policy in LOOKS else next(spare) for policy in policies}


def draw_figure2(
    table: pd.DataFrame,
    orderings: Sequence[dict[str, Any]],
    out_dir: Path,
    provenance: dict[str, Any],
    *,
    missing: Sequence[tuple[str, float, int]] = (),
    allow_missing: bool = False,
    title: str = "",
) -> list[Path]:
    """figure2.png, .svg, .csv (the table) and .json (table, orderings, missing cells, provenance) in out_dir.

    MissingCells if any are missing, unless allow_missing: then a cell without any seed leaves a gap and a hatched box
    on the floor of the panel, one without some seeds a hollow marker, and both are listed in the JSON.
    """
    if missing and not allow_missing:
        raise MissingCells(missing)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    seeds = int(table["seeds"].max())
    counts = sorted({int(n) for n in table["prompts"] if n})
    prompts = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    bars = "over prompts and seeds" if seeds > 1 else "over prompts only (one seed)"
    subtitle = (
        f"{prompts} test prompts × {seeds} seed{'s' * (seeds > 1)}; bars: 95 % bootstrap intervals {bars}"
    )
    if missing:
        subtitle += f"; {len(missing)} cells not measured (hatched: none of the seeds, hollow: not all)"
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 5.5))
        left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
        top = 0.77 if table["policy"].nunique() <= 7 else 0.72
        figure.subplots_adjust(left=0.06, right=0.985, top=top, bottom=0.1, wspace=0.14)
        draw_lines(left, table, seeds, ("advantage", "low", "high"), 0.09)
        draw_lines(right, table, seeds, ("tokens", "tokens_low", "tokens_high"), 0.02)
        left.set_title("Advantage: oracle reward minus that of π$_{\\mathbf{SFT}}$")
        left.set_xlabel("ρ, share of training pairs whose longer response is preferred")
        left.axhline(0, color="#444444", linewidth=1, linestyle="--")
        right.set_title("Mean length in tokens")
        right.set_xlabel("ρ")
        length = float(table["baseline_tokens"].mean())
        right.axhline(length, color="#444444", linewidth=1, linestyle="--", label="π$_{\\mathrm{SFT}}$")
        title = title or DEFAULT_TITLE
        # A reduced figure's title says what is missing: a long line gets smaller letters.
        figure.text(0.06, 0.97, title, fontsize=min(14.0, 14 * 88 / len(title)), weight="bold", va="top")
        figure.text(0.06, 0.912, subtitle, fontsize=9.5, color="#555555", va="top")
        handles, labels = right.get_legend_handles_labels()
        # A line has room for eight short names.
        columns = len(labels) if len(labels) <= 8 else -(-len(labels) // 2)
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.056, 0.878), "borderaxespad": 0}
        figure.legend(
            handles, labels, ncols=columns, frameon=False, columnspacing=1.8, handlelength=2.2, **place
        )
        paths = publish_picture(figure, out_dir / "figure2")
    listed = [{"policy": policy, "rho": rho, "seed": seed} for policy, rho, seed in missing]
    content = {"table": table.to_dict("records"), "orderings": list(orderings)}
    content |= {"missing": listed, "provenance": provenance}
    csv = table.to_csv(index=False, float_format="%.6f", lineterminator="\n").encode()
    return [
        *paths,
        publish(out_dir / "figure2.csv", csv),
        publish(out_dir / "figure2.json", to_json(content)),
    ]


def draw_lines(
    axes: Axes, table: pd.DataFrame, seeds: int, columns: tuple[str, str, str], apart: float
) -> None:
    """One line with bars (mean, low, high) for each policy, set apart sideways so that bars do not hide each other."""
    mean, low, high = columns
    policies, rhos = list(table["policy"].unique()), np.sort(table["rho"].unique())
    apart = min(apart, 0.6 / len(policies))
    step = float(np.diff(rhos).min()) if len(rhos) > 1 else 0.1
    for index, (policy, (colour, marker)) in enumerate(looks(policies).items()):
        rows = table[table["policy"] == policy].sort_values("rho")
        place = step * (index - (len(policies) - 1) / 2)
        x = rows["rho"].to_numpy() + apart * place
        y = rows[mean].to_numpy(np.float64)
        ours = policy == "e-dpo"
        order, size = (10, 12) if ours else (3, 5)
        axes.plot(x, y, color=colour, marker=marker, markersize=size, linewidth=2.6 if ours else 1.3, zorder=order,
                  markeredgecolor="white" if ours else colour, markeredgewidth=0.8, label=policy)  # fmt: skip
        width = 1.6 if ours else 1.0
        axes.vlines(x, rows[low], rows[high], color=colour, linewidth=width, alpha=0.85, zorder=order - 1)
        partial = ((rows["seeds"] > 0) & (rows["seeds"] < seeds)).to_numpy()
        axes.plot(x[partial], y[partial], color=colour, marker=marker, markersize=size, linestyle="none",
                  markerfacecolor="white", zorder=order + 1)  # fmt: skip
        gaps = rows["rho"].to_numpy()[~np.isfinite(y)] + 0.09 * place
        axes.bar(gaps, 0.06, width=step * 0.09, transform=axes.get_xaxis_transform(), color="white",
                 edgecolor=colour, hatch="//////", linewidth=0.8, zorder=order)  # fmt: skip
    axes.use_sticky_edges = False
    axes.set_xticks(rhos, [f"{rho:g}" for rho in rhos])
    axes.set_xlim(rhos[0] - step * 0.5, rhos[-1] + step * 0.5)


def draw_members(choices: pd.DataFrame, out_dir: Path) -> list[Path]:
    """members.png and .svg: how often the min over the ensemble chose the member of each b, by rho, mean over seeds.

    choices: policy, rho, seed, member (b), share in [0, 1]. One panel for each policy; b = rho is outlined. No file
    without rows.
    """
    if choices.empty:
        return []
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure

    shares = choices.assign(rho=choices["rho"].round(6)).groupby(["policy", "rho", "member"])["share"].mean()
    policies, members = list(dict.fromkeys(choices["policy"])), np.sort(choices["member"].unique())
    colours = dict(zip(members, colormaps["cividis"](np.linspace(0.05, 0.95, len(members))), strict=True))
    with rc_context(STYLE):
        figure = Figure(figsize=(max(6.5, 4.2 * len(policies)), 4.0), layout="constrained")
        panels = figure.subplots(1, len(policies), squeeze=False, sharey=True)[0]
        for axes, policy in zip(panels, policies, strict=True):
            wide = 100 * shares[policy].unstack("member", fill_value=0.0).reindex(
                columns=members, fill_value=0.0
            )
            floor, x = np.zeros(len(wide)), np.arange(len(wide))
            for member in members:
                height = wide[member].to_numpy()
                same = np.isclose(wide.index, member) & (height > 0)
                axes.bar(
                    x, height, 0.74, floor, color=colours[member], label=f"{member:g}", edgecolor="white"
                )
                axes.bar(
                    x[same], height[same], 0.74, floor[same], fill=False, edgecolor="#D55E00", lw=2, zorder=5
                )
                floor = floor + height
            axes.set_xticks(x, [f"{rho:g}" for rho in wide.index])
            axes.set(xlabel="ρ of the training pairs", ylim=(0, 100), title=f"Members chosen by {policy}")
        panels[0].set_ylabel("share of choices, %")
        handles, labels = panels[0].get_legend_handles_labels()
        heading = "member's b\n(outlined: b = ρ)"
        figure.legend(handles[::-1], labels[::-1], title=heading, loc="outside right center", frameon=False)
        return publish_picture(figure, out_dir / "members")


def redraw(
    folder: Path, out_dir: Path, *, allow_missing: bool = False
) -> tuple[list[Path], list[dict[str, Any]]]:
    """All files of the figure from what save_results kept, and nothing else; returns their paths and the orderings."""
    cells, choices, meta = load_results(folder)
    axes = (meta["policies"], meta["rhos"], meta["seeds"])
    absent = missing(cells, *axes)
    if absent and not allow_missing:
        raise MissingCells(absent)
    options: dict[str, Any] = {
        "resamples": int(meta.get("bootstrap_samples", 2000)),
        "seed": int(meta.get("bootstrap_seed", 0)),
    }
    numbers, claims = table(cells, *axes, **options), orderings(cells, *axes, **options)
    drawing: dict[str, Any] = {
        "missing": absent,
        "allow_missing": allow_missing,
        "title": meta.get("title", ""),
    }
    paths = draw_figure2(numbers, claims, out_dir, meta, **drawing)
    return [*paths, *draw_members(choices, out_dir)], claims
