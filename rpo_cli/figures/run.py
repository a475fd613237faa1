"""`rpo figure KIND`: choose on validation, evaluate what is missing, keep the numbers, draw from those."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import cast

from rpo_cli.artifacts import MANIFEST, STARTED, log_images, write_csv
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.figures.cells import Cell, Cells, Chosen, read_by
from rpo_cli.figures.dry_run import plan_only
from rpo_cli.figures.selection import Grids, Selection, select
from rpo_cli.figures.tuning import Keep, WeightKeeper, planned, tune
from rpo_cli.recipes import load, schema
from rpo_cli.runs.options import Comparing, Costs, Figure, Study
from rpo_cli.runs.question import Question, asked
from rpo_cli.runs.session import Session

GAPS = "--allow-missing draws what there is"
ONE_SEED = (
    "one seed: the intervals are over prompts alone, and another seed may contradict any of these claims; "
    "--seeds 0,1,2,3,4 runs five"
)


def run_figure(session: Session, kind: str, options: Figure, costs: Costs) -> None:
    """Evaluate the missing cells on test prompts, save the results in their small form, draw from those.

    A tuned Figure 2 writes what it chose into the recipes' by_rho, if these are its policies as they stand
    and their grids were searched whole; else the choice is for this figure alone.
    """
    question = asked(session.dry_run, costs)
    if options.out is not None:
        require_folder(options.out)
    if options.from_results is not None:
        require_kept_alone(session, options)
        _draw(session, kind, options.from_results, options.out or options.from_results, options.allow_missing)
        return
    maker, selection, grids = figure_cells(session, options, options.tune, kind)
    loaded, recipe = maker.asked, cast(schema.FigureRecipe, maker.asked.recipe)
    if session.dry_run:
        if not options.allow_missing:
            show_cells(session, maker, selection, grids, options.keep_weights, question)
        return
    chosen: Chosen | None = None
    tried: list[dict[str, object]] = []
    lost: list[str] = []
    if options.tune:
        keep: Keep = "all" if options.keep_weights == "all" else "best"
        whole = kind == "figure2" and "grid" not in selection.left_out
        write = whole and not any(variant.set for variant in recipe.compared)
        chosen, tried, _, lost = tune(session, maker, selection, grids, keep, write, "tuning")
    cells = maker.test(selection, chosen)
    if not options.allow_missing:
        _build(session, cells, recipe.suite, options.keep_weights)
        if lost:
            raise RunFailed("\n".join([f"no figure is drawn; {GAPS}", *lost]))
    folder = options.out or session.open(recipe.suite).root / "figures" / loaded.path.stem
    _keep(session, recipe, selection, cells, tried, folder)
    paths = _draw(session, kind, folder, folder, options.allow_missing)
    if session.wandb or recipe.report_to == "wandb":
        root, name = session.open(recipe.suite).root, loaded.path.stem
        log_images(recipe.wandb_project, recipe.suite, name, paths, root, session.say)


def figure_cells(
    session: Session, study: Study, tune: bool, kind: str | None = None
) -> tuple[Cells, Selection, Grids]:
    """The cells of a figure recipe, of this kind if one is given, and what of them is asked for.

    Grids are those that `tune` is to try; without it there are none.

    Raises:
        BadInput: another kind, or what the figure has not got or cannot draw.
    """
    flags = {"device": session.device}
    loaded = load(session.recipe, overrides=session.overrides, flags=flags, expect="figure")
    recipe = cast(schema.FigureRecipe, loaded.recipe)
    if kind not in (None, recipe.kind):
        raise BadInput(f"{loaded.path}: is a recipe of kind {recipe.kind}; use rpo figure {recipe.kind}")
    if study.grid_size is not None and not tune:
        raise BadInput("--grid-size: only with --tune, which is what tries a grid")
    rhos = None if session.rho in (None, "all") else session.rhos([])
    names = [variant.name for variant in recipe.compared]
    selection = select((names, recipe.rhos, recipe.seeds), rhos, study)
    if problem := recipe.unfit(selection.rhos):
        raise BadInput(f"--rho {session.rho}: {problem}")
    maker, grids = Cells(loaded), Grids()
    if tune:
        grids = maker.grids(selection)
        selection.leave_out_of_grids(grids)
        maker.test(selection)  # what cannot be drawn is said before anything is tried
    return maker, selection, grids


def require_kept_alone(session: Session, options: Study | Comparing) -> None:
    """BadInput where --from is given with what decides which cells there are, or keeps."""
    decides = {"rho", "overrides", "seeds", "budget", "objectives", "grid_size", "tune", "sweep", "against"}
    decides |= {"dry_run", "keep_weights"}
    no_effect = "has no effect with --from, which shows what is kept, as it is"
    if session.named:
        raise BadInput(f"{session.recipe}: {no_effect}")
    for told in (session, options):
        for each in fields(told):
            value = getattr(told, each.name)
            if each.name in decides and value not in (None, False, [], "best"):
                flag = "--set" if each.name == "overrides" else f"--{each.name.replace('_', '-')}"
                raise BadInput(f"{flag}: {no_effect}")


def require_folder(out: Path) -> None:
    """BadInput unless files can go into this folder, which need not be there yet, and is no artifact."""
    above = [out.absolute(), *out.absolute().parents]
    there = next(place for place in above if place.exists())
    if not str(out).isprintable() or not there.is_dir() or not os.access(there, os.W_OK):
        raise BadInput(f"--out {str(out)!r}: {there} is no folder in which files can be written")
    if any((place / mark).is_file() for place in above for mark in (MANIFEST, STARTED)):
        raise BadInput(f"--out {out}: lies inside an artifact, which is removed when it is made again")


def show_cells(
    session: Session, maker: Cells, selection: Selection, grids: Grids, keep: Keep, question: Question | None
) -> None:
    """Say what would be built; where no choice was made yet, with a value that may be chosen."""
    validation = maker.validation(selection, grids) if grids else []
    chosen = planned(session, maker, selection, grids, validation) if grids else None
    test = maker.test(selection, chosen)
    plan_only(session, maker.asked.recipe.suite, selection, validation, test, keep, question)


def _build(session: Session, cells: Sequence[Cell], suite: str, keep: Keep) -> None:
    """Evaluate what is missing; then nothing is left to do: with `none` not even the best policies stay."""
    workspace = session.open(suite)
    keeper = WeightKeeper(cells, workspace, "none" if keep == "none" else "all")
    try:
        session.make(read_by(cells), suite, finished=keeper)
    except RunFailed as error:
        raise RunFailed(f"no figure is drawn; {GAPS}\n{error}") from error
    for cell in cells if keep == "none" else ():
        for path in cell.weights:
            workspace.drop_weights(path)  # of cells that needed no evaluation any more


def _keep(
    session: Session,
    recipe: schema.FigureRecipe,
    selection: Selection,
    cells: Sequence[Cell],
    tried: Sequence[dict[str, object]],
    folder: Path,
) -> None:
    """Save what the cells say in its small form, and what was tried on validation."""
    from rpo_cli.figures.kinds import KINDS
    from rpo_cli.figures.results import Results, save_results

    row = KINDS[recipe.kind]
    found = row.gather(cells, session.open(recipe.suite))
    if recipe.unit == "sd":
        spread = found.cells.pop("baseline_sd")
        for name in ("advantage", "lead"):
            if name in found.cells:
                found.cells[name] /= spread
    title = recipe.title or row.title
    variants = [variant for variant in recipe.compared if variant.name in selection.policies]
    meta = {
        **found.provenance,
        "kind": recipe.kind,
        "policies": list(schema.ESTIMATORS) if recipe.kind == "kl" else selection.policies,
        "panels": {variant.name: variant.panel for variant in variants},
        "claims": [claim.kept() for claim in recipe.claimed if set(claim.rhos or []) <= set(selection.rhos)],
        "rhos": selection.rhos,
        "seeds": selection.seeds,
        "bootstrap_samples": recipe.bootstrap_samples,
        "title": title,
    }
    # Results that say nothing of intervals are of a time when all were drawn; one seed still is.
    told = {"intervals": recipe.intervals if len(selection.seeds) > 1 else "bootstrap", "unit": recipe.unit}
    meta |= {name: value for name, value in told.items() if value not in ("bootstrap", "oracle")}
    if biased_to := {to for cell in cells for to in cell.biased_to}:
        meta["biased_to"] = " or ".join(sorted(biased_to))
    if lines := {variant.name: variant.line for variant in variants if variant.line}:
        meta["lines"] = lines
    if selection.left_out:
        meta |= {"left_out": selection.left_out, "title": f"{title} [reduced: {selection.note()}]"}
    save_results(Results(found.cells, found.choices, meta, found.tables), folder)
    if tried:
        write_csv(tried, folder / "validation.csv")


def _draw(session: Session, kind: str, folder: Path, out: Path, allow_missing: bool) -> list[Path]:
    """Draw what is kept in a folder, and report every claim."""
    from rpo_cli.figures.claims import claims_table
    from rpo_cli.figures.kinds import KINDS
    from rpo_cli.figures.redraw import redraw

    paths, rows = redraw(folder, out, kind, allow_missing=allow_missing)
    if session.as_json:
        session.print_json({"files": [str(path) for path in paths], KINDS[kind].rows: rows})
    else:
        if rows:
            if max(len(row["by_seed"]) for row in rows) == 1:
                session.say(ONE_SEED)
            session.out.print(claims_table(rows, session.out))
        for path in paths:
            print(path)
    return paths
