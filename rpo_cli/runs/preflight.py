"""What a plan needs from its surroundings, asked for before the first hour is spent."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from rpo_cli import devices
from rpo_cli.artifacts import Workspace
from rpo_cli.errors import BadInput
from rpo_cli.recipes import schema
from rpo_cli.runs.todo import Todo
from rpo_cli.stages.judge.client import api_key
from rpo_cli.stages.judge.verdicts import VERDICTS


def check(todo: Sequence[Todo], workspace: Workspace, jobs: int = 1) -> None:
    """Refuse a plan that would stop in the middle: BadInput, one line."""
    recipes = [item.stage.recipe for item in todo]
    devices.check(recipes, jobs)
    if (
        any(isinstance(r, schema.EvaluateRecipe) and r.sampler == "vllm" for r in recipes)
        and importlib.util.find_spec("vllm") is None
    ):
        raise BadInput(
            "sampler: vllm needs the extra `vllm`: pip install 'rpo-cli[vllm]', or set sampler: transformers"
        )
    for recipe in recipes:
        # Where verdicts are kept every question may have its answer already; then no key is needed.
        if isinstance(recipe, schema.JudgeRecipe) and not (workspace.root / VERDICTS).is_file():
            api_key(recipe)
