"""`rpo stage`: make stages of a plan on paper, if it still holds. Nothing heavy is imported before."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rpo_cli.artifacts import Stage, Workspace, difference, hash_path, snapshots
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.recipes import suggest
from rpo_cli.runs import preflight, processes
from rpo_cli.runs.plan import Plan, changed_recipes, key_now, read_plan, rebuilt
from rpo_cli.runs.session import Session
from rpo_cli.runs.todo import Todo


def run_stages(session: Session, paths: Sequence[str], file: Path) -> None:
    """Make these stages of the plan in a file, one after another; those that are there are left as they are.

    Raises:
        BadInput: no such plan or stage, or the plan no longer holds for one of them.
        RunFailed: inputs are missing, or a stage failed; only those that need it were not tried.
    """
    plan = read_plan(file)
    entries = plan.by_path()
    for path in paths:
        if path not in entries:
            raise BadInput(f"{path}: no stage of {file}{suggest(path, entries)}")
    workspace = Workspace(session.workspace or Path(plan.workspace), plan.suite)
    if (note := workspace.check()) is not None:
        session.say(f"note: {note}")
    stages = rebuilt(plan, dict.fromkeys(paths))
    if problems := [*_no_longer(plan, stages, workspace)]:
        raise BadInput("\n".join([*problems, f"plan again: {shlex.join(plan.command)} > {file}"]))
    todo = []
    for path, stage in stages.items():
        # Weights that were dropped when all was done are no reason to train again.
        weights = entries[path].state == "build"
        reason = workspace.why_stale(path, stage.identity, weights=weights)
        if reason is None:
            session.say(f"{path}: up to date")
        else:
            todo.append(Todo(stage, reason))
    if not todo:
        return
    launch = session.launch()
    processes.check((item.stage for item in todo), launch)
    snapshots.require([item.stage for item in todo], workspace, plan.recipe)
    preflight.check(todo, workspace)

    def require_inputs(stage: Stage) -> None:
        found = {
            path: workspace.why_stale(path, needed.identity, weights=True)
            for path, needed in stage.needed().items()
        }
        if lacking := [f"{path} ({why})" for path, why in found.items() if why is not None]:
            raise RunFailed(f"{stage.path}: needs {', '.join(lacking)}; make it first")

    for note in preflight.tracking(session.tracks(item.stage for item in todo)):
        session.say(f"note: {note}")
    session.carry_out(todo, workspace, launch, before=require_inputs)


def _no_longer(plan: Plan, stages: Mapping[str, Stage], workspace: Workspace) -> Iterator[str]:
    """Why the plan does not hold for some of these stages, a line each."""
    entries = plan.by_path()
    now: dict[str, Stage] = {}
    changed = changed_recipes(plan)
    if changed:
        again = _planned_again(plan)
        now = rebuilt(again, stages.keys() & again.by_path().keys())
    for path, stage in stages.items():
        entry = entries[path]
        if stage.key != entry.key:
            yield f"{path}: the plan was written by another version of rpo ({plan.rpo}), or edited"
        elif changed and path not in now:
            yield f"{path}: is in the plan no more, since {', '.join(changed)} changed"
        elif changed and now[path].key != entry.key:
            yield f"{path}: changed since it was planned: {difference(stage.identity, now[path].identity)}"
        else:
            known = snapshots.commits(workspace)
            for node in entry.outside:
                if key_now(node, known) != node.key:
                    yield f"{path}: {node.name}: {node.reference} is not what it was when it was planned"
            for table, name in entry.files.items():
                if hash_path(Path(name)) != stage.options["files"][table]:
                    yield f"{path}: files: {name} is not what it was when it was planned"


def _planned_again(plan: Plan) -> Plan:
    """The plan that the same command makes now: recipes have changed, though perhaps not what is planned."""
    command = [sys.executable, "-m", "rpo_cli.cli", *plan.command[1:]]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        said = ran.stderr.strip().splitlines()[-1:]
        raise BadInput("\n".join(["recipes have changed, and cannot be planned again:", *said]))
    return Plan.model_validate_json(ran.stdout)
