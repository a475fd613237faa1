"""`rpo sweep`: choose on validation, for one policy recipe or all of a figure's, and write it down."""

from __future__ import annotations

from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.figures.cells import Cells
from rpo_cli.figures.dry_run import plan_only
from rpo_cli.figures.selection import select
from rpo_cli.figures.tuning import tune
from rpo_cli.recipes import Loaded, article, load, schema
from rpo_cli.runs.options import Costs, Study
from rpo_cli.runs.planning.data import suite_rhos
from rpo_cli.runs.question import asked
from rpo_cli.runs.session import Session


def run_sweep(session: Session, study: Study, write: bool, costs: Costs) -> None:
    """Evaluate the grids on validation, save the table, print and write the choice."""
    question, keep = asked(session.dry_run, costs), study.keep_weights
    first = load(session.recipe)
    figure = isinstance(first.recipe, schema.FigureRecipe)
    flags = {"device": session.device}
    loaded = load(session.recipe, overrides=() if figure else session.overrides, flags=flags)
    rhos = None if session.rho == "all" else session.rhos([])
    selection = select(_swept(loaded, write), rhos, study)
    maker = Cells(loaded, session.overrides)
    grids = maker.grids(selection, again=True)
    selection.leave_out_of_grids(grids)
    if session.dry_run:
        cells = maker.validation(selection, grids)
        plan_only(session, loaded.recipe.suite, selection, cells, [], keep, question)
        return
    found = tune(session, maker, selection, grids, keep, write, "sweep")
    if session.as_json:
        by_rho = {p: {str(rho): values for rho, values in at.items()} for p, at in found.chosen.items()}
        said: dict[str, object] = {"chosen": by_rho, "csv": str(found.file)}
        session.print_json(said | ({"left_out": selection.left_out} if selection.left_out else {}))
    if found.lost:
        raise RunFailed("\n".join(found.lost))


def _swept(loaded: Loaded, write: bool) -> tuple[list[str], list[float | None], list[int]]:
    """Policies, rhos and seeds of a figure recipe, or of a single policy recipe; `write`: their by_rho."""
    recipe = loaded.recipe
    if isinstance(recipe, schema.FigureRecipe):
        if recipe.measured:
            raise BadInput(f"{loaded.path}: is a recipe of kind {recipe.kind}; use rpo figure {recipe.kind}")
        if write and (changed := [variant.name for variant in recipe.compared if variant.set]):
            raise BadInput(
                f"{loaded.path}: variants: {changed[0]}: has changes of its own (set), "
                "and its choice has no place in a by_rho: use --no-write"
            )
        return [variant.name for variant in recipe.compared], recipe.rhos, recipe.seeds
    if isinstance(recipe, schema.PolicyRecipe):
        return [loaded.path.stem], suite_rhos(loaded), [recipe.seed]
    raise BadInput(
        f"{loaded.path}: is {article(recipe.stage)} recipe; sweep takes a policy recipe or a figure recipe"
    )
