"""Recipes: from a name to a validated stage, and every mistake on the way with its file and line."""

from rpo_cli.recipes.complaints import either, suggest
from rpo_cli.recipes.draft import same, stands, where
from rpo_cli.recipes.files import (
    RECIPES,
    SETTINGS,
    RecipeError,
    find,
    find_suite,
    recipes_in,
    short_name,
    shown,
    there,
)
from rpo_cli.recipes.load import (
    Loaded,
    article,
    check_suite,
    load,
    policies_of,
    recipes_of,
    variant_overrides,
)
from rpo_cli.recipes.write import require_writable, resolved_yaml, source, write_by_rho, write_setting
