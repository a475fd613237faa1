"""Figure 2 from evaluated cells: table, the paper's orderings, pictures, and the small form they are redrawn from.

A cell is one (policy, rho, seed). Never trains, never samples. Numbers are computed in whole multiples of 1e-4, so
that sums are exact and a redraw gives the same bytes whatever the order of summation.
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from rpo_cli.statistics import Array, Interval, interval, resample_means, weighted_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

MEASURES = ("advantage", "tokens", "baseline_tokens")
KEYS = ("policy", "rho", "seed", "prompt_id")
UNIT = 1e-4  # of the rewards and lengths kept
HARD, EASY = 0.5, 0.6  # e-dpo leads up to the first, d-dpo above the second
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#888888", "axes.labelcolor": "#222222", "axes.titlesize": 11, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "xtick.color": "#444444", "ytick.color": "#444444",
    "hatch.linewidth": 1.0, "svg.hashsalt": "rpo", "figure.facecolor": "white", "savefig.dpi": 170,
}  # fmt: skip
LOOKS = {  # Okabe and Ito's palette, legible to the colour-blind; the marker repeats what the colour says
    "dpo": ("#000000", "o"), "ipo": ("#999999", "s"), "p-dpo": ("#E69F00", "^"), "d-dpo": ("#0072B2", "D"),
    "dp-dpo": ("#56B4E9", "v"), "e-dpo": ("#D55E00", "*"),
}  # fmt: skip
SPARE = (("#009E73", "P"), ("#CC79A7", "X"), ("#8C6D1F", "h"), ("#5E3C99", "p"))


class MissingCells(ValueError):
    """Some cells of the figure have not been evaluated; `cells` lists them as (policy, rho, seed)."""

    def __init__(self, cells: Sequence[tuple[str, float, int]]) -> None:
        self.cells = list(cells)
        named = "; ".join(f"{policy} at rho {rho:g}, seed {seed}" for policy, rho, seed in self.cells[:8])
        more = f"; and {len(self.cells) - 8} more" if len(self.cells) > 8 else ""
        super().__init__(f"{len(self.cells)} cells are missing: {named}{more}")


class Draws(NamedTuple):
    """Cell means and their bootstrap: point [S, policies, rhos, measures], drawn [resamples, S, …]; NaN = missing."""

    point: Array
    drawn: Array


def check_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with rho rounded to 6 decimals, sorted; ValueError for missing columns, missing numbers, duplicates."""
    absent = [column for column in (*KEYS, *MEASURES) if column not in cells.columns]
    if absent:
        raise ValueError(f"cells: no column {', '.join(absent)}")
    cells = cells[[*KEYS, *MEASURES]].assign(rho=cells["rho"].astype(float).round(6))
    for what, bad in (
        ("a number is missing", ~np.isfinite(cells[list(MEASURES)].to_numpy(np.float64)).all(1)),
        ("the prompt occurs twice", cells.duplicated(list(KEYS)).to_numpy()),
    ):
        if bad.any():
            raise ValueError("cells: " + what + " at " + ", ".join(f"{k} {cells[k].to_numpy()[bad][0]}" for k in KEYS))
    return cells.sort_values(list(KEYS), ignore_index=True)


def missing(
    cells: pd.DataFrame, policies: Sequence[str], rhos: Sequence[float], seeds: Sequence[int]
) -> list[tuple[str, float, int]]:
    """The cells (policy, rho, seed) of the figure that have no row."""
    have = cells[["policy", "rho", "seed"]].drop_duplicates()
    present = {(str(p), round(float(r), 6), int(s)) for p, r, s in have.itertuples(index=False)}
    return [(p, r, s) for p in policies for r in rhos for s in seeds if (p, round(r, 6), s) not in present]


def resample(
    cells: pd.DataFrame,
    policies: Sequence[str],
    rhos: Sequence[float],
    seeds: Sequence[int],
    *,
    resamples: int,
    seed: int,
    resample_seeds: bool = True,
) -> Draws:
    """One bootstrap for all cells at once (statistics.resample_means), so that any comparison of cells is paired.

    Where every seed has the same prompt ids one draw of prompts serves all seeds.
    """
    index = pd.MultiIndex.from_product([MEASURES, policies, [round(rho, 6) for rho in rhos]])
    per_seed, prompts = [], []
    for _, rows in check_cells(cells[cells["seed"].isin(seeds)]).groupby("seed"):
        wide = rows.pivot(index="prompt_id", columns=["policy", "rho"], values=list(MEASURES)).reindex(columns=index)
        per_seed.append(np.rint(wide.to_numpy(np.float64) / UNIT))
        prompts.append(list(wide.index))
    if not per_seed:
        raise ValueError("cells: none of the seeds of the figure has any rows")
    same = all(ids == prompts[0] for ids in prompts)
    drawn = resample_means(per_seed, resamples, seed, same_prompts=same, resample_seeds=resample_seeds)
    point = np.concatenate([weighted_means(np.ones((1, len(values))), values) for values in per_seed])
    shape = (len(MEASURES), len(policies), len(rhos))
    point, drawn = (np.moveaxis(x.reshape(*x.shape[:-1], *shape), -3, -1) * UNIT for x in (point, drawn))
    return Draws(point, drawn)


def over_seeds(values: Array, axis: int) -> Array:
    """Mean over the seeds that have the cell; NaN where none has."""
    present = np.isfinite(values)
    count = present.sum(axis)
    total = np.where(present, values, 0.0).sum(axis)
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))


def table(
    cells: pd.DataFrame,
    policies: Sequence[str],
    rhos: Sequence[float],
    seeds: Sequence[int],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """The numbers drawn, one row per (policy, rho): means over prompts, then over the seeds that have the cell.

    advantage in oracle units with low, high (prompts and seeds) and prompt_low, prompt_high (prompts, these seeds);
    tokens with tokens_low, tokens_high (prompts and seeds); baseline_tokens: pi_SFT's; `seeds`, and `prompts` of the
    smallest seed. A cell that no seed has: seeds 0 and NaN.
    """
    both = resample(cells, policies, rhos, seeds, resamples=resamples, seed=seed)
    prompts = resample(cells, policies, rhos, seeds, resamples=resamples, seed=seed, resample_seeds=False)
    sizes = cells.assign(rho=cells["rho"].round(6)).groupby(["policy", "rho", "seed"]).size()
    sizes = sizes[sizes.index.get_level_values("seed").isin(seeds)].groupby(["policy", "rho"]).agg(["min", "count"])
    rows = []
    for i, policy in enumerate(policies):
        for j, rho in enumerate(rhos):
            at = (slice(None), i, j)
            mean = over_seeds(both.point[at], 0)
            advantage, tokens = (interval(mean[m], over_seeds(both.drawn[:, *at, m], 1)) for m in (0, 1))
            fixed = interval(mean[0], over_seeds(prompts.drawn[:, *at, 0], 1))
            key = (policy, round(rho, 6))
            smallest, count = sizes.loc[key] if key in sizes.index else (0, 0)
            row = {"policy": policy, "rho": key[1], "seeds": int(count), "prompts": int(smallest)}
            row |= {"advantage": advantage.mean, "low": advantage.low, "high": advantage.high}
            row |= {"prompt_low": fixed.low, "prompt_high": fixed.high}
            row |= {"tokens": tokens.mean, "tokens_low": tokens.low, "tokens_high": tokens.high}
            rows.append(row | {"baseline_tokens": float(mean[2])})
    return pd.DataFrame(rows).round(6)


class Difference(NamedTuple):
    """A quantity that a claim says is positive: its interval over prompts and seeds, and its value in each seed."""

    interval: Interval
    by_seed: list[float]

    @property
    def status(self) -> str:
        if not np.isfinite(self.interval.mean):
            return "not measured"
        return "passed" if self.interval.low > 0 else "contradicted" if self.interval.high < 0 else "not significant"


def all_of(parts: Sequence[Difference]) -> str:
    """Status of "every one of these": contradicted by any, passed by all only."""
    statuses = {part.status for part in parts} or {"not measured"}
    return next(s for s in ("contradicted", "not significant", "not measured", "passed") if s in statuses)


def difference(point: Array, drawn: Array) -> Difference:
    """From a quantity's value in each seed [S] and in each resampled seed [resamples, S]."""
    return Difference(interval(float(over_seeds(point, 0)), over_seeds(drawn, 1)), [float(x) for x in point])


def range_difference(point: tuple[Array, Array], drawn: tuple[Array, Array]) -> Difference:
    """Range over rho of the first curve minus that of the second.

    A range is max - min of the curve averaged over seeds; noise widens that of the flatter curve more, which speaks
    against a claim of flatness. point: two [S, rhos]; drawn: two [resamples, S, rhos]. A seed counts where it has both
    whole curves.
    """

    def ranges(curves: tuple[Array, Array], axis: int) -> Array:
        whole = np.isfinite(curves[0] + curves[1]).all(-1, keepdims=True)
        first, second = (np.ptp(over_seeds(np.where(whole, curve, np.nan), axis), axis=-1) for curve in curves)
        return np.asarray(first - second)

    by_seed = np.ptp(point[0], axis=-1) - np.ptp(point[1], axis=-1)
    return Difference(interval(float(ranges(point, 0)), ranges(drawn, 1)), [float(x) for x in by_seed])


def orderings(
    cells: pd.DataFrame,
    policies: Sequence[str],
    rhos: Sequence[float],
    seeds: Sequence[int],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The paper's claims about Figure 2 as rows {claim, detail, by_seed, difference, low, high, status, passed}.

    Each difference is claimed to be positive and is paired: same seeds, same prompts. `passed` means that its 95 %
    interval over prompts and seeds lies above zero; status tells apart `not significant` (zero inside), `contradicted`
    (interval below zero) and `not measured`. A row about "every" or "best" shows the weakest of its parts and passes if
    all of them do. No correction for the number of rows. Without any true difference a row should pass in 2.5 % of
    experiments; the more seeds differ the nearer that comes to 13 % with three seeds, and to half with one.
    """
    known = [*policies, *(p for p in ("e-dpo", "dpo", "ipo", "d-dpo") if p not in policies)]
    draws = resample(cells, known, rhos, seeds, resamples=resamples, seed=seed)
    point, drawn = draws.point[..., 0], draws.drawn[..., 0]  # [S, policies, rhos], [resamples, S, policies, rhos]
    rows: list[dict[str, Any]] = []

    def say(claim: str, detail: str, parts: Sequence[Difference]) -> None:
        """One row; of several parts the one with the lowest bound is shown."""
        measured = [part for part in parts if part.status != "not measured"]
        nothing = Difference(interval(math.nan, np.empty(0)), [])
        shown = min(measured, key=lambda part: part.interval.low, default=nothing)
        status = all_of(parts)
        if 0 < len(measured) < len(parts):
            detail += f"; {len(parts) - len(measured)} of {len(parts)} not measured"
        numbers = dict(zip(("difference", "low", "high"), shown.interval, strict=True))
        row = {"claim": claim, "detail": detail, "by_seed": shown.by_seed, **numbers, "status": status}
        rows.append(plain(row | {"passed": status == "passed"}))

    def above(first: str, second: str | None, rho: float) -> Difference:
        """first - second at rho; second None: pi_SFT, whose advantage is zero."""
        i, j = known.index(first), list(rhos).index(rho)
        if second is None:
            return difference(point[:, i, j], drawn[:, :, i, j])
        k = known.index(second)
        return difference(point[:, i, j] - point[:, k, j], drawn[:, :, i, j] - drawn[:, :, k, j])

    claim = "every policy beats pi_SFT at every rho"
    parts = {policy: {rho: above(policy, None, rho) for rho in rhos} for policy in policies}
    for policy, by_rho in parts.items():
        say(claim, f"{policy}, worst at rho {_weakest(by_rho)}", list(by_rho.values()))
    everything = {f"{policy} at rho {rho:g}": part for policy, by_rho in parts.items() for rho, part in by_rho.items()}
    say(claim, f"all, worst {_weakest(everything)}", list(everything.values()))

    claim = f"e-dpo beats dpo and ipo at rho <= {HARD:g}"
    hard = [rho for rho in rhos if rho <= HARD + 1e-9]
    for rho in hard:
        for other in ("dpo", "ipo"):
            say(claim, f"e-dpo - {other} at rho {rho:g}", [above("e-dpo", other, rho)])
    if not hard:
        say(claim, "no such rho", [])

    claim = f"d-dpo is best at rho > {EASY:g}"
    easy = [rho for rho in rhos if rho > EASY + 1e-9]
    others = [policy for policy in policies if policy != "d-dpo"]
    for rho in easy:
        each = {other: above("d-dpo", other, rho) for other in others}
        say(claim, f"d-dpo - each other at rho {rho:g}, least lead over {_weakest(each)}", list(each.values()))
        for other, part in each.items():
            say(claim, f"d-dpo - {other} at rho {rho:g}", [part])
    if not easy:
        say(claim, "no such rho", [])

    claim = "e-dpo is flattest: smallest max - min over rho"
    mine = known.index("e-dpo")
    for other in (policy for policy in policies if policy != "e-dpo"):
        i = known.index(other)
        part = range_difference((point[:, i], point[:, mine]), (drawn[:, :, i], drawn[:, :, mine]))
        say(claim, f"range of {other} - range of e-dpo", [part])
    return rows


def _weakest(parts: dict[Any, Difference]) -> str:
    """The key of the measured part with the lowest bound."""
    lows = {key: part.interval.low for key, part in parts.items() if part.status != "not measured"}
    return str(min(lows, key=lows.__getitem__)) if lows else "unknown"


def plain(value: Any) -> Any:
    """A value as JSON may hold it: numbers rounded to 6 decimals, NaN as null, no numpy types."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return round(float(value), 6) + 0.0 if np.isfinite(value) else None
    return value


def to_json(value: Any) -> bytes:
    """Sorted, rounded, free of anything that differs between two runs on the same numbers."""
    return (json.dumps(plain(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def orderings_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of `orderings` for a terminal."""
    from rich.table import Table

    colours = {"passed": "green", "contradicted": "red", "not significant": "yellow", "not measured": "dim"}
    out = Table("claim", "detail", "difference", "95 % interval", "by seed", "")
    previous = ""
    for row in rows:
        number = [f"{row[key]:+.3f}" if row[key] is not None else "-" for key in ("difference", "low", "high")]
        seeds = " ".join("-" if x is None else f"{x:+.2f}" for x in row["by_seed"])
        status = f"[{colours[row['status']]}]{row['status']}[/]"
        ends = f"{number[1]} .. {number[2]}" if row["low"] is not None else "-"
        out.add_row(row["claim"] if row["claim"] != previous else "", row["detail"], number[0], ends, seeds, status)
        previous = row["claim"]
    return out


def publish(path: Path, content: bytes) -> Path:
    """Write a file so that nobody ever sees half of it: a temporary name in the same directory, then os.replace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _publish_picture(figure: Figure, stem: Path) -> list[Path]:
    """PNG and SVG beside each other, without dates or versions."""
    paths = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=metadata)
        paths.append(publish(stem.with_suffix(suffix), buffer.getvalue()))
    return paths


def _looks(policies: Sequence[str]) -> dict[str, tuple[str, str]]:
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
    subtitle = f"{prompts} test prompts × {seeds} seed{'s' * (seeds > 1)}; bars: 95 % bootstrap intervals {bars}"
    if missing:
        subtitle += f"; {len(missing)} cells not measured (hatched: none of the seeds, hollow: not all)"
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 5.5))
        left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
        figure.subplots_adjust(left=0.06, right=0.985, top=0.77, bottom=0.1, wspace=0.14)
        _draw_lines(left, table, seeds, ("advantage", "low", "high"), 0.09)
        _draw_lines(right, table, seeds, ("tokens", "tokens_low", "tokens_high"), 0.02)
        left.set_title("Advantage: oracle reward minus that of π$_{\\mathbf{SFT}}$")
        left.set_xlabel("ρ, share of training pairs whose longer response is preferred")
        left.axhline(0, color="#444444", linewidth=1, linestyle="--")
        right.set_title("Mean length in tokens")
        right.set_xlabel("ρ")
        length = float(table["baseline_tokens"].mean())
        right.axhline(length, color="#444444", linewidth=1, linestyle="--", label="π$_{\\mathrm{SFT}}$")
        title = title or "Reward gained over π$_{\\mathbf{SFT}}$ as the length bias of the preferences varies"
        figure.text(0.06, 0.97, title, fontsize=14, weight="bold", va="top")
        figure.text(0.06, 0.912, subtitle, fontsize=9.5, color="#555555", va="top")
        handles, labels = right.get_legend_handles_labels()
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.056, 0.878), "borderaxespad": 0}
        figure.legend(handles, labels, ncols=len(labels), frameon=False, columnspacing=1.8, handlelength=2.2, **place)
        paths = _publish_picture(figure, out_dir / "figure2")
    listed = [{"policy": policy, "rho": rho, "seed": seed} for policy, rho, seed in missing]
    content = {"table": table.to_dict("records"), "orderings": list(orderings)}
    content |= {"missing": listed, "provenance": provenance}
    csv = table.to_csv(index=False, float_format="%.6f", lineterminator="\n").encode()
    return [*paths, publish(out_dir / "figure2.csv", csv), publish(out_dir / "figure2.json", to_json(content))]


def _draw_lines(axes: Axes, table: pd.DataFrame, seeds: int, columns: tuple[str, str, str], apart: float) -> None:
    """One line with bars (mean, low, high) for each policy, set apart sideways so that bars do not hide each other."""
    mean, low, high = columns
    policies, rhos = list(table["policy"].unique()), np.sort(table["rho"].unique())
    step = float(np.diff(rhos).min()) if len(rhos) > 1 else 0.1
    for index, (policy, (colour, marker)) in enumerate(_looks(policies).items()):
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
            wide = 100 * shares[policy].unstack("member", fill_value=0.0).reindex(columns=members, fill_value=0.0)
            floor, x = np.zeros(len(wide)), np.arange(len(wide))
            for member in members:
                height = wide[member].to_numpy()
                same = np.isclose(wide.index, member) & (height > 0)
                axes.bar(x, height, 0.74, floor, color=colours[member], label=f"{member:g}", edgecolor="white")
                axes.bar(x[same], height[same], 0.74, floor[same], fill=False, edgecolor="#D55E00", lw=2, zorder=5)
                floor = floor + height
            axes.set_xticks(x, [f"{rho:g}" for rho in wide.index])
            axes.set(xlabel="ρ of the training pairs", ylim=(0, 100), title=f"Members chosen by {policy}")
        panels[0].set_ylabel("share of choices, %")
        handles, labels = panels[0].get_legend_handles_labels()
        heading = "member's b\n(outlined: b = ρ)"
        figure.legend(handles[::-1], labels[::-1], title=heading, loc="outside right center", frameon=False)
        return _publish_picture(figure, out_dir / "members")


def save_results(cells: pd.DataFrame, choices: pd.DataFrame, meta: dict[str, Any], folder: Path) -> list[Path]:
    """The small form worth committing, from which all is redrawn: cells.parquet, choices.csv, provenance.json (meta).

    meta: at least policies, rhos, seeds; also bootstrap_samples, bootstrap_seed, title, and any provenance as JSON.
    """
    cells = check_cells(cells)
    numbers = {name: (cells[name].astype(float) / UNIT).round() * UNIT for name in MEASURES}
    kept = cells.assign(**numbers).astype(dict.fromkeys(MEASURES, "float32"))
    kept = kept.astype({"policy": "category", "prompt_id": "category", "seed": "int16"})
    buffer = io.BytesIO()
    kept.to_parquet(buffer, index=False, compression="zstd")
    choices = choices[["policy", "rho", "seed", "member", "share"]].sort_values(["policy", "rho", "seed", "member"])
    csv = choices.round(6).to_csv(index=False, lineterminator="\n").encode()
    return [
        publish(folder / "cells.parquet", buffer.getvalue()),
        publish(folder / "choices.csv", csv),
        publish(folder / "provenance.json", to_json(meta)),
    ]


def load_results(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """What save_results kept: cells, choices, meta; FileNotFoundError naming the file that is not there."""
    cells = pd.read_parquet(folder / "cells.parquet").astype({"policy": str, "prompt_id": str, "seed": int})
    cells = cells.astype(dict.fromkeys(MEASURES, float)).round(dict.fromkeys(MEASURES, 4))
    meta: dict[str, Any] = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return cells, pd.read_csv(folder / "choices.csv"), meta


def redraw(folder: Path, out_dir: Path, *, allow_missing: bool = False) -> tuple[list[Path], list[dict[str, Any]]]:
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
    drawing: dict[str, Any] = {"missing": absent, "allow_missing": allow_missing, "title": meta.get("title", "")}
    paths = draw_figure2(numbers, claims, out_dir, meta, **drawing)
    return [*paths, *draw_members(choices, out_dir)], claims
