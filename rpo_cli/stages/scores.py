"""Pairs scored once, of a D_rho also those trained on: by a reward model, or by columns of the data."""

from __future__ import annotations

from functools import partial

import numpy as np

from rpo_cli.artifacts import Job, Report
from rpo_cli.models import pair_rewards
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.stages.data.rows import PAIR, rows_of, write_columns
from rpo_cli.stages.inputs import tokenizer_of
from rpo_cli.stages.reading import read_pairs, reading_of


def run_scores(job: Job[ScoringRecipe], report: Report) -> dict[str, object]:
    """Write train and held_out.parquet: two numbers for each pair that fits in the policy's tokens.

    They are rewards of the input `model`, or where there is none the columns that the job's options name. Of
    pairs that are no D_rho there are only those held out.
    """
    recipe: ScoringRecipe = job.recipe
    policy = tokenizer_of(job, "policy")
    drawn = (job.inputs["data"] / "held_out.parquet").is_file()
    names = {"train": "train", "held_out": "held_out"} if drawn else {"held_out": "pairs_validation"}
    tables = {table: rows_of(job, source) for table, source in names.items()}
    reading = None
    if (source := job.inputs.get("model")) is not None:
        talks = any(pairs.talks for pairs in tables.values())
        reading = reading_of(source, recipe, job.revisions.get("model"), policy, talks=talks)
    metrics: dict[str, object] = {}
    size, shared = recipe.per_device_eval_batch_size, recipe.shared_prompts
    for table, pairs in tables.items():
        rows = pairs.tokens(PAIR, policy, job.path, recipe.max_length, recipe.overlong, report.warn)
        if reading is None:
            values = pairs.only(rows).numbers(job.options["columns"])
        else:
            if reading.tokenizer is not policy:
                rows = read_pairs(reading, pairs.only(rows), job.path, report.warn)
            else:
                rows = reading.rows_to_reward(rows)
            on_batch = partial(report, of=2 * len(rows))
            values = pair_rewards(reading.model, rows, size, on_batch, shared=shared)
        columns = {"id": [row.id for row in rows], "chosen": values[:, 0], "rejected": values[:, 1]}
        write_columns(columns, job.directory / f"{table}.parquet")
        margins = values[:, 0] - values[:, 1]
        metrics[f"{table}/rows"], metrics[f"{table}/dropped"] = len(rows), len(pairs) - len(rows)
        metrics[f"{table}/accuracy"] = float((margins > 0).mean())
        metrics[f"{table}/margin_rms"] = float(np.sqrt((margins**2).mean()))
    return metrics
