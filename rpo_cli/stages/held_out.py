"""How a policy ranks held-out pairs: the reward model that it implicitly is, on pairs it never saw."""

from __future__ import annotations

import numpy as np

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import pair_logps
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.stages.data.rows import PAIR, digest, row_id, rows_of, write_columns
from rpo_cli.stages.inputs import causal_of, tokenizer_of
from rpo_cli.stages.reference import reference_logps

HALVES = ("validation", "test")
PAIRS = "pairs.parquet"


def half_of(prompt: str) -> str:
    """The half of the held-out pairs that a prompt's pairs are in: one may choose, the other report."""
    return HALVES[digest(prompt) % 2]


def measured(delta_h: np.ndarray) -> dict[str, float]:
    """Share of pairs whose chosen response gained more than the rejected one (ties: half), and mean gain.

    delta_h: [n], log-ratio of the chosen minus that of the rejected response, nats.
    """
    return {"accuracy": float(((np.sign(delta_h) + 1) / 2).mean()), "margin": float(delta_h.mean())}


def run(job: Job[ScoringRecipe], report: Report) -> dict[str, float]:
    """Write pairs.parquet, a row for each held-out pair: log pi_theta - log pi_ref of both responses.

    In nats, summed over tokens. `margin` is the mean of their difference; times beta it is TRL's
    rewards/margins. Metrics are of all pairs, and of the halves of `half_of`; of all where a half is empty.
    """
    recipe: ScoringRecipe = job.recipe
    tokenizer = tokenizer_of(job, "policy")
    pairs = rows_of(job, "held_out")
    rows = pairs.tokens(PAIR, tokenizer, job.path, recipe.max_length, recipe.overlong, report.warn)
    prompt_of = dict(zip(pairs.ids, pairs.texts("prompt"), strict=True))
    policy = causal_of(job, "policy", tokenizer, devices.choose(recipe))
    size, shared = recipe.per_device_eval_batch_size, recipe.shared_prompts
    ours = pair_logps(policy, rows, size, lambda n: report(n, 2 * len(rows)), shared=shared)
    theirs = reference_logps(job.inputs["reference"])
    h = ours.astype(np.float64) - np.array([theirs[row.id] for row in rows], dtype=np.float64)
    prompts = [prompt_of[row.id] for row in rows]
    columns: dict[str, object] = {"id": [row.id for row in rows], "prompt_id": [row_id(p) for p in prompts]}
    columns |= {"half": [half_of(prompt) for prompt in prompts], "h_chosen": h[:, 0], "h_rejected": h[:, 1]}
    write_columns(columns, job.directory / PAIRS)
    delta_h, halves = h[:, 0] - h[:, 1], np.array(columns["half"])
    metrics = {"rows": len(rows), "dropped": len(pairs) - len(rows), **measured(delta_h)}
    for half in HALVES:
        part = delta_h[halves == half]
        found = {"rows": len(part), **measured(part if len(part) else delta_h)}
        metrics |= {f"{half}/{name}": value for name, value in found.items()}
    return metrics
