"""Samples of pi_ref for every training prompt, drawn once, with their log-probs: for the forward KL."""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import four_bits, load_causal, load_tokenizer, logps, pad_id, sample, tokenise
from rpo_cli.recipes.schema import ScoringRecipe, seed_of
from rpo_cli.stages.data.rows import pairs_file, read_rows, write_columns


def run_samples(job: Job[ScoringRecipe], report: Report) -> dict[str, Any]:
    """Samples of pi_ref for every training prompt, drawn once, with their log-probs: for the forward KL."""
    recipe: ScoringRecipe = job.recipe
    tokenizer = load_tokenizer(job.inputs["model"], recipe, job.revisions.get("model"))
    unique = {row["prompt"]: {"id": row["id"], "prompt": row["prompt"]} for row in read_rows(pairs_file(job))}
    rows = tokenise(list(unique.values()), (), tokenizer, recipe.max_length, recipe.overlong, job.path)
    by_id = {str(row["id"]): row["prompt"] for row in unique.values()}
    device = devices.choose(recipe)
    model = load_causal(
        job.inputs["model"],
        recipe,
        device,
        tokenizer,
        job.revisions.get("model"),
        bits=four_bits(recipe, device),
    )
    prompts = [row.prompt_ids for row in rows for _ in range(recipe.reference_samples)]
    size = recipe.per_device_eval_batch_size
    answers = sample(
        model, tokenizer, prompts, temperature=1.0, top_p=1.0, max_new_tokens=recipe.max_new_tokens, batch_size=size,
        seed=seed_of(recipe, "sampling"), on_batch=lambda n: report(n, 2 * len(prompts)),
    )  # fmt: skip
    values = logps(
        model, prompts, answers, pad_id(tokenizer), size, lambda n: report(len(prompts) + n, 2 * len(prompts))
    )
    prompt_of = [by_id[row.id] for row in rows for _ in range(recipe.reference_samples)]
    write_columns(
        {"prompt": prompt_of, "sample_ids": answers, "ref_sample_logps": values},
        job.directory / "samples.parquet",
    )
    ended = float(np.mean([answer[-1] == tokenizer.eos_token_id for answer in answers]))
    return {
        "rows": len(answers),
        "tokens_mean": float(np.mean([len(a) for a in answers])),
        "unfinished_share": 1 - ended,
    }
