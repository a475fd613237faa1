"""The numbers of a comparison: means, paired differences and their intervals, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict, cast

import numpy as np
import pandas as pd

from rpo_cli.artifacts import MANIFEST, External, Stage, Workspace, scores_of
from rpo_cli.figures.cells import BASELINE, FORMAT, Cell
from rpo_cli.figures.gather import read
from rpo_cli.figures.results import plain
from rpo_cli.figures.selection import Selection
from rpo_cli.figures.table import Axes, Basis, Bootstrap, of_all, of_seeds, resample
from rpo_cli.recipes import schema, shown
from rpo_cli.runs.results import UNFINISHED, own_draws
from rpo_cli.statistics import FEW_PROMPTS, Array, per_prompt, too_few

Source = str  # which of a cell's artifacts a number is from: evaluation, held_out, judged, taught


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
SHARES = {"accuracy": 100.0, "judge": 100.0, "unfinished": 100.0}  # of so much


class Frame(NamedTuple):
    """Numbers of every prompt: columns as in figures.table. `pairs`: sums over so many pairs, not means."""

    source: Source
    measures: tuple[str, ...]
    cells: pd.DataFrame
    pairs: bool = False


class Apart(TypedDict):
    """A mean with its interval and its value in each seed."""

    mean: float | None
    low: float | None
    high: float | None
    by_seed: list[float | None]


def ends(apart: Apart | None) -> tuple[float, float, float] | None:
    """Mean, lower and upper end; None where nothing was measured."""
    if apart is None or apart["mean"] is None or apart["low"] is None or apart["high"] is None:
        return None
    return apart["mean"], apart["low"], apart["high"]


class Row(Apart):
    """What was measured of a policy, and its paired difference to the one compared with."""

    policy: str
    measure: str
    difference: Apart | None


class Told(TypedDict):
    """A measure as a table's head needs it."""

    name: str
    title: str
    unit: str
    digits: int


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
    measures: list[Told]
    rows: list[Row]
    notes: list[str]
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
    order = list(MEASURES)
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
        return "one half of the held-out pairs chose the strengths"
    if chosen := [name for name, recipe in recipes.items() if recipe.selects]:
        return f"one half of the held-out pairs chose among checkpoints ({', '.join(chosen)})"
    if tried := [name for name, recipe in recipes.items() if recipe.grid or recipe.by_rho]:
        named = f"{', '.join(tried)} {'has' if len(tried) == 1 else 'have'} a grid or by_rho"
        return f"one half of the held-out pairs may have chosen strengths ({named})"
    return None


def _half_notes(cells: Sequence[Cell], workspace: Workspace, why: str | None) -> Iterator[str]:
    """Which half of the held-out pairs is reported, and why."""
    if why is None:
        return
    yield f"{why}, the other is what is reported"
    for seed in dict.fromkeys(cell.seed for cell in cells):
        cell = next(cell for cell in cells if cell.seed == seed)
        if not (_held_out(cell, workspace)["half"] == "test").any():
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
        names = ", ".join(MEASURES[name].title for name in whole.measures)
        yield f"{names}: {before - after:.0f} of {before:.0f} prompts left out, where a policy has no value"


def _few_prompts(counts: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """That intervals over few prompts are wide, and say little of other prompts."""
    numbers = {
        cast(int, each["prompts"]) for name, each in counts.items() if name not in ("accuracy", "margin")
    }
    if (fewest := min(numbers, default=FEW_PROMPTS)) < FEW_PROMPTS:
        yield f"{fewest} prompts are few: the intervals are wide, and other prompts may say otherwise"


def frames(cells: Sequence[Cell], workspace: Workspace, half: bool) -> Iterator[Frame]:
    """What there is to compare: samples, all of them or the finished ones; held-out pairs; verdicts.

    half: of the held-out pairs those of the half that chooses nothing.
    """
    recipe = cast(schema.EvaluateRecipe, cells[0].evaluation.recipe)
    samples: list[pd.DataFrame] = []
    finished: list[pd.DataFrame] = []
    for seed in dict.fromkeys(cell.seed for cell in cells):
        own = [cell for cell in cells if cell.seed == seed]
        read_of = {cell.policy: cell.evaluation for cell in own}
        read_of[BASELINE] = cast(Stage, own[0].evaluation.inputs["baseline"])
        tables = {
            name: read(workspace.root / stage.path / "samples.parquet") for name, stage in read_of.items()
        }
        zero = per_prompt(tables[BASELINE], recipe.truncated)
        for name, table in tables.items():
            keys = {**own[0].keys, "policy": name}
            ours = per_prompt(table, recipe.truncated)
            if "reward" in ours:
                ours["advantage"] = ours["reward"] - zero["reward"]
            samples.append(ours.dropna().reset_index().assign(**keys))
            cut = 100 * (1 - per_prompt(table, "score")["finished"])
            finished.append(cut.rename("unfinished").reset_index().assign(**keys))
    table = pd.concat(samples, ignore_index=True)
    names = ("advantage", "tokens", "kl") if "advantage" in table else ("tokens", "kl")
    yield Frame("evaluation", names, table)
    yield Frame("evaluation", ("unfinished",), pd.concat(finished, ignore_index=True))
    yield Frame(
        "held_out", ("accuracy", "margin"), pd.concat([_pairs(c, workspace, half) for c in cells]), True
    )
    if all(cell.taught for cell in cells):
        yield Frame("taught", ("teachers",), pd.concat([_taught(cell, workspace) for cell in cells]))
    if all(_verdicts_are_there(cell, workspace) for cell in cells):
        verdicts = pd.concat([_verdicts(cell, workspace) for cell in cells])
        if len(verdicts):
            yield Frame("judged", ("judge",), verdicts)


def _held_out(cell: Cell, workspace: Workspace) -> pd.DataFrame:
    assert cell.held_out is not None
    return read(workspace.root / cell.held_out.path / "pairs.parquet")


def _pairs(cell: Cell, workspace: Workspace, half: bool) -> pd.DataFrame:
    """Sums over the held-out pairs of each prompt; `half`: those that chose nothing, if there are any."""
    table = _held_out(cell, workspace)
    if half and (table["half"] == "test").any():
        table = table[table["half"] == "test"]
    margin = table["h_chosen"] - table["h_rejected"]
    sums = pd.DataFrame(
        {
            "prompt_id": table["prompt_id"],
            "accuracy": 50 * (np.sign(margin) + 1),
            "margin": margin,
            "pairs": 1.0,
        }
    )
    return sums.groupby("prompt_id").sum().reset_index().assign(**cell.keys)


def _taught(cell: Cell, workspace: Workspace) -> pd.DataFrame:
    """Each prompt's gain in reward over the baseline's samples, mean over the teachers that read it.

    Teachers have scales of their own: each gain is in standard deviations of that teacher's rewards of the
    baseline's samples.
    """
    tables = [read(workspace.root / stage.path / "rewards.parquet") for stage in cell.taught]
    gains = [in_deviations(table) for table in tables]
    return pd.concat(gains).groupby(level=0).mean().rename("teachers").reset_index().assign(**cell.keys)


def in_deviations(rewards: pd.DataFrame) -> pd.Series:
    """Gain over the baseline for each prompt, in standard deviations of the baseline's rewards, if any."""
    table = rewards.set_index("prompt_id")
    spread = float(table["baseline_reward"].std(ddof=1)) if len(table) > 1 else 0.0
    return (table["reward"] - table["baseline_reward"]) / (spread if spread > 0 else 1.0)


def _verdicts_are_there(cell: Cell, workspace: Workspace) -> bool:
    stage = cell.judged
    return stage is not None and workspace.why_stale(stage.path, stage.identity) is None


def _verdicts(cell: Cell, workspace: Workspace) -> pd.DataFrame:
    """The share of each prompt's comparisons with the baseline that a judge gives the policy, in percent."""
    from rpo_cli.stages.judge.winrates import scored

    assert cell.judged is not None
    table = scored(read(workspace.root / cell.judged.path / "verdicts.parquet"))
    table = table[(table["against"] == "baseline") & table["score"].notna()]
    wins = 100 * table.groupby("prompt_id")["score"].mean()
    return wins.rename("judge").reset_index().assign(**cell.keys)


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
                apart = _apart(*beyond, draws.basis)
            own = _apart(point[:, p, m], drawn[:, :, p, m], draws.basis, SHARES.get(measure))
            yield {"policy": policy, "measure": measure, **own, "difference": apart}


def _apart(point: Array, drawn: Array, basis: Basis, whole: float | None = None) -> Apart:
    mean, low, high = of_seeds(point, drawn, basis, whole)
    return {"mean": mean, "low": low, "high": high, "by_seed": point.tolist()}


def _described(name: str, cells: Sequence[Cell], workspace: Workspace) -> dict[str, object]:
    """What a policy is: its recipe, objective, strength, base and teachers."""
    cell = next(cell for cell in cells if cell.policy == name)
    recipe = cast(schema.PolicyRecipe, cell.loaded.recipe)
    stage = cast(Stage, cell.evaluation.inputs["policy"])

    def named(node: Stage | External) -> str:
        return node.path if isinstance(node, Stage) else node.reference

    def teacher(scores: Stage) -> str:
        columns = scores.options.get("columns")
        return named(scores.inputs["model"]) if columns is None else f"columns {' and '.join(columns)}"

    scores = cast(dict[str, Stage], scores_of(stage.inputs)).values()
    strength, value = cell.strength
    return {
        "name": name,
        "recipe": shown(cell.loaded.path),
        "objective": recipe.objective,
        "help": recipe.declared.help,
        "strength": {strength: value},
        "scale": recipe.reward_scale,
        "base": named(stage.inputs["model"]),
        "pairs": named(stage.inputs["data"]),
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
    how = "intervals over seeds, and over prompts where seeds share them, Student's t"
    if count == 1:
        how = "intervals over prompts, not over training seeds"
    yield f"differences are to {against}, paired by prompt; brackets: 95 % {how}"
    if count == 1:
        yield "one seed: another training seed may say otherwise; --seeds 0,1,2 trains more"
    if swept:
        yield (
            "the strengths were chosen on policies of the seeds that are reported here: for other seeds "
            "the best value may be another"
        )
    if cast(schema.EvaluateRecipe, cells[0].evaluation.recipe).oracle is None:
        yield (
            "no oracle: nothing here says whether people would prefer the samples; read some of them. "
            "Held-out pairs have the bias of the training pairs: a policy that learns it ranks them better"
        )
        if all(cell.taught for cell in cells):
            yield (
                "teachers' reward: mean of the reward models that are distilled. Not independent: a policy "
                "that distils them rises in their eyes, whether it gets better or not"
            )
    if any(cell.judged is not None and not _verdicts_are_there(cell, workspace) for cell in cells):
        yield "judge: there are no verdicts on all of these yet; `rpo judge` asks for them"
