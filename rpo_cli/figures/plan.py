"""`rpo plan`: what a recipe rests on, as a table or as JSON for engines of other programs; builds nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rpo_cli import __version__
from rpo_cli.artifacts import Stage, publish, snapshots, walk
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import read_by
from rpo_cli.figures.run import figure_cells, show_cells
from rpo_cli.figures.tuning import settled
from rpo_cli.recipes import Loaded, article, schema, shown, stands
from rpo_cli.runs import make
from rpo_cli.runs.groups import groups
from rpo_cli.runs.options import Costs, Planning
from rpo_cli.runs.plan import VERSION, Plan, hashes, planned
from rpo_cli.runs.question import asked
from rpo_cli.runs.resources import resources
from rpo_cli.runs.session import Session
from rpo_cli.runs.todo import states, what_to_run

OF_FIGURES = ("seeds", "tune", "budget", "objectives", "grid_size", "keep_weights")
OF_PLANS = ("tune", "ensemble", "keep_weights", "seeds", "budget", "objectives", "grid_size", "split")
ESTIMATED = ("device_name", "tflops", "mfu", "price_per_hour", "params")  # a JSON plan needs no --estimate
NO_COSTS = Costs()
FILE = Path("plan.json")  # what commands of a plan on stdout call it


@dataclass(frozen=True)
class PlanOptions(Planning):
    """What a plan is asked for.

    split: of a policy, its evaluation on these prompts. out: the file of the plan; default: stdout. costs: a
    device, for times.
    """

    split: Literal["validation", "test"] | None = None
    out: Path | None = None
    costs: Costs = NO_COSTS


def run_plan(session: Session, options: PlanOptions) -> None:
    """Print the plan of a recipe of any kind: the table of --dry-run, or JSON.

    JSON is a plan that other machines carry out: hub names are resolved, and their commits recorded.
    """
    session = replace(session, dry_run=True, as_json=session.as_json or options.out is not None)
    loaded = session.load(None)
    _require_fit(session, loaded, options)
    complete, question = True, asked(True, options.costs)
    if loaded.recipe.stage == "figure":
        maker, selection, grids = figure_cells(session, options, options.tune)
        if not session.as_json:
            show_cells(session, maker, selection, grids, options.keep_weights, question)
            return
        chosen, cells = settled(session, maker, maker.validation(selection, grids)) if grids else (None, [])
        complete = chosen is not None or not options.tune
        targets = read_by([*cells, *(maker.test(selection, chosen) if complete else [])])
    else:
        loaded, targets = _targets(session, loaded, options)
        if not session.as_json:
            session.make(targets, loaded.recipe.suite, question=question)
            return
    text = export(session, loaded, targets, options, complete).model_dump_json(indent=1) + "\n"
    if options.out is None:
        print(text, end="")
        return
    try:
        publish(options.out, text.encode())
    except OSError as error:
        raise BadInput(f"--out {options.out}: cannot be written: {error.strerror}") from error


def export(
    session: Session, loaded: Loaded, targets: Sequence[Stage], options: PlanOptions, complete: bool
) -> Plan:
    """The plan of these targets; `complete`: nothing follows that depends on results."""
    workspace = session.open(loaded.recipe.suite)
    workspace.check()
    snapshots.record(targets, workspace, session.say)
    stages, todo = walk(targets), what_to_run(targets, workspace)
    session.announce(todo, stages, workspace)
    _require_dtype(session, stages)
    found = states(stages, todo, workspace)
    needs = resources(stages, workspace, asked(True, options.costs))
    together = groups(stages, {path: need.minutes for path, need in needs.items()})
    file = str(options.out or FILE)
    changes = [word for override in session.overrides for word in ("--set", override)]
    words = [*_typed(session, "rho", "seed", "device"), *changes, *_typed(options, *OF_PLANS)]
    recipe = shown(loaded.path)
    again = ["rpo", "plan", recipe, *words, *_typed(options.costs, *ESTIMATED)]
    place = ["--workspace", str(workspace.root)]
    finish = [*_command(loaded, options), recipe, *words, *place]
    finish = finish if complete else [*again, *place, "--out", file]
    read = [loaded.path, *loaded.files, *(stage.source for stage in stages)]
    read += [at[0] for stage in stages for at in stage.places.values() if not isinstance(at, str)]
    return Plan(
        version=VERSION,
        rpo=__version__,
        recipe=recipe,
        suite=workspace.suite,
        workspace=str(workspace.root),
        command=[*again, *place, "--json"],
        complete=complete,
        then="finish" if complete else "plan again",
        finish=finish,
        recipes=hashes(read),
        stages=[
            planned(stage, file, needs[stage.path], together[stage.path], found[stage.path])
            for stage in stages
        ],
    )


def _require_fit(session: Session, loaded: Loaded, options: PlanOptions) -> None:
    """BadInput for an option that a recipe of this stage has no use for."""
    stage = loaded.recipe.stage
    given = {
        "figure": [name for name in OF_FIGURES if getattr(options, name) != getattr(PlanOptions, name)],
        "reward": ["ensemble"] if options.ensemble else [],
        "policy or evaluate": ["split"] if options.split else [],
    }
    for kinds, names in given.items():
        if names and stage not in kinds.split(" or "):
            name = f"--{names[0].replace('_', '-')}"
            raise BadInput(f"{name}: goes with a {kinds} recipe; {session.recipe} is {article(stage)} recipe")
    if stage == "figure" and session.seed is not None:
        raise BadInput(f"--seed {session.seed}: a figure has several; write --seeds {session.seed}")


def _targets(session: Session, loaded: Loaded, options: PlanOptions) -> tuple[Loaded, list[Stage]]:
    """What the recipe's own command makes; of a policy with --split, what `rpo evaluate` does."""
    if options.split is not None or loaded.recipe.stage == "evaluate":
        return make.evaluated(session, options.split or "test")
    return make.wanted(session, loaded.recipe.stage, members=options.ensemble)


def _typed(options: object, *names: str) -> Iterator[str]:
    """Those of these options that are not at their defaults, as they are typed."""
    for name in names:
        if (value := getattr(options, name)) != getattr(type(options), name):
            yield from (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))


def _command(loaded: Loaded, options: PlanOptions) -> list[str]:
    """The command that makes, or draws, what a recipe says."""
    recipe = loaded.recipe
    if isinstance(recipe, schema.FigureRecipe):
        return ["rpo", "figure", recipe.kind]
    return ["rpo", "evaluate"] if options.split else str(schema.KINDS[recipe.stage].command).split()


def _require_dtype(session: Session, stages: Sequence[Stage]) -> None:
    """Say what `dtype: auto` is in a plan; BadInput where the device that would decide is not here."""
    open_ones = [
        stage for stage in stages if stage.recipe.dtype == "auto" and schema.KINDS[stage.kind].needs_model
    ]
    if not open_ones:
        return
    first = open_ones[0]
    place, dtype = stands(first.places, first.source, ("dtype",)), first.identity["recipe"]["dtype"]
    if dtype == "auto":
        what = f"auto is decided by the device, and this machine has no {first.recipe.device}"
        raise BadInput(f"{place}: {what}; write the dtype, such as bfloat16")
    session.say(f"note: {place}: auto is {dtype} on this machine, and so in the whole plan")
