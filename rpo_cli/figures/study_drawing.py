"""Pictures of the figures of the theory. Tables in, files out; never trains, never samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rpo_cli.artifacts import publish
from rpo_cli.figures.drawing import STYLE, draw_lines, looks, publish_picture
from rpo_cli.figures.results import to_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


RATIO = "log π$_θ$ − log π$_{ref}$, nats"


def draw_study(
    kind: str,
    table: pd.DataFrame,
    claims: Sequence[dict[str, Any]],
    out: Path,
    meta: dict[str, Any],
    *,
    curves: pd.DataFrame | None = None,
) -> list[Path]:
    """KIND.png, .svg, .csv (the table) and .json (table, claims, provenance) in a folder."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(11, 5.6))
        drawers: dict[str, Callable[..., None]] = {
            "degeneracy": _degeneracy, "gamma": _gamma, "ensemble": _ensemble, "kl": _kl, "unbiased": _unbiased
        }  # fmt: skip
        drawers[kind](figure, table, meta, curves)
        figure.text(0.06, 0.975, meta["title"], fontsize=14, weight="bold", va="top")
        figure.text(0.06, 0.918, _subtitle(kind, table), fontsize=9.5, color="#555555", va="top")
        paths = publish_picture(figure, out / kind)
    content = {"table": table.to_dict("records"), "claims": list(claims), "provenance": meta}
    csv = table.to_csv(index=False, float_format="%.6f", lineterminator="\n").encode()
    return [*paths, publish(out / f"{kind}.csv", csv), publish(out / f"{kind}.json", to_json(content))]


def _subtitle(kind: str, table: pd.DataFrame) -> str:
    seeds, prompts = int(table["seeds"].max()), int(table["prompts"].min())
    what = "training pairs" if kind in ("degeneracy", "kl") else "test prompts"
    bars = (
        "lines: mean over seeds, shades: their range"
        if kind == "degeneracy"
        else "bars: 95 % bootstrap intervals over "
    )
    if kind != "degeneracy":
        bars += "prompts and seeds" if seeds > 1 else "prompts only (one seed)"
    return f"{prompts:,} {what} × {seeds} seed{'s' * (seeds > 1)}; {bars}"


def _legend(figure: Figure, axes: Axes, columns: int = 6) -> None:
    handles, labels = axes.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.056, 0.885), "borderaxespad": 0}
    figure.legend(
        handles,
        labels,
        ncols=min(columns, len(labels)),
        frameon=False,
        columnspacing=1.8,
        handlelength=2.2,
        **place,
    )


def _degeneracy(figure: Figure, table: pd.DataFrame, meta: dict[str, Any], curves: pd.DataFrame) -> None:
    """Log-ratios of chosen and rejected responses, and their difference, over training."""
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.76, bottom=0.1, wspace=0.2)
    for axes, measure, title in zip(
        panels,
        ("h_chosen", "h_rejected", "margin"),
        ("Chosen responses", "Rejected responses", "Margin Δh: chosen − rejected"),
        strict=True,
    ):
        for policy, (colour, _) in looks(meta["policies"]).items():
            rows = curves[(curves["policy"] == policy) & (curves["measure"] == measure)]
            wide = rows.pivot_table(index="step", columns="seed", values="value")
            axes.plot(wide.index, wide.mean(axis=1), color=colour, linewidth=2, label=policy)
            axes.fill_between(
                wide.index, wide.min(axis=1), wide.max(axis=1), color=colour, alpha=0.12, linewidth=0
            )
        axes.axhline(0, color="#444444", linewidth=1, linestyle="--")
        axes.set(title=title, xlabel="training steps")
    panels[0].set_ylabel(RATIO)
    _legend(figure, panels[0])


def _panels(meta: dict[str, Any]) -> dict[str, list[str]]:
    """The policies of each panel, by its title."""
    panels: dict[str, list[str]] = {}
    for policy in meta["policies"]:
        panels.setdefault(meta["panels"][policy], []).append(policy)
    return panels


def _gamma(figure: Figure, table: pd.DataFrame, meta: dict[str, Any], curves: Any) -> None:
    """Advantage against rho, a panel for each objective."""
    titles = _panels(meta)
    panels = figure.subplots(1, len(titles), squeeze=False, sharey=True)[0]
    figure.subplots_adjust(left=0.06, right=0.985, top=0.76, bottom=0.1, wspace=0.08)
    for axes, (title, policies) in zip(panels, titles.items(), strict=True):
        rows = table[table["policy"].isin(policies)]
        _lines(axes, rows, "advantage", title)
        axes.legend(
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(0, 1.09),
            ncols=3,
            columnspacing=1.2,
            borderaxespad=0,
        )
        axes.set_title(title, pad=30)
    panels[0].set_ylabel("advantage over π$_{SFT}$, oracle reward")


def _lines(axes: Axes, rows: pd.DataFrame, measure: str, title: str) -> None:
    draw_lines(axes, rows, int(rows["seeds"].max()), (measure, f"{measure}_low", f"{measure}_high"), 0.05)
    axes.set(title=title, xlabel="ρ, share of training pairs whose longer response is preferred")


def _ensemble(figure: Figure, table: pd.DataFrame, meta: dict[str, Any], curves: Any) -> None:
    """Advantage, and the mean b of the members that taught, against rho; a row of two for each panel."""
    panels = _panels(meta)
    figure.set_size_inches(11, 1.0 + 4.8 * len(panels))
    height = figure.get_size_inches()[1]
    rows = figure.subplots(len(panels), 2, squeeze=False)
    figure.subplots_adjust(
        left=0.06, right=0.985, top=1 - 1.95 / height, bottom=0.55 / height, wspace=0.14, hspace=0.6
    )
    for (left, right), (title, policies) in zip(rows, panels.items(), strict=True):
        shown = table[table["policy"].isin(policies)]
        _lines(left, shown, "advantage", "Advantage over π$_{\\mathbf{SFT}}$, oracle reward")
        chosen = shown[shown["member"].notna()]
        if chosen.empty:
            right.set_axis_off()
        else:
            _lines(right, chosen, "member", "Mean b of the members chosen")
            ends = right.get_xlim()
            right.plot(ends, ends, color="#444444", linewidth=1, linestyle="--", label="b = ρ")
            right.set_xlim(ends)
        left.legend(
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(0, 1.09),
            ncols=5,
            columnspacing=1.4,
            borderaxespad=0,
        )
        if title:
            left.text(0, 1.24, title, transform=left.transAxes, fontsize=11, weight="bold")


def _kl(figure: Figure, table: pd.DataFrame, meta: dict[str, Any], curves: Any) -> None:
    """Value, spread and cost of each estimator."""
    clock = " of CPU" if str(meta["device"]).startswith("cpu") else ""
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.78, bottom=0.1, wspace=0.26)
    deviation = table.assign(
        **{f"deviation{end}": np.sqrt(table[f"square{end}"]) for end in ("", "_low", "_high")}
    )
    for axes, measure, title, unit in zip(
        panels,
        ("kl", "deviation", "milliseconds"),
        ("Mean: estimate of KL(π$_{ref}$ ‖ π$_θ$)", "Spread over prompts", "Cost of a training step"),
        ("nats", "standard deviation, nats", f"milliseconds{clock}, 16 pairs"),
        strict=True,
    ):
        _points(axes, deviation, measure)
        axes.set(title=title, ylabel=unit)
    truth = float(table.loc[table["policy"] == "full", "kl"].iloc[0])
    panels[0].axhline(truth, color="#444444", linewidth=1, linestyle="--")
    panels[0].axhline(0, color="#aaaaaa", linewidth=0.8)
    for axes in panels[1:]:
        axes.set_ylim(bottom=0)


def _unbiased(figure: Figure, table: pd.DataFrame, meta: dict[str, Any], curves: Any) -> None:
    """Advantage and length of each policy."""
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.8, bottom=0.08, wspace=0.14)
    _points(left, table, "advantage")
    left.axhline(0, color="#444444", linewidth=1, linestyle="--")
    left.set_title("Advantage over π$_{\\mathbf{SFT}}$, oracle reward")
    _points(right, table, "tokens")
    right.set_title("Mean length in tokens")


def _points(axes: Axes, table: pd.DataFrame, measure: str) -> None:
    """One point with its bar for each policy."""
    for place, (policy, (colour, marker)) in enumerate(looks(list(table["policy"])).items()):
        row = table[table["policy"] == policy].iloc[0]
        axes.vlines(place, row[f"{measure}_low"], row[f"{measure}_high"], color=colour, linewidth=2)
        axes.plot(place, row[measure], marker=marker, color=colour, markersize=9)
    axes.set_xticks(range(len(table)), list(table["policy"]))
    axes.set_xlim(-0.6, len(table) - 0.4)
