"""`rpo compare`: policies beside each other on the same prompts and held-out pairs, oracle or none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rpo_cli.artifacts import Stage, publish
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import BASELINE, Cells, read_by
from rpo_cli.figures.dry_run import plan_only
from rpo_cli.figures.run import require_folder
from rpo_cli.figures.selection import select
from rpo_cli.figures.tabled import require_form, table_of, text_of
from rpo_cli.figures.tuning import planned, tune
from rpo_cli.recipes import Loaded, RecipeError, find_suite, policies_of, schema, shown
from rpo_cli.runs.options import Comparing, Costs, Study
from rpo_cli.runs.question import Question, asked
from rpo_cli.runs.session import Session

if TYPE_CHECKING:  # pandas is imported when something is compared
    from rpo_cli.figures.numbers import Comparison


def run_compare(
    session: Session, recipes: Sequence[str], how: Comparing, costs: Costs, out: Path | None
) -> None:
    """Build what is missing, then print the numbers, or with --json all that a report is made of.

    out: the file that the table is written to as well.
    """
    if out is not None:
        require_form(out)
        require_folder(out.parent)
    found = compared(session, recipes, how, asked(session.dry_run, costs), whole=session.as_json)
    if found is None:
        return
    if session.as_json:
        session.print_json(found)
    else:
        session.out.print(text_of(found))
        for line in ("", *(f"- {note}" for note in found["notes"])):
            session.out.print(line, markup=False, highlight=False)
    if out is not None:
        publish(out, table_of(found, out.suffix.lower()))
        session.say(f"table: {out}")


def compared(
    session: Session, recipes: Sequence[str], how: Comparing, question: Question | None, *, whole: bool
) -> Comparison | None:
    """Numbers, and where each comes from, of policies that are built where they are missing.

    None on a dry run, which prints the plan. `whole`: with all else that a report shows.
    """
    from rpo_cli.figures.evidence import evidence
    from rpo_cli.figures.numbers import numbers

    loads = _policies(session, recipes)
    first = loads[0]
    session = replace(session, recipe=str(first.path))
    maker = Cells(first, session.overrides, loads[1:])
    _require_alike(maker, loads)
    against = how.against or first.path.stem
    if against not in (*maker.variants, BASELINE):
        raise BadInput(f"--against {against}: compared are {', '.join((*maker.variants, BASELINE))}")
    recipe = cast(schema.PolicyRecipe, first.recipe)
    everything = (list(maker.variants), [recipe.rho], [recipe.seed])
    selection = select(everything, None, Study(seeds=how.seeds, grid_size=how.grid_size))
    grids = maker.grids(selection) if how.sweep else {}
    selection.leave_out_of_grids(grids)
    if session.dry_run:
        tried = maker.validation(selection, grids) if how.sweep else []
        chosen = planned(session, maker, selection, grids, tried) if how.sweep else None
        cells = maker.test(selection, chosen)
        plan_only(session, recipe.suite, selection, tried, cells, "best", question)
        return None
    chosen = None
    lost: list[str] = []
    if how.sweep:
        quiet = replace(session, out=session.err)
        chosen, _, _, lost = tune(quiet, maker, selection, grids, "best", False, "sweep")
    cells = maker.test(selection, chosen)
    if not any(cell.policy == against for cell in cells) and against != BASELINE:
        raise BadInput("\n".join([*lost, f"{against} is what the others are compared with; see --against"]))
    workspace = session.make(read_by(cells), recipe.suite)
    found = {
        **numbers(cells, workspace, selection, against, how.sweep),
        **(evidence(cells, workspace, selection.seeds[0]) if whole else {}),
        "left_out": lost,
    }
    printed: Comparison = json.loads(json.dumps(found, sort_keys=True))  # as --json prints it
    return printed


def _policies(session: Session, names: Sequence[str]) -> list[Loaded]:
    """The policy recipes of these names, at the --rho asked for; of a suite all that it holds.

    Raises:
        BadInput: there is none, or two of one name.
        RecipeError: with every mistake in one of them.
    """
    rho = session.one_rho("policies are compared")

    def loaded_of(name: str) -> Loaded:
        return replace(session, recipe=name).load("policy", rho=rho)

    found: list[Loaded] = []
    problems: list[str] = []
    for name in names:
        recipes = [name]
        if (suite := find_suite(name)) is not None:
            files, parts = policies_of(suite)
            recipes = [str(file) for file in files]
            for part in parts:
                session.say(f"note: {shown(part)} lacks a stage or an objective; it is not compared")
        if not recipes:
            raise BadInput(f"{name}: holds no policy recipe")
        for recipe in recipes:
            try:
                found.append(loaded_of(recipe))
            except RecipeError as error:
                problems += error.problems
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    stems = [loaded.path.stem for loaded in found]
    for stem in stems:
        if stems.count(stem) > 1 or stem == BASELINE:
            taken = "is the name of what all are compared with" if stem == BASELINE else "stands twice"
            raise BadInput(f"{stem}: {taken}; recipes are told apart by their names")
    return found


def _require_alike(maker: Cells, loads: Sequence[Loaded]) -> None:
    """RecipeError unless all policies have the same rho, pairs, baseline and prompts."""
    problems = []
    first = loads[0]
    recipe = cast(schema.PolicyRecipe, first.recipe)

    def read_of(loaded: Loaded) -> dict[str, tuple[str, object]]:
        rho = cast(schema.PolicyRecipe, loaded.recipe).rho
        cell = maker.cell(loaded.path.stem, rho, recipe.seed, "test")
        stage, evaluation = cast(Stage, cell.evaluation.inputs["policy"]), cell.evaluation
        baseline = evaluation.inputs["baseline"]
        assert isinstance(baseline, Stage)
        return {
            "suite": ("other suite", loaded.recipe.suite),
            "rho": ("other rho", rho),
            "data": ("trained on other pairs", cast(Stage, stage.inputs["data"]).path),
            "evaluate": ("evaluated otherwise", (baseline.path, evaluation.recipe)),
        }

    wanted = read_of(first)
    for loaded in loads[1:]:
        for key, (what, value) in read_of(loaded).items():
            if value != wanted[key][1]:
                problems.append(
                    f"{loaded.place(key)}: {what} than {shown(first.path)}; leave one of them out"
                )
                break
    if problems:
        raise RecipeError(problems)
