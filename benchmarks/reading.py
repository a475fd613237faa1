"""Scoring beside a plain loop, and sampling beside `generate`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.bench import Bench, Comparison, _described
from benchmarks.race import Spent, UnequalWork, run_as, timed
from benchmarks.workloads import FIRST_TOKEN, Row, causal, pairs, reward, token_rows
from rpo_cli.devices import Device
from rpo_cli.models import Sampling, pair_rewards, sample


@torch.inference_mode()
def plain_scores(model: Any, rows: list[Row], tokenizer: Any, batch: int, device: str) -> np.ndarray:
    """Rewards [n, 2] as one would first write it: `model(**batch)`, `batch` pairs in the data's order."""
    result = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        sequences = [row["prompt_ids"] + row[name] for row in part for name in ("chosen_ids", "rejected_ids")]
        inputs = tokenizer.pad({"input_ids": sequences}, padding_side="right", return_tensors="pt").to(device)
        result.append(model(**inputs).logits.float().cpu().numpy().reshape(-1, 2))
    return np.concatenate(result)


def scoring(bench: Bench) -> Iterator[Comparison]:
    """Scoring pairs with a reward model beside a plain loop; ours checks that both layouts agree."""
    scale, settings = bench.scale, bench.scale.llama
    maker = bench.maker(scale.batch)
    rows = pairs(scale.tldr, scale.scored, settings["vocab_size"], maker.tokenizer)
    model = reward(settings, maker.tokenizer, 0, bench.device.name).eval()
    tokens = token_rows(rows)
    scores: dict[str, np.ndarray] = {}

    def ours() -> None:
        scores["rpo"] = pair_rewards(model, tokens, 2 * scale.batch)

    def plain() -> None:
        scores["plain loop"] = plain_scores(model, rows, maker.tokenizer, scale.batch, bench.device.name)

    def check() -> None:
        worst = float(np.abs(scores["rpo"] - scores["plain loop"]).max())
        largest = max(1.0, float(np.abs(scores["plain loop"]).max()))
        if not worst <= (1e-4 if bench.device.dtype_name == "float32" else 5e-2 * largest):
            raise UnequalWork(f"rewards differ by {worst:.2g}")

    spent = in_turn({"rpo": ours, "plain loop": plain}, scale.rounds, bench.device, check)
    workload = (
        _described(settings, model, scale.tldr, rows, f"{scale.batch} pairs at a time")
        + f", {len(rows)} pairs scored"
    )
    yield bench.compare("RM scoring", workload, spent, "rpo", "plain loop", 2.0, "pairs/s", len(rows))


NEVER = -1e4  # a logit whose probability is 0


def _count_down(model: PreTrainedModel, eos: int) -> None:
    """Have a model go on behind token FIRST_TOKEN + k with k - 1 more tokens and then EOS.

    By a class of its own: of a model with hooks the sampler tries each time whether it is read rightly.
    """
    kind: Any = type(model)

    @wraps(kind.forward)  # `generate` looks at what it takes
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        output = kind.forward(self, *args, **kwargs)
        last = kwargs["input_ids"][:, -output.logits.shape[1] :]
        following = torch.where(last == FIRST_TOKEN + 1, eos, last - 1).clamp(min=0)
        output.logits.fill_(NEVER).scatter_(2, following[..., None], 0.0)
        return output

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def sampling(bench: Bench) -> Iterator[Comparison]:
    """Sampling beside `generate` on batches in the data's order: responses of one length, and of many."""
    scale = bench.scale
    count, new = scale.sampled
    yield sampled(bench, [new] * count, new, f"{new} new tokens each")
    shortest, longest = scale.sampled_lengths
    drawn = np.random.default_rng(0).lognormal(np.log(new), 0.7, count)
    lengths = np.clip(drawn, shortest, longest).astype(int).tolist()
    middle = statistics.median(lengths)
    yield sampled(
        bench,
        lengths,
        longest,
        f"{min(lengths)} to {max(lengths)} new tokens (median {middle:g}), at most {longest}",
    )


Sampler = Callable[..., list[list[int]]]  # with the arguments of `sample`


@dataclass
class Drawing:
    """A model whose responses to these prompts have the wanted lengths, and those it had."""

    bench: Bench
    wanted: list[int]
    limit: int
    lengths: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scale, settings = self.bench.scale, self.bench.scale.llama
        self.tokenizer = self.bench.maker(scale.batch).tokenizer
        rows = pairs(scale.tldr, len(self.wanted), settings["vocab_size"], self.tokenizer)
        self.prompts = [row["prompt_ids"] for row in rows]
        for prompt, length in zip(self.prompts, self.wanted, strict=True):
            prompt[-1] = FIRST_TOKEN + length
        self.model = causal(settings, self.tokenizer, 0, self.bench.device.name).eval()
        _count_down(self.model, self.tokenizer.eos_token_id)

    def draw(self, name: str, sampler: Sampler) -> None:
        """All responses by a sampler."""
        how = Sampling(1.0, 1.0, self.limit, self.bench.scale.batch, seed=0)
        answers = sampler(self.model, self.tokenizer, self.prompts, how)
        self.lengths[name] = [len(answer) for answer in answers]

    def check(self) -> None:
        """Raise UnequalWork where a response has not the length that was wanted."""
        for name, found in self.lengths.items():
            if found != self.wanted:
                raise UnequalWork(f"{name} sampled responses of {found} tokens instead of {self.wanted}")


def sampled(
    bench: Bench, wanted: list[int], limit: int, what: str, other: tuple[str, Sampler] | None = None
) -> Comparison:
    """Both sides draw responses of exactly these lengths: ours, and `generate` or another sampler."""
    scale, settings, drawing = bench.scale, bench.scale.llama, Drawing(bench, wanted, limit)
    model, tokenizer, prompts, lengths = (drawing.model, drawing.tokenizer, drawing.prompts, drawing.lengths)
    drawn, eos = drawing.draw, tokenizer.eos_token_id

    @torch.inference_mode()
    def plain() -> None:
        lengths["generate"] = []
        for start in range(0, len(prompts), scale.batch):
            part = prompts[start : start + scale.batch]
            inputs = tokenizer.pad({"input_ids": part}, padding_side="left", return_tensors="pt").to(
                bench.device.name
            )
            torch.manual_seed(start)
            # Its cache is off in the config of models that are trained here.
            output = model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                max_new_tokens=limit,
                use_cache=True,
            )
            new = output[:, inputs["input_ids"].shape[1] :].tolist()
            lengths["generate"] += [tokens.index(eos) + 1 for tokens in new]

    name, second = ("generate", plain) if other is None else (other[0], partial(drawn, *other))
    ways = {"rpo": partial(drawn, "rpo", sample), name: second}
    spent = in_turn(ways, scale.rounds, bench.device, drawing.check)
    shape = f"{scale.tldr.name}: {settings['model_type']}"
    workload = f"{shape}, {len(wanted)} prompts in batches of {scale.batch}, {what}"
    return bench.compare("sampling", workload, spent, "rpo", name, None, "tokens/s", sum(wanted))


def in_turn(
    works: dict[str, Callable[[], None]], rounds: int, device: Device, check: Callable[[], None]
) -> dict[str, list[Spent]]:
    spent: dict[str, list[Spent]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name in list(works) if number % 2 == 0 else list(works)[::-1]:
            run_as("rpo" if name.startswith("rpo") else "stock")
            with device.autocast():
                took = timed(works[name], device.name)
            if number > 0:
                spent[name].append(took)
        check()
    return spent
