"""`rpo figure KIND` for the theory: variants of policies, what is claimed of them, and the interval of each claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rpo_cli.artifacts import Stage, Workspace, rho_folder, write_csv
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import Cell, Cells, bias_of, read_by
from rpo_cli.figures.dry_run import plan_only
from rpo_cli.figures.gather import gather
from rpo_cli.figures.selection import Budget, leave_out_of_grids, select
from rpo_cli.figures.study_tuning import Tuning, grids_of, planned, tune, tuning_cells
from rpo_cli.figures.tuning import Chosen, WeightKeeper
from rpo_cli.recipes import Loaded, load, schema, variant_overrides
from rpo_cli.runs.question import Question
from rpo_cli.runs.session import Session

if TYPE_CHECKING:
    import pandas as pd

    from rpo_cli.figures.claims import Difference


CURVES = ("policy", "rho", "seed", "step", "measure", "value")


def study_cells(
    loaded: Loaded, rhos: Sequence[float | None], seeds: Sequence[int], chosen: Chosen | None = None
) -> list[Cell]:
    """A cell for each variant, rho and seed of a figure recipe, named for the variant; `chosen`: with these strengths."""

    def changes(variant: schema.Variant, rho: float | None) -> list[str]:
        strength = {} if chosen is None else chosen[variant.name][rho]
        return [*variant_overrides(variant), *(f"{name}={value!r}" for name, value in strength.items())]

    recipe = cast(schema.FigureRecipe, loaded.recipe)
    maker, measured = (
        Cells(loaded.path.parent, device=loaded.overrides.get("device")),
        recipe.kind in schema.MEASURED,
    )
    return [
        replace(maker.cell(v.recipe, rho, seed, "test", changes(v, rho), measured=measured), policy=v.name)
        for seed in seeds
        for rho in rhos
        for v in recipe.variants
    ]


def run_study(
    session: Session,
    kind: str,
    rhos: Sequence[float | None] | None,
    seeds: Sequence[int] | None,
    from_results: Path | None,
    out: Path | None,
    tuning: Tuning | None = None,
    question: Question | None = None,
) -> None:
    """Build what the variants lack, keep the numbers in their small form, draw from those and report every claim.

    Args:
        tuning: choose the variants' strengths on validation prompts first, for this figure alone.
        question: what the plan of a dry run is to estimate.
    """
    from rpo_cli.artifacts import publish
    from rpo_cli.figures.results import save_results

    if from_results is not None:
        if not (from_results / "cells.parquet").is_file():
            raise BadInput(f"{from_results}: holds no results (cells.parquet)")
        _draw(session, kind, from_results, out or from_results)
        return
    loaded = load(
        session.recipe, overrides=session.overrides, flags={"device": session.device}, expect="figure"
    )
    recipe = cast(schema.FigureRecipe, loaded.recipe)
    if recipe.kind != kind:
        raise BadInput(f"{loaded.path}: is a recipe of kind {recipe.kind}; use rpo figure {recipe.kind}")
    rho_list, seed_list = list(rhos or recipe.rhos), list(seeds or recipe.seeds)
    names = [variant.name for variant in recipe.variants]
    selection = select(
        (names, recipe.rhos, recipe.seeds),
        rhos,
        seeds,
        Budget(grid_size=None if tuning is None else tuning.grid_size),
    )
    chosen: Chosen | None = None
    tried: list[dict[str, Any]] = []
    validation: list[Cell] = []
    if tuning is not None:
        leave_out_of_grids(selection, {name: values for name, (_, values) in grids_of(loaded).items()})
        if session.dry_run:
            validation = tuning_cells(loaded, rho_list, seed_list, tuning.grid_size)
            chosen = planned(session, loaded, validation, rho_list)
        else:
            chosen, tried = tune(session, loaded, rho_list, seed_list, tuning)
    cells = study_cells(loaded, rho_list, seed_list, chosen)
    if session.dry_run and (tuning is not None or question is not None):
        plan_only(
            session,
            recipe.suite,
            selection,
            validation,
            cells,
            "best" if tuning is None else tuning.keep,
            question,
        )
        return
    finished = WeightKeeper(
        cells, session.open(recipe.suite), "none" if tuning is not None and tuning.keep == "none" else "all"
    )
    workspace = session.make(read_by(cells), recipe.suite, finished=finished)
    if session.dry_run:
        return
    frame, choices, curves, provenance = gather_study(cells, workspace, kind)
    claims = [claim for claim in recipe.claims if not set(claim.rhos or []) - set(rho_list)]
    meta = {
        **provenance,
        "kind": kind,
        "policies": list(dict.fromkeys(frame["policy"])),
        "panels": {variant.name: variant.panel for variant in recipe.variants},
        "claims": [claim.model_dump(mode="json") for claim in claims],
        "rhos": [0.0 if rho is None else rho for rho in rho_list],
        "seeds": seed_list,
        "bootstrap_samples": recipe.bootstrap_samples,
        "title": recipe.title,
        **(
            {"left_out": selection.left_out, "title": f"{recipe.title} [reduced: {selection.note()}]"}
            if selection.left_out
            else {}
        ),
    }
    folder = out or workspace.root / "figures" / loaded.path.stem
    save_results(frame, choices, meta, folder, schema.MEASURES[kind])
    _save_curves(curves, folder)
    if tried:
        write_csv(tried, folder / "validation.csv")
    if kind == "ensemble":
        publish(
            folder / "members.csv",
            member_table(cells, workspace).round(6).to_csv(index=False, lineterminator="\n").encode(),
        )
    paths = _draw(session, kind, folder, folder)
    if session.wandb or recipe.report_to == "wandb":
        from rpo_cli.artifacts import log_images

        log_images(recipe.wandb_project, recipe.suite, paths, workspace.root)


def gather_study(
    cells: Sequence[Cell], workspace: Workspace, kind: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Numbers of every prompt with the measures of the kind, the ensemble's choices, curves over training, provenance.

    Units: advantage in oracle reward, tokens, milliseconds; all else nats, summed over a response's tokens. `member`: mean b
    of the members that taught; `same_bias`: the share of pairs that the member with b = rho taught. kl: a "policy" is an
    estimator; error is its value minus that of `full` on the same prompt, square the squared distance from its mean.
    """
    import pandas as pd

    if kind not in schema.MEASURED:
        frame, choices, provenance = gather(cells, workspace)
        if kind == "ensemble":
            cell_keys = ["policy", "rho", "seed"]
            shares = choices.assign(member_b=choices["member"] * choices["share"])
            shares["same"] = shares["share"].where(np.isclose(shares["member"], shares["rho"]), 0.0)
            sums = (
                shares.groupby(cell_keys)[["member_b", "same"]]
                .sum()
                .rename(columns={"member_b": "member", "same": "same_bias"})
            )
            frame = frame.join(sums, on=cell_keys)  # a policy without an ensemble has no members: NaN
        return frame, choices, pd.DataFrame(columns=list(CURVES)), provenance
    frames, curves = [], []
    settings: dict[str, Any] = {}
    for cell in cells:
        manifest = cast(dict[str, Any], workspace.manifest(cell.evaluation.path))
        rows = (
            pd.read_parquet(workspace.root / cell.evaluation.path / "pairs.parquet")
            .groupby("prompt_id")
            .mean()
        )
        at: dict[str, Any] = {"rho": cell.table_rho, "seed": cell.seed, "prompt_id": rows.index}
        if kind == "kl":
            for name in ("full", "sample", "data"):
                value = rows[f"kl_{name}"].to_numpy()
                numbers = {
                    "kl": value,
                    "error": value - rows["kl_full"].to_numpy(),
                    "square": (value - value.mean()) ** 2,
                }
                frames.append(
                    pd.DataFrame(
                        {
                            "policy": name,
                            **at,
                            **numbers,
                            "milliseconds": manifest["metrics"][f"milliseconds/{name}"],
                        }
                    )
                )
        else:
            numbers = {name: rows[name].to_numpy() for name in ("h_chosen", "h_rejected")}
            frames.append(
                pd.DataFrame(
                    {
                        "policy": cell.policy,
                        **at,
                        **numbers,
                        "margin": numbers["h_chosen"] - numbers["h_rejected"],
                    }
                )
            )
            curves.append(_curve(cell, workspace))
        name, strength = cell.strength
        settings.setdefault(cell.policy, {})[f"{rho_folder(cell.rho)}/seed-{cell.seed}"] = {
            name: strength,
            "key": cell.evaluation.key,
        }
    provenance = {"cells": settings, "suite": workspace.suite} | {
        name: manifest[name] for name in ("versions", "rpo", "device")
    }
    paths = [path for cell in cells for path in (cell.evaluation.path, cell.policy_path)]
    manifests = [workspace.manifest(path) for path in paths]
    provenance["git"] = sorted({str(found.get("git") if found else None) for found in manifests})
    empty = pd.DataFrame(columns=["policy", "rho", "seed", "member", "share"])
    return (
        pd.concat(frames, ignore_index=True),
        empty,
        pd.concat(curves) if curves else pd.DataFrame(columns=list(CURVES)),
        provenance,
    )


def _curve(cell: Cell, workspace: Workspace) -> pd.DataFrame:
    """Log-ratios and log-probabilities over the steps of training, from the policy's metrics.jsonl."""
    import pandas as pd

    lines = pd.read_json(workspace.root / cell.policy_path / "metrics.jsonl", lines=True)
    recipe = cast(schema.PolicyRecipe, cell.loaded.recipe)
    if "rewards/chosen" not in lines or lines["rewards/chosen"].count() < 2:
        steps = f"{recipe.max_steps} steps with logging_steps: {recipe.logging_steps}"
        raise BadInput(
            f"{cell.policy_path}: {steps} leave no curve of log-ratios to draw; set a smaller logging_steps"
        )
    strength = recipe.reward_scale
    columns = {
        "h_chosen": lines["rewards/chosen"] / strength, "h_rejected": lines["rewards/rejected"] / strength,
        "margin": lines["rewards/margins"] / strength, "logps_chosen": lines["logps/chosen"], "logps_rejected": lines["logps/rejected"],
    }  # fmt: skip
    wide = pd.DataFrame(
        {"policy": cell.policy, "rho": cell.table_rho, "seed": cell.seed, "step": lines["step"], **columns}
    )
    return wide.melt(id_vars=list(CURVES[:4]), var_name="measure", value_name="value")


def member_table(cells: Sequence[Cell], workspace: Workspace) -> pd.DataFrame:
    """What each member of each e-DPO cell was and did: policy, rho, seed, member, share, temperature, margin_rms.

    share: of the pairs that it taught; margin_rms: root of its mean squared margin on D_rho before the temperature, in reward units.
    """
    import pandas as pd

    rows = []
    for cell in cells:
        metrics = (workspace.manifest(cell.policy_path) or {"metrics": {}})["metrics"]
        policy = cast(Stage, cell.evaluation.inputs["policy"])
        for name, scores in policy.inputs.items():
            member = name.removeprefix("scores/")
            if f"members/{member}" in metrics and (bias := bias_of(member)) is not None:
                scored = workspace.finished(cast(Stage, scores).path)["metrics"]
                row = {"policy": cell.policy, "rho": cell.table_rho, "seed": cell.seed, "member": bias}
                row |= {
                    "share": metrics[f"members/{member}"],
                    "temperature": metrics[f"temperature/{member}"],
                }
                rows.append(row | {"margin_rms": scored["train/margin_rms"]})
    return pd.DataFrame(rows)


def _save_curves(curves: pd.DataFrame, folder: Path) -> None:
    from rpo_cli.artifacts import publish

    if not curves.empty:
        content = curves[list(CURVES)].round(5).to_csv(index=False, lineterminator="\n").encode()
        publish(folder / "curves.csv", content)


def claims_of(
    cells: pd.DataFrame, claims: Sequence[schema.Claim], policies: Sequence[str], rhos: Sequence[float], seeds: Sequence[int],
    measures: Sequence[str], *, resamples: int, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Every claim at every rho it is about, as rows of `orderings.orderings`: {claim, detail, difference, low, high, …}.

    `passed`: the 95 % interval of the quantity named in `detail`, over prompts and seeds, lies above zero. The quantity is
    more − than; with `within` w it is w − |more − than|, with `beyond` w |more − than| − w, of the mean over seeds.
    """
    from rpo_cli.figures.claims import difference
    from rpo_cli.figures.results import plain
    from rpo_cli.figures.table import resample

    draws = resample(cells, policies, rhos, seeds, resamples=resamples, seed=seed, measures=measures)
    rows = []
    for claim in claims:
        about = claim.rhos or list(rhos)
        for group in [about] if claim.mean_over_rho else [[rho] for rho in about]:
            j = [[round(r, 6) for r in rhos].index(round(rho or 0.0, 6)) for rho in group]
            m = list(measures).index(claim.measure)
            point, drawn = (
                sum(
                    (
                        sign * values[..., policies.index(name), j, m].mean(-1)
                        for sign, name in ((1, claim.more), (-1, claim.than))
                        if name is not None
                    ),
                    start=np.zeros(()),
                )
                for values in draws
            )
            part = (
                difference(point, drawn)
                if claim.within is claim.beyond is None
                else _size(point, drawn, claim)
            )
            numbers = dict(zip(("difference", "low", "high"), part.interval, strict=True))
            where = "" if len(rhos) == 1 else _where(group)
            row = {
                "claim": claim.claim,
                "detail": _detail(claim) + where,
                "by_seed": part.by_seed,
                **numbers,
                "status": part.status,
            }
            rows.append(plain(row | {"passed": part.status == "passed"}))
    return rows


def _size(point: Any, drawn: Any, claim: schema.Claim) -> Difference:
    """How far the size of a difference is on the claimed side of its bound."""
    from rpo_cli.figures.claims import Difference
    from rpo_cli.figures.table import over_seeds
    from rpo_cli.statistics import interval

    def side(values: Any) -> Any:
        return claim.within - abs(values) if claim.within is not None else abs(values) - claim.beyond

    return Difference(
        interval(float(side(over_seeds(point, 0))), side(over_seeds(drawn, 1))),
        [float(side(x)) for x in point],
    )


def _where(rhos: Sequence[float | None]) -> str:
    if len(rhos) > 1:
        return f", mean over rho {', '.join(f'{rho:g}' for rho in rhos)}"
    return f" at rho {rhos[0]:g}" if rhos[0] else " without resampling"


def _detail(claim: schema.Claim) -> str:
    apart = " - ".join(
        name or "0" for name in (claim.more, claim.than) if name is not None or claim.more is None
    )
    if claim.within is not None:
        apart = f"{claim.within:g} - |{apart}|"
    elif claim.beyond is not None:
        apart = f"|{apart}| - {claim.beyond:g}"
    return f"{claim.measure}: {apart}"


def summary(
    cells: pd.DataFrame,
    policies: Sequence[str],
    rhos: Sequence[float],
    seeds: Sequence[int],
    measures: Sequence[str],
    *,
    resamples: int,
) -> pd.DataFrame:
    """The numbers drawn, one row per (policy, rho): each measure's mean over prompts and seeds with `_low` and `_high`."""
    import pandas as pd

    from rpo_cli.figures.table import over_seeds, resample
    from rpo_cli.statistics import interval

    draws = resample(cells, policies, rhos, seeds, resamples=resamples, seed=0, measures=measures)
    sizes = cells.groupby(["policy", cells["rho"].round(6), "seed"]).size()
    rows = []
    for i, policy in enumerate(policies):
        for j, rho in enumerate(rhos):
            counts = sizes[policy, round(rho, 6)]
            row: dict[str, Any] = {
                "policy": policy,
                "rho": rho,
                "seeds": len(counts),
                "prompts": int(counts.min()),
            }
            for m, measure in enumerate(measures):
                found = interval(
                    float(over_seeds(draws.point[:, i, j, m], 0)), over_seeds(draws.drawn[:, :, i, j, m], 1)
                )
                row |= {measure: found.mean, f"{measure}_low": found.low, f"{measure}_high": found.high}
            rows.append(row)
    return pd.DataFrame(rows).round(6)


def redraw_study(folder: Path, out: Path, kind: str) -> tuple[list[Path], list[dict[str, Any]]]:
    """All files of the figure from what a run kept, and nothing else; returns their paths and the claims."""
    import pandas as pd

    from rpo_cli.figures.results import load_results
    from rpo_cli.figures.study_drawing import draw_study

    cells, _, meta = load_results(folder)
    if meta.get("kind") != kind:
        raise BadInput(
            f"{folder}: holds results of {meta.get('kind', 'figure2')}; use rpo figure {meta.get('kind', 'figure2')}"
        )
    axes = (meta["policies"], meta["rhos"], meta["seeds"], schema.MEASURES[kind])
    resamples = int(meta["bootstrap_samples"])
    claims = claims_of(
        cells, [schema.Claim.model_validate(claim) for claim in meta["claims"]], *axes, resamples=resamples
    )
    numbers = summary(cells, *axes, resamples=resamples)
    curves = pd.read_csv(folder / "curves.csv") if (folder / "curves.csv").is_file() else None
    return draw_study(kind, numbers, claims, out, meta, curves=curves), claims


def _draw(session: Session, kind: str, folder: Path, out: Path) -> list[Path]:
    from rpo_cli.figures.claims import orderings_table

    paths, rows = redraw_study(folder, out, kind)
    if session.as_json:
        session.print_json({"files": [str(path) for path in paths], "claims": rows})
    else:
        session.out.print(orderings_table(rows, session.out))
        for path in paths:
            session.out.print(str(path), highlight=False, soft_wrap=True)
    return paths


def targets_of(loaded: Loaded, seeds: Sequence[int]) -> list[Stage]:
    """What a figure recipe of this kind evaluates or measures."""
    return [
        cell.evaluation for cell in study_cells(loaded, cast(schema.FigureRecipe, loaded.recipe).rhos, seeds)
    ]
