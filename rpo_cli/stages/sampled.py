"""Preference pairs from a model's own samples: against each other, or against what people wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.errors import BadInput
from rpo_cli.models import Row, Sampling, Tokens, sample, stops_of
from rpo_cli.recipes.schema import PairsRecipe, seed_of
from rpo_cli.stages.data.rows import GIVEN, MESSAGES, Rows, row_id, rows_of, write_rows
from rpo_cli.stages.data.sources.turns import Part, answer, as_json
from rpo_cli.stages.inputs import causal_of, tokenizer_of


@dataclass(frozen=True)
class Prompt:
    """A prompt, its model's samples that ended, and the written responses to it and to another prompt.

    turns: the conversation that its text was made of, if any; None: no prompt of the table is one.
    given: what else its chat template was given, such as tools.
    """

    text: str
    samples: Sequence[str] = ()
    written: str | None = None
    other: str | None = None
    turns: Part | None = None
    given: Mapping[str, object] = field(default_factory=dict)


def pairs_of(prompt: Prompt, contrasts: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(contrast, chosen, rejected) of a prompt; equal or empty responses make none.

    Samples are paired in the order drawn, each once: their order says nothing, `relabel` is to say it.
    """
    distinct = list({answer.strip(): answer for answer in prompt.samples if answer.strip()}.values())
    for contrast in contrasts:
        if contrast == "samples":
            found = list(zip(distinct[::2], distinct[1::2], strict=False))
        else:
            rejected = distinct if contrast == "written-samples" else [prompt.other or ""]
            found = [(prompt.written or "", each) for each in rejected]
        for chosen, other in found:
            if chosen.strip() and other.strip() and chosen.strip() != other.strip():
                yield contrast, chosen, other


def rows_from(prompts: Sequence[Prompt], contrasts: Sequence[str]) -> list[Row]:
    """Rows id, prompt, chosen, rejected, contrast; a pair that is made twice stands once."""
    found: dict[str, Row] = {}
    for prompt in prompts:
        for contrast, chosen, other in pairs_of(prompt, contrasts):
            texts = {"prompt": prompt.text, "chosen": chosen, "rejected": other}
            name = row_id(*texts.values())
            told = {}
            if prompt.turns is not None:
                answers = {"chosen": answer(chosen), "rejected": answer(other)}
                told[MESSAGES] = as_json({"prompt": prompt.turns, **answers}, **prompt.given) or ""
            found.setdefault(name, {"id": name, **texts, "contrast": contrast, **told})
    return list(found.values())


def run(job: Job[PairsRecipe], report: Report) -> dict[str, object]:
    """Write pairs.parquet and pairs_validation.parquet; metrics count them and what is left out."""
    recipe: PairsRecipe = job.recipe
    tokenizer = tokenizer_of(job, "model")
    sampler = Sampler(job, tokenizer, report) if recipe.needs_samples else None
    tables = {"pairs": recipe.table, "pairs_validation": recipe.validation_table}
    metrics: dict[str, object] = {}
    for name, table in tables.items():
        if table is None:
            continue
        prompts, counts = _prompts(job, table, tokenizer, sampler)
        rows = rows_from(prompts, recipe.contrasts)
        if not rows:
            left = ", ".join(f"{reason} {count}" for reason, count in counts.items())
            raise BadInput(f"{job.path}: {table} makes no pairs ({left})")
        write_rows(rows, job.directory / f"{name}.parquet")
        kinds = Counter(row["contrast"] for row in rows)
        metrics |= {f"rows/{name}": len(rows)}
        metrics |= {f"{name}/{kind}": count for kind, count in (*counts.items(), *kinds.items())}
    return metrics


class Sampler:
    """The model's samples, loaded once for all tables."""

    def __init__(self, job: Job[PairsRecipe], tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
        self.recipe, self.tokenizer, self.report = job.recipe, tokenizer, report
        self.model = causal_of(job, "model", tokenizer, devices.choose(self.recipe))
        self.seed = seed_of(self.recipe, "sampling")

    def _report(self, before: int, total: int, now: int) -> None:
        self.report(before + now, total)

    def draw(self, prompts: Sequence[Tokens]) -> list[list[list[int]]]:
        """num_samples responses for each prompt's tokens; the i-th of all under one temperature."""
        recipe, kinds = self.recipe, len(self.recipe.temperatures)
        drawn: list[list[list[int]]] = [[] for _ in prompts]
        for turn, temperature in enumerate(recipe.temperatures):
            each = len(range(turn, recipe.num_samples, kinds))
            before, total = sum(map(len, drawn)), len(prompts) * recipe.num_samples
            # Under one seed a prompt's samples at two temperatures would share their random numbers.
            seed = int(np.random.SeedSequence([self.seed, turn]).generate_state(1)[0])
            size, most = recipe.per_device_eval_batch_size, recipe.max_new_tokens
            how = Sampling(temperature, recipe.top_p, most, size, seed)
            asked = [prompt for prompt in prompts for _ in range(each)]
            answers = sample(self.model, self.tokenizer, asked, how, partial(self._report, before, total))
            for index, own in enumerate(drawn):
                own += answers[index * each : (index + 1) * each]
        return drawn


def _prompts(
    job: Job[PairsRecipe], table: str, tokenizer: PreTrainedTokenizerBase, sampler: Sampler | None
) -> tuple[list[Prompt], dict[str, int]]:
    """A table's prompts with all that pairs are made of, and counts."""
    recipe: PairsRecipe = job.recipe
    rows = rows_of(job, table)
    rows = rows.take(range(len(rows))[: recipe.num_prompts])
    written, others = _written(job, table, rows) if recipe.needs_written else ([None] * len(rows),) * 2
    texts = rows.texts("prompt")
    counts = {"prompts": len(rows)}
    drawn: dict[str, list[str]] = {}
    if sampler is not None:
        what = f"{job.path}: {table}"
        tokens = rows.tokens((), tokenizer, what, recipe.max_length, recipe.overlong)
        counts["overlong_prompts"] = len(rows) - len(tokens)
        answers = sampler.draw([row.prompt_ids for row in tokens])
        stops = stops_of(sampler.model.generation_config, tokenizer)
        ended = [[own for own in each if own[-1] in stops] for each in answers]
        counts["drawn"] = sum(map(len, answers))
        counts["unfinished"] = counts["drawn"] - sum(map(len, ended))
        decoded = [tokenizer.batch_decode(own, skip_special_tokens=True) for own in ended]
        drawn = dict(zip((row.id for row in tokens), decoded, strict=True))
    talks = rows.conversations(()) if rows.talks else [Row()] * len(rows)
    each = zip(rows.ids, texts, written, others, talks, strict=True)
    return [
        Prompt(text, drawn.get(name, ()), said, other, talk.get("prompt"), _given(talk))
        for name, text, said, other, talk in each
    ], counts


def _given(talk: Row) -> Row:
    return {name: talk[name] for name in GIVEN if name in talk}


def _written(job: Job[PairsRecipe], table: str, rows: Rows) -> tuple[list[str], list[str]]:
    """The written responses, and for each prompt that of another one, drawn under the data seed."""
    if "completion" not in rows.columns:
        needs = ", ".join(contrast for contrast in job.recipe.contrasts if contrast != "samples")
        raise BadInput(f"{job.path}: {table} has no column `completion`, which contrasts: {needs} needs")
    written = rows.texts("completion")
    order = np.random.default_rng([seed_of(job.recipe, "data"), 40]).permutation(len(written))
    other_of = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return written, [written[other_of[index]] for index in range(len(written))]
