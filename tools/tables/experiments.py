"""Tables of experiments: every policy, every claim, and what was looked at afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rpo_cli.figures.claims import judge
from rpo_cli.statistics import holm, t_interval, t_test
from tools.tables.words import (
    between,
    by_seed,
    claim,
    judged,
    lead,
    loaded,
    means_of,
    number,
    of_seeds,
    over_rhos,
    pairs_of,
    shown,
    verdicts,
)

# Where a question was set down as primary before its seeds ran, and the page that tells what came of it.
PRIMARY = {
    "figure2-seeds": "figure2",
    "utility": "utility",
    "equal-subsets": "one-min",
    "information": "information",
    "information-again": "information-again",
    "longer": "longer",
    "selected": "selected",
    "entangled": "entangled",
    "polite": "polite",
    "polite-pupil": "polite",
    "suspects": "suspects",
    "suspects-polite": "suspects",
    "trusted": "trusted",
    "trusted-smooth": "trusted",
    "factorial": "factorial",
    "teachers-grid": "teachers",
    "unseen": "teachers",
    "noisy": "noisy",
    "noisy-own": "noisy",
    "larger-model": "larger-model",
    "larger-model-untold": "larger-model",
}
SIZES = ("large", "small")
UNITS = {"advantage": "reward, sd", "win": "wins, points", "kl": "KL, nats"}


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
    return verdicts(judged(folder)[1])


def primary(folder: Path) -> Iterator[Sequence[str]]:
    """The claims set down as primary in the experiments below a folder, each with its page."""
    rows = []
    for name, page in PRIMARY.items():
        asked, found = judged(folder / name)
        titles = [claim["claim"] for claim in asked if claim.get("primary")]
        told = [row for row in found if row["claim"] in titles]
        rows += [(f"[{name}](results/{page}.md)", row) for row in told]
    head, *lines = verdicts([row for _, row in rows])
    among_all = holm([row["p"] for _, row in rows])
    yield ("asked in", *head, "p", f"of {len(rows)} (Holm)")
    for (link, row), line, corrected in zip(rows, lines, among_all, strict=True):
        yield (link, *line, f"{max(row['p'], 0.0001):.4f}", f"{max(corrected, 0.0001):.4f}")


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
    axes = results.axes._replace(measures=(measure,))
    return verdicts(judge(cells, axes, claims, results.bootstrap, brief=True))


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


def control(folder: Path) -> Iterator[Sequence[str]]:
    """Leads over DPO with wrong labels, on the same seeds without, and by how much these differ.

    Looked at afterwards, each alone: Student's t over seeds, not corrected.
    """
    yield ("less dpo", "by", "ρ", "a quarter wrong", "none wrong", "the first less these")
    noisy, clean = loaded(folder), loaded(folder.parent / "noisy-clean")
    for measure in ("advantage", "utility"):
        means = [by_seed(each.cells, measure) for each in (noisy, clean)]
        for policy in clean.axes.policies[1:]:
            for rho in clean.axes.rhos:
                wrong, right = (each.loc[policy, rho] - each.loc["dpo", rho] for each in means)
                apart = (wrong, right, wrong - right)
                yield (policy, measure, f"{rho:g}", *(shown(each.to_numpy()) for each in apart))


def by_size(folder: Path) -> Iterator[Sequence[str]]:
    """Leads over DPO of the larger and of the smaller models, and by how much these differ.

    Looked at afterwards, each alone: Student's t over seeds, not corrected.
    """
    yield ("less dpo of the same size", "by", "1.0M parameters", "0.13M", "1.0M less 0.13M")
    results = loaded(folder)
    for measure, scale in (("advantage", 1), ("utility", 1), ("win", 100), ("kl", 1)):
        means = scale * by_seed(results.cells, measure).groupby("policy", observed=True).mean()
        for policy in ("e-dpo", "mean", "one model"):
            large, small = (means.loc[f"{policy} {size}"] - means.loc[f"dpo {size}"] for size in SIZES)
            apart = (shown(each.to_numpy()) for each in (large, small, large - small))
            yield (policy, UNITS.get(measure, measure), *apart)


def longer(folder: Path) -> Iterator[Sequence[str]]:
    """What four times the steps changed of each policy: paired, Student's t over seeds, not corrected."""
    results = loaded(folder)
    heads = ("reward, sd", "at ρ 0.2", "at ρ 0.5", "wins, points", "utility", "KL, nats")
    yield ("600 less 150 steps", *heads)
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
    "teachers-grid": [
        *(("advantage", f"all 0/{steps}", "all 0/150", [0.2], None) for steps in (600, 2400)),
        ("advantage", "all 100/600", "all 100/150", [0.2], None),
        ("advantage", "all 0/600", "all 700/150", [0.2], None),
        ("utility", "min 700/150", "dpo", [0.2], None),
        ("utility", "min 0/150", "dpo", [0.2], None),
        ("utility", "balanced 700/150", "dpo", [0.2], None),
        ("utility", "balanced 0/2400", "dpo", [0.2], None),
    ],
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
