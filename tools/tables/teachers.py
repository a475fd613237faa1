"""Tables of what teachers know, pay and differ in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rpo_cli.figures.drawing import line_of
from rpo_cli.recipes import schema
from rpo_cli.statistics import break_even, t_interval
from tools.tables.words import between, less, loaded, number, of_seeds, shown


def teachers(folder: Path) -> Iterator[Sequence[str]]:
    """What each teacher knows of held-out pairs, and how far its pupil is ahead of the policy without one."""
    right = ("right where the longer won, %", "where the shorter won, %")
    yield ("ρ", "teacher", *right, "price of 10 tokens, sd", "lead, sd", "KL, nats", "utility")
    rows = json.loads((folder / "teachers.json").read_text())["table"]
    for row in sorted(rows, key=lambda row: row["rho"]):  # policies stay in their order
        kinds = [row.get(kind) for kind in ("longer", "shorter")]
        yield (
            f"{row['rho']:g}",
            row["policy"],
            *(number(None if share is None else 100 * share, 0, sign=False) for share in kinds),
            number(row.get("price")),
            between(row, "lead", "lead_low", "lead_high"),
            number(row["kl"], 1, sign=False),
            number(row["utility"], sign=False),
        )


def even(folder: Path) -> Iterator[Sequence[str]]:
    """Where leads of a line of four teachers or more cross zero on what they know."""
    results, known = loaded(folder), pd.read_csv(folder / "accuracies.csv")
    known = known[known["member"].isna()]
    measures = {"longer": "right where the longer won, %", "shorter": "where the shorter won, %"}
    measures |= {"all": "right, %", "price": "price of 10 tokens, sd"}
    yield ("ρ", "line", "teachers", "by", "seen", "lead for ten more points, or one sd", "break-even")
    for rho in results.axes.rhos:
        taught = [name for name in results.axes.policies if (known["policy"] == name).any()]
        for line in dict.fromkeys(line_of(name, results.meta) for name in taught):
            own = [name for name in taught if line_of(name, results.meta) == line]
            if len(own) < 4:
                continue
            asked = [schema.Claim(claim=name, more=name, measure="lead", rhos=[rho]) for name in own]
            leads = np.column_stack(of_seeds(results, asked))
            for measure, said in measures.items():
                table = known[known["rho"] == rho].pivot(index="seed", columns="policy", values=measure)
                values = table.loc[results.axes.seeds, own].to_numpy()
                scale, digits = (1.0, 2) if measure == "price" else (100.0, 0)
                found = dict(zip(("at", "low", "high"), break_even(values, leads), strict=True))
                steep = [np.polyfit(*each, 1)[0] for each in zip(values, leads, strict=True)]
                seen = np.sort(scale * values.mean(0))[[0, -1]]
                yield (
                    f"{rho:g}",
                    line,
                    str(len(own)),
                    said,
                    " … ".join(number(each, digits, sign=scale == 1) for each in seen),
                    less(pd.Series(steep) * (1.0 if measure == "price" else 0.1)),
                    "not known" if np.isnan(found["low"]) else between(found, *found, digits, scale),
                )


def paid(folder: Path) -> Iterator[Sequence[str]]:
    """What members pay for an attribute: on the pairs of D_ρ as drawn, and on both kinds as if as many."""
    found = pd.read_csv(folder / "paid.csv")
    yield ("ρ", "member b", "on D_ρ as drawn", "on both kinds alike")
    for (rho, member), rows in found.groupby(["rho", "member"]):
        if member in (0.2, 0.5, 0.8):
            yield (
                f"{rho:g}",
                f"{member:g}",
                shown(rows["drawn"].to_numpy()),
                shown(rows["balanced"].to_numpy()),
            )


def apart(folder: Path) -> Iterator[Sequence[str]]:
    """Of what an ensemble's members differ in, the share that is one number each of length, in percent."""
    found = pd.read_csv(folder / "apart.csv").pivot(index="rho", columns="seed", values="by_length")
    yield ("ρ", "seeds", "share, %", "least", "most")
    for rho, shares in found.iterrows():
        middle, low, high = (number(100 * each, 0, sign=False) for each in t_interval(shares.to_numpy()))
        ends = (number(100 * each, 0, sign=False) for each in (shares.min(), shares.max()))
        yield (f"{rho:g}", str(len(shares)), f"{middle} ({low} … {high})", *ends)


def teaching(folder: Path) -> Iterator[Sequence[str]]:
    """Of how many pairs e-DPO's min took each member, in percent, means over the seeds with their ranges."""
    found = pd.read_csv(folder / "choices.csv")
    shares = found[found["policy"] == "e-dpo"].groupby(["rho", "member"])["share"].agg(["mean", "min", "max"])
    members = shares.index.unique("member")
    yield ("ρ", *(f"b {member:g}" for member in members))
    for rho in shares.index.unique("rho"):
        of_rho = 100 * shares.loc[rho]
        yield (
            f"{rho:g}",
            *(f"{row['mean']:.0f} ({row['min']:.0f} … {row['max']:.0f})" for _, row in of_rho.iterrows()),
        )


def known(folder: Path) -> Iterator[Sequence[str]]:
    """What each reward model knows of held-out pairs, and the size of its margins on the training pairs."""
    kinds = ("all", "longer", "shorter")
    heads = (
        "right, %",
        "where the longer won, %",
        "where the shorter won, %",
        "margins, mean square",
        "temperature",
    )
    yield ("ρ", "member", *heads)
    for row in pd.read_csv(folder / "reward_models.csv").to_dict("records"):
        shares = [number(100 * row[kind], 0, sign=False) for kind in kinds]
        size = number(row["margins_mean_square"], 0, sign=False)
        warmth = number(row["temperature"], sign=False)
        yield (f"{row['rho']:g}", f"b {row['member']:g}", *shares, size, warmth)


def taught_by(folder: Path) -> Iterator[Sequence[str]]:
    """What single teachers know of held-out pairs, means over the seeds: shares in percent."""
    found = pd.read_csv(folder / "teachers.csv")
    kinds = ("all", "longer", "shorter")
    yield (
        "ρ",
        "teacher",
        "right, %",
        "where the longer won, %",
        "where the shorter won, %",
        "margins, mean square",
    )
    for (rho, teacher), each in found.groupby(["rho", "teacher"], sort=False):
        shares = (number(100 * each[kind].mean(), 0, sign=False) for kind in kinds)
        yield (f"{rho:g}", str(teacher), *shares, number(each["mean_square"].mean(), 0, sign=False))


def trained(folder: Path) -> Iterator[Sequence[str]]:
    """How teachers rank the pairs that pupils get their margins of, and the size of these margins."""
    found = pd.read_csv(folder / "trained.csv")
    yield ("ρ", "teacher", "right on training pairs, %", "on held-out pairs, %", "margins, root mean square")
    for (rho, teacher), each in found.groupby(["rho", "teacher"], sort=False):
        shares = (number(100 * each[kind].mean(), 0, sign=False) for kind in ("trained", "all"))
        yield (f"{rho:g}", str(teacher), *shares, number(each["mean_square"].mean() ** 0.5, 1, sign=False))


def wrong(folder: Path) -> Iterator[Sequence[str]]:
    """What teachers make of labels that go against the oracle, means over the seeds in percent."""
    found = pd.read_csv(folder / "noise.csv")
    heads = ("wrong labels, %", "where the longer, the shorter won", "it agrees with the label in, %")
    agrees = ("with the oracle in", "where the label is right", "where it is wrong")
    yield ("ρ", "teacher", *heads, *agrees)
    shares = ("wrong", "with_label", "right", "right_of_right", "right_of_wrong")
    for (rho, teacher), each in found.groupby(["rho", "teacher"], sort=False):
        wrong, *means = (number(100 * each[share].mean(), 0, sign=False) for share in shares)
        kinds = (number(100 * each[f"wrong_{kind}"].mean(), 0, sign=False) for kind in ("longer", "shorter"))
        yield (f"{rho:g}", str(teacher), wrong, ", ".join(kinds), *means)


def smallest(folder: Path) -> Iterator[Sequence[str]]:
    """Who taught most by one min over the data set, and whether that is who has the smallest margins."""
    taught = pd.read_csv(folder / "choices.csv")
    written_so = taught[taught["policy"] == "e-dpo as written"]
    margins = pd.read_csv(folder / "margins.csv").set_index(["rho", "seed", "member"])["mean_square"]
    most = written_so.loc[written_so.groupby(["rho", "seed"])["share"].idxmax()]
    yield ("ρ", "taught most: seeds", "by the member of the smallest margins")
    for rho, rows in most.groupby("rho"):
        same = sum(margins[rho, one.seed].idxmin() == one.member for one in rows.itertuples())
        who = rows["member"].value_counts().sort_index()
        names = ", ".join(f"b {member:g}: {count}" for member, count in who.items())
        yield (f"{rho:g}", names, f"{same} of {len(rows)}")
