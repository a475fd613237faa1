"""Sample for test prompts, score with the oracle if there is one, compare with pi_SFT on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report, write_json
from rpo_cli.devices import Device
from rpo_cli.errors import BadInput
from rpo_cli.models import Sampling, TokenRow, Tokens, logps, rewards, sample, sample_vllm, stops_in, stops_of
from rpo_cli.recipes.schema import EvaluateRecipe, seed_of
from rpo_cli.stages.data.rows import row_id, rows_of
from rpo_cli.stages.inputs import causal_of, tokenizer_of
from rpo_cli.stages.reading import Conversation, Reading, reading_of
from rpo_cli.stages.summary import summarise

SAMPLES = "samples.parquet"
SHOWN = 50


def run(job: Job[EvaluateRecipe], report: Report) -> dict[str, float]:
    """Write samples.parquet (text, reward, log-probs) and metrics.json; pi_SFT itself is its own baseline."""
    recipe: EvaluateRecipe = job.recipe
    listed = rows_of(job, f"prompts_{recipe.split}")
    listed = listed.take(range(len(listed))[: recipe.num_prompts])
    each = listed.one_each()
    # Named by content: seeds whose prompts differ must not look as if they shared them.
    texts = {row_id(prompt): prompt for prompt in each.texts("prompt")}
    tokenizer = tokenizer_of(job, "policy")
    oracle, talks = None, dict[str, Conversation]()
    if "oracle" in job.inputs:
        source, revision = job.inputs["oracle"], job.revisions.get("oracle")
        oracle = reading_of(source, recipe, revision, tokenizer, talks=each.talks)
    what = f"{job.path}: prompts_{recipe.split}"
    named = each.named(list(texts))
    rows = named.tokens((), tokenizer, what, recipe.max_length, recipe.overlong, report.warn)
    if oracle is not None:
        told = each.conversations(()) if oracle.own else [{"prompt": text} for text in texts.values()]
        talks = dict(zip(texts, told, strict=True))
    if oracle is not None and oracle.own:
        # Prompts that its template refuses are left out before anything is sampled for them.
        answered = [{**talks[row.id], "response": "."} for row in rows]
        names, more = [row.id for row in rows], recipe.max_new_tokens
        read = oracle.rows(names, answered, ("response",), what, report.warn, to_come=more)
        readable = {row.id for row in read}
        rows = [row for row in rows if row.id in readable]
    samples = draw(job, tokenizer, rows, oracle, talks, report)
    samples["prompt"] = samples["prompt_id"].map(texts)
    samples.to_parquet(job.directory / SAMPLES, index=False)
    shown = [name for name in ("prompt", "response", "tokens", "finished", "reward") if name in samples]
    report.tracker.table("samples", samples.head(SHOWN)[shown])
    baseline = pd.read_parquet(job.inputs["baseline"] / SAMPLES) if "baseline" in job.inputs else samples
    seed, resamples = seed_of(recipe, "sampling"), recipe.bootstrap_samples
    metrics = summarise(samples, baseline, truncated=recipe.truncated, resamples=resamples, seed=seed)
    metrics |= {"duplicate_prompts": len(listed) - len(texts), "overlong_prompts": len(texts) - len(rows)}
    write_json(job.directory / "metrics.json", metrics)
    return metrics


def _sampled(
    job: Job[EvaluateRecipe],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    device: Device,
    on_batch: Callable[[int], None],
) -> tuple[PreTrainedModel, list[list[int]]]:
    """The policy, and its answer to each prompt, by the sampler that the recipe names."""
    recipe = job.recipe
    size, seed = recipe.per_device_eval_batch_size, seed_of(recipe, "sampling")
    how = Sampling(recipe.temperature, recipe.top_p, recipe.max_new_tokens, size, seed)
    if recipe.sampler == "transformers":
        policy = causal_of(job, "policy", tokenizer, device)
        return policy, sample(policy, tokenizer, prompts, how, on_batch)
    # First and alone: vLLM takes the GPU for itself.
    source, revision = job.inputs["policy"], job.revisions.get("policy")
    stops, dtype = stops_in(source, revision, tokenizer), device.dtype_name
    answers = sample_vllm.sample(source, prompts, how, stops, on_batch, revision=revision, dtype=dtype)
    return causal_of(job, "policy", tokenizer, device), answers


def draw(
    job: Job[EvaluateRecipe],
    tokenizer: PreTrainedTokenizerBase,
    rows: list[TokenRow],
    oracle: Reading | None,
    talks: Mapping[str, Conversation],
    report: Report,
) -> pd.DataFrame:
    """num_samples samples for each prompt: log pi_theta, log pi_ref and, with an oracle, its reward.

    talks: the prompts by name, as the oracle reads them.
    """
    recipe, device = job.recipe, devices.choose(job.recipe)
    prompts = [row.prompt_ids for row in rows for _ in range(recipe.num_samples)]
    total, size = (3 if "oracle" in job.inputs else 2) * len(prompts), recipe.per_device_eval_batch_size
    policy, answers = _sampled(job, tokenizer, prompts, device, lambda n: report(n, total))
    stops = stops_of(policy.generation_config, tokenizer)
    logp = logps(policy, prompts, answers, size, lambda n: report(len(prompts) + n, total))
    ref_logp = logp
    if job.inputs["reference"] != job.inputs["policy"]:
        del policy
        reference = causal_of(job, "reference", tokenizer, device)
        ref_logp = logps(reference, prompts, answers, size)
        del reference
    names = [row.id for row in rows for _ in range(recipe.num_samples)]
    responses = tokenizer.batch_decode(answers, skip_special_tokens=True)
    scored = {}
    if oracle is not None:
        both = zip(prompts, answers, strict=True)
        whole: Sequence[Tokens] = [oracle.to_reward([*prompt, *answer]) for prompt, answer in both]
        if oracle.tokenizer is not tokenizer:
            whole = oracle.sequences([talks[name] for name in names], responses)
            if (longest := max(map(len, whole))) > oracle.most:
                reads = f"the oracle {oracle.source} reads at most {oracle.most}"
                raise BadInput(
                    f"{job.path}: a sample has {longest} of its tokens, {reads}; lower max_new_tokens"
                )
        scores = rewards(oracle.model, whole, size, lambda n: report(2 * len(prompts) + n, total))
        scored = {"reward": scores.astype(np.float64)}
    return pd.DataFrame(
        {
            "prompt_id": names,
            "sample": list(range(recipe.num_samples)) * len(rows),
            "response": responses,
            "tokens": np.array([len(a) for a in answers], dtype=np.int32),
            "finished": [a[-1] in stops for a in answers],
            **scored,
            "logp": logp.astype(np.float64),
            "ref_logp": ref_logp.astype(np.float64),
        }
    )
