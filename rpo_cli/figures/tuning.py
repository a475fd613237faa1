"""Choose strengths on validation prompts, each objective with the same budget; drop the weights that lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from rich.table import Table

from rpo_cli.artifacts import Manifest, Stage, Workspace, snapshots, write_csv
from rpo_cli.figures.cells import Cell, Cells, Chosen, read_by
from rpo_cli.figures.selection import Grids, Selection, at, axes_of, settings
from rpo_cli.recipes import require_writable, schema, shown, write_by_rho, write_setting
from rpo_cli.runs.planning.data import suite_rhos
from rpo_cli.runs.session import Session
from rpo_cli.runs.todo import what_to_run
from rpo_cli.stages.selected import score_of
from rpo_cli.text import counted

Keep = Literal["best", "none", "all"]
Setting = dict[str, float]  # what is swept, the strength first
Trial = tuple[str, float | None, tuple[float, ...]]  # a policy, a rho and a setting: a cell under each seed
SEEN = {  # what the table of a sweep has of the metrics of either kind of stage
    "evaluate": {
        "advantage": "advantage", "low": "advantage_low", "high": "advantage_high",
        "tokens_mean": "tokens_mean", "kl_to_reference": "kl_to_reference",
        "win": "win_rate", "unfinished": "unfinished_share",
    },
    "held_out": {"accuracy": "validation/accuracy", "margin": "validation/margin"},
}  # fmt: skip

BIASED = (
    "chosen by accuracy on held-out pairs, which have the training pairs' bias: this favours a value that "
    "learns the bias better; an oracle in the evaluate recipe would choose by its rewards"
)


class Tuned(NamedTuple):
    """What was chosen, every row that it was chosen from, and the file that has these rows.

    `lost`: the policies and rhos for which every value diverged, so that there is nothing to choose.
    """

    chosen: Chosen
    rows: list[dict[str, Any]]
    file: Path
    lost: list[str]


def tune(
    session: Session, maker: Cells, selection: Selection, grids: Grids, keep: Keep, write: bool, word: str
) -> Tuned:
    """Evaluate the grids on validation prompts and choose for each policy and rho by the mean over seeds.

    Without an oracle one half of the held-out pairs chooses, by the share of them that a policy ranks right.
    A value under which training diverges is the worst of its grid. `write`: what was chosen goes into
    the recipes' by_rho; `word`: what this is called in the first line.
    """
    if write:
        for name in selection.policies:
            require_writable(maker.policy(name).path)
    cells = maker.validation(selection, grids)
    counts = axes_of(selection.policies, selection.rhos, selection.seeds)
    where = "prompts" if cells[0].evaluation.kind == "evaluate" else "pairs, for want of an oracle"
    session.say(f"{word}: {counts}, {counted(len(cells), 'cell')} on validation {where}")
    if cells[0].evaluation.kind != "evaluate":
        session.say(BIASED)
    if note := selection.note():
        session.say(f"reduced: {note}")
    suite = maker.asked.recipe.suite
    workspace = session.open(suite)
    snapshots.pin([cell.evaluation for cell in cells], workspace)
    keeper = WeightKeeper(cells, workspace, keep)
    trials = [stage.path for cell in cells for stage in cell.trials]
    diverged = session.try_all(read_by(cells), suite, finished=keeper, may_diverge=trials)
    rows = validation_table(cells, workspace, diverged)
    lost_cells = [cell for cell in cells if is_among(cell, diverged)]
    keeper.give_up(lost_cells)
    for cell in lost_cells:
        where = f"{cell.policy}{at(cell.rho)}, seed {cell.seed}"
        session.say(f"note: {where}: diverged at {worded(cell.setting)}: the worst choice")
    chosen = choose(rows)
    lost = [
        f"{name}{at(rho)}: training diverged under every value of its grid"
        for name in selection.policies
        for rho in selection.rhos
        if rho not in chosen.get(name, {})
    ]
    found = Tuned(chosen, rows, workspace.root / "sweeps" / f"{maker.asked.path.stem}.csv", lost)
    write_csv(rows, found.file)
    if not session.as_json:
        session.out.print(choice_table(found.chosen, selection.rhos, rows))
        print(found.file)
    equals = ties(rows)
    tried = {name: settings(grid, selection.grid_size) for name, grid in grids.items()}
    for note in (*equals.values(), *at_edge(found.chosen, tried, equals)):
        session.say(f"note: {note}")
    if write:
        _write(session, maker, selection, found.chosen)
    return found


def _write(session: Session, maker: Cells, selection: Selection, chosen: Chosen) -> None:
    """Write into each recipe what was chosen for it: at a rho into its by_rho.

    Without resampling its own strength is written, where no other rho may be trained with that.
    """
    for name in selection.policies:
        loaded = maker.policy(name)
        known = cast(schema.PolicyRecipe, loaded.recipe).by_rho
        by_rho = {rho: values for rho, values in chosen.get(name, {}).items() if rho is not None}
        if by_rho:
            rhos = sorted({*known, *by_rho})
            write_by_rho(loaded.path, {rho: {**known.get(rho, {}), **by_rho.get(rho, {})} for rho in rhos})
            session.say(f"wrote by_rho of {shown(loaded.path)}")
        for key, value in chosen.get(name, {}).get(None, {}).items():
            if suite_rhos(loaded) == [None]:
                write_setting(loaded.path, {key: value})
                session.say(f"wrote {key} of {shown(loaded.path)}")
            else:
                also = f"{key} of {shown(loaded.path)} holds at every rho that its by_rho leaves out"
                cure = f"--rho none --set {key}={value:g} takes it"
                session.say(f"note: a choice without resampling is not written, for {also}; {cure}")


def settled(session: Session, maker: Cells, cells: Sequence[Cell]) -> tuple[Chosen | None, list[Cell]]:
    """What these validation cells choose, and those of them that have not diverged.

    None where one of these is not evaluated yet.
    """
    workspace = session.open(maker.asked.recipe.suite)
    snapshots.pin([cell.evaluation for cell in cells], workspace)
    lost = {
        stage.path
        for cell in cells
        for stage in cell.trials
        if workspace.has_diverged(stage.path, stage.identity)
    }
    rest = [cell for cell in cells if not is_among(cell, lost)]
    stages = [cell.evaluation for cell in rest]
    if any(workspace.manifest(stage.path) is None for stage in stages) or what_to_run(stages, workspace):
        return None, rest
    return choose(validation_table(cells, workspace, lost)), rest


def planned(
    session: Session, maker: Cells, selection: Selection, grids: Grids, cells: Sequence[Cell]
) -> Chosen:
    """What these validation cells choose where all are evaluated; else a value that they may choose.

    That is the recipe's own where it is tried, and the first that is tried elsewhere.
    """
    found, _ = settled(session, maker, cells)
    if found is not None:
        return found
    chosen: Chosen = {}
    for name, grid in grids.items():
        tried = settings(grid, selection.grid_size)
        for rho in selection.rhos:
            own = cast(schema.PolicyRecipe, maker.at(name, rho).recipe).setting
            chosen.setdefault(name, {})[rho] = own if own in tried else tried[0]
    return chosen


def is_among(cell: Cell, diverged: Collection[str]) -> bool:
    """Whether a cell's policy diverged in training, or when it was evaluated."""
    return any(stage.path in diverged for stage in cell.trials)


def validation_table(
    cells: Sequence[Cell], workspace: Workspace, diverged: Collection[str]
) -> list[dict[str, Any]]:
    """One row for each cell: what the sweep saw, which is nothing where training diverged."""
    rows = []
    more = {key for cell in cells for key in list(cell.setting)[1:]}
    for cell in cells:
        seen = SEEN[cell.evaluation.kind]
        metrics: dict[str, Any] = dict.fromkeys(seen.values())
        if not is_among(cell, diverged):
            metrics = workspace.finished(cell.evaluation.path)["metrics"]
            if (step := workspace.finished(cell.policy_path)["metrics"].get("selected/step")) is not None:
                seen, metrics = {**seen, "step": "step"}, {**metrics, "step": step}
        name, value = next(iter(cell.setting.items()))
        row = {"policy": cell.policy, "rho": cell.rho, "seed": cell.seed, "parameter": name, "value": value}
        row |= {key: cell.setting.get(key) for key in more}
        rows.append(row | {column: metrics.get(of) for column, of in seen.items()})
    return rows


def choose(rows: Sequence[Mapping[str, Any]]) -> Chosen:
    """For each policy and rho the setting of the highest advantage, or else accuracy, mean over seeds.

    The smaller of equals.
    A setting that diverged under any seed is not chosen; where all did, nothing is.
    """
    chosen: Chosen = {}
    for (policy, rho), best in _best(rows).items():
        chosen.setdefault(policy, {})[rho] = best[0]
    return chosen


def ties(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float | None], str]:
    """Of each policy and rho where several settings do best, which, and what was taken."""
    return {
        (policy, rho): f"{policy}{at(rho)}: a tie: {_decides(rows)} is the same with "
        f"{', '.join(map(worded, best))}; the smallest is taken"
        for (policy, rho), best in _best(rows).items()
        if len(best) > 1
    }


def worded(setting: Setting) -> str:
    """`beta 0.1`, `beta 0.1 learning_rate 0.0002`."""
    return " ".join(f"{name} {value:g}" for name, value in setting.items())


def _best(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float | None], list[Setting]]:
    """Of each policy and rho the settings that do best, the smallest first."""
    seen: dict[tuple[str, float | None], dict[tuple[float, ...], list[Mapping[str, Any]]]] = {}
    for row in rows:
        of_setting = seen.setdefault((row["policy"], row["rho"]), {})
        of_setting.setdefault(tuple(_setting(row).values()), []).append(row)
    found = {}
    for place in sorted(seen, key=lambda place: (place[0], place[1] or 0.0)):
        means = {
            values: sum(map(score_of, of_seeds)) / len(of_seeds) for values, of_seeds in seen[place].items()
        }
        best = max((mean for mean in means.values() if mean > float("-inf")), default=None)
        equal = [values for values, mean in sorted(means.items()) if mean == best]
        if equal:
            found[place] = [_setting(seen[place][values][0]) for values in equal]
    return found


def _setting(row: Mapping[str, Any]) -> Setting:
    """What a row of a sweep's table was tried with."""
    rate = row.get(schema.RATE)
    return {row["parameter"]: row["value"]} | ({} if rate is None else {schema.RATE: rate})


def _decides(rows: Sequence[Mapping[str, Any]]) -> str:
    return "advantage" if "advantage" in rows[0] else "accuracy"


def at_edge(
    chosen: Chosen, settings: Mapping[str, Sequence[Setting]], tied: Collection[tuple[str, float | None]] = ()
) -> Iterator[str]:
    """Choices at the end of their grid, where a better value may lie outside: said, not hidden.

    `settings`: those that were tried of each policy. `tied`: where several do best, which says nothing of
    what lies outside.
    """
    for policy, by_rho in chosen.items():
        for rho, best in by_rho.items():
            for name, value in best.items() if (policy, rho) not in tied else ():
                tried = {setting[name] for setting in settings[policy]}
                if len(tried) > 2 and value in (min(tried), max(tried)):
                    yield f"{policy}{at(rho)}: {name} {value:g} is at the edge of its grid"


def choice_table(chosen: Chosen, rhos: Sequence[float | None], rows: Sequence[Mapping[str, Any]]) -> Table:
    """What was chosen for each policy and rho, and from these rows the best mean over all rho, to print."""
    heads = ["unbiased" if rho is None else f"rho {rho:g}" for rho in rhos]
    shown = {policy: [by_rho.get(rho, {}) for rho in rhos] for policy, by_rho in chosen.items()}
    if len(rhos) > 1:
        heads.append("one for all rho")
        overall = choose([{**row, "rho": None} for row in rows])
        for policy, values in shown.items():
            values.append(overall.get(policy, {}).get(None, {}))
    title = f"chosen on {'validation prompts' if _decides(rows) == 'advantage' else 'held-out pairs'}"
    table = Table("policy", *heads, title=title, min_width=len(title))
    for policy, values in shown.items():
        table.add_row(policy, *map(worded, values))
    return table


def _trial(cell: Cell) -> Trial:
    return cell.policy, cell.rho, tuple(cell.setting.values())


class WeightKeeper:
    """Drops the weights that a sweep no longer needs: of each policy and rho, of all values but the best.

    The best is the one that `choose` will choose: by the mean over seeds, known when a setting has been
    evaluated under each. `keep` none: no policy stays once it has been evaluated; all: every one does. The
    cells' hub names must be pinned: what an earlier run evaluated is known by its key.
    """

    def __init__(self, cells: Sequence[Cell], workspace: Workspace, keep: Keep = "best") -> None:
        self.cells = {cell.evaluation.path: cell for cell in cells}
        self.workspace, self.keep = workspace, keep
        self.seeds = len({cell.seed for cell in cells})
        self.seen: dict[Trial, list[float]] = {}
        for cell in cells if keep == "best" else ():
            if workspace.why_stale(cell.evaluation.path, cell.evaluation.identity) is None:
                self(cell.evaluation, workspace.finished(cell.evaluation.path))

    def __call__(self, stage: Stage, manifest: Manifest) -> None:
        cell = self.cells.get(stage.path)
        if cell is None or self.keep == "all":
            return
        if self.keep == "none":
            self._drop(cell)
            return
        policy, rho, _ = trial = _trial(cell)
        self.seen.setdefault(trial, []).append(score_of(manifest["metrics"]))
        means = {
            each: sum(scores) / len(scores)
            for each, scores in self.seen.items()
            if each[:2] == (policy, rho) and len(scores) == self.seeds
        }
        # As in `choose`: the smaller of equals.
        best = min(means, key=lambda each: (-means[each], each[2]), default=None)
        self._drop_all(means.keys() - {best})

    def give_up(self, diverged: Sequence[Cell]) -> None:
        """Drop the weights of values that diverged under a seed, which no mean over seeds will choose."""
        if self.keep == "best":
            self._drop_all({_trial(cell) for cell in diverged})

    def _drop_all(self, trials: Collection[Trial]) -> None:
        for cell in self.cells.values():
            if _trial(cell) in trials:
                self._drop(cell)

    def _drop(self, cell: Cell) -> None:
        for path in cell.weights:
            self.workspace.drop_weights(path)
