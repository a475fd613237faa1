"""Write the tables of docs from committed results: what stands between the marks of a page is never typed.

python -m tools.results            writes them
python -m tools.results --check    exits 1 if a page is not what would be written

A mark is `<!-- cells of FOLDER -->`, a folder of results/, or another of TABLES; `<!-- end -->` ends it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rpo_cli.figures.claims import judge
from rpo_cli.figures.drawing import line_of
from rpo_cli.figures.results import Results, load_results
from rpo_cli.recipes import schema
from rpo_cli.statistics import break_even, holm, t_interval, t_test

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]
# Where a question was set down as primary before its seeds ran, and the page that tells what came of it.
PRIMARY = {
    "figure2-seeds": "figure2",
    "equal-subsets": "one-min",
    "information": "information",
    "information-again": "information-again",
    "longer": "longer",
    "selected": "selected",
    "entangled": "entangled",
    "polite": "polite",
    "polite-pupil": "polite",
    "trusted": "trusted",
    "trusted-smooth": "trusted",
    "factorial": "factorial",
}
MARKED = re.compile(r"(<!-- (\w+) of ([\w/-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Row = Mapping[str, Any]


@lru_cache(maxsize=8)
def loaded(folder: Path) -> Results:
    """The results of a folder, which several tables of a page are of; nobody changes them."""
    return load_results(folder)


def of_seeds(results: Results, asked: Sequence[schema.Claim]) -> list[Any]:
    """The differences of each seed for some claims, of which nothing else is looked at: no resampling."""
    once = results.bootstrap._replace(resamples=1)
    return [row["by_seed"] for row in judge(results.cells, results.axes, asked, once, brief=True)]


def number(value: float | None, digits: int = 2, sign: bool = True) -> str:
    """A number as the pages have it, with a real minus; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def between(row: Row, middle: str, low: str, high: str, digits: int = 2, scale: float = 1.0) -> str:
    """A number and its interval, all times `scale`."""
    if row.get(middle) is None:
        return number(None)
    shown = [number(scale * row[name], digits, sign=scale == 1.0) for name in (middle, low, high)]
    return f"{shown[0]} ({shown[1]} … {shown[2]})"


def cells(folder: Path) -> Iterator[Sequence[str]]:
    """Every policy at every rho, means over the seeds with their 95 % intervals."""
    results = json.loads((folder / "figure2.json").read_text())
    unit = results["provenance"].get("unit") or "oracle reward"
    polite = ["polite, %"] if any(row.get("polite") is not None for row in results["table"]) else []
    head = ("ρ", "policy", f"advantage, {unit}", "wins, %", "utility", "tokens", "KL, nats", "unfinished, %")
    yield (*head, *polite)
    for row in sorted(results["table"], key=lambda row: row["rho"] or 0.0):  # policies stay in their order
        yield (
            "none" if row["rho"] is None else f"{row['rho']:g}",
            row["policy"],
            between(row, "advantage", "low", "high"),
            between(row, "win", "win_low", "win_high", 1, 100.0),
            number(row.get("utility"), sign=False),
            number(row["tokens"], 1, sign=False),
            number(row.get("kl"), 1, sign=False),
            number(None if row.get("unfinished") is None else 100 * row["unfinished"], 1, sign=False),
            *(between(row, "polite", "polite_low", "polite_high", 1, 100.0) for _ in polite),
        )


def claims(folder: Path) -> Iterator[Sequence[str]]:
    """What was claimed, and what came of it; a claim without a measurement says so."""
    return verdicts(json.loads((folder / "figure2.json").read_text())["orderings"])


def primary(folder: Path) -> Iterator[Sequence[str]]:
    """The claims set down as primary in the experiments below a folder, each with its page."""
    rows = []
    for name, page in PRIMARY.items():
        found = json.loads((folder / name / "figure2.json").read_text())
        titles = [claim["claim"] for claim in found["provenance"]["claims"] if claim.get("primary")]
        told = [row for row in found["orderings"] if row["claim"] in titles]
        rows += [(f"[{name}](results/{page}.md)", row) for row in told]
    head, *lines = verdicts([row for _, row in rows])
    among_all = holm([row["p"] for _, row in rows])
    yield ("asked in", *head, "p", f"of {len(rows)} (Holm)")
    for (link, row), line, corrected in zip(rows, lines, among_all, strict=True):
        yield (link, *line, f"{max(row['p'], 0.0001):.4f}", f"{max(corrected, 0.0001):.4f}")


def slopes(folder: Path) -> Iterator[Sequence[str]]:
    """What the last two checkpoints of each policy differ by, and whether that is a plateau."""
    yield ("policy", "slope, sd per epoch", "plateau")
    for row in json.loads((folder / "curves.json").read_text())["table"]:
        yield row["policy"], between(row, "slope", "slope_low", "slope_high", 3), row["plateau"]


def ends(folder: Path) -> Iterator[Sequence[str]]:
    """What the last two checkpoints differ by, not divided by epochs, and the highest and the last.

    Looked at afterwards: the highest of five means was picked for being it.
    """
    yield ("policy", "the last two, sd", "highest after, passes", "from there to the end, sd")
    for policy, curve in along(folder).items():
        top = curve.mean().idxmax()
        *_, before, last = curve.columns
        fallen = "–" if top == last else less(curve[last] - curve[top])
        yield policy, less(curve[last] - curve[before], 3), f"{top:g}", fallen


def lengths(folder: Path) -> Iterator[Sequence[str]]:
    """The ends of two lengths of training, in sd of the reward over the reference's samples."""
    short, long = along(folder), along(folder.with_name(f"{folder.name}-long"))
    yield ("policy", "twelve passes less three, sd")
    for policy, curve in short.items():
        yield policy, less(long[policy][long[policy].columns[-1]] - curve[curve.columns[-1]])


def along(folder: Path) -> dict[str, pd.DataFrame]:
    """Each policy's advantage in sd: a row for each seed, a column for each checkpoint's epoch."""
    found = pd.read_csv(folder / "checkpoints.csv")
    found["sd"] = found["advantage"] / found["baseline_sd"]
    return {
        policy: rows.pivot_table(index="seed", columns="epoch", values="sd")
        for policy, rows in found.groupby("policy", sort=False)
    }


def less(differences: pd.Series, digits: int = 2) -> str:
    """A mean over seeds with its interval."""
    mean, low, high = t_interval(differences.to_numpy())
    return between({"mean": mean, "low": low, "high": high}, "mean", "low", "high", digits)


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


def compared(folder: Path, measure: str, ended: bool = False) -> Iterator[Sequence[str]]:
    """Every policy less the first, and less the second, by a measure: in the mean over rho and at each.

    Looked at afterwards: nobody claimed these. `ended`: of the prompts where every policy's sample ended.
    """
    results = loaded(folder)
    cells, policies = results.cells, results.axes.policies
    if ended:
        cut = cells.groupby(["rho", "seed", "prompt_id"])["unfinished"].transform("max")
        cells = cells[cut == 0]
    claims = [
        claim(measure, *pair, mean_over_rho=mean) for pair in pairs_of(policies) for mean in (True, False)
    ]
    return verdicts(judge(cells, results.axes, claims, results.bootstrap, brief=True))


def pairs_of(policies: Sequence[str]) -> list[tuple[str, str]]:
    """Every policy with the first, and with the second."""
    return [(more, than) for place, than in enumerate(policies[:2]) for more in policies[place + 1 :]]


def claim(measure: str, more: str, than: str, *, mean_over_rho: bool) -> schema.Claim:
    """That one policy has more of a measure than another."""
    said = {"claim": measure, "more": more, "than": than, "measure": measure, "mean_over_rho": mean_over_rho}
    return schema.Claim.model_validate(said)


def across(folder: Path) -> Iterator[Sequence[str]]:
    """The same differences at the first rho, in the mean of the others, and by how much these two differ.

    Looked at afterwards, each alone: Student's t over seeds, not corrected; 0.0001 is that or less.
    """
    results = loaded(folder)
    first, *others = (f"{rho:g}" for rho in results.axes.rhos if rho is not None)
    rest_of = f"mean of ρ {', '.join(others)}"
    yield ("difference", f"at ρ {first}", "p", rest_of, "the first less these", "p")
    asked = [
        claim(measure, *pair, mean_over_rho=False)
        for measure in ("advantage", "win", "utility")
        for pair in pairs_of(results.axes.policies)
    ]
    rows = of_seeds(results, asked)
    for place, one in enumerate(asked):
        by_rho = np.array(rows[place * (1 + len(others)) :][: 1 + len(others)])
        rest = by_rho[1:].mean(0)
        shown = [
            "{} ({} … {})".format(*map(number, t_interval(values)))
            for values in (by_rho[0], rest, by_rho[0] - rest)
        ]
        chance = [f"{max(t_test(values), 0.0001):.4f}" for values in (by_rho[0], by_rho[0] - rest)]
        yield (f"{one.measure}: {one.more} - {one.than}", shown[0], chance[0], shown[1], shown[2], chance[1])


def lead(folder: Path, measure: str, more: str, than: str) -> np.ndarray:
    """One policy less another in the mean over ρ, of each seed."""
    results = loaded(folder)
    asked = [claim(measure, more, than, mean_over_rho=True)]
    return np.array(of_seeds(results, asked)[0])


def shown(values: np.ndarray) -> str:
    """Their mean with Student's t interval."""
    return "{} ({} … {})".format(*map(number, t_interval(values)))


def again(folder: Path) -> Iterator[Sequence[str]]:
    """e-DPO's lead over DPO in `information` and in a folder that repeats it, and how seeds go together."""
    yield ("e-dpo - dpo", "first run", "this run", "this less the first", "mean of both", "correlation")
    for measure in ("advantage", "win", "utility"):
        one, other = (
            lead(place, measure, "e-dpo", "dpo") for place in (folder.parent / "information", folder)
        )
        together = number(float(np.corrcoef(one, other)[0, 1]))
        yield (measure, shown(one), shown(other), shown(other - one), shown((one + other) / 2), together)


def below(folder: Path) -> Iterator[Sequence[str]]:
    """Leads over DPO at ρ 0.2 to 0.5 less those of a folder at higher ρ, paired by seed.

    Where the repeated run has a policy its cells are compared, of the same models; else the first run's.
    """
    yield ("advantage, less dpo", "ρ 0.2 to 0.5", "here", "the first less these", "of one run")
    places = [folder.parent / name for name in ("information-again", "information")]
    there = [loaded(place).axes.policies for place in places]
    for policy in loaded(folder).axes.policies[1:]:
        place = next(one for one, has in zip(places, there, strict=True) if policy in has)
        one, other = (lead(each, "advantage", policy, "dpo") for each in (place, folder))
        same = "yes" if place is places[0] else "no"
        yield (policy, shown(one), shown(other), shown(one - other), same)


def by_seed(cells: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Means of a measure: a row for each policy and ρ, a column for each seed."""
    means = cells.groupby(["policy", "rho", "seed"], observed=True)[measure].mean()
    return means.unstack("seed")


def beside(folder: Path, above: float = 0.0) -> Iterator[Sequence[str]]:
    """Every policy less the first by all that is measured of samples, in the mean over ρ above a bound.

    Looked at afterwards: Student's t over seeds, not corrected. *Where both ended* is utility again, of the
    prompts on which both policies' samples ended, whose share is beside it.
    """
    results = loaded(folder)
    cells = results.cells[results.cells["rho"] > above]
    first, *others = results.axes.policies
    places = ["rho", "seed", "prompt_id"]
    base = cells[cells["policy"] == first].set_index(places)
    yield (f"less {first}", "reward, sd", "wins, points", "utility", "where both ended", "of prompts, %",
           "KL, nats", "tokens", "unfinished, points")  # fmt: skip
    for policy in others:
        mine = cells[cells["policy"] == policy].set_index(places)
        less = {
            name: scale * (mine[name] - base[name])
            for name, scale in (("advantage", 1), ("win", 100), ("utility", 1), ("kl", 1), ("tokens", 1),
                                ("unfinished", 100))
        }  # fmt: skip
        ended = less["utility"][(mine["unfinished"] == 0) & (base["unfinished"] == 0)]

        def over(values: pd.Series) -> str:
            seeds = (
                values.groupby(["rho", "seed"], observed=True).mean().groupby("seed", observed=True).mean()
            )
            return shown(seeds.to_numpy())

        yield (
            policy,
            *(over(less[name]) for name in ("advantage", "win", "utility")),
            over(ended),
            number(100 * len(ended) / len(mine), 1, sign=False),
            *(over(less[name]) for name in ("kl", "tokens", "unfinished")),
        )


def longer(folder: Path) -> Iterator[Sequence[str]]:
    """What four times the steps changed of each policy: paired, Student's t over seeds, not corrected."""
    results = loaded(folder)
    yield ("600 less 150 steps", "reward, sd", "at ρ 0.2", "at ρ 0.5", "wins, points", "utility", "KL, nats")
    means = {name: by_seed(results.cells, name) for name in ("advantage", "win", "utility", "kl")}
    for policy in (name for name in results.axes.policies if not name.endswith(" 600")):
        less = {name: each.loc[f"{policy} 600"] - each.loc[policy] for name, each in means.items()}
        yield (
            policy,
            shown(less["advantage"].mean().to_numpy()),
            *(shown(less["advantage"].loc[rho].to_numpy()) for rho in results.axes.rhos),
            shown(100 * less["win"].mean().to_numpy()),
            shown(less["utility"].mean().to_numpy()),
            shown(less["kl"].mean().to_numpy()),
        )


def without(folder: Path, seed: int = 39) -> Iterator[Sequence[str]]:
    """The claims by reward with all seeds and without the one that decides some, looked at afterwards."""
    results = loaded(folder)
    yield ("reward, in the mean over ρ", "ten seeds", f"without seed {seed}", "positive in")
    for row in results.meta["claims"]:
        if row.get("measure", "advantage") != "advantage":
            continue
        (than,) = [row["than"]] if isinstance(row["than"], str) else row["than"]
        values = lead(folder, "advantage", row["more"], than)
        rest = values[[one != seed for one in results.axes.seeds]]
        positive = f"{int((rest > 0).sum())} of {len(rest)}"
        yield (f"{row['more']} - {than}", shown(values), shown(rest), positive)


def kept(folder: Path) -> Iterator[Sequence[str]]:
    """In how many seeds each checkpoint of a learning curve has the highest reward on validation prompts."""
    curves = pd.read_csv(folder / "checkpoints.csv")
    best = curves.loc[curves.groupby(["policy", "rho", "seed"])["advantage"].idxmax()]
    counts = best.groupby(["policy", "step"]).size().unstack(fill_value=0)
    yield ("policy", *(f"{step} steps" for step in counts.columns))
    for policy in dict.fromkeys(curves["policy"]):
        yield (policy, *(str(count) for count in counts.loc[policy]))


def over_rhos(
    means: Mapping[str, pd.DataFrame], measure: str, more: str, than: str, rhos: Sequence[float]
) -> str:
    """One policy less another in the mean over some ρ; shares in points."""
    values = means[measure].loc[more].loc[list(rhos)].mean() - means[measure].loc[than].loc[list(rhos)].mean()
    return shown((100 if measure in ("win", "polite") else 1) * values.to_numpy())


def means_of(folder: Path, *measures: str) -> dict[str, pd.DataFrame]:
    """Means of these measures by seed."""
    return {measure: by_seed(loaded(folder).cells, measure) for measure in measures}


def taken(folder: Path) -> Iterator[Sequence[str]]:
    """Where an attribute is biased to either side: policies less each other, looked at afterwards."""
    means, biased = means_of(folder, "advantage", "utility", "kl", "polite"), (0.2, 0.8)
    yield ("", "reward, sd", "utility", "KL, nats", "polite at ρ 0.2, points", "polite at ρ 0.8, points",
           "reward at ρ 0.5")  # fmt: skip
    for more, than in (
        ("mean", "dpo"),
        ("d-dpo balanced", "dpo"),
        ("dpo balanced", "dpo"),
        ("mean", "e-dpo"),
    ):
        yield (
            f"{more} - {than}",
            *(over_rhos(means, measure, more, than, biased) for measure in ("advantage", "utility", "kl")),
            *(over_rhos(means, "polite", more, than, [rho]) for rho in biased),
            over_rhos(means, "advantage", more, than, [0.5]),
        )


# What prose names beyond a page's claims and tables: measure, more, than, rhos, of how many first seeds.
AFTERWARDS: dict[str, Sequence[tuple[str, str, str, Sequence[float], int | None]]] = {
    "figure2-seeds": [("advantage", "d-dpo", "e-dpo", [0.5], None)],
    "information": [("kl", more, "dpo", [0.2, 0.3, 0.4, 0.5], None) for more in ("e-dpo", "mean")],
    "entangled": [("utility", "e-dpo", "dpo", [0.2], 7)],
}


def afterwards(folder: Path) -> Iterator[Sequence[str]]:
    """Single differences that were looked at afterwards: paired, Student's t over seeds, not corrected."""
    yield ("looked at afterwards", "ρ", "seeds", "difference")
    for measure, more, than, rhos, seeds in AFTERWARDS[folder.name]:
        means = means_of(folder, measure)[measure].iloc[:, :seeds]
        value = over_rhos({measure: means}, measure, more, than, rhos)
        told = ", ".join(f"{rho:g}" for rho in rhos)
        yield (f"{measure}: {more} - {than}", told, str(means.shape[1]), value)


def costs(folder: Path) -> Iterator[Sequence[str]]:
    """Leads over DPO at ρ 0.2 where length is biased and where this attribute is, of the same seeds."""
    places = (folder.parent / "information", folder)
    leads = [means_of(place, "advantage")["advantage"].xs(0.2, level="rho") for place in places]
    yield ("less dpo, at ρ 0.2", "length biased", "politeness biased", "the second less the first")
    for policy in ("e-dpo", "mean", "d-dpo balanced"):
        length, here = (lead.loc[policy].to_numpy() - lead.loc["dpo"].to_numpy() for lead in leads)
        yield (policy, shown(length), shown(here), shown(here - length))


def chosen(folder: Path) -> Iterator[Sequence[str]]:
    """Chosen checkpoints less the last of 600 steps and less 150 steps, looked at afterwards."""
    measures, rhos = ("advantage", "utility", "kl"), (0.2, 0.5)
    means, short = means_of(folder, *measures), means_of(folder.parent / "longer", *measures)
    both = {measure: pd.concat([means[measure], short[measure]]) for measure in measures}
    both = {measure: found[~found.index.duplicated()] for measure, found in both.items()}
    yield ("chosen less", "reward, sd", "utility", "KL, nats")
    for policy in ("dpo", "e-dpo", "dpo balanced", "d-dpo balanced"):
        for than, said in ((f"{policy} 600", "the last step"), (policy, "150 steps")):
            values = (over_rhos(both, measure, f"{policy} chosen", than, rhos) for measure in measures)
            yield (f"{policy}: {said}", *values)


def leads(folder: Path) -> Iterator[Sequence[str]]:
    """e-DPO less DPO by last steps and by chosen checkpoints, and what choosing did to the lead."""
    means = means_of(folder, "advantage", "utility")
    yield ("e-dpo - dpo", "reward, sd", "at ρ 0.2", "at ρ 0.5", "utility")
    asked = [("advantage", (0.2, 0.5)), ("advantage", [0.2]), ("advantage", [0.5]), ("utility", (0.2, 0.5))]
    found = []
    for which in ("600", "chosen"):
        each = [
            means[measure].loc[f"e-dpo {which}"].loc[list(rhos)].mean()
            - means[measure].loc[f"dpo {which}"].loc[list(rhos)].mean()
            for measure, rhos in asked
        ]
        found.append(each)
        yield ("last of 600 steps" if which == "600" else which, *(shown(one.to_numpy()) for one in each))
    yield ("chosen less last", *(shown((b - a).to_numpy()) for a, b in zip(*found, strict=True)))


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


def sizes(folder: Path) -> Iterator[Sequence[str]]:
    """Advantages with subsets of one size, with the largest, and what is between: paired, uncorrected."""
    equal, largest = loaded(folder), loaded(folder.parent / "figure2-seeds")
    here, there = (by_seed(each.cells, "advantage") for each in (equal, largest))
    yield ("ρ", "policy", "subsets of one size", "as large as they can be", "the first less these")
    for rho in equal.axes.rhos:
        for policy in equal.axes.policies:
            one, other = (each.loc[(policy, rho)].sort_index() for each in (here, there))
            if not one.index.equals(other.index):
                raise ValueError(f"{folder}: other seeds than {folder.parent / 'figure2-seeds'}")
            yield (f"{rho:g}", policy, *(shown(each.to_numpy()) for each in (one, other, one - other)))


def overlap(folder: Path) -> Iterator[Sequence[str]]:
    """Words shared with what a person wrote, in percent; that less the first policy's on the same prompts.

    Student's t over prompts, not corrected: nobody claimed these.
    """
    found = pd.read_parquet(folder / "overlap.parquet").astype({"policy": str, "prompt_id": str})
    columns = ("overlap", "of_the_written", "of_its_own", "copied")
    first, *_ = loaded(folder).axes.policies

    def row(rows: pd.DataFrame) -> list[str]:
        return [number(100 * float(rows[column].mean()), 1, sign=False) for column in columns]

    yield ("ρ", "policy", "F1", "of the person's words", "of its own", "copied", f"F1 less {first}'s")
    yield ("–", "π_SFT", *row(found[found["policy"] == "sft"]), "–")
    for rho in loaded(folder).axes.rhos:
        here = found[found["rho"] == rho].set_index("prompt_id")
        base = here[here["policy"] == first]["overlap"]
        for policy in loaded(folder).axes.policies:
            rows = here[here["policy"] == policy]
            less = "–" if policy == first else shown(100 * (rows["overlap"] - base[rows.index]).to_numpy())
            yield (f"{rho:g}", policy, *row(rows), less)


def verdicts(rows: Sequence[Row]) -> Iterator[Sequence[str]]:
    """Rows of claims, each with the number of seeds in which its difference is above zero."""
    yield ("claim", "difference", "95 % interval", "positive in", "verdict")
    for row in rows:
        there = [value for value in row["by_seed"] if value is not None]
        numbers = ("–", "–", "–")
        if there:
            interval = f"{number(row['low'])} … {number(row['high'])}"
            positive = sum(value > 0 for value in there)
            numbers = (number(row["difference"]), interval, f"{positive} of {len(there)} seeds")
        yield (f"{row['claim']}: {row['detail']}", *numbers, row["status"])


TABLES: dict[str, Callable[[Path], Iterator[Sequence[str]]]] = {
    "cells": cells,
    "claims": claims,
    "primary": primary,
    "slopes": slopes,
    "ends": ends,
    "lengths": lengths,
    "teachers": teachers,
    "even": even,
    "advantage": partial(compared, measure="advantage"),
    "utility": partial(compared, measure="utility"),
    "across": across,
    "again": again,
    "below": below,
    "beside": beside,
    "above": partial(beside, above=0.5),
    "longer": longer,
    "without": without,
    "kept": kept,
    "paid": paid,
    "taken": taken,
    "costs": costs,
    "afterwards": afterwards,
    "chosen": chosen,
    "leads": leads,
    "apart": apart,
    "teaching": teaching,
    "known": known,
    "taught_by": taught_by,
    "overlap": overlap,
    "smallest": smallest,
    "sizes": sizes,
    "ended": partial(compared, measure="utility", ended=True),
}


def written(text: str) -> str:
    """A page with its tables as the committed results have them."""

    def table(found: re.Match[str]) -> str:
        begin, what, folder, end = found.groups()
        head, *rows = TABLES[what](REPOSITORY / "results" / folder)
        lines = ["", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)), "", ""]
        return begin + "\n".join(lines) + end

    return MARKED.sub(table, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or with --check name those that are stale; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    stale = [page for page in PAGES if written(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{page.relative_to(REPOSITORY)}: {'stale; python -m tools.results' if check else 'written'}")
        if not check:
            page.write_text(written(page.read_text()))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
