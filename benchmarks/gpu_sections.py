"""What one GPU is checked for, and in which order; `python -m benchmarks.gpu_check` runs it within minutes.

Speed and memory beside TRL, where a step's time goes, what each lead gives alone, and a whole figure. Every
row has the bar that was set before measuring.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks import gpu_figure, reading
from benchmarks.bench import Bench, Comparison, _described
from benchmarks.contestants import WITHOUT_KL, Training
from benchmarks.gpu_equal import equal_to_the_cpu, first_losses, repeats, replays, samples_alone
from benchmarks.gpu_leads import leads
from benchmarks.gpu_rows import (
    COMPILED,
    OURS,
    TRL,
    Check,
    by_graphs,
    fact,
    faster,
    first_steps,
    lighter,
    with_reference,
)
from benchmarks.gpu_variants import checkpointing, lora, lora_checkpointing, qlora
from benchmarks.kernels import profiled
from benchmarks.race import Contestant, release, timed
from benchmarks.workloads import Settings, Shape, causal, pairs, reward
from rpo_cli import devices
from rpo_cli.models import decode, sample, sample_graphs
from rpo_cli.models.draws import Sampling
from rpo_cli.models.sample_static import in_batches
from rpo_cli.models.score import silent

PIECES = 4  # of a small model's batch, as recipes/small has them


# --- speed and memory beside TRL ---


def policy_tldr(check: Check) -> Iterator[Comparison]:
    """dpo beside TRL, e-dpo beside dpo: what is promised."""
    bench = check.bench()
    scale, settings = bench.scale, bench.scale.llama
    maker, batch, said = bench.step_maker()
    rows = pairs(scale.tldr, check.taken(batch), settings["vocab_size"], maker.tokenizer, samples=True)
    without = with_reference(bench, settings, rows, maker)
    policy = partial(check.drawn, settings, maker)
    done = check.race(
        bench,
        lambda: maker.ours("rpo dpo", policy(), without),
        lambda: maker.trl(TRL, policy(), without),
        lambda: maker.ours("rpo e-dpo", policy(), without, "e-dpo", **WITHOUT_KL),
        lambda: maker.ours("rpo e-dpo, KL samples", policy(), rows, "e-dpo"),
    )
    workload = check.described(settings, maker, scale.tldr, rows, said)
    row = partial(faster, bench, workload=workload, done=done, work=batch)
    yield row("dpo step", names=("rpo dpo", TRL), times=2.5, speed=115)
    yield row(f"e-dpo, {scale.members} RMs, no KL samples", names=("rpo e-dpo", "rpo dpo"), times=0.97)
    yield row(
        f"e-dpo, {scale.members} RMs, KL samples", names=("rpo e-dpo, KL samples", "rpo dpo"), times=0.83
    )
    yield lighter("peak memory", workload, done, ("rpo dpo", TRL), 0.5)
    yield by_graphs(check, done, ("rpo dpo", "rpo e-dpo", "rpo e-dpo, KL samples"))


def policy_ways(check: Check) -> Iterator[Comparison]:
    """The same step of dpo in other ways: all at once, by compiled layers, deterministic, in a bare loop."""
    bench = check.bench()
    scale, settings = bench.scale, bench.scale.llama
    maker, batch, said = bench.step_maker()
    rows = pairs(scale.tldr, check.taken(batch), settings["vocab_size"], maker.tokenizer)
    rows = with_reference(bench, settings, rows, maker)
    policy = partial(check.drawn, settings, maker)
    whole = bench.maker(batch)

    def bare() -> Contestant:
        like = maker.ours("like", policy(), rows)
        return maker.bare("bare PyTorch loop", like, policy(), rows, check.taken(1))

    done = check.race(
        bench,
        lambda: maker.ours("rpo dpo", policy(), rows),
        lambda: whole.ours("rpo dpo, all at once", policy(), rows),
        lambda: whole.trl("TRL, all at once", policy(), rows),
        lambda: maker.ours("deterministic", policy(), rows, setting="repeats"),
        lambda: maker.ours(COMPILED, policy(), rows, torch_compile=True),
        bare,
    )
    workload = check.described(settings, maker, scale.tldr, rows, said)
    row = partial(faster, bench, workload=workload, done=done, work=batch)
    yield row("dpo step, all at once", names=("rpo dpo, all at once", "TRL, all at once"))
    yield row("dpo step, layers compiled", names=(COMPILED, "rpo dpo"))
    yield first_steps(done, "rpo dpo")
    yield row("dpo step, as shipped over deterministic", names=("rpo dpo", "deterministic"))
    yield row("dpo step over the bare loop", names=("rpo dpo", "bare PyTorch loop"))
    yield lighter(
        "peak memory, all at once", workload, done, ("rpo dpo, all at once", "TRL, all at once"), 0.5
    )
    yield by_graphs(check, done, ("rpo dpo", "rpo dpo, all at once"))


def policy_chat(check: Check) -> Iterator[Comparison]:
    """dpo beside TRL where prompts are short and responses long."""
    yield from _policy(check, check.scale.llama, check.scale.chat, 1.5)


def policy_neox(check: Check) -> Iterator[Comparison]:
    """dpo beside TRL on Pythia-1B's shape."""
    yield from _policy(check, check.scale.neox, check.scale.tldr, 2.0)


def _policy(check: Check, settings: Settings, shape: Shape, times: float) -> Iterator[Comparison]:
    bench = check.bench()
    maker, batch, said = bench.step_maker()
    rows = pairs(shape, check.taken(batch), settings["vocab_size"], maker.tokenizer)
    rows = with_reference(bench, settings, rows, maker)
    policy = partial(check.drawn, settings, maker)
    done = check.race(
        bench, lambda: maker.ours("rpo dpo", policy(), rows), lambda: maker.trl(TRL, policy(), rows)
    )
    workload = check.described(settings, maker, shape, rows, said)
    yield faster(bench, "dpo step", workload, done, ("rpo dpo", TRL), batch, times=times)
    yield lighter("peak memory", workload, done, ("rpo dpo", TRL), 0.5)
    yield by_graphs(check, done, ("rpo dpo",))


def reward_models(check: Check) -> Iterator[Comparison]:
    """Training of a reward model of 1B beside TRL's."""
    bench = check.bench()
    scale, settings = bench.scale, bench.scale.llama
    maker, batch, said = bench.step_maker()
    rows = pairs(scale.tldr, check.taken(batch), settings["vocab_size"], maker.tokenizer)
    model = reward(settings, maker.tokenizer, 0, check.device)
    workload = _described(settings, model, scale.tldr, rows, said)
    done = check.race(
        bench,
        lambda: maker.our_reward(OURS, copy.deepcopy(model), rows),
        lambda: maker.trl_reward(TRL, copy.deepcopy(model), rows),
    )
    yield faster(bench, "RM training", workload, done, (OURS, TRL), batch, times=2.0)


def scoring(check: Check) -> Iterator[Comparison]:
    """Scoring by a reward model of 1B beside a plain loop."""
    for row in reading.scoring(check.bench(rounds=1, batch=8 * check.scale.batch)):
        speed = check.scale.scored / float(np.median([each[0] for each in row.raw["rpo"]]))
        row.bar, row.passed = "≥ 300 pairs/s", speed >= 300
        yield row


def small_steps(check: Check) -> Iterator[Comparison]:
    """A step of SFT and of a reward model at SmolLM2-135M's shape: 64 rows or pairs, ours in four pieces."""
    bench = check.bench()
    settings, batch = bench.scale.small, 8 * bench.scale.batch
    maker, cut = bench.maker(batch), bench.maker(batch // PIECES, PIECES)
    rows = pairs(check.scale.posts, check.taken(batch), settings["vocab_size"], maker.tokenizer)
    policy = causal(settings, maker.tokenizer, 0, check.device)
    workload = _described(settings, policy, check.scale.posts, rows, f"{batch} rows, ours in {PIECES} pieces")
    done = check.race(
        bench,
        lambda: cut.our_sft(OURS, copy.deepcopy(policy), rows),
        lambda: maker.trl_sft(TRL, copy.deepcopy(policy), rows),
        lambda: cut.our_sft(COMPILED, copy.deepcopy(policy), rows, torch_compile=True),
        lambda: cut.our_sft("deterministic", copy.deepcopy(policy), rows, "repeats"),
        lambda: cut.lean_sft("rpo, kernel by kernel", copy.deepcopy(policy), rows, cuda_graphs=False),
    )
    steps = partial(faster, bench, work=1, speed=12.5, unit="steps/s")
    yield steps("SFT step", workload, done, (OURS, TRL))
    yield steps("SFT step, layers compiled", workload, done, (COMPILED, OURS), speed=None)
    yield first_steps(done, OURS)
    yield steps(
        "SFT step, as shipped over deterministic", workload, done, (OURS, "deterministic"), speed=None
    )
    yield steps(
        "SFT step, rows as policies have them, kernel by kernel",
        workload,
        done,
        ("rpo, kernel by kernel", OURS),
        speed=None,
    )
    model = reward(settings, maker.tokenizer, 0, check.device)
    done = check.race(
        bench,
        lambda: cut.our_reward(OURS, copy.deepcopy(model), rows),
        lambda: maker.trl_reward(TRL, copy.deepcopy(model), rows),
        lambda: cut.our_reward(COMPILED, copy.deepcopy(model), rows, torch_compile=True),
    )
    workload = workload.replace("rows", "pairs")
    yield steps("RM step", workload, done, (OURS, TRL))
    yield steps("RM step, layers compiled", workload, done, (COMPILED, OURS), speed=None)


def _sampled(
    check: Check,
    count: int,
    other: tuple[str, reading.Sampler] | None = None,
    dtype: str = "bfloat16",
    size: int = 512,
) -> Comparison:
    """Summaries of about 12 tokens, `size` at a time."""
    bench, lengths, limit, what = _summaries(check, count, dtype, size)
    return reading.sampled(bench, lengths, limit, what, other)


def _summaries(
    check: Check, count: int, dtype: str = "bfloat16", size: int = 512
) -> tuple[Bench, list[int], int, str]:
    new, size = check.scale.sampled[1], min(size, count)
    bench = check.bench(dtype, rounds=1, llama=check.scale.small, tldr=check.scale.posts, batch=size)
    drawn = np.random.default_rng(0).lognormal(np.log(new), 0.5, count)
    lengths = np.clip(drawn, 1, 4 * new).astype(int).tolist()
    return bench, lengths, 4 * new, f"1 to {4 * new} new tokens (mean {np.mean(lengths):.1f})"


def sampling(check: Check) -> Iterator[Comparison]:
    """Some of the responses that the small suite draws beside `generate`, then all of them, by rpo alone."""
    yield _sampled(check, check.scale.sampled[0])
    count = check.scale.all_sampled
    bench, lengths, limit, what = _summaries(check, count)
    drawing = reading.Drawing(bench, lengths, limit)
    with bench.device.autocast():
        spent = timed(partial(drawing.draw, "rpo", sample), check.device)
    drawing.check()
    ours = f"rpo: {spent.wall:.1f} s = {count / spent.wall:.0f} responses/s, graphs' captures included"
    workload = f"{count} prompts in batches of {bench.scale.batch}, {what}"
    bar, met = "≤ 20 s", spent.wall <= 20
    raw = {"rpo": [spent]}
    yield Comparison("sampling, all at one go", workload, ours, "", [], bar, met, raw)


# --- where the time goes, and what each lead gives alone ---


def kinds_of_kernel(check: Check) -> Iterator[Comparison]:
    """One step under torch's profiler: what the device is busy with, launches, and waits of the host."""
    bench = check.bench()
    scale = bench.scale
    maker, batch, said = bench.step_maker()
    small, size = bench.maker(8 * scale.batch), 8 * scale.batch
    makes: tuple[tuple[Callable[..., Training], str, Settings, Shape, int], ...] = (
        (maker.ours, "rpo dpo", scale.llama, scale.tldr, batch),
        (maker.trl, "TRL dpo", scale.llama, scale.tldr, batch),
        (small.our_sft, "rpo SFT", scale.small, scale.posts, size),
        (small.trl_sft, "TRL SFT", scale.small, scale.posts, size),
        (small.our_reward, "rpo RM", scale.small, scale.posts, size),
    )
    for make, name, settings, shape, each in makes:
        rows = pairs(shape, 5 * each, settings["vocab_size"], maker.tokenizer)
        load = reward if "RM" in name else causal
        model = load(settings, maker.tokenizer, 0, check.device)
        workload = _described(settings, model, shape, rows, said if each == batch else f"{size} rows")
        seen = profiled(make(name, model, rows), check.device)
        waits = f"{seen.launches} launches, {seen.waits} waits of the host"
        yield fact("one step, profiled", workload, f"{name}: {seen}", waits, "", None)
        del model
        release()


def sampling_leads(check: Check) -> Iterator[Comparison]:
    """Sampling with one thing changed at a time."""
    changed: tuple[tuple[str, reading.Sampler, str], ...] = (
        ("kernel by kernel", _with((sample_graphs, "CAPTURES", ())), "bfloat16"),
        (
            "kernel by kernel, tokens looked at in every step",
            _with((sample_graphs, "CAPTURES", ()), (devices, "behind", lambda device: 0)),
            "bfloat16",
        ),
        (
            "kernel by kernel, masks left to transformers",
            _with((sample_graphs, "CAPTURES", ()), (decode, "OWN_MASK", ())),
            "bfloat16",
        ),
        ("kernel by kernel, cache of a fixed size", _static, "float32"),  # transformers' is of one dtype
    )
    for name, sampler, dtype in changed:
        # Whose name begins with rpo is run as rpo: without cuDNN's attention, which would be a second change.
        row = _sampled(check, min(512, check.scale.sampled[0]), (f"rpo, {name}", sampler), dtype)
        row.what = f"sampling over one thing changed, {dtype}"
        yield row


def _with(*changed: tuple[Any, str, object]) -> reading.Sampler:
    """The sampler, with another value of some things that it reads."""

    def sampler(*given: Any) -> list[list[int]]:
        with ExitStack() as others:
            for module, name, value in changed:
                others.enter_context(patch.object(module, name, value))
            return sample(*given)

    return sampler


@torch.inference_mode()
def _static(model: Any, tokenizer: Any, prompts: Any, how: Sampling) -> list[list[int]]:
    """The sampler of devices that compile a program for each shape."""
    return in_batches(model, prompts, how, [tokenizer.eos_token_id], silent)


def figure(check: Check) -> Iterator[Comparison]:
    """As much of a whole figure as the minutes allow."""
    recipe = gpu_figure.recipe_for(check.out, check.model, check.data, toy=check.toy)
    jobs = 1 if check.toy else gpu_figure.JOBS
    real = not check.toy and None not in (check.model, check.data)
    seconds, first = max(1.0, check.left() - 20), gpu_figure.FIRST if real else None
    yield from gpu_figure.figure(recipe, check.out, check.device, seconds, jobs, tune=real, first=first)


# In this order: what was promised and never seen on a card, then what one was seen to do. With each, the
# seconds that it is expected to take: none starts that does not fit, and none may take much longer.
SECTIONS: Sequence[tuple[Callable[[Check], Iterator[Comparison]], int]] = (
    (policy_tldr, 100), (first_losses, 70), (repeats, 60), (replays, 20), (samples_alone, 20),
    (scoring, 30), (reward_models, 45), (policy_chat, 45), (policy_neox, 45),
    (sampling, 60), (lora, 60), (checkpointing, 80), (lora_checkpointing, 45), (qlora, 60),
    (equal_to_the_cpu, 30), (figure, 60),
    (policy_ways, 120), (small_steps, 110), (kinds_of_kernel, 60), (sampling_leads, 50), (leads, 365),
)  # fmt: skip
ENDLESS = figure.__name__  # it takes all the time that is left, and goes on in the next call
