"""Rewards and reference log-probs, computed once for each row and kept by its id."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from rpo_cli import devices
from rpo_cli.batches import Batch, by_length, by_tokens, can_share, make_batch, response_logps, response_rewards, shape_of
from rpo_cli.buckets import Shape, for_batches, longest
from rpo_cli.data.pairs import TokenRow, read_rows, tokenise
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.generation import sample
from rpo_cli.job import Job
from rpo_cli.models import four_bits, load_causal, load_reward, load_tokenizer, require_same_tokens
from rpo_cli.schema import ScoringRecipe, seed_of
from rpo_cli.tracking import Report


def silent(done: int) -> None:
    """Progress nobody wants."""


def rewards(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad: int, batch_size: int, on_batch: Callable[[int], None] = silent
) -> np.ndarray:
    """Reward of each sequence (prompt + response + EOS), read at its last token: float32 [n].

    Raises:
        RunFailed: a reward is not finite.
    """
    result = np.empty(len(sequences), dtype=np.float32)
    done = 0
    model.eval()
    for rows, shape in _cuts([len(s) for s in sequences], [(len(s), 0) for s in sequences], batch_size, model.device):
        width = shape[0] if shape else max(len(sequences[i]) for i in rows)
        ids = torch.tensor([list(sequences[i]) + [pad] * (width - len(sequences[i])) for i in rows])
        mask = torch.tensor([[1] * len(sequences[i]) + [0] * (width - len(sequences[i])) for i in rows])
        with devices.reading(model.device):
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
            result[rows] = logits.squeeze(-1).float().cpu().numpy()
        done = min(done + len(rows), len(sequences))
        on_batch(done)
    return _finite_rewards(result)


def _cuts(lengths: Sequence[int], needed: Sequence[Shape], size: int, device: torch.device) -> Iterator[tuple[list[int], Shape | None]]:
    """Numbers of rows in batches of about equal length, the longest first, and the shape of each where shapes are few.

    There all batches have as many rows: the last one reads its first row again and again.
    """
    if not devices.fixed_shapes(device):
        for rows in by_tokens(lengths, size):
            yield rows, None
        return
    size = min(size, len(needed))
    batches = list(by_length(lengths, size))
    found = for_batches(needed, batches)
    logging.getLogger("rpo").info("batches to read: %s", found)
    for rows in batches:
        yield [*rows, *[rows[0]] * (size - len(rows))], found.of(longest([needed[i] for i in rows]))


def _finite_rewards(result: np.ndarray) -> np.ndarray:
    if not np.isfinite(result).all():
        raise RunFailed(
            f"the reward model gave a reward that is not finite for {int((~np.isfinite(result)).sum())} of {result.size} responses"
        )
    return result


def logps(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad: int,
    batch_size: int,
    on_batch: Callable[[int], None] = silent,
) -> np.ndarray:
    """log pi(response | prompt), summed over the response's tokens: float32 [n]."""
    return _finite_logps(_read(model, response_logps, prompts, [[r] for r in responses], pad, batch_size, on_batch, shared=False)[:, 0])


def pair_logps(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    pad: int,
    batch_size: int,
    on_batch: Callable[[int], None] = silent,
    *,
    shared: bool = True,
) -> np.ndarray:
    """log pi of each row's responses: float32 [n, 2], a batch holding at most `batch_size` responses of the longest rows."""
    shared = shared and can_share(model, response_logps, *_prompts_and_groups(rows), pad)
    return _finite_logps(_read_pairs(model, response_logps, rows, pad, batch_size, on_batch, shared))


def _finite_logps(result: np.ndarray) -> np.ndarray:
    if not np.isfinite(result).all():
        raise RunFailed("the model gave a log-probability that is not finite")
    return result


def pair_rewards(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    pad: int,
    batch_size: int,
    on_batch: Callable[[int], None] = silent,
    *,
    shared: bool = True,
) -> np.ndarray:
    """Rewards of each row's responses: float32 [n, 2], a batch holding at most `batch_size` responses of the longest rows.

    Raises:
        RunFailed: a reward is not finite.
    """
    if shared and can_share(model, response_rewards, *_prompts_and_groups(rows), pad):
        return _finite_rewards(_read_pairs(model, response_rewards, rows, pad, batch_size, on_batch, True))
    sequences = [row.prompt_ids + answer for row in rows for answer in row.responses]
    return rewards(model, sequences, pad, batch_size, on_batch).reshape(len(rows), -1)


def _prompts_and_groups(rows: Sequence[TokenRow]) -> tuple[list[list[int]], list[list[list[int]]]]:
    return [row.prompt_ids for row in rows], [row.responses for row in rows]


def _read_pairs(
    model: PreTrainedModel,
    read: Callable[[Any, Batch], torch.Tensor],
    rows: Sequence[TokenRow],
    pad: int,
    batch_size: int,
    on_batch: Callable[[int], None],
    shared: bool,
) -> np.ndarray:
    prompts, groups = _prompts_and_groups(rows)
    size = max(1, batch_size // len(groups[0]))
    return _read(model, read, prompts, groups, pad, size, lambda done: on_batch(done * len(groups[0])), shared=shared)


def _read(
    model: PreTrainedModel,
    read: Callable[[Any, Batch], torch.Tensor],
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Sequence[int]]],
    pad: int,
    size: int,
    on_batch: Callable[[int], None],
    *,
    shared: bool,
) -> np.ndarray:
    """What `read` says of every response: float32 [n, G]."""
    result = np.empty((len(prompts), len(groups[0])), dtype=np.float32)
    done = 0
    model.eval()
    needed = [shape_of(prompt, group, shared=shared) for prompt, group in zip(prompts, groups, strict=True)]
    lengths = [len(prompt) + sum(map(len, group)) for prompt, group in zip(prompts, groups, strict=True)]
    for rows, shape in _cuts(lengths, needed, size, model.device):
        batch = make_batch([prompts[i] for i in rows], [groups[i] for i in rows], pad, shared=shared, shape=shape)
        with devices.reading(model.device):
            values = read(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
            result[rows] = values.cpu().numpy().reshape(-1, len(rows)).T
        done = min(done + len(rows), len(prompts))
        on_batch(done)
    return result


def _write(columns: dict[str, Any], file: Path) -> None:
    pq.write_table(pa.table(columns), file)


def run_reference(job: Job, report: Report) -> dict[str, Any]:
    """log pi_ref of every pair's two responses."""
    recipe: ScoringRecipe = job.recipe
    tokenizer = load_tokenizer(job.inputs["model"], recipe, job.revisions.get("model"))
    rows = tokenise(read_rows(pairs_file(job)), ("chosen", "rejected"), tokenizer, recipe.max_length, recipe.overlong, job.path)
    device = devices.choose(recipe)
    model = load_causal(job.inputs["model"], recipe, device, tokenizer, job.revisions.get("model"), bits=four_bits(recipe, device))
    size, shared = recipe.per_device_eval_batch_size, recipe.shared_prompts
    both = pair_logps(model, rows, pad_id(tokenizer), size, lambda n: report(n, 2 * len(rows)), shared=shared)
    _write(
        {"id": [row.id for row in rows], "ref_chosen_logps": both[:, 0], "ref_rejected_logps": both[:, 1]}, job.directory / "logps.parquet"
    )
    return {"rows": len(rows), "ref_chosen_logps": float(both[:, 0].mean()), "ref_rejected_logps": float(both[:, 1].mean())}


def run_samples(job: Job, report: Report) -> dict[str, Any]:
    """Samples of pi_ref for every training prompt, drawn once, with their log-probs: for the forward KL."""
    recipe: ScoringRecipe = job.recipe
    tokenizer = load_tokenizer(job.inputs["model"], recipe, job.revisions.get("model"))
    unique = {row["prompt"]: {"id": row["id"], "prompt": row["prompt"]} for row in read_rows(pairs_file(job))}
    rows = tokenise(list(unique.values()), (), tokenizer, recipe.max_length, recipe.overlong, job.path)
    by_id = {str(row["id"]): row["prompt"] for row in unique.values()}
    device = devices.choose(recipe)
    model = load_causal(job.inputs["model"], recipe, device, tokenizer, job.revisions.get("model"), bits=four_bits(recipe, device))
    prompts = [row.prompt_ids for row in rows for _ in range(recipe.reference_samples)]
    size = recipe.per_device_eval_batch_size
    answers = sample(
        model, tokenizer, prompts, temperature=1.0, top_p=1.0, max_new_tokens=recipe.max_new_tokens, batch_size=size,
        seed=seed_of(recipe, "sampling"), on_batch=lambda n: report(n, 2 * len(prompts)),
    )  # fmt: skip
    values = logps(model, prompts, answers, pad_id(tokenizer), size, lambda n: report(len(prompts) + n, 2 * len(prompts)))
    prompt_of = [by_id[row.id] for row in rows for _ in range(recipe.reference_samples)]
    _write({"prompt": prompt_of, "sample_ids": answers, "ref_sample_logps": values}, job.directory / "samples.parquet")
    ended = float(np.mean([answer[-1] == tokenizer.eos_token_id for answer in answers]))
    return {"rows": len(answers), "tokens_mean": float(np.mean([len(a) for a in answers])), "unfinished_share": 1 - ended}


def run_scores(job: Job, report: Report) -> dict[str, Any]:
    """One reward model's rewards for the pairs of a D_rho, trained on and held out, over exactly the policy's tokens."""
    recipe: ScoringRecipe = job.recipe
    tokenizer = load_tokenizer(job.inputs["policy"], recipe, job.revisions.get("policy"))
    require_same_tokens(
        tokenizer, load_tokenizer(job.inputs["model"], recipe, job.revisions.get("model")), job.inputs["policy"], job.inputs["model"]
    )
    model = load_reward(job.inputs["model"], recipe, devices.choose(recipe), tokenizer, job.revisions.get("model"))
    metrics: dict[str, Any] = {}
    for table in ("train", "held_out"):
        rows = tokenise(
            read_rows(job.inputs["data"] / f"{table}.parquet"),
            ("chosen", "rejected"),
            tokenizer,
            recipe.max_length,
            recipe.overlong,
            job.path,
        )
        size, shared = recipe.per_device_eval_batch_size, recipe.shared_prompts
        values = pair_rewards(model, rows, pad_id(tokenizer), size, partial(report, of=2 * len(rows)), shared=shared)
        _write({"id": [row.id for row in rows], "chosen": values[:, 0], "rejected": values[:, 1]}, job.directory / f"{table}.parquet")
        margins = values[:, 0] - values[:, 1]
        metrics[f"{table}/accuracy"] = float((margins > 0).mean())
        metrics[f"{table}/margin_rms"] = float(np.sqrt((margins**2).mean()))
    return metrics


def pairs_file(job: Job) -> Path:
    """The labelled pairs: what the relabel stage wrote, or the data stage."""
    file = job.inputs["data"] / "pairs.parquet"
    if not file.is_file():
        raise BadInput(f"{job.inputs['data']}: has no table `pairs`")
    return file


def pad_id(tokenizer: Any) -> int:
    """The padding token's id; `load_tokenizer` made sure there is one."""
    return int(tokenizer.pad_token_id)
