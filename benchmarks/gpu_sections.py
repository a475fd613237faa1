"""What one GPU is checked for, in order of value; `python -m benchmarks.gpu_check` runs it within minutes.

First what must be equal, then speed and memory beside TRL, then where a step's time goes and what each lead
gives alone. Every row has the bar that was set before measuring.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import gpu_figure, growth, sections
from benchmarks.bench import Bench, Comparison, _described
from benchmarks.contestants import (
    Contestant,
    Done,
    Maker,
    Training,
    one_by_one,
    release,
    run_as,
    steps_of,
    timed,
)
from benchmarks.gpu_leads import leads
from benchmarks.kernels import profiled
from benchmarks.workloads import Row, Scale, Settings, Shape, causal, pairs, reward, token_rows
from rpo_cli import devices
from rpo_cli.devices import Device
from rpo_cli.models import decode, logps, pair_logps, pair_rewards, sample, sample_graphs
from rpo_cli.models.draws import Sampling, occurrences, uniforms
from rpo_cli.models.sample_static import in_batches
from rpo_cli.objectives import OBJECTIVES

OURS, TRL, COMPILED = "rpo", "TRL", "layers compiled"
PIECES = 4  # of a small model's batch, as recipes/small has them
EXACT = 1e-4  # of the largest number: float32 on two devices
AT_AN_EDGE = 1e-5  # of a distribution: what rounding in float32 may move an edge by, and more than it did


@dataclass(frozen=True)
class Check:
    """A card, and how much is measured on it.

    folder: for what is not kept; out: for what is. model, data: in place of random weights, and for the
    figure. warm, steps: a contestant's steps before the first round, and in each. left: seconds until all is
    to be over.
    """

    scale: Scale
    device: str
    folder: Path
    out: Path
    model: Path | None
    data: Path | None
    warm: int
    steps: int
    left: Callable[[], float]
    toy: bool

    def bench(self, dtype: str = "bfloat16", **changes: Any) -> Bench:
        device = Device(self.device, dtype, "benchmark")
        return Bench(replace(self.scale, **changes), device, self.folder)

    def language_model(self, maker: Maker, device: str) -> PreTrainedModel:
        """The model of `--model`, or one of random weights and SmolLM2-135M's shape; float32."""
        if self.model is None:
            return causal(self.scale.small, maker.tokenizer, 0, device)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        return model.to(device)

    @property
    def vocabulary(self) -> int:
        """Tokens that rows for `language_model` are drawn from: those that each model has."""
        return int(self.scale.small["vocab_size"])

    @property
    def who(self) -> str:
        return "random weights" if self.model is None else self.model.name

    def taken(self, batch: int) -> int:
        """Rows of all steps of a contestant."""
        return (self.warm + self.scale.rounds * self.steps) * batch

    def race(self, bench: Bench, *makers: Callable[[], Contestant]) -> dict[str, Done]:
        return one_by_one(makers, self.warm, self.scale.rounds, self.steps, bench.device)


def fact(what: str, workload: str, found: str, expected: str, bar: str, passed: bool | None) -> Comparison:
    """A row without a ratio."""
    return Comparison(what, workload, found, expected, [], bar, passed)


def faster(
    bench: Bench,
    what: str,
    workload: str,
    done: dict[str, Done],
    names: tuple[str, str],
    work: float,
    *,
    times: float | None = None,
    speed: float | None = None,
    unit: str = "pairs/s",
) -> Comparison:
    """Speed of the first beside the second; bars on the ratio, and on the first one's own speed."""
    spent = {name: one.spent for name, one in done.items()}
    row = bench.compare(what, workload, spent, *names, times, unit, work)
    if speed is not None:
        reached = work / float(np.median([bench.seconds(each) for each in spent[names[0]]])) >= speed
        row.bar = " and ".join(filter(None, (row.bar, f"≥ {speed:g} {unit}")))
        row.passed = reached and row.passed is not False
    return row


def first_steps(done: dict[str, Done], other: str) -> Comparison:
    """What the first step took in which layers are compiled, beside one of layers as they are."""
    said = [f"{who}: {done[who].first:.1f} s" for who in (COMPILED, other)]
    return fact("first step, layers compiled in it", "", *said, "", None)


def lighter(
    what: str, workload: str, done: dict[str, Done], names: tuple[str, str], bar: float
) -> Comparison:
    """Peak memory of the first as a share of the second's, weights and AdamW's state included."""
    said = [
        f"{name}: {done[name].peak / 2**30:.1f} GiB, {(done[name].peak - done[name].before) / 2**30:.1f} of "
        "them in a step"
        for name in names
    ]
    share = done[names[0]].peak / done[names[1]].peak
    return Comparison(what, workload, *said, [share], f"≤ {bar:g}", share <= bar)


# --- what must be equal ---


def first_losses(check: Check) -> Iterator[Comparison]:
    """Every objective's first loss is the one known at θ = ref, where every training starts."""
    for dtype in ("float32", "bfloat16"):
        bench = check.bench(dtype)
        batch = bench.scale.batch
        maker = bench.maker(batch)
        model = check.language_model(maker, check.device)
        rows = pairs(bench.scale.tldr, batch, check.vocabulary, maker.tokenizer, samples=True)
        without = _fill(bench, model, rows, maker)
        found, known, held = [], [], True
        for name, objective in OBJECTIVES.items():
            if objective.reference_free:
                continue
            one = maker.ours(name, copy.deepcopy(model), rows if objective.pessimistic else without, name)
            run_as(one.setting)
            one.step()
            losses = one.trainer.first_losses().T.tolist()  # of each member, and the KL
            one.close()
            found.append(f"{name} {losses[0][0]:.7g}")
            known.append(f"{losses[0][1]:.7g} ± {losses[0][2]:.1g}")
            held = held and all(abs(loss - there) <= allowed for loss, there, allowed in losses)
        workload = f"{dtype}, {check.who}"
        yield fact("first losses", workload, ", ".join(found), ", ".join(known), "within rounding", held)
        release()


def _fill(bench: Bench, model: PreTrainedModel, rows: list[Row], maker: Maker) -> list[Row]:
    """Reference log-probs by the policy's own weights, and margins; returns the rows without samples."""
    pad, size = maker.tokenizer.pad_token_id, 2 * bench.scale.batch
    with bench.device.autocast():
        both = pair_logps(model, token_rows(rows), pad, size)
        prompts, drawn = [row["prompt_ids"] for row in rows], [row["sample_ids"] for row in rows]
        own = logps(model, prompts, drawn, pad, size)
    margins = np.random.default_rng(1).normal(size=(len(rows), bench.scale.members))
    for row, (chosen, rejected), value, teachers in zip(
        rows, both.tolist(), own.tolist(), margins.tolist(), strict=True
    ):
        row |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected, "ref_sample_logps": value}
        row["margins"] = teachers
    return without_samples(rows)


def without_samples(rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if "sample" not in key} for row in rows]


def equal_to_the_cpu(check: Check) -> Iterator[Comparison]:
    """Log-probs, rewards and one training step in float32, beside the same on the CPU."""
    found: dict[str, list[Any]] = {"log-probs": [], "rewards": [], "gradient of a step": []}
    for name in ("cpu", check.device):
        bench = replace(check.bench("float32"), device=Device(name, "float32", "benchmark"))
        maker = bench.maker(4)
        rows = pairs(bench.scale.tldr, 4, check.vocabulary, maker.tokenizer)
        policy = check.language_model(maker, "cpu").to(name)
        judge = reward(bench.scale.small, maker.tokenizer, 1, "cpu").to(name)
        pad = maker.tokenizer.pad_token_id
        found["log-probs"].append(pair_logps(policy, token_rows(rows), pad, 8))
        found["rewards"].append(pair_rewards(judge, token_rows(rows), pad, 8))
        before = torch.cat([weights.detach().cpu().flatten() for weights in policy.parameters()])
        # Plain descent, whose step is the gradient: AdamW's first step is its sign, which rounding may turn.
        one = maker.ours("rpo dpo", policy, rows, optim="sgd", learning_rate=1.0)
        run_as(one.setting)
        one.step()
        after = torch.cat([weights.detach().cpu().flatten() for weights in policy.parameters()])
        one.close()
        found["gradient of a step"].append((after - before).double().numpy())
        del policy, judge, one
        release()
    for what, (cpu, other) in found.items():
        if what == "gradient of a step":
            apart, bar = float(np.linalg.norm(other - cpu) / np.linalg.norm(cpu)), 10 * EXACT
        else:
            apart, bar = float(np.abs(other - cpu).max() / np.abs(cpu).max()), EXACT
        yield fact(
            f"{check.device} beside the CPU, float32",
            f"{what}, {check.who}",
            f"apart by {apart:.2g}",
            "",
            f"≤ {bar:g}",
            apart <= bar,
        )


def repeats(check: Check) -> Iterator[Comparison]:
    """With `deterministic: true` the same command gives the same bytes, and so do steps of a larger model."""
    changed = f"device: {check.device}\ndtype: bfloat16\nthreads: 1\ndeterministic: true\n"
    made = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(dir=check.folder) as folder:
            suite = growth.write_suite(Path(folder) / "growth", 4, changed, toy=check.toy)
            growth.evaluate(suite / "dpo.yaml", [0.5], Path(folder) / "runs")
            made.append(_digests(Path(folder) / "runs"))
    differ = sorted(
        name for name in made[0].keys() | made[1].keys() if made[0].get(name) != made[1].get(name)
    )
    yield fact(
        "the same command twice, deterministic: true",
        "rpo evaluate from data to an evaluated policy, bfloat16",
        f"{len(made[0])} files of weights and tables; other bytes in {len(differ)}",
        ", ".join(differ[:3]),
        "0",
        not differ,
    )
    bench = check.bench()
    maker = bench.maker(bench.scale.batch)
    rows = pairs(bench.scale.tldr, 3 * bench.scale.batch, check.vocabulary, maker.tokenizer)
    ends = []
    for _ in range(2):
        policy = check.language_model(maker, check.device)
        one = maker.ours("rpo dpo", policy, rows, setting="repeats")
        run_as(one.setting)
        steps_of(one, 3)
        one.close()
        ends.append([weights.detach().cpu() for weights in policy.parameters()])
        del policy, one
        release()
    same = all(torch.equal(*both) for both in zip(*ends, strict=True))
    what = "equal" if same else "not equal"
    yield fact("the same steps twice, deterministic: true", f"3 of dpo, {check.who}", what, "", "equal", same)


def _digests(root: Path) -> dict[str, str]:
    """Of what a run makes: weights and tables, not logs, times and paths."""
    files = [file for kind in ("*.safetensors", "*.parquet") for file in root.rglob(kind)]
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def samples_alone(check: Check) -> Iterator[Comparison]:
    """A sample does not depend on what shares its batch: float32, batches of three sizes."""
    bench = check.bench("float32")
    maker = bench.maker(1)
    model = check.language_model(maker, check.device)
    count, sizes = 8 * bench.scale.batch, (8 * bench.scale.batch, 7, 3)
    prompts = [
        row["prompt_ids"] for row in pairs(check.scale.posts, count, check.vocabulary, maker.tokenizer)
    ]
    draw = partial(sample, model, maker.tokenizer, prompts, temperature=1.0, top_p=1.0, max_new_tokens=12)
    drawn = [draw(batch_size=size, seed=0) for size in sizes]
    apart = [
        _from_an_edge(model, prompt, answers, copy)
        for prompt, copy, *answers in zip(prompts, occurrences(prompts), *drawn, strict=True)
        if len({tuple(each) for each in answers}) > 1
    ]
    farthest = max(apart, default=0.0)
    workload = f"{count} prompts, {' / '.join(map(str, sizes))} at a time, float32, {check.who}"
    yield fact(
        "a sample does not depend on its batch",
        workload,
        f"{len(apart)} of {count} differ, where their number is {farthest:.1g} or less from an edge",
        "",
        f"none farther than {AT_AN_EDGE:g}",
        farthest <= AT_AN_EDGE,
    )


def _from_an_edge(
    model: PreTrainedModel, prompt: list[int], answers: Sequence[Sequence[int]], copy: int
) -> float:
    """How far the number of the first token that differs is from the edges between the tokens picked there.

    Rounding moves an edge of the cumulative distribution across it. Prompts of random tokens are the worst
    case: behind them some ten thousand tokens are about equally likely, and each has its edge.
    """
    step = next(t for t in range(min(map(len, answers))) if len({each[t] for each in answers}) > 1)
    number = float(uniforms([prompt], [copy], step + 1, 0)[0, step])
    ids = torch.tensor([[*prompt, *answers[0][:step]]], device=model.device)
    with torch.no_grad():
        edges = model(ids).logits[0, -1].double().softmax(-1).cumsum(-1)
    picked = [each[step] for each in answers]
    return float((edges[[min(picked), max(picked) - 1]] - number).abs().max())


# --- speed and memory beside TRL ---


def policy_tldr(check: Check) -> Iterator[Comparison]:
    """dpo beside TRL and a bare loop, in two pieces and at once; e-dpo beside dpo."""
    bench = check.bench()
    scale, settings = bench.scale, bench.scale.llama
    maker, batch, said = bench.step_maker()
    rows = pairs(scale.tldr, check.taken(batch), settings["vocab_size"], maker.tokenizer, samples=True)
    without = _with_reference(bench, settings, rows, maker)
    policy = causal(settings, maker.tokenizer, 0, check.device)
    whole = bench.maker(batch)
    steps = check.taken(1)

    def bare() -> Contestant:
        like = maker.ours("like", copy.deepcopy(policy), without)
        return maker.bare("bare PyTorch loop", like, copy.deepcopy(policy), without, steps)

    done = check.race(
        bench,
        lambda: maker.ours("rpo dpo", copy.deepcopy(policy), without),
        lambda: maker.trl(TRL, copy.deepcopy(policy), without),
        lambda: whole.ours("rpo dpo, all at once", copy.deepcopy(policy), without),
        lambda: whole.trl("TRL, all at once", copy.deepcopy(policy), without),
        lambda: maker.ours(COMPILED, copy.deepcopy(policy), without, torch_compile=True),
        lambda: maker.ours("deterministic", copy.deepcopy(policy), without, setting="repeats"),
        lambda: maker.ours("rpo e-dpo", copy.deepcopy(policy), without, "e-dpo", **_WITHOUT_KL),
        lambda: maker.ours("rpo e-dpo, KL samples", copy.deepcopy(policy), rows, "e-dpo"),
        bare,
    )
    workload = _described(settings, policy, scale.tldr, rows, said)
    row = partial(faster, bench, workload=workload, done=done, work=batch)
    yield row("dpo step", names=("rpo dpo", TRL), times=2.5, speed=115)
    yield row("dpo step, all at once", names=("rpo dpo, all at once", "TRL, all at once"))
    yield row("dpo step, layers compiled", names=(COMPILED, "rpo dpo"))
    yield first_steps(done, "rpo dpo")
    yield row("dpo step, as shipped over deterministic", names=("rpo dpo", "deterministic"))
    yield row("dpo step over the bare loop", names=("rpo dpo", "bare PyTorch loop"))
    yield row(f"e-dpo, {scale.members} RMs, no KL samples", names=("rpo e-dpo", "rpo dpo"), times=0.97)
    yield row(
        f"e-dpo, {scale.members} RMs, KL samples", names=("rpo e-dpo, KL samples", "rpo dpo"), times=0.83
    )
    yield lighter(
        "peak memory, all at once", workload, done, ("rpo dpo, all at once", "TRL, all at once"), 0.5
    )
    yield lighter("peak memory", workload, done, ("rpo dpo", TRL), 0.5)


_WITHOUT_KL: dict[str, Any] = {"kl_estimator": "data", "gamma": 0.0, "gamma_end": None}


def _with_reference(bench: Bench, settings: Settings, rows: list[Row], maker: Maker) -> list[Row]:
    """The rows without samples, all with log-probs of another model's and margins."""
    bench.reference_logps(settings, rows, maker)
    margins = np.random.default_rng(1).normal(size=(len(rows), bench.scale.members))
    for row, values in zip(rows, margins.tolist(), strict=True):
        row["margins"] = values
    release()
    return without_samples(rows)


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
    rows = _with_reference(bench, settings, rows, maker)
    policy = causal(settings, maker.tokenizer, 0, check.device)
    done = check.race(
        bench,
        lambda: maker.ours("rpo dpo", copy.deepcopy(policy), rows),
        lambda: maker.trl(TRL, copy.deepcopy(policy), rows),
    )
    workload = _described(settings, policy, shape, rows, said)
    yield faster(bench, "dpo step", workload, done, ("rpo dpo", TRL), batch, times=times)
    yield lighter("peak memory", workload, done, ("rpo dpo", TRL), 0.5)


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
    for row in sections.scoring(check.bench(rounds=1, batch=8 * check.scale.batch)):
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
    other: tuple[str, sections.Sampler] | None = None,
    dtype: str = "bfloat16",
    size: int = 512,
) -> Comparison:
    """Summaries of about 12 tokens, `size` at a time."""
    bench, lengths, limit, what = _summaries(check, count, dtype, size)
    return sections.sampled(bench, lengths, limit, what, other)


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
    drawing = sections.Drawing(bench, lengths, limit)
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
    changed: tuple[tuple[str, sections.Sampler, str], ...] = (
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


def _with(*changed: tuple[Any, str, object]) -> sections.Sampler:
    """The sampler, with another value of some things that it reads."""

    def sampler(*given: Any, **settings: Any) -> list[list[int]]:
        with ExitStack() as others:
            for module, name, value in changed:
                others.enter_context(patch.object(module, name, value))
            return sample(*given, **settings)

    return sampler


@torch.inference_mode()
def _static(
    model: Any, tokenizer: Any, prompts: Any, *, temperature: float, top_p: float, max_new_tokens: int,
    batch_size: int, seed: int,
) -> list[list[int]]:  # fmt: skip
    """The sampler of devices that compile a program for each shape."""
    stops = [tokenizer.eos_token_id]
    how = Sampling(tokenizer.pad_token_id, stops, temperature, top_p, max_new_tokens, batch_size, seed)
    return in_batches(model, prompts, how)


def figure(check: Check) -> Iterator[Comparison]:
    """As much of a whole figure as the minutes allow."""
    recipe = gpu_figure.recipe_for(check.out, check.model, check.data, toy=check.toy)
    jobs = 1 if check.toy else gpu_figure.JOBS
    real = not check.toy and None not in (check.model, check.data)
    seconds, first = max(1.0, check.left() - 20), gpu_figure.FIRST if real else None
    yield from gpu_figure.figure(recipe, check.out, check.device, seconds, jobs, tune=real, first=first)


# Sections, and the seconds that each is expected to take on an H100: none starts that does not fit.
SECTIONS: Sequence[tuple[Callable[[Check], Iterator[Comparison]], int]] = (
    (leads, 60), (policy_tldr, 230), (first_losses, 45), (equal_to_the_cpu, 30), (repeats, 60),
    (samples_alone, 20), (small_steps, 60), (sampling, 60), (policy_chat, 60), (policy_neox, 60),
    (reward_models, 60), (scoring, 30), (kinds_of_kernel, 60), (sampling_leads, 50),
    (figure, 60),
)  # fmt: skip
