"""Plans of data: pairs, their labels, and what is drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

from rpo_cli.artifacts import External, Stage, hash_path, rho_folder
from rpo_cli.recipes import Loaded, RecipeError, load, recipes_in, schema, shown
from rpo_cli.runs.planning.base import BasePlanner, wrong


class DataPlanner(BasePlanner):
    """Plans what makes and changes pairs."""

    def _data(self, loaded: Loaded) -> Stage:
        recipe = cast(schema.DataRecipe, loaded.recipe)
        missing = [
            f"{loaded.place('files', table)}: no such file: {shown(Path(file))}"
            for table, file in recipe.files.items()
            if not Path(file).is_file()
        ]
        if missing:
            raise RecipeError(missing)
        options = {"files": {table: hash_path(Path(file)) for table, file in recipe.files.items()}}
        files = {str(table): file for table, file in recipe.files.items()}
        return self._add("data", loaded.path.stem, loaded, self._sets(loaded), options, files=files)

    def _sets(self, loaded: Loaded) -> dict[str, Stage | External]:
        """The data sets and the tokenizer that a data recipe with a loader reads."""
        recipe = cast(schema.DataRecipe, loaded.recipe)
        names = {
            "dataset": recipe.dataset or recipe.of.published,
            "sft_dataset": recipe.sft_dataset,
            "tokenizer": recipe.tokenizer,
        }
        found: dict[str, Stage | External] = {}
        for name, reference in names.items():
            if reference is not None and name not in recipe.unused():
                if schema.is_recipe(reference):
                    raise wrong(loaded, name, f"expected a hub name or a path, got a recipe: {reference}")
                if Path(reference).is_absolute() and not Path(reference).exists():
                    raise wrong(loaded, name, f"no such file or directory: {shown(Path(reference))}")
                external = External.named(reference, use="tokenizer" if name == "tokenizer" else "dataset")
                if name == "dataset":
                    external = replace(external, folders=tuple(recipe.folders))
                found[name] = external
        return found

    def _pairs(self, loaded: Loaded) -> Stage:
        inputs = {
            "data": self.reference("data", loaded),
            "model": self.reference("model_name_or_path", loaded),
        }
        recipe = cast(schema.PairsRecipe, loaded.recipe)
        for table in (recipe.table, recipe.validation_table):
            if table is not None:
                self._need_table(inputs["data"], table, loaded)
        return self._add("pairs", loaded.path.stem, loaded, inputs)

    def _relabel(self, loaded: Loaded) -> Stage:
        inputs = {"data": self.reference("data", loaded), "model": self.reference("reward_model", loaded)}
        return self._add("relabel", loaded.path.stem, loaded, inputs)

    def _splits(self, loaded: Loaded) -> Stage:
        recipe = cast(schema.SplitsRecipe, loaded.recipe)
        inputs = {"data": self.reference("data", loaded), "tokenizer": self.reference("tokenizer", loaded)}
        if isinstance(tokenizer := inputs["tokenizer"], External):
            tokenizer.use = "tokenizer"
        for key in ("bias_on", "ensemble_on"):
            if isinstance(columns := getattr(recipe, key), list):
                self._columns(loaded, columns, key)
        limit = recipe.max_length
        if limit == "auto":
            if loaded.path not in self._limits:  # the same at every rho
                self._limits[loaded.path] = shortest_user(loaded)
            limit = self._limits[loaded.path]
        # Without a limit the key is that of splits from before there was one.
        resolved = recipe.model_copy(update={"max_length": limit or "auto"})
        place = f"{rho_folder(recipe.rho)}/{loaded.path.stem}"
        return self._add("splits", place, loaded, inputs, recipe=resolved)


def beside(loaded: Loaded) -> Iterator[Loaded]:
    """The recipes in a recipe's folder; not files that others extend, nor what `rpo recipe check` refuses."""
    for file in recipes_in(loaded.path.parent):
        with suppress(RecipeError):
            yield load(str(file))


def data_below(loaded: Loaded) -> Iterator[Loaded]:
    """The recipes on the way from this one down to its data; a way that comes back ends."""
    seen = {loaded.path}
    while hasattr(loaded.recipe, "data"):
        below = loaded.reference("data")
        if below is None or below in seen:  # a circle, which the plan will complain of
            return
        seen.add(below)
        loaded = load(str(below))
        yield loaded


def suite_rhos(loaded: Loaded) -> list[float | None]:
    """What `--rho all` means: the list in the suite's splits recipe."""
    for each in (loaded, *data_below(loaded)):
        if isinstance(recipe := each.recipe, schema.SplitsRecipe):
            # Without num_pairs nothing can be resampled: all there is are the pairs as they are.
            return [None] if recipe.num_pairs is None else list(recipe.rhos)
    return [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def shortest_user(splits: Loaded) -> int | None:
    """The least max_length of the recipes beside these splits that train on them with overlong: drop."""
    limits = []
    for user in beside(splits):
        recipe = user.recipe
        if isinstance(recipe, schema.RewardRecipe | schema.PolicyRecipe) and recipe.overlong == "drop":
            with suppress(RecipeError):
                limits += [recipe.max_length] if user.reference("data") == splits.path else []
    return min(limits, default=None)
