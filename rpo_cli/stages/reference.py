"""log pi_ref of every pair's two responses, computed once and kept by the pair's id."""

from __future__ import annotations

from typing import Any

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import four_bits, load_causal, load_tokenizer, pad_id, pair_logps, tokenise
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.stages.data.rows import pairs_file, read_rows, write_columns


def run_reference(job: Job[ScoringRecipe], report: Report) -> dict[str, Any]:
    """log pi_ref of every pair's two responses."""
    recipe: ScoringRecipe = job.recipe
    tokenizer = load_tokenizer(job.inputs["model"], recipe, job.revisions.get("model"))
    rows = tokenise(
        read_rows(pairs_file(job)),
        ("chosen", "rejected"),
        tokenizer,
        recipe.max_length,
        recipe.overlong,
        job.path,
    )
    device = devices.choose(recipe)
    model = load_causal(
        job.inputs["model"],
        recipe,
        device,
        tokenizer,
        job.revisions.get("model"),
        bits=four_bits(recipe, device),
    )
    size, shared = recipe.per_device_eval_batch_size, recipe.shared_prompts
    both = pair_logps(model, rows, pad_id(tokenizer), size, lambda n: report(n, 2 * len(rows)), shared=shared)
    write_columns(
        {"id": [row.id for row in rows], "ref_chosen_logps": both[:, 0], "ref_rejected_logps": both[:, 1]},
        job.directory / "logps.parquet",
    )
    return {
        "rows": len(rows),
        "ref_chosen_logps": float(both[:, 0].mean()),
        "ref_rejected_logps": float(both[:, 1].mean()),
    }
