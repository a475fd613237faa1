"""`rpo data fetch`: what a recipe rests on, brought into the hub's cache."""

from __future__ import annotations

from rpo_cli.artifacts import snapshots
from rpo_cli.runs.check import plans
from rpo_cli.runs.planner import planner_for
from rpo_cli.runs.session import Session
from rpo_cli.text import aligned


def fetch_data(session: Session) -> None:
    """Bring what a recipe rests on into the hub's cache, and record the commits; a dry run only lists it."""
    loaded = session.load(None)
    targets = [target for plan in plans(planner_for(loaded), loaded) for target in plan()]
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
