"""What a recipe may say: one flat pydantic model for each kind of stage, unknown keys forbidden.

Keys carry TRL's and transformers' own names where those exist. Imports neither torch nor TRL, so that a
mistake in a recipe is reported in well under a second."""

from rpo_cli.recipes.schema.base import (
    PURPOSES,
    FourBits,
    ModelSource,
    Recipe,
    SharedPrompts,
    is_recipe,
    seed_of,
)
from rpo_cli.recipes.schema.data import DataRecipe, RelabelRecipe, SplitsRecipe, attribute, preferred
from rpo_cli.recipes.schema.evaluate import EvaluateRecipe, JudgeRecipe, JudgeSettings
from rpo_cli.recipes.schema.figure import (
    ESTIMATORS,
    EVERY,
    FURTHER,
    MEASURES,
    Claim,
    FigureRecipe,
    Variant,
    as_it_is,
    claims_by_default,
)
from rpo_cli.recipes.schema.kinds import KINDS, MODELS, result_fields
from rpo_cli.recipes.schema.listed import Columns, Members
from rpo_cli.recipes.schema.pairs import PairsRecipe
from rpo_cli.recipes.schema.policy import NOT_BY_RHO, RATE, PolicyRecipe, ScoringRecipe
from rpo_cli.recipes.schema.training import RewardRecipe, SFTRecipe, TrainingRecipe
