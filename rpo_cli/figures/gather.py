"""Numbers of every prompt, gathered from evaluated cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from rpo_cli.artifacts import Manifest, Stage, Workspace, rho_folder, snapshots
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import Cell, bias_of
from rpo_cli.recipes import schema

if TYPE_CHECKING:
    import pandas as pd


def gather(cells: Sequence[Cell], workspace: Workspace) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Per-prompt numbers, the ensemble's choices, and where they come from; cells not evaluated are left out."""
    import pandas as pd

    from rpo_cli.statistics import per_prompt

    frames, choices = [], []
    settings: dict[str, Any] = {}
    baselines: dict[str, pd.DataFrame] = {}
    first: Manifest | None = None
    revisions: set[str] = set()
    snapshots.pin([cell.evaluation for cell in cells], workspace)
    for cell in cells:
        manifest = workspace.manifest(cell.evaluation.path)
        if manifest is None or manifest["key"] != cell.evaluation.key:
            continue
        first = first or manifest
        truncated = cast(schema.EvaluateRecipe, cell.evaluation.recipe).truncated
        baseline = cast(Stage, cell.evaluation.inputs["baseline"])
        baseline_path = baseline.path
        if baseline_path not in baselines:
            found = workspace.manifest(baseline_path)
            if found is None or found["key"] != baseline.key:
                raise BadInput(
                    f"{workspace.root / baseline_path}: not what {cell.evaluation.path} was compared with, but gone, or made with other "
                    "settings; rpo figure without --allow-missing makes it again"
                )
            baselines[baseline_path] = per_prompt(
                pd.read_parquet(workspace.root / baseline_path / "samples.parquet"), truncated
            )
        policy = per_prompt(
            pd.read_parquet(workspace.root / cell.evaluation.path / "samples.parquet"), truncated
        )
        joined = policy.join(baselines[baseline_path].add_suffix("_baseline"), how="inner")
        frames.append(
            pd.DataFrame(
                {
                    "policy": cell.policy,
                    "rho": cell.table_rho,
                    "seed": cell.seed,
                    "prompt_id": joined.index,
                    "advantage": (joined["reward"] - joined["reward_baseline"]).to_numpy(),
                    "tokens": joined["tokens"].to_numpy(),
                    "baseline_tokens": joined["tokens_baseline"].to_numpy(),
                }
            )
        )
        name, value = cell.strength
        settings.setdefault(cell.policy, {})[f"{rho_folder(cell.rho)}/seed-{cell.seed}"] = {
            name: value,
            "key": cell.evaluation.key,
        }
        trained = workspace.manifest(cell.policy_path)
        revisions |= {str(found.get("git")) if found else "None" for found in (manifest, trained)}
        choices += [
            {"policy": cell.policy, "rho": cell.table_rho, "seed": cell.seed, "member": bias, "share": share}
            for key, share in (trained["metrics"] if trained else {}).items()
            if key.startswith("members/") and (bias := bias_of(key.removeprefix("members/"))) is not None
        ]
    if not frames:
        raise BadInput(f"{workspace.root}: no cell of this figure has been evaluated")
    assert first is not None
    provenance = {
        "cells": settings, "suite": workspace.suite, "versions": first["versions"], "rpo": first["rpo"], "git": sorted(revisions),
        "device": first["device"], "evaluate": first["recipe"],
    }  # fmt: skip
    columns = ["policy", "rho", "seed", "member", "share"]
    return pd.concat(frames, ignore_index=True), pd.DataFrame(choices, columns=columns), provenance
