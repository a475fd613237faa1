"""A cell of an experiment, (rho, policy, seed), and the stage that evaluates it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Unpack, cast

from rpo_cli.artifacts import Stage, rho_folder, scores_of, walk
from rpo_cli.errors import BadInput
from rpo_cli.figures.selection import Grids, Selection, settings
from rpo_cli.recipes import Loaded, load, schema, stands, variant_overrides
from rpo_cli.recipes.yaml_lines import one_line
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.planning.base import At, at_rho

FORMAT = 1  # of the numbers that `rpo compare --json` prints and `rpo report --from` reads
BASELINE = "baseline"  # what a comparison calls that which the evaluate recipe names so
Split = Literal["validation", "test"]
Chosen = dict[str, dict[float | None, dict[str, float]]]  # of each policy and rho the setting, by name


@dataclass(frozen=True)
class Cell:
    """One point of the experiment, and the stage that evaluates it, or measures it.

    `held_out`, `judged`, `taught`: of a comparison, what measures its held-out pairs, what a judge may have
    said, and what the teachers of all that are compared say of its samples, where no oracle does.
    `looks`: of a learning curve, the checkpoints on validation prompts, of which `evaluation` is the last.
    """

    policy: str
    rho: float | None
    seed: int
    loaded: Loaded
    evaluation: Stage
    held_out: Stage | None = None
    judged: Stage | None = None
    taught: tuple[Stage, ...] = ()
    looks: tuple[Stage, ...] = ()

    @property
    def setting(self) -> dict[str, float]:
        """The swept hyperparameters, the strength first."""
        return cast(schema.PolicyRecipe, self.loaded.recipe).setting

    @property
    def biased_to(self) -> list[str]:
        """Which response its rho counts, in words, where that is not the longer one."""
        splits = [each.recipe for each in walk([self.evaluation]) if each.kind == "splits"]
        recipes = [cast(schema.SplitsRecipe, recipe) for recipe in splits]
        return [recipe.biased_to for recipe in recipes if recipe.bias_on is not None]

    @property
    def keys(self) -> dict[str, object]:
        """Its place in a table; without resampling there is no rho: NaN."""
        rho = float("nan") if self.rho is None else self.rho
        return {"policy": self.policy, "rho": rho, "seed": self.seed}

    @property
    def folder(self) -> str:
        """Its place in what is kept about its policy."""
        return f"{rho_folder(self.rho)}/seed-{self.seed}"

    @property
    def policy_path(self) -> str:
        return cast(Stage, self.evaluation.inputs["policy"]).path

    @property
    def trained(self) -> Stage:
        """The training of its policy, which may have left checkpoints to choose from."""
        policy = cast(Stage, self.evaluation.inputs["policy"])
        return cast(Stage, policy.inputs.get("trained", policy))

    @property
    def trials(self) -> list[Stage]:
        """What ends where its policy diverges: training, what chooses among its checkpoints, evaluation."""
        policy = cast(Stage, self.evaluation.inputs["policy"])
        chosen_by = [needed for name, needed in policy.inputs.items() if name.startswith("looks/")]
        among = [policy.inputs.get("trained"), *chosen_by, policy, self.evaluation]
        return [each for each in among if isinstance(each, Stage)]

    @property
    def taught_by(self) -> dict[str, Stage]:
        """The scores of each model that its policy distils, by name."""
        inputs = cast(Stage, self.evaluation.inputs["policy"]).inputs
        return cast(dict[str, Stage], scores_of(inputs))

    @property
    def weights(self) -> list[str]:
        """Where its policy's weights are: the policy, and the checkpoints that it was chosen from."""
        return list(dict.fromkeys([self.policy_path, self.trained.path]))


def read_by(cells: Iterable[Cell]) -> list[Stage]:
    """What a figure of these cells reads: their evaluations, and their baselines', which a plan skips."""
    cells = list(cells)
    evaluations = [cell.evaluation for cell in cells]
    evaluations += [look for cell in cells for look in cell.looks[:-1]]
    evaluations += [cell.held_out for cell in cells if cell.held_out is not None]
    evaluations += [stage for cell in cells for stage in cell.taught]
    found = (stage.inputs.get("baseline") for stage in evaluations)
    baselines = {stage.path: stage for stage in found if isinstance(stage, Stage)}
    return [*evaluations, *baselines.values()]


def bias_of(member: str) -> float | None:
    """The b that a member of an ensemble is named for; None where members are listed: m0, m1, …"""
    return float(member) if member.replace(".", "").isdigit() else None


class Cells:
    """The cells of a figure recipe, or of a policy recipe alone, with one planner for each seed.

    `beside`: further policy recipes that the first is compared with, also on held-out pairs.
    """

    def __init__(
        self, asked: Loaded, overrides: Sequence[str] = (), beside: Sequence[Loaded] | None = None
    ) -> None:
        self.asked, self.overrides = asked, list(overrides)
        self.device = asked.overrides.get("device")
        self.on_pairs = beside is not None
        recipe = asked.recipe
        figure = recipe if isinstance(recipe, schema.FigureRecipe) else None
        alone = [schema.as_it_is(str(loaded.path)) for loaded in (asked, *(beside or ()))]
        compared = alone if figure is None else figure.compared
        self.variants = {variant.name: variant for variant in compared}
        self.measured = figure is not None and figure.measured
        kind = None if figure is None else figure.kind
        self.curves, self.taught = kind == "curves", kind == "teachers"
        self._planners: dict[int, Planner] = {}
        self._loaded: dict[tuple[str, float | None], Loaded] = {}

    def policy(self, name: str, **at: Unpack[At]) -> Loaded:
        """A variant's recipe."""
        variant = self.variants[name]
        at["overrides"] = [*self.overrides, *variant_overrides(variant), *at.get("overrides", [])]
        path, flags = str(self.asked.sibling(variant.recipe)), {"device": self.device}
        return load(path, **at, flags=flags, expect="policy")

    def at(self, name: str, rho: float | None) -> Loaded:
        """A variant's recipe at a rho, read and checked once."""
        if (name, rho) not in self._loaded:
            self._loaded[name, rho] = self.policy(name, **at_rho(rho))
        return self._loaded[name, rho]

    def cell(
        self,
        name: str,
        rho: float | None,
        seed: int,
        split: Split,
        setting: Mapping[str, float] | None = None,
    ) -> Cell:
        """One cell, its seed laid over the recipe; `setting`: instead of the recipe's for this rho."""
        read, ours = self.at(name, rho), {"seed": seed, **(setting or {})}
        recipe = read.recipe.model_copy(update=ours)
        loaded = replace(read, recipe=recipe, overrides={**read.overrides, **ours})
        planner = self._planners.setdefault(seed, Planner(seed, self.device))
        if self.measured:
            return Cell(name, rho, seed, loaded, planner.measure(loaded))
        if self.curves and split == "test":
            looks = self._looks(loaded, planner)
            return Cell(name, rho, seed, loaded, looks[-1], looks=looks)
        target = planner.evaluation(loaded, split)
        if self.on_pairs and split == "test":
            judge = cast(schema.EvaluateRecipe, target.recipe).judge
            judged = None if judge is None else planner.judgement(loaded, split)
            return Cell(name, rho, seed, loaded, target, planner.held_out(loaded), judged)
        if "oracle" not in target.inputs:
            if split == "test":
                what = "is null, so there is no advantage; `rpo compare` needs no oracle"
                raise BadInput(f"{stands(target.places, target.source, ('oracle',))}: {what}")
            target = planner.held_out(loaded)  # what there is to choose by
        return Cell(name, rho, seed, loaded, target)

    def _looks(self, loaded: Loaded, planner: Planner) -> tuple[Stage, ...]:
        if not cast(schema.PolicyRecipe, loaded.recipe).selects:
            cure = "set select: validation, in the recipe or under variants: set"
            raise BadInput(f"{loaded.place('select')}: a learning curve needs checkpoints; {cure}")
        looks = tuple(planner.looks(loaded))
        if "baseline" not in looks[-1].inputs:
            raise BadInput(f"{self.asked.path}: a learning curve is one of oracle reward; there is no oracle")
        return looks

    def test(self, selection: Selection, chosen: Chosen | None = None) -> list[Cell]:
        """The cells that a figure shows; `chosen`: with these settings, where there are any."""
        cells = [
            self.cell(name, rho, seed, "test", None if chosen is None else chosen[name][rho])
            for seed in selection.seeds
            for rho in selection.rhos
            for name in selection.policies
            if chosen is None or rho in chosen.get(name, {})
        ]
        if self.taught and all(cell.taught_by for cell in cells):
            cure = "add one such as {name: dpo, recipe: dpo.yaml}"
            raise BadInput(
                f"{self.asked.path}: variants: every one has a teacher, so none has a lead; {cure}"
            )
        return [replace(cell, taught=self._taught(cell, cells)) for cell in cells]

    def _taught(self, cell: Cell, cells: Sequence[Cell]) -> tuple[Stage, ...]:
        """What the teachers of a comparison's cells say of the samples of one; nothing beside an oracle."""
        if not self.on_pairs or "oracle" in cell.evaluation.inputs:
            return ()
        alike = [other.loaded for other in cells if (other.seed, other.rho) == (cell.seed, cell.rho)]
        found = [stage for own in alike for stage in self._planners[cell.seed].taught(own, cell.evaluation)]
        return tuple({stage.path: stage for stage in found}.values())

    def grids(self, selection: Selection, *, again: bool = False) -> Grids:
        """What each selected policy sweeps, and all its values; `again`: of those that are chosen, too.

        Raises:
            BadInput: a policy without a grid or with its strength fixed, a figure of no evaluations, or grids
                of which not the same number of settings is tried: every objective gets the same budget.
        """
        if self.measured:
            kind = cast(schema.FigureRecipe, self.asked.recipe).kind
            raise BadInput(
                f"{self.asked.path}: --tune chooses by the advantage on validation prompts; "
                f"a figure of kind {kind} has none"
            )
        grids: Grids = {}
        for name in selection.policies:
            loaded = self.policy(name)
            recipe = cast(schema.PolicyRecipe, loaded.recipe)
            grid, strength = recipe.grid, recipe.declared.strength
            if grid.keys() - {schema.RATE} != {strength}:
                what = f"give one grid, of {strength}, to sweep over with objective: {recipe.objective}"
                such = one_line({strength: list(recipe.declared.grid)})
                raise BadInput(f"{loaded.place('grid')}: {what}, such as `grid: {such}`")
            if not again and (fixed := [key for key in grid if key in self.variants[name].set]):
                raise BadInput(
                    f"{self.asked.path}: variants: {name}: sets {fixed[0]}, which --tune is to choose"
                )
            in_order = sorted(grid.items(), key=lambda item: item[0] != strength)
            grids[name] = {key: [float(value) for value in values] for key, values in in_order}
        sizes = {name: len(settings(grid, selection.grid_size)) for name, grid in grids.items()}
        if len({*sizes.values()}) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise BadInput(f"grids of different sizes ({listed}): every objective gets the same budget")
        return grids

    def validation(self, selection: Selection, grids: Grids) -> list[Cell]:
        """The cells among which settings are chosen: all of each grid, or as many as are selected."""
        return [
            self.cell(name, rho, seed, "validation", setting)
            for seed in selection.seeds
            for rho in selection.rhos
            for name in selection.policies
            for setting in settings(grids[name], selection.grid_size)
        ]
