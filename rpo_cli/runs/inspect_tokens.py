"""Which tokenizer and which max_length belong to a data recipe: it names neither itself."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase

from rpo_cli.artifacts import External, Stage, Workspace
from rpo_cli.errors import BadInput
from rpo_cli.models import load_tokenizer
from rpo_cli.recipes import Loaded, RecipeError, schema, there
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.planning.data import beside, data_below


def max_lengths(loaded: Loaded) -> dict[int, list[str]]:
    """max_length -> the recipes beside this one that use what it makes, directly or through others."""
    users: dict[int, list[str]] = {}
    for user in beside(loaded):
        limit = getattr(user.recipe, "max_length", None)
        with suppress(RecipeError):  # one that names data that is not there
            if isinstance(limit, int) and loaded.path in (each.path for each in data_below(user)):
                users.setdefault(limit, []).append(user.path.name)
    return users


def find_tokenizer(
    loaded: Loaded, planner: Planner, target: Stage, workspace: Workspace
) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer to count with and whence: the splits' own, the data's, or that of pi_SFT's base.

    Without an SFT recipe beside it, that of the model which a policy starts from.

    Raises:
        BadInput: none of these is there.
    """
    own = target.inputs.get("tokenizer")
    if isinstance(own, Stage):
        folder = workspace.root / own.path
        if (folder / "tokenizer_config.json").is_file():
            return load_tokenizer(folder), f"{folder} (tokenizer: of {loaded.path.name})"
    elif own is not None:
        source = f"{own.reference} (tokenizer: of {loaded.path.name})"
        return load_tokenizer(
            Path(own.reference), revision=own.commit or own.revision, need_pad=False
        ), source
    data = target
    while isinstance(below := data.inputs.get("data"), Stage):
        data = below
    folder = workspace.root / data.path / "tokenizer"
    if folder.is_dir():
        return load_tokenizer(folder), f"{folder} (made with the data)"
    path = next((sft for file in loaded.files if there(sft := file.parent / "sft.yaml")), None)
    if path is None:
        path = next((other.path for other in beside(loaded) if other.recipe.stage == "policy"), None)
    seen: set[Path | None] = {None}
    while path not in seen:
        seen.add(path)
        model = planner.load(cast(Path, path))
        recipe = cast(schema.ModelSource, model.recipe)
        path = model.reference("model_name_or_path")
        if path is None and recipe.model_name_or_path is not None:
            base = External.named(recipe.model_name_or_path, recipe.model_revision)
            source = f"{base.reference} (base model of {model.path.name})"
            return load_tokenizer(Path(base.reference), recipe, base.revision), source
    raise BadInput(
        f"{loaded.path}: no tokenizer to count with: none made with the data, no sft.yaml or policy "
        "recipe beside it with a model"
    )
