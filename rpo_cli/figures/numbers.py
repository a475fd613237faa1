"""The numbers of a comparison: means, paired differences and their intervals, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict, cast

import numpy as np

from rpo_cli.artifacts import MANIFEST, Stage, Workspace, scores_of, where
from rpo_cli.figures.cells import BASELINE, FORMAT, Cell
from rpo_cli.figures.frames import COUNTED, Frame, frames, held_out_pairs, patterns_of, verdicts_are_there
from rpo_cli.figures.results import plain
from rpo_cli.figures.selection import Selection
from rpo_cli.figures.table import Axes, Basis, Bootstrap, of_all, of_seeds, resample
from rpo_cli.recipes import schema, shown
from rpo_cli.runs.results import UNFINISHED, own_draws
from rpo_cli.stages.training.doubts import kept_doubts
from rpo_cli.statistics import FEW_PROMPTS, Array, too_few


class Measure(NamedTuple):
    """A column: its name, the unit of its numbers, decimals shown, and what it says in a sentence."""

    title: str
    unit: str
    digits: int
    text: str


MEASURES = {
    "accuracy": Measure(
        "held-out accuracy", "% of pairs", 1,
        "how often the policy's log-ratio to the reference is higher for the chosen response",
    ),
    "margin": Measure(
        "held-out margin", "nats", 2,
        "difference of the log-ratios of chosen and rejected; times beta it is TRL's rewards/margins",
    ),
    "advantage": Measure(
        "advantage", "oracle reward", 3, "the oracle's reward minus that of the baseline's sample"
    ),
    "teachers": Measure(
        "teachers' reward", "sd over baseline, not independent", 3,
        "what the distilled reward models say of the samples, minus the same of the baseline's, each in "
        "standard deviations of what it says of the baseline's; the policies learnt from them, so this shows "
        "how far they followed, not which is better",
    ),
    "judge": Measure("judge", "% wins over baseline", 1, "share of prompts that the judge gives the policy"),
    "tokens": Measure("length", "tokens", 1, "tokens of a sampled response, EOS counted"),
    "kl": Measure("KL to reference", "nats", 2, "log pi_theta - log pi_ref of the samples, by response"),
    "unfinished": Measure("unfinished", "% of samples", 1, "samples that were cut at max_new_tokens"),
}  # fmt: skip


LOG_RATIO = Measure(
    "log-ratio to reference", "nats", 2,
    "log pi_theta - log pi_ref of the samples, by response; no KL, for temperature or top_p made them other "
    "than the policy's own draws",
)  # fmt: skip


def measure_of(name: str) -> Measure:
    """A measure of the table above, or of what a data recipe has counted."""
    if name in MEASURES:
        return MEASURES[name]
    own = name.removeprefix(COUNTED)
    return Measure(own, "found in a sample", 2, f"how often what `counts: {own}` describes is in a sample")


OF_ITSELF = ("advantage", "kl")  # of the baseline 0 by definition, over itself and to itself
SHARES = {"accuracy": 100.0, "judge": 100.0, "unfinished": 100.0}  # of so much


class Apart(TypedDict):
    """A mean with its interval and its value in each seed."""

    mean: float | None
    low: float | None
    high: float | None
    by_seed: list[float | None]


def ends(apart: Apart | None) -> tuple[float, float, float] | None:
    """Mean, lower and upper end; None where nothing was measured, or nothing says how far it may be off."""
    if apart is None or apart["mean"] is None or apart["low"] is None or apart["high"] is None:
        return None
    return apart["mean"], apart["low"], apart["high"]


class Row(Apart):
    """What was measured of a policy, and its paired difference to the one compared with."""

    policy: str
    measure: str
    difference: Apart | None


class Told(TypedDict):
    """A measure as a table's head needs it; prompts: of the smallest seed."""

    name: str
    title: str
    unit: str
    digits: int
    prompts: int


class Line(TypedDict):
    """What one policy logged under one seed."""

    policy: str
    seed: int
    step: list[int]
    value: list[float]


class Panel(TypedDict):
    """A logged number, with a line for each policy and seed."""

    name: str
    lines: list[Line]


class Cost(TypedDict):
    """What stages of a kind took, and on what devices."""

    kind: str
    stages: int
    seconds: float
    devices: list[str]


class Comparison(TypedDict):
    """What `rpo compare --json` prints, as far as the program reads it; the report's template reads more."""

    format: int
    seeds: list[int]
    against: str
    measures: list[Told]
    rows: list[Row]
    notes: list[str]
    left_out: list[str]
    curves: NotRequired[list[Panel]]
    costs: NotRequired[list[Cost]]


def numbers(
    cells: Sequence[Cell], workspace: Workspace, selection: Selection, against: str, swept: bool
) -> Comparison:
    """The comparison as JSON may hold it: policies, measures, a row for each policy and measure, notes."""
    policies = list(dict.fromkeys(cell.policy for cell in cells))
    recipe = cast(schema.EvaluateRecipe, cells[0].evaluation.recipe)
    how = Bootstrap(recipe.bootstrap_samples)
    rows: list[Row] = []
    counts: dict[str, dict[str, object]] = {}
    few: list[str] = []
    why = why_half(cells, swept)
    measures = MEASURES if own_draws(recipe.model_dump()) else {**MEASURES, "kl": LOG_RATIO}
    measures = {**measures, **{name: measure_of(name) for name in patterns_of(cells[0])}}
    for whole in frames(cells, workspace, why is not None):
        frame = whole._replace(cells=of_all(whole.cells))
        few += _left_out(whole, frame)
        if frame.cells.empty:
            continue
        rows += _rows(frame, [*policies, BASELINE], selection, against, how)
        pairs = frame.cells.groupby(["policy", "seed"])["pairs"].sum().min() if frame.pairs else np.inf
        if (told := too_few(pairs)) is not None:
            few.append(f"{told}; hold out more of them (held_out of the splits recipe)")
        prompts = int(frame.cells.groupby("seed")["prompt_id"].nunique().min())
        for name in frame.measures:
            counts[name] = {"source": frame.source, "prompts": prompts}
    order = list(measures)
    rows.sort(key=lambda row: ([*policies, BASELINE].index(row["policy"]), order.index(row["measure"])))
    (rho,) = selection.rhos
    found = {
        "format": FORMAT,
        "suite": workspace.suite,
        "workspace": str(workspace.root),
        "rho": rho,
        "seeds": list(selection.seeds),
        "against": against,
        "policies": [_described(name, cells, workspace) for name in policies],
        "measures": [
            {"name": name, **measure._asdict(), **counts[name]}
            for name, measure in measures.items()
            if name in counts
        ],
        "rows": rows,
        "manifests": list(_manifests(cells)),
        "notes": [
            *_notes(cells, workspace, selection, against, swept),
            *_doubts(cells, workspace),
            *_half_notes(cells, workspace, why),
            *_few_prompts(counts),
            *few,
            *cut_short(rows, recipe.max_new_tokens),
        ],
    }
    made: Comparison = plain(found)
    return made


def why_half(cells: Sequence[Cell], swept: bool) -> str | None:
    """What one half of the held-out pairs chose, or may have, so that the other reports; None: nothing.

    Without an oracle it is held-out pairs that choose strengths and checkpoints.
    """
    if cast(schema.EvaluateRecipe, cells[0].evaluation.recipe).oracle is not None:
        return None
    recipes = {cell.policy: cast(schema.PolicyRecipe, cell.loaded.recipe) for cell in cells}
    if swept:
        return "the sweep chose the strengths on the others"
    if chosen := [name for name, recipe in recipes.items() if recipe.selects]:
        return f"the others chose among checkpoints ({', '.join(chosen)})"
    if tried := [name for name, recipe in recipes.items() if recipe.grid or recipe.by_rho]:
        named = f"{', '.join(tried)} {'has' if len(tried) == 1 else 'have'} a grid or by_rho"
        return f"a sweep, whenever it ran, chooses strengths on the others ({named})"
    return None


def _doubts(cells: Sequence[Cell], workspace: Workspace) -> Iterator[str]:
    """What speaks against a policy's teacher, as its training found; of the first seed that has any."""
    said: dict[str, list[tuple[int, list[str]]]] = {}
    for cell in cells:
        warnings = workspace.finished(cell.trained.path).get("warnings", [])
        if lines := kept_doubts(warnings):
            said.setdefault(cell.policy, []).append((cell.seed, lines))
    seeds = len({cell.seed for cell in cells})
    for policy, found in said.items():
        seed, lines = found[0]
        where = "" if seeds == 1 else f" (seed {seed}; so in {len(found)} of {seeds} seeds)"
        yield from (f"{policy}{where}: its teacher: {line}" for line in lines)


def _half_notes(cells: Sequence[Cell], workspace: Workspace, why: str | None) -> Iterator[str]:
    """Which half of the held-out pairs is reported, and why."""
    if why is None:
        return
    halves = held_out_pairs(cells[0], workspace)["half"]
    reported = f"{int((halves == 'test').sum())} of {len(halves)} held-out pairs"
    yield f"accuracy and margin are of {reported}, the half that chooses nothing: {why}"
    for seed in dict.fromkeys(cell.seed for cell in cells):
        cell = next(cell for cell in cells if cell.seed == seed)
        if not (held_out_pairs(cell, workspace)["half"] == "test").any():
            yield (
                f"seed {seed}: that half is empty, so accuracy and margin are of pairs that may have chosen; "
                "hold out more of them (held_out of the splits recipe)"
            )


def _left_out(whole: Frame, kept: Frame) -> Iterator[str]:
    """How many prompts some policy lacks, which therefore count for none."""
    seeds = whole.cells["seed"].unique()
    before, after = (
        frame.cells.groupby("seed")["prompt_id"].nunique().reindex(seeds).fillna(0).sum()
        for frame in (whole, kept)
    )
    if after < before:
        names = ", ".join(measure_of(name).title for name in whole.measures)
        yield f"{names}: {before - after:.0f} of {before:.0f} prompts left out, where a policy has no value"


def _few_prompts(counts: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """That intervals over few prompts are wide, and say little of other prompts."""
    numbers = {
        cast(int, each["prompts"]) for name, each in counts.items() if name not in ("accuracy", "margin")
    }
    if (fewest := min(numbers, default=FEW_PROMPTS)) < FEW_PROMPTS:
        yield f"{fewest} prompts are few: the intervals are wide, and other prompts may say otherwise"


def _rows(
    frame: Frame, policies: Sequence[str], selection: Selection, against: str, how: Bootstrap
) -> Iterator[Row]:
    """Mean of each policy with its interval, and its paired difference to `against`, over all seeds."""
    known = set(frame.cells["policy"])
    there = [name for name in policies if name in known]
    measures = (*frame.measures, "pairs") if frame.pairs else frame.measures
    axes = Axes(there, selection.rhos, sorted(selection.seeds), measures)
    draws = resample(frame.cells, axes, how._replace(student=True))
    point, drawn = draws.point[:, :, 0], draws.drawn[:, :, :, 0]
    if frame.pairs:  # a mean over pairs, whose prompts are drawn
        point, drawn = (values[..., :-1] / values[..., -1:] for values in (point, drawn))
    for p, policy in enumerate(there):
        for m, measure in enumerate(frame.measures):
            apart: Apart | None = None
            if policy != against and against in there:
                a = there.index(against)
                beyond = point[:, p, m] - point[:, a, m], drawn[:, :, p, m] - drawn[:, :, a, m]
                apart = _difference(*beyond, draws.basis, SHARES.get(measure, np.inf))
            own = _own(point[:, p, m], drawn[:, :, p, m], draws.basis, SHARES.get(measure))
            if policy == BASELINE and measure in OF_ITSELF:
                own |= {"low": None, "high": None}
            yield {"policy": policy, "measure": measure, **own, "difference": apart}


def _own(point: Array, drawn: Array, basis: Basis, whole: float | None) -> Apart:
    """A mean with its ends; `whole`: what a share is of, beyond which there is nothing.

    Equal values of few prompts have no ends, as equal differences.
    """
    mean, low, high = of_seeds(point, drawn, basis, whole)
    few = basis.prompts is not None and basis.prompts < FEW_PROMPTS
    if few and high - low <= 1e-9 * abs(mean):
        low = high = float("nan")
    if whole is not None:
        low, high = max(low, 0.0), min(high, whole)
    return {"mean": mean, "low": low, "high": high, "by_seed": point.tolist()}


def _difference(point: Array, drawn: Array, basis: Basis, most: float) -> Apart:
    """A difference with its ends, none of which is beyond what it can be at most.

    Equal differences of few prompts say nothing of others, and have no ends.
    """
    mean, low, high = of_seeds(point, drawn, basis)
    few = basis.prompts is not None and basis.prompts < FEW_PROMPTS
    if few and mean != 0 and high - low <= 1e-9 * abs(mean):
        return {"mean": mean, "low": None, "high": None, "by_seed": point.tolist()}
    return {"mean": mean, "low": max(low, -most), "high": min(high, most), "by_seed": point.tolist()}


def _described(name: str, cells: Sequence[Cell], workspace: Workspace) -> dict[str, object]:
    """What a policy is: its recipe, objective, strength, base and teachers."""
    cell = next(cell for cell in cells if cell.policy == name)
    recipe = cast(schema.PolicyRecipe, cell.loaded.recipe)
    stage = cast(Stage, cell.evaluation.inputs["policy"])

    def teacher(scores: Stage) -> str:
        columns = scores.options.get("columns")
        return where(scores.inputs["model"]) if columns is None else f"columns {' and '.join(columns)}"

    scores = cast(dict[str, Stage], scores_of(stage.inputs)).values()
    return {
        "name": name,
        "recipe": shown(cell.loaded.path),
        "objective": recipe.objective,
        "help": recipe.declared.help,
        "strength": cell.setting,
        "scale": recipe.reward_scale,
        "base": where(stage.inputs["model"]),
        "pairs": where(stage.inputs["data"]),
        "teachers": [teacher(node) for node in scores],
    }


def _manifests(cells: Sequence[Cell]) -> Iterator[dict[str, object]]:
    """Where the numbers of each policy and seed are from."""
    baselines: dict[str, int] = {}
    for cell in cells:
        found = {"policy": cell.evaluation.inputs["policy"], "evaluation": cell.evaluation}
        found |= {name: stage for name in ("held_out", "judged") if (stage := getattr(cell, name))}
        found |= {f"taught, {stage.path.split('/test/')[1]}": stage for stage in cell.taught}
        paths = {name: f"{cast(Stage, stage).path}/{MANIFEST}" for name, stage in found.items()}
        yield {"policy": cell.policy, "seed": cell.seed, "paths": paths}
        baselines[cast(Stage, cell.evaluation.inputs["baseline"]).path] = cell.seed
    for path, seed in baselines.items():
        yield {"policy": BASELINE, "seed": seed, "paths": {"evaluation": f"{path}/{MANIFEST}"}}


def cut_short(rows: Sequence[Row], longest: int) -> list[str]:
    """What many unfinished samples mean for the numbers; rows as `numbers` has them."""
    shares = {row["policy"]: row["mean"] or 0.0 for row in rows if row["measure"] == "unfinished"}
    many = [f"{share:.0f} % of {name}" for name, share in shares.items() if share > 100 * UNFINISHED]
    if not many:
        return []
    cure = "lengths, KL and rewards are of what was cut off; raise max_new_tokens of the evaluate recipe"
    return [f"cut at max_new_tokens, {longest}: {', '.join(many)}; {cure}"]


def _notes(
    cells: Sequence[Cell], workspace: Workspace, selection: Selection, against: str, swept: bool
) -> Iterator[str]:
    """What must be known to read the numbers."""
    count = len(selection.seeds)
    compared = cast(Stage, cells[0].evaluation.inputs["baseline"])
    how = f"intervals over {count} seeds, and over prompts where seeds share them, Student's t"
    if count == 1:
        how = "intervals over prompts, not over training seeds"
    yield f"brackets: 95 % {how}; differences are to {against}, paired by prompt"
    yield f"baseline: the samples of {where(compared.inputs['policy'])}"
    if count == 1:
        yield "one seed: another training seed may say otherwise; --seeds 0,1,2 trains more"
    if swept:
        yield (
            "the strengths were chosen on policies of the seeds that are reported here: for other seeds "
            "the best value may be another"
        )
    if cast(schema.EvaluateRecipe, cells[0].evaluation.recipe).oracle is None:
        yield (
            "no oracle: nothing here says whether people would prefer the samples; read some of them "
            "(`rpo report` has them side by side). "
            "Held-out pairs have the bias of the training pairs: a policy that learns it ranks them better"
        )
        if all(cell.taught for cell in cells):
            yield (
                "teachers' reward: mean of the reward models that are distilled. Not independent: a policy "
                "that distils them rises in their eyes, whether it gets better or not"
            )
    if any(cell.judged is not None and not verdicts_are_there(cell, workspace) for cell in cells):
        yield "judge: there are no verdicts on all of these yet; `rpo judge` asks for them"
