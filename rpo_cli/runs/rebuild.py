"""`rpo rebuild`: the model of a card made again, from the recipes beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rpo_cli.artifacts import CARD, Workspace, hash_path, origin_of, sha256, versions
from rpo_cli.artifacts.snapshots import commits, lock_file, remember
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.recipes import RECIPES, load
from rpo_cli.runs.export import WEIGHTS
from rpo_cli.runs.planner import planner_for
from rpo_cli.runs.session import Session

NEEDED = ("target", "inputs", "hub", "versions")


def rebuild(session: Session, card: Path) -> None:
    """Train again what a card describes, and compare the weights with those that were exported.

    Raises:
        BadInput: no card of rpo's, or an input that is missing or another.
        RunFailed: the weights differ.
    """
    card = card / CARD if card.is_dir() else card
    made = _head(card)
    if wrong := list(_changed_inputs(card, made["inputs"])):
        raise BadInput("\n".join(wrong))
    for name, version in versions().items():
        if (then := made["versions"].get(name)) not in (None, version):
            session.say(f"note: made with {name} {then}, this is {version}: the last bits may differ")
    loaded = load(f"{card.with_name(RECIPES).absolute()}:{made['target']}", flags={"device": session.device})
    planner, suite = planner_for(loaded), loaded.recipe.suite
    session = replace(session, workspace=session.workspace or Path("runs") / f"{suite}-rebuilt")
    workspace = session.open(suite)
    if not session.dry_run:
        _pin(made["hub"], workspace)
    targets = (
        [*planner.members(loaded), planner.warm(loaded)] if "member" in made else [planner.build(loaded)]
    )
    stage = next((each for each in targets if origin_of(each).get("member") == made.get("member")), None)
    if stage is None:
        raise BadInput(f"{card}: {RECIPES} has no member {made['member']} of {made['target']}")
    session.make([stage], suite)
    if not session.dry_run:
        _compare(made.get("weights"), workspace.root / stage.path, session)


def _head(card: Path) -> dict[str, Any]:
    """What the head of a card says under `rpo:`."""
    try:
        _, head, _ = card.read_text().split("---\n", 2)
        made = yaml.safe_load(head)["rpo"]
    except OSError as error:
        raise BadInput(f"{card}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, yaml.YAMLError):
        made = None
    if not isinstance(made, dict) or not all(isinstance(made.get(name), dict) for name in NEEDED[1:]):
        raise BadInput(f"{card}: no card that rpo wrote: its head has no `rpo:` with {', '.join(NEEDED)}")
    return made


def _changed_inputs(card: Path, inputs: Mapping[str, str]) -> Iterator[str]:
    """What is missing on this machine, or is not what the model was made of; a line each."""
    for place, content in inputs.items():
        path = Path(os.path.expanduser(place))
        if not path.exists():
            yield f"{card}: {place}: not there; bring it, or change its place here and in {RECIPES}"
        elif hash_path(path) != content:
            yield f"{card}: {place}: not the file or folder that the model was made of"


def _pin(hub: Mapping[str, Mapping[str, str]], workspace: Workspace) -> None:
    """Have the workspace use the card's commits of names of the hub.

    Raises:
        BadInput: it uses others.
    """
    file = lock_file(workspace)
    known = commits(workspace)
    for kind, names in hub.items():
        for name, commit in names.items():
            if (there := known.get(kind, {}).get(name, commit)) != commit:
                other = f"{name} is {there} there, {commit} in the card"
                raise BadInput(f"{file}: {other}; choose another --workspace")
    if hub:
        remember(workspace, hub)


def _compare(weights: Mapping[str, str] | None, folder: Path, session: Session) -> None:
    """Say whether the weights are the exported ones; RunFailed: they are not."""
    print(folder)
    if weights is None:
        session.say("the card was not exported, so it has no hash of the weights to compare with")
        return
    found = {file.name: sha256(file) for file in sorted(folder.glob(WEIGHTS))}
    if found != weights:
        differ = sorted(name for name in found.keys() | weights if found.get(name) != weights.get(name))
        raise RunFailed(f"{folder}: {', '.join(differ)} not as exported: another machine or other versions?")
    session.say("the weights are those of the card, byte for byte")
