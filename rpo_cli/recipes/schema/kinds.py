"""Every kind of stage in one table, and which fields of its recipe can change its result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from rpo_cli.recipes.schema.base import Purpose, Recipe, seed_of
from rpo_cli.recipes.schema.data import DataRecipe, RelabelRecipe, SplitsRecipe
from rpo_cli.recipes.schema.evaluate import EvaluateRecipe, JudgeRecipe
from rpo_cli.recipes.schema.figure import FigureRecipe
from rpo_cli.recipes.schema.pairs import PairsRecipe
from rpo_cli.recipes.schema.policy import PolicyRecipe, ScoringRecipe
from rpo_cli.recipes.schema.training import RewardRecipe, SFTRecipe


@dataclass(frozen=True)
class Kind:
    """What there is to know of a kind of stage; the planner's method of its name finds its inputs.

    `recipe`: what its recipe may say. `run`: "module:function" that makes its artifact; None: it makes none.
    `command`: what handles its recipes; None: no file holds one, the planner derives it from others.
    `format`: raised when the stage starts to compute something else for the same recipe; older artifacts are
    then stale. `seeds`: purposes it may draw for; no other seed has an effect on it. `needs_model`: it
    computes with one, hence in a dtype and on a device. `trains`: it makes a model, with a trainer.
    `derives`: it makes a model of those that other stages trained.
    `guess_seconds`: expected where the recipe says nothing. `heavy`: workers import its module before their
    first job. `points_at_input`: its table holds ids only; the texts stay in its input `data`, and the
    manifest says rows_of: data.
    """

    recipe: type[Recipe]
    run: str | None
    command: str | None = None
    format: int = 1
    seeds: tuple[Purpose, ...] = ()
    needs_model: bool = True
    trains: bool = False
    derives: bool = False
    guess_seconds: float = 10.0
    heavy: bool = False
    points_at_input: bool = False

    @property
    def publishes(self) -> bool:
        """Whether its artifact is a model that people use: one with a card, whose weights are wanted."""
        return self.trains or self.derives


KINDS: dict[str, Kind] = {
    "data": Kind(
        DataRecipe, "rpo_cli.stages.data.build:run", "rpo data inspect",
        seeds=("data",), needs_model=False, guess_seconds=5.0,
    ),
    "sft": Kind(
        SFTRecipe, "rpo_cli.stages.sft:run", "rpo train-sft",
        seeds=("policy",), trains=True, heavy=True,
    ),
    "reward": Kind(
        RewardRecipe, "rpo_cli.stages.reward:run", "rpo train-rm",
        seeds=("rm",), trains=True, heavy=True,
    ),
    "pairs": Kind(
        PairsRecipe, "rpo_cli.stages.sampled:run", "rpo sample-pairs", seeds=("data", "sampling"),
        guess_seconds=30.0,
    ),
    "relabel": Kind(
        RelabelRecipe, "rpo_cli.stages.relabel:run", "rpo relabel", seeds=("data",), guess_seconds=5.0,
        points_at_input=True,
    ),
    "splits": Kind(
        SplitsRecipe, "rpo_cli.stages.splits:run", "rpo make-biased-splits",
        format=2, seeds=("data",), needs_model=False, guess_seconds=1.0, points_at_input=True,
    ),
    "policy": Kind(
        PolicyRecipe, "rpo_cli.stages.policy:run", "rpo train-policy",
        seeds=("policy", "sampling"), trains=True, heavy=True,
    ),
    "selected": Kind(PolicyRecipe, "rpo_cli.stages.selected:run", derives=True, guess_seconds=1.0),
    "evaluate": Kind(
        EvaluateRecipe, "rpo_cli.stages.evaluate:run", "rpo evaluate",
        seeds=("sampling",), guess_seconds=4.0, heavy=True,
    ),
    "figure": Kind(FigureRecipe, None, "rpo figure KIND"),
    "warm": Kind(RewardRecipe, "rpo_cli.stages.warm:run", seeds=("rm",), derives=True),
    "reference": Kind(ScoringRecipe, "rpo_cli.stages.reference:run_reference", guess_seconds=5.0),
    "samples": Kind(
        ScoringRecipe, "rpo_cli.stages.samples:run_samples",
        seeds=("sampling",), guess_seconds=5.0, points_at_input=True,
    ),
    "scores": Kind(ScoringRecipe, "rpo_cli.stages.scores:run_scores", guess_seconds=2.0),
    "measure": Kind(ScoringRecipe, "rpo_cli.stages.measure:run", guess_seconds=8.0),
    "held_out": Kind(ScoringRecipe, "rpo_cli.stages.held_out:run", guess_seconds=2.0),
    "taught": Kind(ScoringRecipe, "rpo_cli.stages.taught:run", guess_seconds=2.0),
    "judge": Kind(
        JudgeRecipe, "rpo_cli.stages.judge.stage:run",
        format=2, seeds=("sampling",), needs_model=False, guess_seconds=300.0,
    ),
}  # fmt: skip
# The kinds of which there are recipes in files.
MODELS: dict[str, type[Recipe]] = {name: kind.recipe for name, kind in KINDS.items() if kind.command}


@cache
def _left_out(model: type[Recipe]) -> tuple[frozenset[str], dict[str, object]]:
    """Fields that are in no key, and the defaults of those that are in none at their default."""
    fields = model.model_fields
    marks = {
        name: mark for name, field in fields.items() if isinstance(mark := field.json_schema_extra, dict)
    }
    seeds = {"seed", *(name for name in fields if name.endswith("_seed"))}
    never = seeds | {name for name, mark in marks.items() if mark.get("cosmetic")}
    return frozenset(never), {name: fields[name].default for name, mark in marks.items() if mark.get("added")}


def result_fields(recipe: Recipe) -> dict[str, object]:
    """The fields that can change a result: what an artifact's key is made of.

    Of the seeds those in force that it draws under; of the files and data sets that it reads not their place,
    which the content that stands among the inputs replaces.
    """
    kind = KINDS[recipe.stage]
    never, added = _left_out(type(recipe))
    left_out = never | {name for name, default in added.items() if getattr(recipe, name) == default}
    unused = recipe.unused() if isinstance(recipe, PolicyRecipe | DataRecipe) else set[str]()
    if isinstance(recipe, DataRecipe) and recipe.source == "files":
        unused |= {"data_seed"}
    if isinstance(recipe, RelabelRecipe) and recipe.labels == "argmax":
        unused |= {"data_seed", "label_temperature"}
    if not kind.needs_model:
        unused |= {"dtype"}
    if getattr(recipe, "num_train_epochs", None) is not None:
        unused |= {"max_steps"}
    values = recipe.model_dump(mode="json", exclude={*left_out, *unused})
    if isinstance(recipe, DataRecipe):
        places: dict[str, object] = {
            "files": {},
            "dataset": None,
            "data_dir": recipe.folders,
            "sft_dataset": None,
            "tokenizer": None,
        }
        values |= {name: value for name, value in places.items() if name in values}
    seeds = {f"{purpose}_seed": seed_of(recipe, purpose) for purpose in kind.seeds}
    return values | {name: seed for name, seed in seeds.items() if name not in unused}
