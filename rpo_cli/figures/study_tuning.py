"""Choose the strength of each variant of a figure of the theory on validation prompts, every variant with the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from rpo_cli.artifacts import snapshots
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import Cell, Cells, grid_of, read_by, same_budget
from rpo_cli.figures.selection import spread
from rpo_cli.figures.sweep import choice_table
from rpo_cli.figures.tuning import Chosen, Keep, WeightKeeper, at_edge, choose, validation_table
from rpo_cli.recipes import Loaded, load, schema, variant_overrides
from rpo_cli.runs.session import Session
from rpo_cli.runs.todo import what_to_run


class Tuning(NamedTuple):
    """`--tune` of a figure: how many values of each grid (None: all), which weights stay."""

    grid_size: int | None = None
    keep: Keep = "best"


class Tuned(NamedTuple):
    """What was chosen for each variant and rho, and every row that it was chosen from."""

    chosen: Chosen
    rows: list[dict[str, Any]]


def grids_of(loaded: Loaded) -> dict[str, tuple[str, list[float]]]:
    """The swept parameter of each variant and the values that are tried: the grid of its recipe.

    Raises:
        BadInput: a variant without a grid, with its strength fixed in `set`, or grids of different sizes.
    """
    recipe = cast(schema.FigureRecipe, loaded.recipe)
    if recipe.kind in schema.MEASURED:
        raise BadInput(
            f"{loaded.path}: --tune chooses by the advantage on validation prompts; a figure of kind {recipe.kind} has none"
        )
    grids: dict[str, tuple[str, list[float]]] = {}
    for variant in recipe.variants:
        policy = load(
            variant.recipe, overrides=variant_overrides(variant), expect="policy", beside=loaded.path.parent
        )
        name, values = grid_of(policy)
        if name in variant.set:
            raise BadInput(f"{loaded.path}: variants: {variant.name}: sets {name}, which --tune is to choose")
        grids[variant.name] = name, values
    same_budget(grids)
    return grids


def tuning_cells(
    loaded: Loaded, rhos: Sequence[float | None], seeds: Sequence[int], grid_size: int | None = None
) -> list[Cell]:
    """Validation cells of every variant, rho, seed and value, or of `grid_size` values spread over each grid."""
    grids, maker = grids_of(loaded), Cells(loaded.path.parent, device=loaded.overrides.get("device"))
    return [
        replace(
            maker.cell(v.recipe, rho, seed, "validation", [*variant_overrides(v), f"{name}={value!r}"]),
            policy=v.name,
        )
        for seed in seeds
        for rho in rhos
        for v in cast(schema.FigureRecipe, loaded.recipe).variants
        for name, values in [grids[v.name]]
        for value in spread(values, grid_size)
    ]


def tune(
    session: Session, loaded: Loaded, rhos: Sequence[float | None], seeds: Sequence[int], tuning: Tuning
) -> Tuned:
    """Evaluate the grids on validation prompts and choose for each variant and rho by the mean over seeds."""
    cells = tuning_cells(loaded, rhos, seeds, tuning.grid_size)
    suite = loaded.recipe.suite
    workspace = session.open(suite)
    session.say(f"tuning: {len(cells)} cells on validation prompts")
    snapshots.pin([cell.evaluation for cell in cells], workspace)
    session.make(
        read_by(cells),
        suite,
        finished=WeightKeeper(cells, workspace, "all" if tuning.keep == "all" else "best"),
    )
    rows = validation_table(cells, workspace)
    chosen = choose(rows)
    if not session.as_json:
        session.out.print(choice_table(chosen, rhos))
    for note in at_edge(chosen, {name: values for name, (_, values) in grids_of(loaded).items()}):
        session.say(f"note: {note}")
    return Tuned(chosen, rows)


def planned(session: Session, loaded: Loaded, cells: Sequence[Cell], rhos: Sequence[float | None]) -> Chosen:
    """What these validation cells choose where all are evaluated; else no more is known than that it is one of the grid."""
    workspace = session.open(loaded.recipe.suite)
    if not what_to_run([cell.evaluation for cell in cells], workspace):
        return choose(validation_table(cells, workspace))
    return {
        name: {rho: {parameter: values[0]} for rho in rhos}
        for name, (parameter, values) in grids_of(loaded).items()
    }
