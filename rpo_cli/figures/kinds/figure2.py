"""Figure 2 of the paper: advantage and length against the length bias of the preferences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from rpo_cli.figures.drawing import STYLE, Picture, draw_lines, legend, publish_picture, zero_line
from rpo_cli.figures.kinds.base import FigureKind
from rpo_cli.figures.table import Axes, Bootstrap, summary
from rpo_cli.recipes.schema import FURTHER

LINE = 65  # letters of up to eight names for which a line of the legend has room


def numbers(cells: pd.DataFrame, axes: Axes, how: Bootstrap) -> pd.DataFrame:
    """The summary, with the advantage's interval over prompts alone besides: prompt_low, prompt_high."""
    fixed = summary(cells, axes, how, resample_seeds=False)
    ends = {f"prompt_{end}": fixed[f"advantage_{end}"] for end in ("low", "high")}
    return summary(cells, axes, how).assign(**ends)


def draw(picture: Picture) -> None:
    """Advantage with its zero, pi_SFT, and tokens with pi_SFT's."""
    figure = picture.figure
    left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    names = [*picture.looks, "SFT"]
    in_a_line = len(names) <= 8 and sum(map(len, names)) <= LINE
    top = 0.77 if in_a_line else 0.72
    figure.subplots_adjust(left=0.06, right=0.985, top=top, bottom=0.1, wspace=0.14)
    draw_lines(left, picture.table, picture.looks, "advantage", 0.09)
    draw_lines(right, picture.table, picture.looks, "tokens", 0.02)
    unit = ", in sd of the latter" if picture.meta.get("unit") == "sd" else ""
    left.set_title(f"Advantage: oracle reward minus that of π$_{{\\mathbf{{SFT}}}}${unit}")
    left.set_xlabel(picture.rho)
    zero_line(left)
    right.set_title("Mean length in tokens")
    right.set_xlabel("ρ")
    zero_line(right, float(picture.table["baseline_tokens"].mean()), "π$_{\\mathrm{SFT}}$")
    legend(figure, right, 0.878, len(names) if in_a_line else -(-len(names) // 2))


def draw_members(choices: pd.DataFrame, out_dir: Path) -> list[Path]:
    """members.*: how often the min over the ensemble chose the member of each b, by rho, mean over seeds.

    choices: policy, rho, seed, member (b), share in [0, 1]. One panel for each policy; b = rho is outlined.
    No file without rows.
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
            wide = 100 * shares[policy].unstack("member").reindex(columns=members).fillna(0.0)
            floor, x = np.zeros(len(wide)), np.arange(len(wide))
            for member in members:
                height = wide[member].to_numpy()
                same = np.isclose(wide.index, member) & (height > 0)
                axes.bar(
                    x, height, 0.74, floor, color=colours[member], label=f"{member:g}", edgecolor="white"
                )
                outline = {"fill": False, "edgecolor": "#D55E00", "lw": 2, "zorder": 5}
                axes.bar(x[same], height[same], 0.74, floor[same], **outline)
                floor = floor + height
            axes.set_xticks(x, [f"{rho:g}" for rho in wide.index])
            axes.set(xlabel="ρ of the training pairs", ylim=(0, 100), title=f"Members chosen by {policy}")
        panels[0].set_ylabel("share of choices, %")
        handles, labels = panels[0].get_legend_handles_labels()
        heading = "member's b\n(outlined: b = ρ)"
        figure.legend(handles[::-1], labels[::-1], title=heading, loc="outside right center", frameon=False)
        return publish_picture(figure, out_dir / "members")


KIND = FigureKind(
    "figure2", draw, summary=numbers, also=draw_members, rows="orderings", height=5.5, heading=(0.97, 0.912),
    columns={
        "policy": "policy", "rho": "rho", "seeds": "seeds", "prompts": "prompts",
        "advantage": "advantage", "advantage_low": "low", "advantage_high": "high",
        "prompt_low": "prompt_low", "prompt_high": "prompt_high",
        "tokens": "tokens", "tokens_low": "tokens_low", "tokens_high": "tokens_high",
        "baseline_tokens": "baseline_tokens",
        **{f"{name}{end}": f"{name}{end}" for name in FURTHER for end in ("", "_low", "_high")},
    },
    title="Reward gained over π$_{\\mathbf{SFT}}$ as the length bias of the preferences varies",
)  # fmt: skip
