"""Relabelling: the oracle decides which response of a human pair is chosen."""

from __future__ import annotations

from functools import partial

import numpy as np

from rpo_cli.artifacts import Job, Report
from rpo_cli.models import pair_rewards
from rpo_cli.recipes.schema import RelabelRecipe, seed_of
from rpo_cli.stages.data.rows import rows_of, write_columns
from rpo_cli.stages.reading import read_pairs, reading_of


def run(job: Job[RelabelRecipe], report: Report) -> dict[str, object]:
    """Write pairs.parquet: whether the oracle turns each human label round, and scores in its own order."""
    recipe: RelabelRecipe = job.recipe
    human = rows_of(job, "pairs")
    revision = job.revisions.get("model")
    reading = reading_of(job.inputs["model"], recipe, revision, plain_as_here=True)
    rows = read_pairs(reading, human, job.path, report.warn, recipe.max_length)
    size, shared = recipe.per_device_eval_batch_size, recipe.shared_prompts
    on_batch = partial(report, of=2 * len(rows))
    scores = pair_rewards(reading.model, rows, size, on_batch, shared=shared)
    margins = (scores[:, 0] - scores[:, 1]).astype(np.float64)
    if recipe.labels == "sample":
        draws = np.random.default_rng([seed_of(recipe, "data"), 20]).random(len(rows))
        with np.errstate(over="ignore"):  # exp is infinite where the oracle is sure
            swapped = draws > 1 / (1 + np.exp(-margins / recipe.label_temperature))
    else:
        swapped = margins < 0
    ordered = np.where(swapped[:, None], scores[:, ::-1], scores)
    against = float((ordered[:, 0] < ordered[:, 1]).mean())
    columns = {"chosen_score": ordered[:, 0], "rejected_score": ordered[:, 1], "swapped": swapped}
    write_columns({"id": [row.id for row in rows], **columns}, job.directory / "pairs.parquet")
    return {
        "rows": len(rows),
        "dropped": len(human) - len(rows),
        "swapped_share": float(swapped.mean()),
        "score_ties": int((margins == 0).sum()),
        **({"against_share": against} if recipe.labels == "sample" else {}),
    }
