"""One reward model's rewards for pairs: of a D_rho those trained on and held out, else those held out."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import load_reward, load_tokenizer, pad_id, pair_rewards, require_same_tokens
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.stages.data.rows import PAIR, rows_of, write_columns


def run_scores(job: Job[ScoringRecipe], report: Report) -> dict[str, Any]:
    """Write train and held_out.parquet: the rewards of the pairs, over exactly the policy's tokens."""
    recipe: ScoringRecipe = job.recipe
    source, policy, revision = job.inputs["model"], job.inputs["policy"], job.revisions.get("model")
    tokenizer = load_tokenizer(policy, recipe, job.revisions.get("policy"))
    require_same_tokens(tokenizer, load_tokenizer(source, recipe, revision), policy, source)
    model = load_reward(source, recipe, devices.choose(recipe), tokenizer, revision)
    metrics: dict[str, Any] = {}
    size, shared = recipe.per_device_eval_batch_size, recipe.shared_prompts
    splits = (job.inputs["data"] / "held_out.parquet").is_file()
    tables = {"train": "train", "held_out": "held_out"} if splits else {"held_out": "pairs_validation"}
    for table, source_table in tables.items():
        pairs = rows_of(job, source_table)
        rows = pairs.tokens(PAIR, tokenizer, job.path, recipe.max_length, recipe.overlong, report.warn)
        on_batch = partial(report, of=2 * len(rows))
        values = pair_rewards(model, rows, pad_id(tokenizer), size, on_batch, shared=shared)
        columns = {"id": [row.id for row in rows], "chosen": values[:, 0], "rejected": values[:, 1]}
        write_columns(columns, job.directory / f"{table}.parquet")
        margins = values[:, 0] - values[:, 1]
        metrics[f"{table}/dropped"] = len(pairs) - len(rows)
        metrics[f"{table}/accuracy"] = float((margins > 0).mean())
        metrics[f"{table}/margin_rms"] = float(np.sqrt((margins**2).mean()))
    return metrics
