"""Which stage needs which: from a recipe to the graph of artifacts it rests on.

Nothing is read from the workspace here and nothing heavy is imported; what is up to date is the pipeline's
question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from rpo_cli.artifacts import External, Stage, hash_of, hash_path, rho_folder, walk
from rpo_cli.recipes import Loaded, RecipeError, article, load, recipes_in, schema, shown, where
from rpo_cli.recipes.yaml_lines import Keys

# What a scoring recipe takes over from its policy; of 4 bits and the batch size `_scoring` decides.
SCORED = (
    schema.ScoringRecipe.model_fields.keys()
    - schema.FourBits.model_fields.keys()
    - {*("stage", "model_name_or_path", "per_device_eval_batch_size", "expected_seconds")}
)
Teacher = Stage | External | tuple[str, ...]  # a reward model, or two columns of the data
TRAINED = ("sft", "reward", "policy")
# The kinds of recipe that a key may name; of model_name_or_path, those that make a model of language.
MADE_BY = {
    "data": ("data", "pairs", "relabel", "splits"), "tokenizer": TRAINED,
    "model_name_or_path": ("sft", "policy"), "baseline": ("sft", "policy"),
    "reward_model": ("reward",), "ensemble": ("reward",), "oracle": ("reward",),
}  # fmt: skip
# Folders of artifacts beside those that are called like a recipe.
RESERVED = re.compile(
    "unbiased|policies|scores|evaluations|judged|measures|held-out|(rho|seed|reference|external)-.*"
)
DEEPEST = 40  # recipes, each of which needs the next


def at_rho(rho: float | None) -> dict[str, Any]:
    """Arguments that load a recipe at a rho; none: without resampling."""
    return {"overrides": ["rho=null"]} if rho is None else {"rho": rho}


class Planner:
    """Builds stages, each once, for one master seed and, where the command line names one, on one device."""

    def __init__(self, seed: int | None = None, device: str | None = None) -> None:
        self.seed, self.device = seed, device
        self._stages: dict[str, Stage] = {}
        self._loaded: dict[tuple[str, ...], Loaded] = {}
        self._resolved: dict[tuple[Any, ...], Stage | External] = {}
        self._under_way: dict[tuple[Path, Keys], str] = {}

    def load(self, path: Path, **kwargs: Any) -> Loaded:
        """Load a recipe under this planner's seed and device; a protocol of hundreds of cells asks for the
        same few again and again.
        """
        call = (str(path), str(self.seed), repr(sorted(kwargs.items())))
        if call not in self._loaded:
            flags = {**kwargs.pop("flags", {}), "device": self.device}
            self._loaded[call] = load(str(path), seed=self.seed, flags=flags, **kwargs)
        return self._loaded[call]

    def build(self, loaded: Loaded) -> Stage:
        """The stage a recipe describes, with everything below it."""
        if self.seed is None:
            # Everything below runs under the master seed of the recipe that was asked for.
            self.seed = loaded.recipe.seed
        builder = getattr(self, f"_{loaded.recipe.stage}")
        return cast(Stage, builder(loaded))

    def reference(self, field_name: str, loaded: Loaded) -> Stage | External:
        """What a recipe's field refers to: the stage of a sibling recipe, or an external model."""
        value = getattr(loaded.recipe, field_name)
        if field_name == "data" and not schema.is_recipe(value):
            raise _wrong(loaded, "data", f"expected a recipe (x.yaml), got {value!r}")
        of_model = field_name == "model_name_or_path"
        revision = getattr(loaded.recipe, "model_revision", None) if of_model else None
        return self._resolve(value, loaded, (field_name,), revision)

    def _resolve(
        self, reference: str, loaded: Loaded, at: Keys, revision: str | None = None
    ) -> Stage | External:
        takes_rho = "rho" in type(loaded.recipe).model_fields
        rho = getattr(loaded.recipe, "rho", None)
        call = (at[0], reference, loaded.files, takes_rho, rho, revision)
        if call not in self._resolved:
            place = Path(reference)
            if not schema.is_recipe(reference) and place.is_absolute() and not place.exists():
                raise RecipeError([f"{loaded.place(*at)}: no such model directory: {shown(place)}"])
            with self._step(loaded, at):
                self._resolved[call] = self._find(reference, loaded, at, revision, takes_rho, rho)
        return self._resolved[call]

    @contextmanager
    def _step(self, loaded: Loaded, at: Keys) -> Iterator[None]:
        """Go from a recipe to one that it names; RecipeError on a way that comes back, or does not end."""
        here, steps = (loaded.path, at), list(self._under_way)
        if here in steps:
            circle = [self._under_way[step] for step in steps[steps.index(here) :]]
            first = circle.index(min(circle))  # one circle is one mistake, wherever it was entered
            way = [*circle[first:], *circle[: first + 1]]
            raise RecipeError([f"{way[0]}: goes in a circle: {' -> '.join(way)}"])
        if len(steps) > DEEPEST:
            raise RecipeError([f"{loaded.place(*at)}: more than {DEEPEST} recipes, each on the next"])
        self._under_way[here] = loaded.place(*at)
        try:
            yield
        finally:
            del self._under_way[here]

    def _find(
        self,
        reference: str,
        loaded: Loaded,
        at: Keys,
        revision: str | None,
        takes_rho: bool,
        rho: float | None,
    ) -> Stage | External:
        if not schema.is_recipe(reference):
            return External.named(reference, revision)
        file = loaded.sibling(reference, *at)
        sibling = self.load(file)
        kinds = (
            TRAINED
            if (loaded.recipe.stage, at[0]) == ("reward", "model_name_or_path")
            else MADE_BY[str(at[0])]
        )
        if sibling.recipe.stage not in kinds:
            made = f"expected a recipe of {', '.join(kinds)}, got {article(sibling.recipe.stage)} recipe"
            raise RecipeError([f"{loaded.place(*at)}: {made}: {reference}"])
        if takes_rho and self._is_biased(sibling):
            # What is below a policy is made for the policy's own rho, whatever its recipe says.
            sibling = self.load(file, **at_rho(rho))
        if isinstance(sibling.recipe, schema.RewardRecipe):
            return self._reward(sibling)
        return self.build(sibling)

    def _is_biased(self, loaded: Loaded) -> bool:
        """Whether a recipe makes a D_rho or is trained on one: an oracle or a warm-up knows no rho."""
        recipe = loaded.recipe
        if isinstance(recipe, schema.RewardRecipe) and schema.is_recipe(recipe.data):
            return isinstance(self.load(loaded.sibling(recipe.data, "data")).recipe, schema.SplitsRecipe)
        return isinstance(recipe, schema.SplitsRecipe)

    def _add(
        self,
        kind: str,
        path: str,
        loaded: Loaded,
        inputs: Mapping[str, Stage | External] | None = None,
        options: Mapping[str, Any] | None = None,
        recipe: schema.Recipe | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Stage:
        place, recipe = f"seed-{self.seed}/{path}", recipe or loaded.recipe
        stem = loaded.path.stem
        if RESERVED.fullmatch(stem) and f"/{stem}" in place and f"/policies/{stem}" not in place:
            raise RecipeError(
                [f"{shown(loaded.path)}: {stem} is a folder of other artifacts; rename the recipe"]
            )
        stage = Stage(
            kind, place, recipe, loaded.path, inputs or {}, options or {}, files or {}, loaded.places
        )
        known = self._stages.setdefault(place, stage)
        if known is not stage and not known.is_same(stage):
            other = f"another {place} than {shown(known.source)}; give one of them a name of its own"
            raise RecipeError([f"{where((loaded.path, 0))}: asks for {other}"])
        return known

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
        for name, reference in names.items() if recipe.loaded else ():
            if reference is not None:
                if schema.is_recipe(reference):
                    raise _wrong(loaded, name, f"expected a hub name or a path, got a recipe: {reference}")
                if Path(reference).is_absolute() and not Path(reference).exists():
                    raise _wrong(loaded, name, f"no such file or directory: {shown(Path(reference))}")
                external = External.named(reference, use="tokenizer" if name == "tokenizer" else "dataset")
                if name == "dataset":
                    external = replace(external, folders=tuple(recipe.folders))
                found[name] = external
        return found

    def _need_table(self, data: Stage | External, table: str, loaded: Loaded) -> None:
        """Refuse to plan on a table that a data recipe of files does not list, or that no loader makes."""
        if not isinstance(data, Stage):
            return
        needs, file = f"{loaded.place('data')}: needs the table {table}", shown(data.source)
        read = isinstance(data.recipe, schema.DataRecipe) and data.recipe.loaded and data.recipe.of
        if read and table not in (made := read.tables):
            raise RecipeError([f"{needs}; {file} makes {', '.join(made)}"])
        if data.files and table not in data.files:
            raise RecipeError([f"{needs}, which files: of {file} does not list"])

    def _sft(self, loaded: Loaded) -> Stage:
        recipe = cast(schema.SFTRecipe, loaded.recipe)
        inputs = {"data": self.reference("data", loaded)}
        self._need_table(inputs["data"], recipe.table, loaded)
        if recipe.model_name_or_path is not None:
            inputs["model"] = self.reference("model_name_or_path", loaded)
        return self._add("sft", loaded.path.stem, loaded, inputs)

    def _reward(self, loaded: Loaded, name: str = "all", options: Mapping[str, Any] | None = None) -> Stage:
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
            raise _wrong(loaded, "data", f"an ensemble needs {needed}")
        return self._add("reward", loaded.path.stem, loaded, inputs)

    def members(self, loaded: Loaded) -> list[Stage]:
        """The ensemble of a reward recipe, in the order of its biases, halves or seeds."""
        recipe = cast(schema.RewardRecipe, loaded.recipe)
        numbers = range(recipe.ensemble_size)
        if recipe.ensemble_of == "halves":
            return [self._reward(loaded, f"half-{i}", {"half": i}) for i in numbers]
        if recipe.ensemble_of == "seeds":  # the first is the one model of all pairs
            others = [self._reward(loaded, f"seed-{i}", {"seed": i}) for i in numbers[1:]]
            return [self._reward(loaded), *others]
        if not recipe.ensemble:
            raise _wrong(loaded, "ensemble", "lists no biases, so there is no ensemble to train")
        splits = (
            self.load(loaded.sibling(recipe.data, "data")).recipe if schema.is_recipe(recipe.data) else None
        )
        if isinstance(splits, schema.SplitsRecipe):
            unknown = [f"{b:g}" for b in recipe.ensemble if b not in splits.ensemble]
            if unknown:
                listed = ", ".join(f"{b:g}" for b in splits.ensemble)
                what = f"{', '.join(unknown)} is no subset of {recipe.data} ({listed})"
                raise _wrong(loaded, "ensemble", what)
        return [self._reward(loaded, f"b-{b:g}", {"member": b}) for b in recipe.ensemble]

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
        limit = shortest_user(loaded) if recipe.max_length == "auto" else recipe.max_length
        # Without a limit the key is that of splits from before there was one.
        resolved = recipe.model_copy(update={"max_length": limit or "auto"})
        place = f"{rho_folder(recipe.rho)}/{loaded.path.stem}"
        return self._add("splits", place, loaded, inputs, recipe=resolved)

    def _need_model(self, loaded: Loaded) -> None:
        if getattr(loaded.recipe, "model_name_or_path", None) is None:
            raise RecipeError([f"{where((loaded.path, 0))}: model_name_or_path: missing"])

    def _policy(self, loaded: Loaded) -> Stage:
        recipe = cast(schema.PolicyRecipe, loaded.recipe)
        self._need_model(loaded)
        splits = self.reference("data", loaded)
        if not isinstance(splits, Stage) or splits.kind != "splits":
            raise _wrong(loaded, "data", "a policy is trained on the pairs of a splits recipe")
        biases = cast(schema.SplitsRecipe, splits.recipe).ensemble
        if recipe.subset is not None and recipe.subset not in biases:
            listed = ", ".join(f"{b:g}" for b in biases)
            raise _wrong(loaded, "subset", f"{recipe.subset:g} is no subset of {recipe.data} ({listed})")
        model = self.reference("model_name_or_path", loaded)
        inputs: dict[str, Stage | External] = {"data": splits, "model": model}
        pairs = cast(Stage, splits.inputs["data"])
        of_pairs = pairs.path.split("/", 1)[1]  # differently labelled pairs have log-probs of their own
        # Delta h is zero at the start only if the reference is what the policy starts from, 4 bits included.
        kept = {name: getattr(recipe, name) for name in schema.FourBits.model_fields}
        bits = f"-{recipe.bnb_4bit_quant_type}" if recipe.load_in_4bit else ""
        scored: dict[str, Stage | External] = {"model": model, "data": pairs}
        inputs["reference"] = self._scoring(
            "reference", f"reference-logps{bits}/{of_pairs}", loaded, scored, kept
        )
        if recipe.samples_reference:
            inputs["samples"] = self._scoring(
                "samples", f"reference-samples{bits}/{of_pairs}", loaded, scored, kept
            )
        for name, teacher in self._teachers(loaded):
            inputs[f"scores/{name}"] = self._scores(loaded, teacher, splits, model, recipe.reward_label)
        place = f"{rho_folder(recipe.rho)}/policies/{loaded.path.stem}/{cell_name(loaded)}"
        if not recipe.selects:
            return self._add("policy", place, loaded, inputs)
        trained = self._add("policy", f"{place}-checkpoints", loaded, inputs)
        looks = {f"looks/{n}": self._look(loaded, trained, n) for n in range(1, recipe.checkpoints + 1)}
        chooser = recipe.model_copy(update={"expected_seconds": 1.0})
        return self._add("selected", place, loaded, {**inputs, "trained": trained, **looks}, recipe=chooser)

    def _look(self, loaded: Loaded, trained: Stage, number: int) -> Stage:
        """One checkpoint of a training on validation prompts; without an oracle on held-out pairs."""
        with self._step(loaded, ("evaluate",)):
            evaluated = self._evaluated(loaded, trained, "validation", number)
        return evaluated if "oracle" in evaluated.inputs else self._ranked(loaded, trained, number)

    def _scores(
        self,
        loaded: Loaded,
        teacher: Teacher,
        splits: Stage,
        model: Stage | External,
        label: str | None,
    ) -> Stage:
        """What a teacher says of a D_rho's pairs; `label`: which of its labels is the reward."""
        rho = rho_folder(cast(schema.PolicyRecipe, loaded.recipe).rho)
        inputs: dict[str, Stage | External] = {"data": splits, "policy": model}
        if isinstance(teacher, tuple):
            path = f"{rho}/scores/external-{hash_of(teacher)[:8]}"
            return self._scoring("scores", path, loaded, inputs, columns=teacher)
        inputs["model"] = teacher
        if isinstance(teacher, External):
            name = teacher.key if label is None else [teacher.key, label]
            path = f"{rho}/scores/external-{hash_of(name)[:8]}"
            return self._scoring("scores", path, loaded, inputs, label=label)
        place = teacher.path.split("/", 1)[1].removeprefix(f"{rho}/")
        if _other_splits(teacher, splits):
            place = f"{place}/{splits.path.rsplit('/', 1)[1]}"
        return self._scoring("scores", f"{rho}/scores/{place}", loaded, inputs)

    def _columns(self, loaded: Loaded, columns: Sequence[str], *at: str | int) -> tuple[str, ...]:
        """Columns of scores, which the data recipe must keep."""
        below = cast(Stage, self.reference("data", loaded))
        while not isinstance(recipe := below.recipe, schema.DataRecipe):
            below = cast(Stage, below.inputs["data"])
        if lacking := [name for name in columns if name not in recipe.keep_columns]:
            named = f"{shown(below.source)} keeps no column {lacking[0]}"
            cure = f"add keep_columns: [{', '.join(columns)}] to it"
            raise RecipeError([f"{loaded.place(*at)}: {named}; {cure}"])
        return tuple(columns)

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
            if not recipe.compares_members:
                yield "warm", self._warm(loaded)
            elif not isinstance(recipe.members, str):
                key = "margin_columns" if recipe.margin_columns else "ensemble"
                if recipe.calibration == "temperature" and recipe.calibration_mix == "own":
                    without = "members in a list have no bias b of their own"
                    cure = "set calibration_mix: data or calibration: none"
                    raise _wrong(loaded, key, f"{without}; {cure}")
                for index, member in enumerate(recipe.members):
                    if isinstance(member, schema.Columns):
                        yield f"m{index}", self._columns(loaded, member.columns, key, index)
                    else:
                        yield f"m{index}", self._resolve(member, loaded, (key, index))
            else:
                for trained in self._members(loaded, recipe.members):
                    yield name_of(trained), trained

    def _members(self, loaded: Loaded, name: str) -> list[Stage]:
        """The ensemble that a policy names."""
        with self._step(loaded, ("ensemble",)):
            return self.members(self._ensemble(loaded, name))

    def _member(self, loaded: Loaded) -> Stage:
        """The one member of an ensemble that a policy asks for by its bias."""
        recipe = cast(schema.PolicyRecipe, loaded.recipe)
        if not schema.is_recipe(recipe.reward_model):
            what = f"reward_model: {recipe.reward_model} is a model; only a recipe has members"
            raise _wrong(loaded, "reward_member", what)
        with self._step(loaded, ("reward_model",)):
            ensemble = self.load(
                loaded.sibling(recipe.reward_model, "reward_model"), expect="reward", **at_rho(recipe.rho)
            )
            members = {member.options.get("member"): member for member in self.members(ensemble)}
        if recipe.reward_member not in members:
            listed = ", ".join(f"{b:g}" for b in members if b is not None) or "none has a bias of its own"
            what = f"{recipe.reward_member:g} is no member of {recipe.reward_model} ({listed})"
            raise _wrong(loaded, "reward_member", what)
        return members[recipe.reward_member]

    def _ensemble(self, loaded: Loaded, name: str) -> Loaded:
        rho = cast(schema.PolicyRecipe, loaded.recipe).rho
        return self.load(loaded.sibling(name, "ensemble"), expect="reward", **at_rho(rho))

    def _warm(self, loaded: Loaded) -> Stage:
        """One reward model with the mean of the members' weights."""
        reference = cast(schema.PolicyRecipe, loaded.recipe).ensemble
        if isinstance(reference, list):
            of_one = "teacher: warm averages members of one initialisation"
            raise _wrong(loaded, "ensemble", f"{of_one}; name a recipe with `ensemble:`")
        ensemble = self._ensemble(loaded, reference)
        members = self._members(loaded, reference)
        inputs: dict[str, Stage | External] = {f"members/{name_of(member)}": member for member in members}
        recipe = ensemble.recipe.model_copy(update={"expected_seconds": 1.0})
        place = f"{rho_folder(cast(schema.RewardRecipe, recipe).rho)}/{ensemble.path.stem}/warm"
        return self._add("warm", place, ensemble, inputs, recipe=recipe)

    def _scoring(
        self,
        kind: str,
        path: str,
        loaded: Loaded,
        inputs: Mapping[str, Stage | External],
        bits: Mapping[str, Any] | None = None,
        label: str | None = None,
        columns: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Stage:
        policy = cast(schema.PolicyRecipe, loaded.recipe)  # or a reward model's, to diagnose it
        values = {name: getattr(policy, name) for name in SCORED if hasattr(policy, name)} | dict(bits or {})
        values |= {"rm_seed": None, "policy_seed": None, "reward_label": label}
        if kind != "samples":
            values |= {"reference_samples": 1, "max_new_tokens": 1, "sampling_seed": None}
        if "per_device_eval_batch_size" in policy.model_fields_set:
            # Memory allows no more.
            values["per_device_eval_batch_size"] = policy.per_device_eval_batch_size
        recipe = schema.ScoringRecipe(stage=kind, **values)  # type: ignore[arg-type]
        options = {"columns": list(columns)} if columns else options
        return self._add(kind, path, loaded, inputs, options, recipe=recipe)

    def _evaluate(self, loaded: Loaded) -> Stage:
        """The baseline's own evaluation: what `rpo evaluate` without a policy means."""
        recipe = cast(schema.EvaluateRecipe, loaded.recipe)
        baseline = self.reference("baseline", loaded)
        name = loaded.path.stem if isinstance(baseline, External) else baseline.path.split("/", 1)[1]
        inputs = {"policy": baseline, "reference": baseline, **self._judged(loaded)}
        return self._add("evaluate", f"evaluations/{name}/{recipe.split}", loaded, inputs)

    def _judged(self, loaded: Loaded) -> dict[str, Stage | External]:
        data = self.reference("data", loaded)
        self._need_table(data, f"prompts_{cast(schema.EvaluateRecipe, loaded.recipe).split}", loaded)
        without = cast(schema.EvaluateRecipe, loaded.recipe).oracle is None
        return {"data": data} if without else {"data": data, "oracle": self.reference("oracle", loaded)}

    def evaluation(self, policy: Loaded, split: str) -> Stage:
        """Evaluation of the policy a recipe describes, against its baseline on the same prompts."""
        return self._evaluated(policy, self.build(policy), split)

    def _evaluated(self, policy: Loaded, stage: Stage, split: str, checkpoint: int | None = None) -> Stage:
        name = cast(schema.PolicyRecipe, policy.recipe).evaluate
        loaded = self.load(policy.sibling(name, "evaluate"), expect="evaluate", flags={"split": split})
        baseline = self._evaluate(loaded)
        place, options = _of_checkpoint(stage, "evaluations", checkpoint)
        inputs = {
            "policy": stage,
            "reference": stage.inputs["model"],
            "baseline": baseline,
            **self._judged(loaded),
        }
        return self._add("evaluate", f"{place}/{split}", loaded, inputs, options)

    def held_out(self, policy: Loaded) -> Stage:
        """What the policy a recipe describes makes of the pairs that its splits hold out."""
        return self._ranked(policy, self.build(policy))

    def _ranked(self, policy: Loaded, stage: Stage, checkpoint: int | None = None) -> Stage:
        inputs = {"policy": stage, **{name: stage.inputs[name] for name in ("data", "reference")}}
        place, options = _of_checkpoint(stage, "held-out", checkpoint)
        return self._scoring("held_out", place, policy, inputs, options=options)

    def measure(self, policy: Loaded) -> Stage:
        """What the policy a recipe describes made of its training pairs, and how far it is from the
        reference.
        """
        stage = self.build(policy)
        model, pairs = stage.inputs["model"], cast(Stage, cast(Stage, stage.inputs["data"]).inputs["data"])
        place = f"reference-samples/{pairs.path.split('/', 1)[1]}"
        samples = self._scoring("samples", place, policy, {"model": model, "data": pairs})
        inputs = {"policy": stage, "model": model, "data": stage.inputs["data"], "samples": samples}
        place = stage.path.split("/", 1)[1].replace("/policies/", "/measures/")
        return self._scoring("measure", place, policy, inputs)

    def diagnosis(self, loaded: Loaded, *, members: bool = False) -> tuple[Stage, dict[str, Stage]]:
        """The pairs that a recipe is about, and scores of the held-out ones by each of its reward models.

        Those of a policy are its teachers and the oracle that its evaluation names; of a reward recipe it is
        the one that it trains, or its ensemble.
        """
        recipe = loaded.recipe
        if isinstance(recipe, schema.PolicyRecipe):
            inputs = self.build(loaded).inputs
            splits, model = cast(Stage, inputs["data"]), inputs["model"]
            scores = {
                name.removeprefix("scores/"): cast(Stage, node)
                for name, node in inputs.items()
                if name.startswith("scores/")
            }
            if (judged := self._evaluation_of(loaded)) is not None:
                evaluation = cast(schema.EvaluateRecipe, judged.recipe)
                if evaluation.oracle is not None:
                    oracle, label = self.reference("oracle", judged), evaluation.reward_label
                    scores["oracle"] = self._scores(loaded, oracle, splits, model, label)
            return splits, scores
        if not isinstance(recipe, schema.RewardRecipe):
            return self.build(loaded), {}
        made = self.members(loaded) if members else [self._reward(loaded)]
        data = cast(Stage, made[0].inputs["data"])
        if data.kind != "splits":
            self._need_table(data, "pairs_validation", loaded)
            if data.kind == "relabel":
                raise _wrong(loaded, "data", "has no held-out pairs to diagnose a reward model on")
        scores = {}
        for stage in made:
            # Read as it was trained; what a policy distils are scores of the policy's own stage.
            *folders, name = stage.path.split("/")[1:]
            place = "/".join([*folders[:1], "scores", "own", *folders[1:], name])
            inputs = {"model": stage, "data": data, "policy": stage}
            scores[name_of(stage) if members else loaded.path.stem] = self._scoring(
                "scores", place, loaded, inputs
            )
        return data, scores

    def _evaluation_of(self, policy: Loaded) -> Loaded | None:
        """The recipe that a policy's samples are evaluated with; None where there is none."""
        try:
            file = policy.sibling(cast(schema.PolicyRecipe, policy.recipe).evaluate, "evaluate")
        except RecipeError:
            return None
        return self.load(file, expect="evaluate")

    def judgement(self, policy: Loaded, split: str, overrides: Sequence[str] = ()) -> Stage:
        """A judge's verdicts on an evaluated policy; `overrides` change the `judge:` section
        (`judge.model=...`).
        """
        evaluation = self.evaluation(policy, split)
        loaded = self.load(
            policy.sibling(cast(schema.PolicyRecipe, policy.recipe).evaluate, "evaluate"),
            expect="evaluate",
            overrides=overrides,
        )
        recipe = cast(schema.EvaluateRecipe, loaded.recipe)
        if recipe.judge is None:
            what = "missing; add `judge: {model: ...}`, or name one with --model"
            raise RecipeError([f"{where((loaded.path, 0))}: judge: {what}"])
        inputs = {"evaluation": evaluation, "baseline": evaluation.inputs["baseline"]}
        if "reference" in recipe.judge.against:
            inputs["data"] = evaluation.inputs["data"]
        same = (
            "suite",
            "seed",
            "sampling_seed",
            "report_to",
            "wandb_project",
            "truncated",
            "bootstrap_samples",
        )
        settings = {name: getattr(recipe.judge, name) for name in schema.JudgeSettings.model_fields}
        judge = schema.JudgeRecipe(
            stage="judge", device="cpu", **settings, **{name: getattr(recipe, name) for name in same}
        )
        place = evaluation.path.split("/", 1)[1].replace("/evaluations/", "/judged/")
        path = f"{place}/{re.sub(r'[^A-Za-z0-9.-]+', '-', recipe.judge.model)}"
        return self._add("judge", path, loaded, inputs, recipe=judge)


def name_of(member: Stage) -> str:
    """What a member of an ensemble is called in metrics: its bias, or its folder."""
    return f"{member.options['member']:g}" if "member" in member.options else Path(member.path).name


def _of_checkpoint(stage: Stage, folder: str, checkpoint: int | None) -> tuple[str, dict[str, int]]:
    """Where what is found of a policy stands, and which checkpoint of its training it is, if it is of one."""
    place = stage.path.split("/", 1)[1].replace("/policies/", f"/{folder}/")
    return (place, {}) if checkpoint is None else (f"{place}/{checkpoint}", {"checkpoint": checkpoint})


def beside(loaded: Loaded) -> Iterator[Loaded]:
    """The recipes in a recipe's folder; not files that others extend, nor what `rpo recipe check` refuses."""
    for file in recipes_in(loaded.path.parent):
        with suppress(RecipeError):
            yield load(str(file))


def shortest_user(splits: Loaded) -> int | None:
    """The least max_length of the recipes beside these splits that train on them with overlong: drop."""
    limits = []
    for user in beside(splits):
        recipe = user.recipe
        if isinstance(recipe, schema.RewardRecipe | schema.PolicyRecipe) and recipe.overlong == "drop":
            with suppress(RecipeError):
                limits += [recipe.max_length] if user.reference("data") == splits.path else []
    return min(limits, default=None)


def _wrong(loaded: Loaded, name: str, what: str) -> RecipeError:
    """What is wrong with a recipe's field, and where it stands."""
    return RecipeError([f"{loaded.place(name)}: {what}"])


def _other_splits(teacher: Stage | External, splits: Stage) -> bool:
    """Whether a teacher was trained on the pairs of another splits recipe than the one it scores."""
    below = _splits_below(teacher) if isinstance(teacher, Stage) else []
    return bool(below) and splits not in below


@cache
def _splits_below(stage: Stage) -> list[Stage]:
    return [needed for needed in walk([stage]) if needed.kind == "splits"]


def cell_name(loaded: Loaded) -> str:
    """Folder of a policy: its strength, and whatever --set changed that can change the result."""
    recipe = cast(schema.PolicyRecipe, loaded.recipe)
    name, strength = recipe.strength
    parts = [f"{name}-{strength:g}"]
    changed = {key.split(".")[0] for key in loaded.overrides} - {"beta", "tau", "rho", "seed"}
    if changed:
        values = schema.result_fields(recipe)
        own = schema.result_fields(load(str(loaded.path), seed=recipe.seed, **at_rho(recipe.rho)).recipe)
        names = sorted(name for name in changed if name in values and values[name] != own.get(name))
        parts += [f"{name}-{values[name]}".replace("/", "_").replace(" ", "") for name in names]
    return "-".join(parts)
