"""Every kind of stage, and which fields of its recipe can change its result."""

from __future__ import annotations

from typing import Any

from rpo_cli.recipes.schema.base import Purpose, Recipe, seed_of
from rpo_cli.recipes.schema.data import DataRecipe, RelabelRecipe, SplitsRecipe
from rpo_cli.recipes.schema.evaluate import EvaluateRecipe
from rpo_cli.recipes.schema.figure import FigureRecipe
from rpo_cli.recipes.schema.policy import PolicyRecipe
from rpo_cli.recipes.schema.training import RewardRecipe, SFTRecipe

# Under which seeds a stage may draw; all others have no effect on it.
SEEDS: dict[str, tuple[Purpose, ...]] = {
    "data": ("data",), "sft": ("policy",), "reward": ("rm",), "relabel": ("data",), "splits": ("data",), "policy": ("policy", "sampling"),
    "evaluate": ("sampling",), "figure": (), "reference": (), "samples": ("sampling",), "scores": (), "measure": (),
    "judge": ("sampling",),
}  # fmt: skip
WITHOUT_MODEL = ("data", "splits", "judge")


StageRecipe = (
    DataRecipe
    | SFTRecipe
    | RewardRecipe
    | RelabelRecipe
    | SplitsRecipe
    | PolicyRecipe
    | EvaluateRecipe
    | FigureRecipe
)
MODELS: dict[str, type[Recipe]] = {
    "data": DataRecipe,
    "sft": SFTRecipe,
    "reward": RewardRecipe,
    "relabel": RelabelRecipe,
    "splits": SplitsRecipe,
    "policy": PolicyRecipe,
    "evaluate": EvaluateRecipe,
    "figure": FigureRecipe,
}


def result_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields that can change a result: what an artifact's key is made of; of the seeds those in force that it draws under."""
    fields = type(recipe).model_fields
    stage: str = recipe.stage
    extras = {
        name: extra for name, field in fields.items() if isinstance(extra := field.json_schema_extra, dict)
    }
    hidden = {name for name, extra in extras.items() if extra.get("cosmetic")}
    hidden |= {
        name
        for name, extra in extras.items()
        if extra.get("added") and getattr(recipe, name) == fields[name].default
    }
    hidden |= {"seed", *(name for name in fields if name.endswith("_seed"))}
    unused: set[str] = recipe.unused() if isinstance(recipe, PolicyRecipe | DataRecipe) else set()
    if (isinstance(recipe, DataRecipe) and recipe.source == "files") or (
        isinstance(recipe, RelabelRecipe) and recipe.labels == "argmax"
    ):
        unused |= {"data_seed"}
    if stage in WITHOUT_MODEL:
        unused |= {"dtype"}
    seeds = {
        f"{purpose}_seed": seed_of(recipe, purpose)
        for purpose in SEEDS[stage]
        if f"{purpose}_seed" not in unused
    }
    return recipe.model_dump(mode="json", exclude=hidden | unused) | seeds
