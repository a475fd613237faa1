"""`rpo data fetch`: what a recipe rests on, brought into the hub's cache."""

from __future__ import annotations

from rpo_cli.artifacts import snapshots
from rpo_cli.recipes import schema
from rpo_cli.runs.check import cell
from rpo_cli.runs.session import Session, planner_for
from rpo_cli.text import aligned


def fetch_data(session: Session) -> None:
    """Bring what a recipe rests on into the hub's cache, and record the commits; a dry run only lists it."""
    loaded = session.load(None)
    planner = planner_for(loaded)
    recipe = loaded.recipe
    if isinstance(recipe, schema.FigureRecipe):
        targets = [cell(planner, loaded, variant, recipe.rhos[0]) for variant in recipe.compared]
    elif isinstance(recipe, schema.PolicyRecipe):
        targets = [planner.evaluation(loaded, "test")]
    elif isinstance(recipe, schema.RewardRecipe) and recipe.has_members:
        targets = planner.members(loaded)
    else:
        targets = [planner.build(loaded)]
    workspace = session.open(loaded.recipe.suite)
    found = (
        snapshots.wanted(targets, workspace)
        if session.dry_run
        else snapshots.fetch(targets, workspace, session.say)
    )
    if session.as_json:
        session.print_json(found)
        return
    rows = [
        [entry["use"], entry["name"], entry["commit"] or "not recorded yet", entry.get("path", "")]
        for entry in found
    ]
    print(
        aligned([("use", "name", "commit", "path"), *rows]) if rows else "nothing comes from the hub\n",
        end="",
    )
