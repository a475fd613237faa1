"""Samples of pi_ref for every training prompt, drawn once, with their log-probs: for the forward KL."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import Sampling, Tokens, four_bits, logps, sample, stops_of, views
from rpo_cli.recipes.schema import PolicyRecipe, Recipe, ScoringRecipe, seed_of
from rpo_cli.stages.data.rows import find_rows, rows_of, write_columns
from rpo_cli.stages.data.token_cache import TokenCache
from rpo_cli.stages.inputs import causal_of, tokenizer_of

SAMPLES = "samples.parquet"


def as_it_is(recipe: ScoringRecipe | PolicyRecipe) -> Sampling:
    """How samples are drawn from what a model says, neither sharpened nor cut."""
    size, seed = recipe.per_device_eval_batch_size, seed_of(recipe, "sampling")
    return Sampling(1.0, 1.0, recipe.max_new_tokens, size, seed)


def run_samples(job: Job[ScoringRecipe], report: Report) -> dict[str, object]:
    """Write samples.parquet: samples of pi_ref and their log-probs, by the id of a pair with the prompt."""
    recipe: ScoringRecipe = job.recipe
    tokenizer = tokenizer_of(job, "model")
    each = rows_of(job, "pairs").one_each()
    rows = each.tokens((), tokenizer, job.path, recipe.max_length, recipe.overlong, report.warn)
    device = devices.choose(recipe)
    model = causal_of(job, "model", tokenizer, device, four_bits(recipe, device))
    repeated = [row for row in rows for _ in range(recipe.reference_samples)]
    prompts, total = [row.prompt_ids for row in repeated], 2 * len(repeated)
    size = recipe.per_device_eval_batch_size
    answers = sample(model, tokenizer, prompts, as_it_is(recipe), lambda n: report(n, total))
    values = logps(model, prompts, answers, size, lambda n: report(len(prompts) + n, total))
    kept = pa.array(answers, pa.list_(pa.int32()))
    columns = {"id": [row.id for row in repeated], "sample_ids": kept, "ref_sample_logps": values}
    write_columns(columns, job.directory / SAMPLES)
    stops = stops_of(model.generation_config, tokenizer)
    ended = float(np.mean([answer[-1] in stops for answer in answers]))
    tokens = float(np.mean([len(answer) for answer in answers]))
    counts = {"rows": len(answers), "dropped": len(each) - len(rows)}
    return {**counts, "tokens_mean": tokens, "unfinished_share": 1 - ended}


def samples_by_prompt(job: Job[Recipe]) -> dict[str, list[tuple[Tokens, float]]]:
    """Samples of pi_ref with their log-probs for each prompt (its text) of the pairs below a job's splits."""
    table = pq.read_table(job.inputs["samples"] / SAMPLES)
    if "prompt" in table.column_names:  # as older versions wrote it
        prompts = table["prompt"].to_pylist()
    else:
        pairs = find_rows(list(job.tables)[1:], "pairs", TokenCache(job.root))  # of which the splits are some
        prompt_of = dict(zip(pairs.ids, pairs.texts("prompt"), strict=True))
        prompts = [prompt_of[name] for name in table["id"].to_pylist()]
    result: dict[str, list[tuple[Tokens, float]]] = {}
    drawn = zip(prompts, views(table["sample_ids"]), table["ref_sample_logps"].to_pylist(), strict=True)
    for prompt, ids, logp in drawn:
        result.setdefault(prompt, []).append((ids, logp))
    return result
