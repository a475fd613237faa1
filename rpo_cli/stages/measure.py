"""What a trained policy made of its pairs, and its distance from the reference by three estimators."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
from transformers import PreTrainedModel

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.models import (
    Batch,
    Tokens,
    by_length,
    layout_for,
    logps,
    logps_of,
    make_batch,
    pad_of,
    predicts,
    response_logits,
    response_logps,
    to_device,
)
from rpo_cli.objectives.dpo import dpo_losses
from rpo_cli.objectives.kl import kl_full, kl_sample
from rpo_cli.recipes.schema import ESTIMATORS, ScoringRecipe
from rpo_cli.stages.data.rows import PAIR, row_id, rows_of, write_columns
from rpo_cli.stages.inputs import causal_of, tokenizer_of
from rpo_cli.stages.samples import samples_by_prompt

TIMED_ROWS, REPEATS = 16, 15


def run(job: Job[ScoringRecipe], report: Report) -> dict[str, object]:
    """Write pairs.parquet, one row for each training pair, in nats summed over tokens.

    h_chosen, h_rejected: log pi_theta - log pi_ref. kl_full, kl_sample: estimates of KL(pi_ref || pi_theta)
    along one sample of pi_ref for the pair's prompt; kl_data: the estimate on the pair itself. Metrics: their
    means, and the milliseconds (of CPU, where that is the device) that loss and gradient of DPO with each
    estimator take on 16 pairs.
    """
    recipe: ScoringRecipe = job.recipe
    device = devices.choose(recipe)
    tokenizer = tokenizer_of(job, "policy")
    pairs = rows_of(job, "train")
    rows = pairs.tokens(PAIR, tokenizer, job.path, recipe.max_length, recipe.overlong, report.warn)
    prompt_of = dict(zip(pairs.ids, pairs.texts("prompt"), strict=True))
    samples = samples_by_prompt(job)
    prompts = [row.prompt_ids for row in rows]
    groups = {
        "chosen": [row.responses[0] for row in rows],
        "rejected": [row.responses[1] for row in rows],
        "sample": [samples[prompt_of[row.id]][0][0] for row in rows],
    }
    policy = causal_of(job, "policy", tokenizer, device)
    reference = causal_of(job, "model", tokenizer, device)
    size, total = recipe.per_device_eval_batch_size, 8 * len(rows)
    h: dict[str, np.ndarray] = {}

    def told(readings: int) -> Callable[[int], None]:
        return lambda done: report(readings * len(rows) + done, total)

    for number, (name, answers) in enumerate(groups.items()):
        ours = logps(policy, prompts, answers, size, told(2 * number))
        theirs = logps(reference, prompts, answers, size, told(2 * number + 1))
        h[name] = ours.astype(np.float64) - theirs
    full = exact(policy, reference, prompts, groups["sample"], size)
    data = -(h["chosen"] + h["rejected"]) / 2
    measured = {"h_chosen": h["chosen"], "h_rejected": h["rejected"]}
    measured |= {"kl_full": full, "kl_sample": -h["sample"], "kl_data": data}
    names = [row_id(prompt_of[row.id]) for row in rows]
    write_columns({"prompt_id": names, **measured}, job.directory / "pairs.parquet")
    seconds = step_seconds(policy, reference, prompts, groups)
    costs = {f"milliseconds/{name}": 1000 * taken for name, taken in seconds.items()}
    report(total, total)
    counts = {"rows": len(rows), "dropped": len(pairs) - len(rows)}
    return {**counts, **{name: float(np.mean(values)) for name, values in measured.items()}, **costs}


@torch.inference_mode()
def exact(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[Tokens],
    samples: Sequence[Tokens],
    size: int,
) -> np.ndarray:
    """kl_full along each sample: float64 [n], nats."""
    result = np.empty(len(samples))
    groups = [[answer] for answer in samples]
    layout = layout_for(policy, response_logps, prompts, groups, shared=False)
    for rows in by_length([len(p) + len(s) for p, s in zip(prompts, samples, strict=True)], size):
        batch = make_batch([prompts[i] for i in rows], [groups[i] for i in rows], pad_of(policy), layout)
        batch = to_device(batch, policy.device)
        kl = kl_full(response_logits(policy, batch), response_logits(reference, batch), predicts(batch, 1))
        result[rows] = kl.cpu().numpy()
    return result


def step_seconds(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[Tokens],
    groups: dict[str, list[Tokens]],
) -> dict[str, float]:
    """Median seconds of a step of DPO + KL by each estimator, on the same 16 pairs, taking turns."""
    size = min(TIMED_ROWS, len(prompts))

    def rows(*names: str) -> Batch:
        answers = [[groups[name][i] for name in names] for i in range(size)]
        return to_device(make_batch(prompts[:size], answers, pad_of(policy), "shared"), policy.device)

    def step(estimator: str) -> None:
        batch = pairs if estimator == "data" else with_samples
        logits = response_logits(policy, batch)
        values = logps_of(logits, batch)
        h = values[: 2 * size] - reference_logps[: 2 * size]
        if estimator == "full":
            with torch.no_grad():
                theirs = response_logits(reference, batch)
            kl = kl_full(logits, theirs, predicts(batch, 3))
        else:
            of = slice(2 * size) if estimator == "data" else slice(2 * size, None)
            kl = kl_sample(values[of], reference_logps[of])
        policy.zero_grad()
        torch.autograd.backward(dpo_losses(h[:size] - h[size:], 0.1).mean() + kl.mean())

    with torch.enable_grad():
        pairs, with_samples = rows("chosen", "rejected"), rows("chosen", "rejected", "sample")
        with torch.no_grad():
            reference_logps = response_logps(reference, with_samples)
        times: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
        for repeat in range(REPEATS + 2):
            for name in ESTIMATORS:
                seconds = timed(partial(step, name), policy.device)
                if repeat > 1:  # the first ones allocate
                    times[name].append(seconds)
    policy.zero_grad()
    return {name: median(values) for name, values in times.items()}


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of work: of CPU, which other processes do not lengthen; on a GPU by the clock, to its end."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started
