"""One reward model's rewards for the pairs of a D_rho, trained on and held out."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import (
    load_reward,
    load_tokenizer,
    pad_id,
    pair_rewards,
    require_same_tokens,
    tokenise,
)
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.stages.data.rows import read_rows, write_columns


def run_scores(job: Job[ScoringRecipe], report: Report) -> dict[str, Any]:
    """One reward model's rewards for the pairs of a D_rho, trained on and held out, over exactly the policy's tokens."""
    recipe: ScoringRecipe = job.recipe
    tokenizer = load_tokenizer(job.inputs["policy"], recipe, job.revisions.get("policy"))
    require_same_tokens(
        tokenizer,
        load_tokenizer(job.inputs["model"], recipe, job.revisions.get("model")),
        job.inputs["policy"],
        job.inputs["model"],
    )
    model = load_reward(
        job.inputs["model"], recipe, devices.choose(recipe), tokenizer, job.revisions.get("model")
    )
    metrics: dict[str, Any] = {}
    for table in ("train", "held_out"):
        rows = tokenise(
            read_rows(job.inputs["data"] / f"{table}.parquet"),
            ("chosen", "rejected"),
            tokenizer,
            recipe.max_length,
            recipe.overlong,
            job.path,
        )
        size, shared = recipe.per_device_eval_batch_size, recipe.shared_prompts
        values = pair_rewards(
            model, rows, pad_id(tokenizer), size, partial(report, of=2 * len(rows)), shared=shared
        )
        write_columns(
            {"id": [row.id for row in rows], "chosen": values[:, 0], "rejected": values[:, 1]},
            job.directory / f"{table}.parquet",
        )
        margins = values[:, 0] - values[:, 1]
        metrics[f"{table}/accuracy"] = float((margins > 0).mean())
        metrics[f"{table}/margin_rms"] = float(np.sqrt((margins**2).mean()))
    return metrics
