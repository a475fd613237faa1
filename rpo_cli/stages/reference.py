"""log pi_ref of every pair's two responses, computed once and kept by the pair's id."""

from __future__ import annotations

from pathlib import Path

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import four_bits, pair_logps
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.stages.data.rows import PAIR, by_id, rows_of, write_columns
from rpo_cli.stages.inputs import causal_of, tokenizer_of


def reference_logps(folder: Path) -> dict[str, tuple[float, float]]:
    """What `run_reference` wrote: log pi_ref of chosen and rejected, by the pair's id."""
    return by_id(folder / "logps.parquet", ("ref_chosen_logps", "ref_rejected_logps"))


def run_reference(job: Job[ScoringRecipe], report: Report) -> dict[str, object]:
    """log pi_ref of every pair's two responses."""
    recipe: ScoringRecipe = job.recipe
    tokenizer = tokenizer_of(job, "model")
    pairs = rows_of(job, "pairs")
    rows = pairs.tokens(PAIR, tokenizer, job.path, recipe.max_length, recipe.overlong, report.warn)
    device = devices.choose(recipe)
    model = causal_of(job, "model", tokenizer, device, four_bits(recipe, device))
    size, shared = recipe.per_device_eval_batch_size, recipe.shared_prompts
    both = pair_logps(model, rows, size, lambda n: report(n, 2 * len(rows)), shared=shared)
    columns = {"ref_chosen_logps": both[:, 0], "ref_rejected_logps": both[:, 1]}
    write_columns({"id": [row.id for row in rows], **columns}, job.directory / "logps.parquet")
    counts = {"rows": len(rows), "dropped": len(pairs) - len(rows)}
    return {**counts, **{name: float(values.mean()) for name, values in columns.items()}}
