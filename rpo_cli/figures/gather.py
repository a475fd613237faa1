"""Numbers of every prompt, gathered from evaluated or measured cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import pandas as pd

from rpo_cli.artifacts import Manifest, Stage, Workspace, cure, snapshots
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.figures.cells import Cell, bias_of
from rpo_cli.figures.results import CHOICES
from rpo_cli.recipes import schema
from rpo_cli.stages.summary import per_prompt, win_shares


class Gathered(NamedTuple):
    """Numbers of every prompt, the ensembles' choices, where both come from, tables by file name."""

    cells: pd.DataFrame
    choices: pd.DataFrame
    provenance: dict[str, object]
    tables: dict[str, pd.DataFrame]


def made(cells: Sequence[Cell], workspace: Workspace) -> list[tuple[Cell, Manifest]]:
    """The cells that are there, with the manifests of their evaluations.

    Raises:
        BadInput: there is none.
    """
    snapshots.pin([cell.evaluation for cell in cells], workspace)
    found = [(cell, workspace.manifest(cell.evaluation.path)) for cell in cells]
    there = [
        (cell, manifest) for cell, manifest in found if manifest and manifest["key"] == cell.evaluation.key
    ]
    if not there:
        raise BadInput(f"{workspace.root}: no cell of this figure has been evaluated")
    return there


def provenance(there: Sequence[tuple[Cell, Manifest]], workspace: Workspace) -> dict[str, object]:
    """Strengths and keys of the cells, and what they were made with."""
    settings: dict[str, dict[str, object]] = {}
    revisions: set[str] = set()
    for cell, manifest in there:
        settings.setdefault(cell.policy, {})[cell.folder] = {**cell.setting, "key": cell.evaluation.key}
        trained = workspace.manifest(cell.policy_path)
        revisions |= {str(found and found.get("git")) for found in (manifest, trained)}
    _, first = there[0]
    same = {name: first.get(name) for name in ("versions", "rpo", "device")}
    return {"cells": settings, "suite": workspace.suite, "git": sorted(revisions), **same}


def evaluations(cells: Sequence[Cell], workspace: Workspace) -> Gathered:
    """What `numbers_of` says of each evaluated prompt; cells not evaluated are left out.

    Raises:
        BadInput: none is there, or a baseline is no longer the one that a cell was compared with.
    """
    there = made(cells, workspace)
    baselines: dict[str, pd.DataFrame] = {}
    frames, choices = [], []
    for cell, _ in there:
        numbers = numbers_of(cell.evaluation, workspace, baselines)
        frames.append(pd.DataFrame({**cell.keys, **numbers.reset_index()}))
        choices += [{**cell.keys, "member": b, "share": share} for b, share in members(cell, workspace)]
    found = provenance(there, workspace) | {"evaluate": there[0][1]["recipe"]}
    return Gathered(pd.concat(frames, ignore_index=True), pd.DataFrame(choices, columns=CHOICES), found, {})


def numbers_of(evaluated: Stage, workspace: Workspace, baselines: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Each prompt's numbers of evaluated samples beside those of their baseline: index prompt_id.

    advantage: oracle reward over the baseline's, whose standard deviation is baseline_sd; tokens of both; kl
    to the reference, nats; win: share of pairs won against the baseline; unfinished: share without EOS; in
    the miniature also utility, which no oracle sees, and polite: share that begins so. baselines: samples
    that were read already, by path.

    Raises:
        BadInput: a baseline is no longer the one that the samples were compared with.
    """
    baseline = cast(Stage, evaluated.inputs["baseline"])
    if baseline.path not in baselines:
        standing = workspace.manifest(baseline.path)
        if standing is None or standing["key"] != baseline.key:
            raise BadInput(
                f"{workspace.root / baseline.path}: not what {evaluated.path} was compared with, "
                "but gone, or made with other settings; rpo figure without --allow-missing makes it again"
            )
        baselines[baseline.path] = read(workspace.root / baseline.path / "samples.parquet")
    theirs, ours = baselines[baseline.path], read(workspace.root / evaluated.path / "samples.parquet")
    truncated = cast(schema.EvaluateRecipe, evaluated.recipe).truncated
    joined = per_prompt(ours, truncated).join(
        per_prompt(theirs, truncated).add_suffix("_baseline"), how="inner"
    )
    kept = [
        drawn[drawn["finished"].astype(bool)] if truncated == "drop" else drawn for drawn in (ours, theirs)
    ]
    numbers = {
        "advantage": joined["reward"] - joined["reward_baseline"],
        "tokens": joined["tokens"],
        "baseline_tokens": joined["tokens_baseline"],
        "baseline_sd": float(theirs["reward"].std(ddof=1)),
        "kl": joined["kl"],
        "win": win_shares(kept[0], kept[1]),
        "unfinished": 1 - ours.groupby("prompt_id")["finished"].mean(),
    }
    data = evaluated.inputs["data"]
    if isinstance(data, Stage) and getattr(data.recipe, "source", None) == "miniature":
        numbers["utility"] = utilities(kept[0])
        if getattr(data.recipe, "polite", 0):
            numbers["polite"] = ours.groupby("prompt_id")["response"].agg(polite_share)
    return pd.DataFrame(numbers, index=joined.index)


def utilities(samples: pd.DataFrame) -> pd.Series:
    """The miniature's utility of each prompt's samples, mean."""
    from rpo_cli.stages.data.miniature import utility

    pairs = zip(samples["prompt"], samples["response"], strict=True)
    values = pd.Series([utility(prompt, response) for prompt, response in pairs], samples["prompt_id"])
    return values.groupby(level=0).mean()


def polite_share(responses: pd.Series) -> float:
    """The share of the miniature's summaries that have the polite lead-in, worth nothing."""
    from rpo_cli.stages.data.miniature import POLITE

    return float(responses.str.contains(POLITE, regex=False).mean())


def read(file: Path) -> pd.DataFrame:
    """A table of an artifact, Parquet or JSON lines.

    Raises:
        RunFailed: it is not as it was written.
    """
    try:
        return pd.read_json(file, lines=True) if file.suffix == ".jsonl" else pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise RunFailed(cure(file, error, file.parent)) from error


def members(cell: Cell, workspace: Workspace) -> Iterator[tuple[float, float]]:
    """The b of each member of a policy's ensemble, and the share of the pairs that it taught."""
    metrics = (workspace.manifest(cell.policy_path) or {"metrics": {}})["metrics"]
    for name, share in metrics.items():
        if name.startswith("members/") and (b := bias_of(name.removeprefix("members/"))) is not None:
            yield b, share


def measures(
    there: Sequence[tuple[Cell, Manifest]], frames: Iterable[pd.DataFrame], workspace: Workspace
) -> Gathered:
    """What all cells that are measured on their training pairs have, around their numbers of every prompt."""
    none = pd.DataFrame(columns=CHOICES)
    return Gathered(pd.concat(list(frames), ignore_index=True), none, provenance(there, workspace), {})


def pairs_of(cell: Cell, workspace: Workspace) -> pd.DataFrame:
    """A measured cell's numbers, averaged over the pairs of each prompt: index prompt_id."""
    rows = read(workspace.root / cell.evaluation.path / "pairs.parquet")
    return rows.groupby("prompt_id").mean()
