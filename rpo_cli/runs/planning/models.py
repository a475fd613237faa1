"""Plans of the models behind a policy: SFT, reward models and their ensembles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from rpo_cli.artifacts import External, Stage, rho_folder
from rpo_cli.recipes import Loaded, schema
from rpo_cli.runs.planning.base import wrong
from rpo_cli.runs.planning.data import DataPlanner


class ModelPlanner(DataPlanner):
    """Plans what a policy starts from and is taught by."""

    def _sft(self, loaded: Loaded) -> Stage:
        recipe = cast(schema.SFTRecipe, loaded.recipe)
        inputs = {"data": self.reference("data", loaded)}
        self._need_table(inputs["data"], recipe.table, loaded)
        if recipe.model_name_or_path is not None:
            inputs["model"] = self.reference("model_name_or_path", loaded)
        return self._add("sft", loaded.path.stem, loaded, inputs)

    def _reward(
        self, loaded: Loaded, name: str = "all", options: Mapping[str, object] | None = None
    ) -> Stage:
        """A reward model; of an ensemble's member its folder `name`, and options of its own."""
        recipe = cast(schema.RewardRecipe, loaded.recipe)
        self._need_model(loaded)
        data = self.reference("data", loaded)
        self._need_table(data, recipe.table, loaded)
        inputs = {"data": data, "model": self.reference("model_name_or_path", loaded)}
        if isinstance(data, Stage) and data.kind == "splits":
            path = f"{rho_folder(recipe.rho)}/{loaded.path.stem}/{name}"
            return self._add("reward", path, loaded, inputs, options)
        if name != "all":
            needed = "a splits recipe, which makes the subsets of its members"
            raise wrong(loaded, "data", f"an ensemble needs {needed}")
        return self._add("reward", loaded.path.stem, loaded, inputs)

    def members(self, loaded: Loaded) -> list[Stage]:
        """The ensemble of a reward recipe, in the order of its biases, halves, folds or seeds."""
        recipe = cast(schema.RewardRecipe, loaded.recipe)
        numbers = range(recipe.ensemble_size)
        if recipe.ensemble_of == "halves":
            return [self._reward(loaded, f"half-{i}", {"half": i}) for i in numbers]
        if recipe.ensemble_of == "folds":
            folds = recipe.ensemble_size
            return [self._reward(loaded, f"fold-{i}", {"fold": i, "folds": folds}) for i in numbers]
        if recipe.ensemble_of == "seeds":  # the first is the one model of all pairs
            others = [self._reward(loaded, f"seed-{i}", {"seed": i}) for i in numbers[1:]]
            return [self._reward(loaded), *others]
        if not recipe.ensemble:
            what = f"lists no biases; write `ensemble: [0.2, 0.5, 0.8]` here and in {recipe.data}"
            raise wrong(loaded, "ensemble", f"{what}, as `rpo init ... --objective e-dpo` does")
        splits = (
            self.load(loaded.sibling(recipe.data, "data")).recipe if schema.is_recipe(recipe.data) else None
        )
        if isinstance(splits, schema.SplitsRecipe):
            unknown = [f"{b:g}" for b in recipe.ensemble if b not in splits.ensemble]
            if unknown:
                listed = ", ".join(f"{b:g}" for b in splits.ensemble)
                what = f"{', '.join(unknown)} is no subset of {recipe.data} ({listed})"
                raise wrong(loaded, "ensemble", what)
        return [self._reward(loaded, f"b-{b:g}", {"member": b}) for b in recipe.ensemble]

    def warm(self, ensemble: Loaded) -> Stage:
        """One reward model with the mean of the members' weights."""
        inputs: dict[str, Stage | External] = {
            f"members/{name_of(member)}": member for member in self.members(ensemble)
        }
        recipe = ensemble.recipe.model_copy(update={"expected_seconds": 1.0})
        place = f"{rho_folder(cast(schema.RewardRecipe, recipe).rho)}/{ensemble.path.stem}/warm"
        return self._add("warm", place, ensemble, inputs, recipe=recipe)


def name_of(member: Stage) -> str:
    """What a member of an ensemble is called in metrics: its bias, or its folder."""
    return f"{member.options['member']:g}" if "member" in member.options else Path(member.path).name
