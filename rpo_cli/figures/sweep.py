"""`rpo sweep` and `rpo figure figure2`: choose on validation, report on test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich.table import Table

from rpo_cli.artifacts import snapshots, write_csv
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import Cell, Cells, read_by, stem
from rpo_cli.figures.dry_run import plan_only
from rpo_cli.figures.gather import gather
from rpo_cli.figures.selection import Budget, Selection, leave_out_of_grids, select, spread
from rpo_cli.figures.tuning import Chosen, Keep, WeightKeeper, at_edge, choose, validation_table
from rpo_cli.recipes import Loaded, article, load, require_writable, schema, write_by_rho
from rpo_cli.runs.question import Question
from rpo_cli.runs.session import Session, suite_rhos


def figure_of(loaded: Loaded) -> tuple[list[str], list[float | None], list[int]]:
    """Policies, rhos and seeds of a figure recipe, or of a single policy recipe."""
    recipe = loaded.recipe
    if isinstance(recipe, schema.FigureRecipe):
        if recipe.kind not in ("figure2", "unbiased"):
            raise BadInput(f"{loaded.path}: is a recipe of kind {recipe.kind}; use rpo figure {recipe.kind}")
        if changed := [variant.name for variant in recipe.variants if variant.set]:
            raise BadInput(
                f"{loaded.path}: variants: {changed[0]}: has changes of its own (set); a grid is a recipe's, as it stands"
            )
        policies = (
            recipe.policies if recipe.kind == "figure2" else [variant.recipe for variant in recipe.variants]
        )
        return list(policies), list(recipe.rhos), list(recipe.seeds)
    if not isinstance(recipe, schema.PolicyRecipe):
        raise BadInput(
            f"{loaded.path}: is {article(recipe.stage)} recipe; sweep takes a policy recipe or a figure recipe"
        )
    return [str(loaded.path)], list(suite_rhos(loaded)), [recipe.seed]


def run_sweep(
    session: Session,
    seeds: Sequence[int] | None,
    write: bool,
    keep: Keep,
    budget: Budget,
    question: Question | None,
) -> None:
    """Evaluate the grids on validation, save the table, print and write the choice."""
    figure = isinstance(load(session.recipe).recipe, schema.FigureRecipe)
    loaded = load(session.recipe, overrides=() if figure else session.overrides)
    rhos = None if session.rho == "all" else session.rhos([])
    selection = select(figure_of(loaded), rhos, seeds, budget)
    maker = Cells(loaded.path.parent, session.overrides, session.device)
    leave_out_of_grids(
        selection, {stem(policy): values for policy, (_, values) in maker.grids(selection.policies).items()}
    )
    if session.dry_run:
        plan_only(session, loaded.recipe.suite, selection, grid_cells(maker, selection), [], keep, question)
    else:
        sweep(session, loaded, selection, maker, write=write, keep=keep)


def grid_cells(maker: Cells, selection: Selection) -> list[Cell]:
    """The validation cells of a sweep."""
    return maker.grid(selection.policies, selection.rhos, selection.seeds, selection.grid_size)


def sweep(
    session: Session, loaded: Loaded, selection: Selection, maker: Cells, *, write: bool, keep: Keep
) -> Chosen:
    """The sweep itself; see `run_sweep`."""
    beside = loaded.path.parent
    policies = selection.policies
    cells = grid_cells(maker, selection)
    if write:
        for policy in policies:
            require_writable(load(policy, beside=beside).path)
    suite = loaded.recipe.suite
    workspace = session.open(suite)
    _announce(session, selection, len(cells))
    snapshots.pin([cell.evaluation for cell in cells], workspace)
    session.make(read_by(cells), suite, finished=WeightKeeper(cells, workspace, keep))
    rows = validation_table(cells, workspace)
    file = workspace.root / "sweeps" / f"{loaded.path.stem}.csv"
    write_csv(rows, file)
    chosen = choose(rows)
    grids = {policy: [row["value"] for row in rows if row["policy"] == policy] for policy in chosen}
    if session.as_json:
        found: dict[str, Any] = {
            "chosen": {p: {str(r): v for r, v in by.items()} for p, by in chosen.items()},
            "csv": str(file),
        }
        session.print_json(found | ({"left_out": selection.left_out} if selection.left_out else {}))
    else:
        session.out.print(choice_table(chosen, selection.rhos))
        session.out.print(str(file), highlight=False, soft_wrap=True)
    for note in at_edge(chosen, grids):
        session.say(f"note: {note}")
    if write:
        for policy in policies:
            path = load(policy, beside=beside).path
            by_rho = {rho: dict(values) for rho, values in chosen[stem(path)].items() if rho is not None}
            if by_rho:
                known = cast(schema.PolicyRecipe, load(policy, beside=beside).recipe).by_rho
                write_by_rho(
                    path,
                    {rho: {**known.get(rho, {}), **by_rho.get(rho, {})} for rho in sorted({*known, *by_rho})},
                )
                session.say(f"wrote by_rho of {path}")
        if None in selection.rhos:
            session.say(
                "note: a choice without resampling is not written: set it (beta or tau), or draw with rpo figure unbiased --tune"
            )
    return chosen


def _announce(session: Session, selection: Selection, cells: int) -> None:
    counts = f"{len(selection.policies)} policies x {len(selection.rhos)} rho x {len(selection.seeds)} seeds"
    session.say(f"sweep: {counts}, {cells} cells on validation prompts")
    if note := selection.note():
        session.say(f"reduced: {note}")


def choice_table(chosen: Chosen, rhos: Sequence[float | None]) -> Table:
    """What was chosen for each policy and rho, to print."""
    table = Table(
        "policy",
        *("unbiased" if rho is None else f"rho {rho:g}" for rho in rhos),
        title="chosen on validation",
    )
    for policy, by_rho in chosen.items():
        table.add_row(
            policy, *(" ".join(f"{k} {v:g}" for k, v in by_rho.get(rho, {}).items()) for rho in rhos)
        )
    return table


def run_figure2(
    session: Session,
    seeds: Sequence[int] | None,
    from_results: Path | None,
    out: Path | None,
    allow_missing: bool,
    tune: bool,
    keep: Keep,
    budget: Budget,
    question: Question | None,
) -> None:
    """Evaluate the missing cells on test prompts, save the results in their small form, draw from those.

    A grid that was not searched whole chooses for this figure only: the recipes' by_rho stay as they are.
    """
    if from_results is not None:
        if not (from_results / "cells.parquet").is_file():
            raise BadInput(f"{from_results}: holds no results (cells.parquet)")
        _draw(session, from_results, out or from_results, allow_missing)
        return
    loaded = load(session.recipe, overrides=session.overrides, expect="figure")
    recipe = cast(schema.FigureRecipe, loaded.recipe)
    if budget.grid_size is not None and not tune:
        raise BadInput("--grid-size: only with --tune, which is what tries a grid")
    rhos = None if session.rho in (None, "all") else session.rhos([])
    selection = select(figure_of(loaded), rhos, seeds, budget)
    policies, rho_list, seed_list = selection.policies, selection.rhos, selection.seeds
    if None in rho_list:
        raise BadInput("--rho none: Figure 2 has an axis of rho; give values between 0 and 1")
    suite = recipe.suite
    maker = Cells(loaded.path.parent, device=session.device)
    chosen: Chosen = {}
    if tune:
        found = tuned(session, loaded, selection, maker, keep, write=True)
        if session.dry_run or "grid" in selection.left_out:
            chosen = found
        else:
            maker = Cells(loaded.path.parent, device=session.device)  # the recipes say now what was chosen

    def final(policy: str, rho: float | None, seed: int) -> Cell:
        values = chosen.get(stem(policy), {}).get(rho, {})
        return maker.cell(policy, rho, seed, "test", [f"{name}={value!r}" for name, value in values.items()])

    cells = [final(policy, rho, seed) for seed in seed_list for rho in rho_list for policy in policies]
    workspace = session.open(suite)
    if session.dry_run:
        if not allow_missing:
            plan_only(
                session, suite, selection, grid_cells(maker, selection) if tune else [], cells, keep, question
            )
        return
    if not allow_missing:
        # After the test there is nothing left to evaluate: with `none` not even the best policies stay.
        session.make(
            read_by(cells),
            suite,
            finished=WeightKeeper(cells, workspace, "none" if keep == "none" else "all"),
        )
        for cell in cells if keep == "none" else ():
            workspace.drop_weights(cell.policy_path)  # of cells that needed no evaluation any more
    frame, choices, provenance = gather(cells, workspace)
    meta = {
        **provenance,
        "policies": [stem(policy) for policy in policies],
        "rhos": rho_list,
        "seeds": seed_list,
        "bootstrap_samples": recipe.bootstrap_samples,
        "title": recipe.title,
    }
    if selection.left_out:
        from rpo_cli.figures.drawing import DEFAULT_TITLE

        meta |= {
            "left_out": selection.left_out,
            "title": f"{recipe.title or DEFAULT_TITLE} [reduced: {selection.note()}]",
        }
    from rpo_cli.figures.results import save_results

    folder = out or workspace.root / "figures" / loaded.path.stem
    save_results(frame, choices, meta, folder)
    paths = _draw(session, folder, folder, allow_missing)
    if session.wandb or recipe.report_to == "wandb":
        from rpo_cli.artifacts import log_images

        log_images(recipe.wandb_project, suite, paths, workspace.root)


def tuned(
    session: Session, loaded: Loaded, selection: Selection, maker: Cells, keep: Keep, *, write: bool
) -> Chosen:
    """For each policy and rho the value that validation chooses, written if the whole grid was tried; --dry-run: one of the grid."""
    grids = maker.grids(selection.policies)
    leave_out_of_grids(selection, {stem(policy): values for policy, (_, values) in grids.items()})
    if session.dry_run:
        return _some_choice(maker, selection, grids)
    quiet = Session(**{**vars(session), "overrides": (), "as_json": False})
    write = write and "grid" not in selection.left_out
    return sweep(quiet, loaded, selection, maker, write=write, keep="all" if keep == "all" else "best")


def _some_choice(maker: Cells, selection: Selection, grids: dict[str, tuple[str, list[float]]]) -> Chosen:
    """For each policy and rho a value that the sweep may choose: the recipe's own where its grid has it, else the first."""
    chosen: Chosen = {}
    for policy, (name, values) in grids.items():
        tried = spread(values, selection.grid_size)
        for rho in selection.rhos:
            own = maker.cell(policy, rho, selection.seeds[0], "test").strength[1]
            chosen.setdefault(stem(policy), {})[rho] = {name: own if own in tried else tried[0]}
    return chosen


def _draw(session: Session, folder: Path, out: Path, allow_missing: bool) -> list[Path]:
    from rpo_cli.figures.claims import orderings_table
    from rpo_cli.figures.drawing import redraw
    from rpo_cli.figures.table import MissingCells

    try:
        paths, rows = redraw(folder, out, allow_missing=allow_missing)
    except MissingCells as error:
        raise BadInput(f"{error} (--allow-missing draws them as gaps)") from error
    if session.as_json:
        session.print_json({"files": [str(path) for path in paths], "orderings": rows})
    else:
        session.out.print(orderings_table(rows, session.out))
        for path in paths:
            session.out.print(str(path), highlight=False, soft_wrap=True)
    return list(paths)
