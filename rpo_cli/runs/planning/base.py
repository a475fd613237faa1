"""A planner's ground: load recipes, follow what they refer to, add each stage once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, cast

from rpo_cli.artifacts import MANIFEST, External, Stage, may_end_in_padding
from rpo_cli.recipes import RECIPES, Loaded, RecipeError, article, load, schema, shown, where
from rpo_cli.recipes.yaml_lines import Keys

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
# Which input of a stage is read as a reward model, by whoever made it.
READ_AS_REWARD = {"scores": "model", "taught": "model", "relabel": "model", "evaluate": "oracle"}
DEEPEST = 40  # recipes, each of which needs the next


class At(TypedDict, total=False):
    """Arguments that load a recipe at a rho."""

    rho: float
    overrides: list[str]


def at_rho(rho: float | None) -> At:
    """Arguments that load a recipe at a rho; none: without resampling."""
    return {"overrides": ["rho=null"]} if rho is None else {"rho": rho}


def read_at(kind: str, inputs: Mapping[str, Stage | External]) -> dict[str, object]:
    """What tells rewards read at the last token that is no padding from older ones, read at the EOS.

    Nothing for models of this pipeline, and for others in which both are the same. What a model of the hub
    calls padding is not known before it is here: it counts as one of those that differ.
    """
    model = inputs.get(READ_AS_REWARD.get(kind, ""))
    if not isinstance(model, External):
        return {}
    folder = Path(model.reference)
    if folder.is_dir() and (
        any((folder / name).is_file() for name in (MANIFEST, RECIPES)) or not may_end_in_padding(folder)
    ):
        return {}
    return {"reward_at": "last token but padding"}


def wrong(loaded: Loaded, name: str, what: str) -> RecipeError:
    """What is wrong with a recipe's field, and where it stands."""
    return RecipeError([f"{loaded.place(name)}: {what}"])


class BasePlanner:
    """Builds stages, each once, for one master seed and, where the command line names one, on one device."""

    def __init__(self, seed: int | None = None, device: str | None = None) -> None:
        self.seed, self.device = seed, device
        self._stages: dict[str, Stage] = {}
        self._loaded: dict[tuple[str, ...], Loaded] = {}
        self._resolved: dict[tuple[object, ...], Stage | External] = {}
        self._limits: dict[Path, int | None] = {}
        self._under_way: dict[tuple[Path, Keys], str] = {}

    def load(
        self,
        path: Path,
        *,
        rho: float | None = None,
        overrides: Sequence[str] = (),
        flags: Mapping[str, object] | None = None,
        expect: str | None = None,
    ) -> Loaded:
        """Load a recipe under this planner's seed and device, once: hundreds of cells ask for a few."""
        call = (str(path), str(self.seed), repr((rho, overrides, flags, expect)))
        if call not in self._loaded:
            flags = {**(flags or {}), "device": self.device}
            self._loaded[call] = load(
                str(path), rho=rho, seed=self.seed, overrides=overrides, flags=flags, expect=expect
            )
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
            raise wrong(loaded, "data", f"expected a recipe (x.yaml), got {value!r}")
        of_model = field_name == "model_name_or_path"
        revision = getattr(loaded.recipe, "model_revision", None) if of_model else None
        return self._resolve(value, loaded, (field_name,), revision)

    def _columns(self, loaded: Loaded, columns: Sequence[str], *at: str | int) -> tuple[str, ...]:
        """Columns of numbers, which the data recipe must keep."""
        below = cast(Stage, self.reference("data", loaded))
        while not isinstance(recipe := below.recipe, schema.DataRecipe):
            below = cast(Stage, below.inputs["data"])
        if lacking := [name for name in columns if name not in recipe.numbers]:
            named = f"{shown(below.source)} keeps no column {lacking[0]}"
            cure = f"add keep_columns: [{', '.join(columns)}] to it"
            raise RecipeError([f"{loaded.place(*at)}: {named}; {cure}"])
        return tuple(columns)

    def _resolve(
        self, reference: str, loaded: Loaded, at: Keys, revision: str | None = None
    ) -> Stage | External:
        call = (at[0], reference, loaded.files, getattr(loaded.recipe, "rho", ()), revision)
        if call not in self._resolved:
            place = Path(reference)
            if not schema.is_recipe(reference) and place.is_absolute() and not place.exists():
                raise RecipeError([f"{loaded.place(*at)}: no such model directory: {shown(place)}"])
            with self._step(loaded, at):
                self._resolved[call] = self._find(reference, loaded, at, revision)
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

    def _find(self, reference: str, loaded: Loaded, at: Keys, revision: str | None) -> Stage | External:
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
        if hasattr(loaded.recipe, "rho") and self._is_biased(sibling):
            # What is below a policy is made for the policy's own rho, whatever its recipe says.
            sibling = self.load(file, **at_rho(loaded.recipe.rho))
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
        inputs: Mapping[str, Stage | External],
        options: Mapping[str, object] | None = None,
        recipe: schema.Recipe | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Stage:
        place, recipe = f"seed-{self.seed}/{path}", recipe or loaded.recipe
        options = {**(options or {}), **read_at(kind, inputs)}
        stem = loaded.path.stem
        if RESERVED.fullmatch(stem) and f"/{stem}" in place and f"/policies/{stem}" not in place:
            raise RecipeError(
                [f"{shown(loaded.path)}: {stem} is a folder of other artifacts; rename the recipe"]
            )
        stage = Stage(kind, place, recipe, loaded.path, inputs, options, files or {}, loaded.places)
        known = self._stages.setdefault(place, stage)
        if known is not stage and not known.is_same(stage):
            raise RecipeError([f"{where((loaded.path, 0))}: {_at_odds(stage, known)}"])
        return known

    def _need_table(self, data: Stage | External, table: str, loaded: Loaded) -> None:
        """Refuse to plan on a table that a data recipe of files does not list, or that no loader makes."""
        if not isinstance(data, Stage):
            return
        read = isinstance(data.recipe, schema.DataRecipe) and data.recipe.loaded and data.recipe.of
        if read and table not in (made := read.tables):
            lacks = f"; {shown(data.source)} makes {', '.join(made)}"
        elif data.files and table not in data.files:
            lacks = f", which files: of {shown(data.source)} does not list"
        else:
            return
        raise wrong(loaded, "data", f"needs the table {table}{lacks}")

    def _need_model(self, loaded: Loaded) -> None:
        if getattr(loaded.recipe, "model_name_or_path", None) is None:
            raise RecipeError([f"{where((loaded.path, 0))}: model_name_or_path: missing"])


def _at_odds(stage: Stage, known: Stage) -> str:
    """What two recipes ask for under one path, and how to have both."""
    others = [name for name, one in stage.inputs.items() if known.inputs.get(name) != one]
    of = f", of another {' and '.join(others)}" if others else ""
    asked = f"asks for another {stage.path} than {shown(known.source)}{of}"
    if stage.kind in ("reference", "samples") and "model" in others:
        one = "where policies start from several models, one has this folder"
        return f"{asked}; {one}: name it as the evaluate recipe's baseline and as tokenizer of the splits"
    return f"{asked}; give one of them a name of its own"
