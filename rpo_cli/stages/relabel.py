"""Relabelling: the oracle decides which response of a human pair is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import load_reward, load_tokenizer, pad_id, pair_rewards, tokenise
from rpo_cli.recipes.schema import RelabelRecipe, seed_of
from rpo_cli.stages.data.rows import pairs_file, read_rows, write_rows


def run(job: Job[RelabelRecipe], report: Report) -> dict[str, Any]:
    """Write pairs.parquet with the oracle's order, both scores, and whether it turned the human label round."""
    recipe: RelabelRecipe = job.recipe
    tokenizer = load_tokenizer(job.inputs["model"], recipe, job.revisions.get("model"))
    human = read_rows(pairs_file(job))
    rows = tokenise(human, ("chosen", "rejected"), tokenizer, recipe.max_length, recipe.overlong, job.path)
    model = load_reward(
        job.inputs["model"], recipe, devices.choose(recipe), tokenizer, job.revisions.get("model")
    )
    size, shared = recipe.per_device_eval_batch_size, recipe.shared_prompts
    scores = pair_rewards(
        model, rows, pad_id(tokenizer), size, lambda n: report(n, 2 * len(rows)), shared=shared
    )
    margins = (scores[:, 0] - scores[:, 1]).astype(np.float64)
    if recipe.labels == "sample":
        draws = np.random.default_rng([seed_of(recipe, "data"), 20]).random(len(rows))
        swapped = draws > 1 / (1 + np.exp(-margins))
    else:
        swapped = margins < 0
    texts = {str(row["id"]): row for row in human}
    result = []
    for row, score, swap in zip(rows, scores.tolist(), swapped.tolist(), strict=True):
        text = texts[row.id]
        chosen, rejected = ("rejected", "chosen") if swap else ("chosen", "rejected")
        order = (1, 0) if swap else (0, 1)
        result.append(
            {"id": row.id, "prompt": text["prompt"], "chosen": text[chosen], "rejected": text[rejected],
             "chosen_score": score[order[0]], "rejected_score": score[order[1]], "swapped": bool(swap)}
        )  # fmt: skip
    write_rows(result, job.directory / "pairs.parquet")
    return {
        "rows": len(result),
        "dropped": len(human) - len(rows),
        "swapped_share": float(swapped.mean()),
        "score_ties": int((margins == 0).sum()),
    }
