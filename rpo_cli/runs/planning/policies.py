"""Plans of policies: their reference, their teachers, and what each says of the pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

from rpo_cli.artifacts import External, Stage, hash_of, member_of, rho_folder, told_of, walk, where
from rpo_cli.recipes import Loaded, RecipeError, load, schema, shown
from rpo_cli.runs.planning.base import at_rho, wrong
from rpo_cli.runs.planning.models import ModelPlanner, name_of

# What a scoring recipe takes over from its policy; of 4 bits and the batch size `_scoring` decides.
SCORED = (
    schema.ScoringRecipe.model_fields.keys()
    - schema.FourBits.model_fields.keys()
    - {*("stage", "model_name_or_path", "per_device_eval_batch_size", "expected_seconds")}
)
CHECKPOINTS = "-checkpoints"
Teacher = Stage | External | tuple[str, ...]  # a reward model, or two columns of the data


class PolicyPlanner(ModelPlanner):
    """Plans policies and what they are trained on."""

    def _trained(self, loaded: Loaded) -> Stage:
        """The training of a policy; one that keeps checkpoints to choose from stands beside the policy."""
        recipe = cast(schema.PolicyRecipe, loaded.recipe)
        self._need_model(loaded)
        splits = self.reference("data", loaded)
        if not isinstance(splits, Stage) or splits.kind != "splits":
            raise wrong(loaded, "data", "a policy is trained on the pairs of a splits recipe")
        biases = cast(schema.SplitsRecipe, splits.recipe).ensemble
        if recipe.subset is not None and recipe.subset not in biases:
            listed = ", ".join(f"{b:g}" for b in biases)
            raise wrong(loaded, "subset", f"{recipe.subset:g} is no subset of {recipe.data} ({listed})")
        model = self.reference("model_name_or_path", loaded)
        inputs: dict[str, Stage | External] = {"data": splits, "model": model}
        pairs = cast(Stage, splits.inputs["data"])
        # Differently labelled pairs, and models to start from, have log-probs of their own.
        of_pairs = pairs.path.split("/", 1)[1]
        start = f"-{name}" if (name := self._start(loaded, model, splits)) else ""
        # Delta h is zero at the start only if the reference is what the policy starts from, 4 bits included.
        kept = {name: getattr(recipe, name) for name in schema.FourBits.model_fields}
        bits = f"-{recipe.bnb_4bit_quant_type}" if recipe.load_in_4bit else ""
        scored: dict[str, Stage | External] = {"model": model, "data": pairs}
        inputs["reference"] = self._scoring(
            "reference", f"reference-logps{bits}{start}/{of_pairs}", loaded, scored, kept
        )
        if recipe.samples_reference:
            inputs["samples"] = self._scoring(
                "samples", f"reference-samples{bits}{start}/{of_pairs}", loaded, scored, kept
            )
        for name, teacher in self._teachers(loaded):
            inputs[f"scores/{name}"] = self._scores(loaded, teacher, splits, model, recipe.reward_label)
            if isinstance(teacher, Stage) and (told := self._told(loaded, teacher)) is not None:
                inputs[told_of(name)] = told
        place = f"{rho_folder(recipe.rho)}/policies/{loaded.path.stem}/{cell_name(loaded)}"
        return self._add("policy", f"{place}{CHECKPOINTS if recipe.selects else ''}", loaded, inputs)

    def _start(self, loaded: Loaded, model: Stage | External, splits: Stage) -> str:
        """What tells folders of the model that a policy starts from, where policies start from several.

        Nothing for the model that its baseline is of, or whose tokens its splits count. Recipes alone decide,
        whatever else is planned: a policy's folders are the same in a comparison.
        """
        if where(splits.inputs["tokenizer"]) == where(model):
            return ""
        try:
            file = loaded.sibling(cast(schema.PolicyRecipe, loaded.recipe).evaluate, "evaluate")
        except RecipeError:  # there is none: whoever evaluates is told
            return ""
        evaluation = self.load(file, expect="evaluate")
        if _named(evaluation, "baseline") == _named(loaded, "model_name_or_path"):
            return ""
        if isinstance(model, External):
            return f"from-external-{hash_of(model.key)[:8]}"
        return f"from-{model.path.split('/', 1)[1].replace('/', '-')}"

    def _scores(
        self, loaded: Loaded, teacher: Teacher, splits: Stage, model: Stage | External, label: str | None
    ) -> Stage:
        """What a teacher says of a D_rho's pairs; `label`: which of its labels is the reward."""
        rho = rho_folder(cast(schema.PolicyRecipe, loaded.recipe).rho)
        start = self._start(loaded, model, splits)
        folder = f"{rho}/scores/reference-{start}" if start else f"{rho}/scores"
        inputs: dict[str, Stage | External] = {"data": splits, "policy": model}
        if isinstance(teacher, tuple):
            path = f"{folder}/external-{hash_of(teacher)[:8]}"
            return self._scoring("scores", path, loaded, inputs, options={"columns": list(teacher)})
        inputs["model"] = teacher
        if isinstance(teacher, External):
            name = teacher.key if label is None else [teacher.key, label]
            path = f"{folder}/external-{hash_of(name)[:8]}"
            return self._scoring("scores", path, loaded, inputs, label=label)
        place = teacher.path.split("/", 1)[1].removeprefix(f"{rho}/")
        if _other_splits(teacher, splits):
            place = f"{place}/{splits.path.rsplit('/', 1)[1]}"
        return self._scoring("scores", f"{folder}/{place}", loaded, inputs)

    def _teachers(self, loaded: Loaded) -> Iterator[tuple[str, Teacher]]:
        """What an objective distils, under the names of the cells' histogram."""
        recipe = cast(schema.PolicyRecipe, loaded.recipe)
        if recipe.asks_columns:
            yield "rm", self._columns(loaded, recipe.margin_columns[0], "margin_columns")
        elif recipe.asks_one and recipe.reward_member is not None:
            yield f"{recipe.reward_member:g}", self._member(loaded)
        elif recipe.asks_one:
            yield "rm", self.reference("reward_model", loaded)
        elif recipe.asks_ensemble:
            self._need_folds(loaded)
            if not recipe.compares_members:
                yield "warm", self._warm(loaded)
            elif isinstance(recipe.members, str):
                for trained in self._members(loaded, recipe.members):
                    yield name_of(trained), trained
            else:
                yield from self._listed(loaded, recipe.members)

    def _listed(
        self, loaded: Loaded, listed: Sequence[str | schema.Columns | schema.Members]
    ) -> Iterator[tuple[str, Teacher]]:
        """The teachers of an ensemble that is a list; a recipe's members under its name and their own."""
        recipe = cast(schema.PolicyRecipe, loaded.recipe)
        key = "margin_columns" if recipe.margin_columns else "ensemble"
        own = recipe.calibration == "temperature" and recipe.calibration_mix == "own"
        if own and not all(isinstance(each, schema.Members) for each in listed):
            without = "models and columns in a list have no bias b of their own"
            cure = "set calibration_mix: data or calibration: none"
            raise wrong(loaded, key, f"{without}; {cure}")
        stems: set[str] = set()
        for index, each in enumerate(listed):
            if isinstance(each, schema.Columns):
                yield f"m{index}", self._columns(loaded, each.columns, key, index)
            elif isinstance(each, schema.Members):
                stem = Path(each.members).stem
                if stem in stems:
                    twice = f"two recipes are called {stem}, by which their members are told apart"
                    raise RecipeError([f"{loaded.place(key, index)}: {twice}; rename one"])
                stems.add(stem)
                for trained in self._members(loaded, each.members, index):
                    yield member_of(stem, name_of(trained)), trained
            else:
                yield f"m{index}", self._resolve(each, loaded, (key, index))

    def _need_folds(self, loaded: Loaded) -> None:
        """Refuse to cross-fit members that have all seen a pair's prompt, or of which it is not known."""
        recipe = cast(schema.PolicyRecipe, loaded.recipe)
        if not recipe.distils_unseen:
            return
        members = recipe.members
        named = members if isinstance(members, str) else None
        made = None if named is None else self._ensemble(loaded, named).recipe
        if named is None or not (isinstance(made, schema.RewardRecipe) and made.ensemble_of == "folds"):
            what = f"teacher: {recipe.teacher} needs a reward recipe with `ensemble_of: folds`"
            raise wrong(loaded, "ensemble", f"{what}; got {named or 'a list'}")
        if self.reference("data", loaded) not in _splits_below(self._members(loaded, named)[0]):
            what = (
                f"teacher: {recipe.teacher} needs members of the pairs of {recipe.data}, of which each lacks"
            )
            raise wrong(loaded, "ensemble", f"{what} a part; those of {named} are trained on others")

    def _told(self, loaded: Loaded, member: Stage) -> Stage | None:
        """The splits that say what a member's bias b counts, where the policy's own splits do not.

        Raises:
            RecipeError: it is calibrated to its b, and they hold out other pairs than the policy's splits.
        """
        recipe = cast(schema.PolicyRecipe, loaded.recipe)
        if "member" not in member.options or not recipe.calibrates or recipe.calibration_mix != "own":
            return None
        own = cast(Stage, self.reference("data", loaded))
        for splits in _splits_below(member):
            if cast(schema.SplitsRecipe, splits.recipe).told == cast(schema.SplitsRecipe, own.recipe).told:
                continue
            if (differ := _drawn_apart(splits, own)) is not None:
                named = (
                    f"the subsets of {shown(splits.source)} differ in another attribute than {recipe.data}'s"
                )
                cure = "let both draw the same D_rho, or set calibration_mix: data"
                key = "ensemble" if recipe.asks_ensemble else "reward_model"
                raise wrong(loaded, key, f"{named}, and are of other pairs ({differ}); {cure}")
            return splits
        return None

    def _members(self, loaded: Loaded, name: str, *at: int) -> list[Stage]:
        """The ensemble that a policy names, in a list at an index."""
        with self._step(loaded, ("ensemble", *at)):
            return self.members(self._ensemble(loaded, name))

    def _member(self, loaded: Loaded) -> Stage:
        """The one member of an ensemble that a policy asks for by its bias."""
        recipe = cast(schema.PolicyRecipe, loaded.recipe)
        if not schema.is_recipe(recipe.reward_model):
            what = f"reward_model: {recipe.reward_model} is a model; only a recipe has members"
            raise wrong(loaded, "reward_member", what)
        with self._step(loaded, ("reward_model",)):
            ensemble = self.load(
                loaded.sibling(recipe.reward_model, "reward_model"), expect="reward", **at_rho(recipe.rho)
            )
            members = {member.options.get("member"): member for member in self.members(ensemble)}
        if recipe.reward_member not in members:
            listed = ", ".join(f"{b:g}" for b in members if b is not None) or "none has a bias of its own"
            what = f"{recipe.reward_member:g} is no member of {recipe.reward_model} ({listed})"
            raise wrong(loaded, "reward_member", what)
        return members[recipe.reward_member]

    def _ensemble(self, loaded: Loaded, name: str) -> Loaded:
        rho = cast(schema.PolicyRecipe, loaded.recipe).rho
        return self.load(loaded.sibling(name, "ensemble"), expect="reward", **at_rho(rho))

    def _warm(self, loaded: Loaded) -> Stage:
        """The mean of the ensemble that a policy names; see `warm`."""
        reference = cast(schema.PolicyRecipe, loaded.recipe).ensemble
        if isinstance(reference, list):
            of_one = "teacher: warm averages members of one initialisation"
            raise wrong(loaded, "ensemble", f"{of_one}; name a recipe with `ensemble:`")
        with self._step(loaded, ("ensemble",)):
            return self.warm(self._ensemble(loaded, reference))

    def _scoring(
        self,
        kind: str,
        path: str,
        loaded: Loaded,
        inputs: Mapping[str, Stage | External],
        bits: Mapping[str, object] | None = None,
        label: str | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Stage:
        policy = cast(schema.PolicyRecipe, loaded.recipe)  # or a reward model's, to diagnose it
        values = {name: getattr(policy, name) for name in SCORED if hasattr(policy, name)} | dict(bits or {})
        values |= {"rm_seed": None, "policy_seed": None, "reward_label": label}
        if kind != "samples":
            values |= {"reference_samples": 1, "max_new_tokens": 1, "sampling_seed": None}
        if "per_device_eval_batch_size" in policy.model_fields_set:
            # Memory allows no more.
            values["per_device_eval_batch_size"] = policy.per_device_eval_batch_size
        # pydantic checks both: `kind` against its names, values of another recipe's fields against its own.
        recipe = schema.ScoringRecipe(stage=kind, **values)  # type: ignore[arg-type]
        return self._add(kind, path, loaded, inputs, options, recipe=recipe)


def _named(loaded: Loaded, key: str) -> object:
    """The file of the recipe, or the model, that a key names."""
    return loaded.reference(key) or getattr(loaded.recipe, key)


def _other_splits(teacher: Stage | External, splits: Stage) -> bool:
    """Whether a teacher was trained on the pairs of another splits recipe than the one it scores."""
    below = _splits_below(teacher) if isinstance(teacher, Stage) else []
    return bool(below) and splits not in below


@cache
def _splits_below(stage: Stage) -> list[Stage]:
    return [needed for needed in walk([stage]) if needed.kind == "splits"]


def _drawn_apart(one: Stage, other: Stage) -> str | None:
    """In what two splits differ that their D_rho and held-out pairs depend on; subsets come from it later."""
    fields, others = ({**schema.result_fields(each.recipe), **_names(each)} for each in (one, other))
    names = sorted(fields.keys() | others.keys())
    apart = [name for name in names if fields.get(name) != others.get(name)]
    return ", ".join(name for name in apart if not name.startswith(("ensemble", "subset_"))) or None


def _names(splits: Stage) -> dict[str, object]:
    return {name: where(each) for name, each in splits.inputs.items()}


def cell_name(loaded: Loaded) -> str:
    """Folder of a policy: what is swept, and whatever --set changed that can change the result."""
    recipe = cast(schema.PolicyRecipe, loaded.recipe)
    parts = [f"{name}-{value:g}" for name, value in recipe.setting.items()]
    changed = {key.split(".")[0] for key in loaded.overrides}
    changed -= {"beta", "tau", "rho", "seed", *recipe.setting}
    if changed:
        values = schema.result_fields(recipe)
        own = schema.result_fields(load(str(loaded.path), seed=recipe.seed, **at_rho(recipe.rho)).recipe)
        names = sorted(name for name in changed if name in values and values[name] != own.get(name))
        parts += [f"{name}-{_spelt(values[name])}".replace("/", "_").replace(" ", "") for name in names]
    return "-".join(parts)


def _spelt(value: object) -> str:
    """A value as part of a folder's name; of a list of recipes' members the recipes."""
    listed = value if isinstance(value, list) else []
    names = [each["members"] for each in listed if isinstance(each, dict) and "members" in each]
    if names and len(names) == len(listed):
        return "+".join(names)
    return str(value)
