"""What a teacher says of the samples of a policy, and of its baseline: no judgement, it was distilled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from rpo_cli.artifacts import Job, Report
from rpo_cli.models import TokenRow, rewards
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.stages.data.rows import row_id, rows_of
from rpo_cli.stages.evaluate import SAMPLES
from rpo_cli.stages.inputs import tokenizer_of
from rpo_cli.stages.reading import Conversation, Reading, reading_of

REWARDS = "rewards.parquet"


def run(job: Job[ScoringRecipe], report: Report) -> dict[str, float]:
    """Write rewards.parquet: prompt_id, and `reward` and `baseline_reward`, means over a prompt's samples.

    Responses are read as texts with an end, also those that were cut at max_new_tokens. Prompts that the
    teacher's chat template refuses are left out.
    """
    recipe: ScoringRecipe = job.recipe
    policy = tokenizer_of(job, "policy")
    each, revision = rows_of(job, f"prompts_{job.options['split']}").one_each(), job.revisions.get("model")
    teacher = reading_of(job.inputs["model"], recipe, revision, policy, talks=each.talks)
    texts = each.texts("prompt")
    told = each.conversations(()) if teacher.own else [{"prompt": text} for text in texts]
    talks = dict(zip(map(row_id, texts), told, strict=True))
    tables = [pd.read_parquet(job.inputs[name] / SAMPLES) for name in ("evaluation", "baseline")]
    whose = np.repeat(["reward", "baseline_reward"], [len(table) for table in tables])
    samples = pd.concat(tables, ignore_index=True).assign(whose=whose)
    rows = _rows(job.path, teacher, talks, samples, report)
    whole = [[*row.prompt_ids, *row.responses[0]] for row in rows]
    size = recipe.per_device_eval_batch_size
    scores = rewards(teacher.model, whole, size, lambda done: report(done, len(whole)))
    read = samples.iloc[[int(row.id) for row in rows]].assign(score=scores.astype(np.float64))
    found = read.pivot_table(values="score", index="prompt_id", columns="whose", aggfunc="mean").dropna()
    found.reset_index().to_parquet(job.directory / REWARDS, index=False)
    apart = float((found["reward"] - found["baseline_reward"]).mean())
    means = {f"{name}_mean": float(found[name].mean()) for name in ("reward", "baseline_reward")}
    return {"prompts": len(found), "advantage": apart, **means}


def _rows(
    what: str, teacher: Reading, talks: Mapping[str, Conversation], samples: pd.DataFrame, report: Report
) -> list[TokenRow]:
    """The samples as the teacher reads them, each under its number."""
    ids, asked = [str(number) for number in samples.index], [talks[name] for name in samples["prompt_id"]]
    responses = samples["response"].tolist()
    if teacher.own:
        answered = [{**talk, "response": text} for talk, text in zip(asked, responses, strict=True)]
        return teacher.rows(ids, answered, ("response",), what, report.warn)
    whole = teacher.as_here([talk["prompt"] for talk in asked], responses)
    return [TokenRow(name, tokens[:1], [tokens[1:]]) for name, tokens in zip(ids, whole, strict=True)]
