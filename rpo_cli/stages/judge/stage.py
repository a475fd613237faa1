"""Verdicts of a judge on samples, against pi_SFT's and the data's own responses, each pair in both orders."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from rpo_cli.artifacts import Job, Report, write_json
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.recipes.schema import JudgeRecipe, JudgeSettings, seed_of
from rpo_cli.stages.evaluate import SAMPLES, SHOWN
from rpo_cli.stages.judge.client import TOKENS, Answer, Judge, api_key, question_key, render, verdict_of
from rpo_cli.stages.judge.verdicts import VERDICTS, Verdicts
from rpo_cli.stages.judge.winrates import judged

log = logging.getLogger("rpo")
COMPARISON = ["against", "prompt_id", "sample", "prompt", "response", "other", "identical"]
COMPARISON += ["length_difference", "oracle"]


def run(job: Job[JudgeRecipe], report: Report) -> dict[str, object]:
    """Write verdicts.parquet and metrics.json; asks only what no run in this workspace has asked before."""
    recipe: JudgeRecipe = job.recipe
    table = pd.concat([comparisons(job, against) for against in recipe.against], ignore_index=True)
    questions = [
        {"first": render(recipe.prompt, p, ours, theirs), "second": render(recipe.prompt, p, theirs, ours)}
        for p, ours, theirs in zip(table["prompt"], table["response"], table["other"], strict=True)
    ]
    keys = [{name: question_key(recipe, question) for name, question in both.items()} for both in questions]
    wanted = {
        key[name]: both[name]
        for key, both, same in zip(keys, questions, table["identical"], strict=True)
        for name in ("first", "second")
        if not same  # what nobody can tell apart is a tie, for nothing
    }
    verdicts = Verdicts(job.root / VERDICTS)
    if verdicts.unread:
        report.tell(f"{verdicts.file}: {verdicts.unread} lines are no answers; those are asked for again")
    missing = {key: question for key, question in wanted.items() if key not in verdicts}
    log.info("judge %s: %d questions, %d of them new", recipe.model, len(wanted), len(missing))
    ask(recipe, missing, verdicts, lambda done: report(done, len(missing)))
    for name in ("first", "second"):
        asked = [
            None if same else verdicts[key[name]] for key, same in zip(keys, table["identical"], strict=True)
        ]
        # Read anew: the text is what was paid for, and how it is read may have changed since.
        table[name] = [None if answer is None else verdict_of(answer.text) for answer in asked]
        table[f"{name}_text"] = [None if answer is None else answer.text for answer in asked]
    table.to_parquet(job.directory / "verdicts.parquet", index=False)
    report.tracker.table(
        "verdicts", table.head(SHOWN)[["against", "prompt", "response", "other", "first", "second"]]
    )
    metrics: dict[str, object] = {}
    for against, rows in table.groupby("against", sort=False):
        try:
            found = judged(rows, recipe.bootstrap_samples, seed_of(recipe, "sampling"))
        except ValueError as error:
            look = "look at verdicts.parquet, and at what `judge.prompt` asks for"
            raise RunFailed(f"{job.path}: {against}: {error}; {look}") from error
        metrics |= {f"{against}/{name}": value for name, value in found.items()}
    metrics |= bill([verdicts[key] for key in wanted], recipe)
    write_json(job.directory / "metrics.json", metrics)
    return metrics


def comparisons(job: Job[JudgeRecipe], against: str) -> pd.DataFrame:
    """Pairs of a policy's response and another one: the columns of COMPARISON.

    Sample i meets the baseline's sample i. Lengths are characters, as in AlpacaEval 2: a reference has no
    tokens here.
    """
    recipe, policy = job.recipe, pd.read_parquet(job.inputs["evaluation"] / SAMPLES)
    if against == "baseline":
        names = ["prompt_id", "sample", "response", "finished", *(["reward"] if "reward" in policy else [])]
        other = pd.read_parquet(job.inputs["baseline"] / SAMPLES)[names]
        pairs = policy.merge(other, on=["prompt_id", "sample"], suffixes=("", "_other"))
        pairs["other"] = pairs["response_other"]
        scored = "reward" in policy
        pairs["oracle"] = np.sign(pairs["reward"] - pairs["reward_other"]) if scored else np.nan
        finished = pairs["finished"].astype(bool) & pairs["finished_other"].astype(bool)
    else:
        references = references_of(job)
        pairs = policy.assign(other=policy["prompt"].map(references), oracle=np.nan)
        if len(absent := pairs[pairs["other"].isna()]):
            raise BadInput(f"{job.path}: {absent['prompt'].nunique()} prompts have no reference response")
        finished = pairs["finished"].astype(bool)
    if recipe.truncated == "drop":
        pairs = pairs[finished]
    if recipe.num_prompts is not None:
        pairs = pairs[pairs["prompt_id"].isin(pairs["prompt_id"].drop_duplicates().head(recipe.num_prompts))]
    if pairs.empty:
        raise BadInput(f"{job.path}: no finished samples to compare with the {against}'s")
    return pairs.assign(
        against=against,
        identical=pairs["response"] == pairs["other"],
        length_difference=(pairs["response"].str.len() - pairs["other"].str.len()).astype(float),
    )[COMPARISON]


def references_of(job: Job[JudgeRecipe]) -> dict[str, str]:
    """Prompt -> the data's own response: the `completion` column of the prompts that were evaluated."""
    split = job.path.split("/")[-2]
    file = job.inputs["data"] / f"prompts_{split}.parquet"
    if "completion" not in pq.read_schema(file).names:
        raise BadInput(
            f"{file}: no column `completion`, so there is no reference to judge against; add it to the file "
            "and build the data again, or set against: [baseline]"
        )
    table = pd.read_parquet(file).drop_duplicates("prompt")
    return dict(zip(table["prompt"], table["completion"], strict=True))


def ask(
    settings: JudgeSettings,
    questions: Mapping[str, str],
    verdicts: Verdicts,
    on_answer: Callable[[int], None],
) -> None:
    """Ask every question, `concurrency` at a time; each answer is kept at once.

    After a failure or an interruption nothing new is asked; what is under way is still kept: it is paid for.

    Raises:
        BadInput, RunFailed: the first failure.
    """
    if not questions:
        return
    stop = threading.Event()
    with Judge(settings, api_key(settings), stop) as judge, ThreadPoolExecutor(settings.concurrency) as pool:

        def one(key: str, question: str) -> None:
            verdicts.add(key, judge.ask(question))

        futures = [pool.submit(one, key, question) for key, question in questions.items()]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                on_answer(done)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def bill(answers: list[Answer], recipe: JudgeRecipe) -> dict[str, object]:
    """Tokens and cost of all the answers behind the metrics, whichever run paid; cost None without both
    prices.

    `questions` are counted once each, however often they were sent. `uncounted` answers came without a usage
    field: the true numbers are higher.
    """
    prompt, completion = (sum(getattr(answer, name) or 0 for answer in answers) for name in TOKENS)
    reading, writing = recipe.price_per_million_input_tokens, recipe.price_per_million_output_tokens
    cost = None if reading is None or writing is None else (prompt * reading + completion * writing) / 1e6
    return {
        "questions": len(answers),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "uncounted": sum(None in (answer.prompt_tokens, answer.completion_tokens) for answer in answers),
        "cost": cost,
    }
