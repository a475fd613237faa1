"""What `rpo init` is asked for, in a recipe's words, and what is wrong with it in those of its options."""

from __future__ import annotations

import os
import re
from pathlib import Path
from shlex import quote
from typing import get_args

from rpo_cli.artifacts import External, below_adapters, cannot_read, look_for, positions_of
from rpo_cli.errors import BadInput
from rpo_cli.models import config_at
from rpo_cli.objectives import OBJECTIVES
from rpo_cli.recipes import schema, suggest
from rpo_cli.recipes.schema.data import FILES, TAKEN
from rpo_cli.runs.options import OwnSuite

OPTIONS = {"model_name_or_path": "--model", "baseline": "--model", "tokenizer": "--model",
           "reward_model": "--reward-model", "ensemble": "--reward-model", "reward_label": "--reward-label",
           "oracle": "--oracle", "columns": "--columns",
           "margin_columns": "--scores", "dataset": "--pairs"}  # fmt: skip
COLUMNS = re.compile(r"columns: \{(\w+): ([^}]*)\} in the data recipe")


def of_an_option(file: Path, problem: str) -> str:
    """A mistake in the file that is not kept, by the option that is behind its key."""
    place, found = re.escape(file.name), "|".join(OPTIONS)
    match = re.match(rf"\S*{place}:\d+: (?:[\w-]+\.)*({found})(?:\[\d+\])?: (.*)", problem, re.DOTALL)
    return problem if match is None else f"{OPTIONS[match[1]]}: {match[2]}"


def objectives_of(wanted: OwnSuite) -> list[str]:
    """The objectives that are asked for; without any, DPO beside what the teachers are good for."""
    if wanted.reward_model and wanted.scores:
        raise BadInput("--reward-model and --scores: the teachers are models or columns; name one of the two")
    if wanted.suspect and (wanted.reward_model or wanted.scores):
        other = "--reward-model" if wanted.reward_model else "--scores"
        raise BadInput(f"--suspect: its reward models are trained on the pairs; leave out {other}")
    if wanted.objective is None:
        return ["dpo", "e-dpo" if len(wanted.reward_model) + len(wanted.scores) > 1 else "d-dpo"]
    names = [name.strip() for name in wanted.objective.split(",")]
    for name in names:
        if name not in OBJECTIVES:
            known = suggest(name, OBJECTIVES) or f"; there are {', '.join(OBJECTIVES)}"
            raise BadInput(f"--objective {name}: no such objective{known}")
    return list(dict.fromkeys(names))


def columns_named(wanted: OwnSuite) -> dict[str, str]:
    """What the data call the columns, by our names for them."""
    names = get_args(get_args(schema.DataRecipe.model_fields["columns"].annotation)[0])
    known = [name for name in names if wanted.sft is not None or name not in ("completion", "messages")]
    found: dict[str, str] = {}
    for each in [] if wanted.columns is None else wanted.columns.split(","):
        ours, equals, theirs = (part.strip() for part in each.partition("="))
        if not (ours and equals and theirs):
            raise BadInput(
                f"--columns {wanted.columns}: expected names with =, such as prompt=question,chosen=better"
            )
        if ours not in known:
            which = suggest(ours, known) or f"; there are {', '.join(known)}"
            raise BadInput(f"--columns {each.strip()}: {ours} is no column that is read{which}")
        if ours in found or theirs in found.values():
            twice = ours if ours in found else theirs
            raise BadInput(f"--columns {wanted.columns}: names {twice} twice")
        found[ours] = theirs
    return found


def of_columns(message: str, given: str | None) -> str:
    """What is wrong with the data, with the option that says so what a recipe's `columns:` does."""

    def option(match: re.Match[str]) -> str:
        named = f"{match[1]}={match[2]}"
        named = named if given is None else f"{given},{named}"
        return f"--columns {named if match[2] == '…' else quote(named)}"

    return COLUMNS.sub(option, message).replace(", which columns: has for", ", which --columns has for")


def two_columns(text: str) -> list[str]:
    columns = [part.strip() for part in text.split(",")]
    if len(set(columns)) != 2 or len(columns) != 2 or not all(columns):
        raise BadInput(f"--scores {text}: expected two columns, such as score_chosen,score_rejected")
    if taken := sorted(TAKEN & {*columns}):
        raise BadInput(f"--scores {text}: {taken[0]} is no score: rpo has a column of this name")
    return columns


def path_or_name(option: str, name: str) -> str:
    """What the recipe calls a model or a data set: a path from its own folder, or the name on the hub.

    Raises:
        BadInput: a path where nothing is.
    """
    path = Path(name).expanduser()
    if path.exists():
        return str(path) if path.is_absolute() else os.path.join(".", os.path.relpath(path))
    if name.startswith((".", "/", "~")) or path.suffix.lower() in FILES:
        raise BadInput(f"{option} {name}: no such file or directory")
    return name


def longest_of(model: str) -> int | None:
    """How many tokens a row may have by the model's config; None: it sets no bound."""
    place = External.named(model)
    look_for(place.reference)  # in one attempt, where the client would try for half a minute
    try:
        config = config_at(below_adapters(Path(place.reference)), place.revision)
    except (OSError, ValueError) as error:
        why = cannot_read(place.reference, error)
        raise BadInput(f"--model {model}: its config cannot be read: {why}") from error
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions_of(config) or trained
