"""`rpo status`: a workspace's artifacts, and what a recipe would build among them.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, cast

from rpo_cli.artifacts import MANIFEST, STARTED, Manifest, Stage, Workspace, walk
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import Cells, read_by
from rpo_cli.figures.selection import Selection
from rpo_cli.recipes import Loaded, RecipeError, check_suite, find_suite, recipes_of, schema
from rpo_cli.runs.planner import planner_for
from rpo_cli.runs.session import MANY, Session
from rpo_cli.runs.todo import Todo, as_json, what_to_run
from rpo_cli.text import aligned, clock, counted, percent, size

DAY = 86_400.0


def show_status(session: Session) -> None:
    """Print what a recipe or a suite would build and why, its workspace's artifacts, and seconds by kind."""
    place, loads = _asked_for(session)
    targets = [stage for loaded in loads for stage in _targets(loaded, session.seed)]
    targets += _compared(loads, session.seed) if len(loads) > 1 else []
    workspace = session.open(loads[0].recipe.suite)
    note, exists = workspace.check(), workspace.exists
    if note is not None:
        session.say(f"note: {note}")
    todo = what_to_run(targets, workspace)
    stages = {stage.path: stage for stage in walk(targets)}
    found = workspace.artifacts() if exists else ()
    artifacts = [_artifact(workspace, path, manifest, stages) for path, manifest in found]
    if session.as_json:
        known_as = {"recipe": str(place), "workspace": str(workspace.root), "exists": exists}
        session.print_json({**known_as, "would_build": as_json(todo), "artifacts": artifacts})
        return
    print(f"workspace {workspace.root}" + ("" if exists else ": not there yet"))
    print(_would_build(place.name, todo, len(stages)), end="")
    if artifacts:
        rows = [
            (a["path"], size(a["bytes"]), _time(a["seconds"]), _time(a["age_seconds"]), _state(a))
            for a in artifacts
        ]
        print("\n" + aligned([("artifact", "size", "took", "age", "state"), *rows], right=(1, 2, 3)), end="")
        print(f"{counted(len(artifacts), 'artifact')}, {size(sum(a['bytes'] for a in artifacts))}")
        print(_by_kind([a for a in artifacts if a["state"].startswith("up to date")]), end="")


def _asked_for(session: Session) -> tuple[Path, list[Loaded]]:
    """A recipe, or a suite with all recipes in it; and its path.

    Raises:
        RecipeError: something is wrong with it.
    """
    suite = find_suite(session.recipe)
    if suite is None:
        loaded = session.load(None)
        return loaded.path, [loaded]
    if problems := check_suite(suite):
        raise RecipeError(problems)
    return suite, [replace(session, recipe=str(file)).load(None) for file in recipes_of(suite)]


class Known(TypedDict):
    """An artifact of the workspace; `seconds`: it took, `age_seconds`: since it was written."""

    path: str
    kind: str | None
    state: str
    reason: str | None
    bytes: int
    seconds: float | None
    age_seconds: float


def _targets(loaded: Loaded, seed: int | None) -> list[Stage]:
    """What the recipe's own command makes."""
    recipe = loaded.recipe
    if not isinstance(recipe, schema.FigureRecipe):
        return [planner_for(loaded).build(loaded)]
    maker = Cells(loaded)
    whole = Selection(list(maker.variants), recipe.rhos, recipe.seeds if seed is None else [seed])
    return read_by(maker.test(whole))


def _compared(loads: Sequence[Loaded], seed: int | None) -> list[Stage]:
    """What `rpo compare` of a suite reads; nothing where its policies cannot be compared."""
    policies = [loaded for loaded in loads if isinstance(loaded.recipe, schema.PolicyRecipe)]
    with suppress(BadInput, RecipeError, IndexError):
        maker, first = Cells(policies[0], beside=policies[1:]), cast(schema.PolicyRecipe, policies[0].recipe)
        whole = Selection(list(maker.variants), [first.rho], [first.seed if seed is None else seed])
        return read_by(maker.test(whole))
    return []


def _would_build(name: str, todo: Sequence[Todo], total: int) -> str:
    """The plan in lines; a long one by kind and reason."""
    if not todo:
        return f"{name}: up to date, nothing to build\n"
    time_needed = clock(sum(item.seconds for item in todo))
    head = f"{name} would build {len(todo)} of {total} stages, about {time_needed} one after the other:\n"
    if len(todo) <= MANY:
        return head + aligned([("  " + item.stage.kind, item.stage.path, item.reason) for item in todo])
    groups: dict[tuple[str, str], list[Todo]] = {}
    for item in todo:
        groups.setdefault((item.stage.kind, item.reason), []).append(item)
    lines = [(f"  {kind}", f"{len(items)} x", reason) for (kind, reason), items in groups.items()]
    return head + aligned(lines, right=(1,))


def _by_kind(artifacts: Sequence[Known]) -> str:
    """Where the time went: seconds of the recipe's artifacts by kind of stage, the longest first."""
    seconds: dict[str, list[float]] = {}
    for artifact in artifacts:
        seconds.setdefault(str(artifact["kind"]), []).append(artifact["seconds"] or 0.0)
    total = sum(map(sum, seconds.values()))
    if len(seconds) < 2:
        return ""
    rows = [("kind of stage", "up to date", "took", "share", "each")]
    for kind, each in sorted(seconds.items(), key=lambda item: -sum(item[1])):
        share = percent(sum(each) / total if total else None)
        rows.append((kind, str(len(each)), clock(sum(each)), share, f"{sum(each) / len(each):.1f}s"))
    rows.append(("all", str(len(artifacts)), clock(total), "", ""))
    return "\n" + aligned(rows, right=(1, 2, 3, 4))


def _artifact(workspace: Workspace, path: str, found: Manifest | None, wanted: dict[str, Stage]) -> Known:
    """One artifact's state: up to date, stale, unfinished, or not wanted by the recipe."""
    directory = workspace.root / path
    reason = None
    if found is None:
        state = "damaged" if (directory / MANIFEST).exists() else "unfinished"
        state += "" if path in wanted else ", not wanted by this recipe"
    elif path not in wanted:
        state = "not wanted by this recipe"
    else:
        reason = workspace.why_stale(path, wanted[path].identity)
        state = "up to date" if reason is None else "stale"
    if found is not None and found.get("weights") == "dropped":
        state += ", weights dropped"
    return {
        "path": path,
        "kind": found["kind"] if found else None,
        "state": state,
        "reason": reason,
        "bytes": sum(_stat(file)[0] for file in directory.rglob("*")),
        "seconds": found.get("seconds") if found else None,
        "age_seconds": time.time() - _stat(directory / (STARTED if found is None else MANIFEST))[1],
    }


def _state(artifact: Known) -> str:
    return ": ".join(filter(None, (artifact["state"], artifact["reason"])))


def _stat(file: Path) -> tuple[int, float]:
    """Bytes and time of a file; of one that a run removes at this moment nothing and now."""
    try:
        found = file.stat()
    except OSError:
        return 0, time.time()
    return (found.st_size if file.is_file() else 0), found.st_mtime


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds / DAY:.0f} days" if seconds >= 2 * DAY else clock(seconds)
