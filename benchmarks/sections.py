"""The comparisons, each against the bar that was set before measuring."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import growth, memory
from benchmarks.bench import Bench, Comparison, _described
from benchmarks.contestants import WITHOUT_KL
from benchmarks.race import Contestant, Setting, Spent, UnequalWork, race, run_as, steps_of, timed
from benchmarks.reading import in_turn, sampling, scoring
from benchmarks.together import Step, one_after_another, together
from benchmarks.workloads import Shape, causal, described, miniature_model, miniature_pairs, pairs, reward
from rpo_cli.models import Batch, PairCollator

TRL, COMPACT = "TRL, precomputed reference", "TRL likewise, head on responses only as on a GPU"
AS_DRAWN = "rpo dpo, rows as drawn"
NAIVE, NAIVE_COMPACT = (
    "TRL with everything in the loop",
    "everything in the loop, TRL's head on responses only as on a GPU",
)


def policy_tldr(bench: Bench) -> Iterator[Comparison]:
    """dpo beside TRL (both references) and a bare loop; e-dpo beside dpo."""
    scale, settings = bench.scale, bench.scale.llama
    maker, batch, said = bench.step_maker()
    rows = pairs(
        scale.tldr, (1 + scale.rounds) * batch, settings["vocab_size"], maker.tokenizer, samples=True
    )
    reference = bench.reference_logps(settings, rows, maker)
    for row, value in zip(
        rows, np.random.default_rng(1).normal(size=(len(rows), scale.members)).tolist(), strict=True
    ):
        row["margins"] = value
    policy = causal(settings, maker.tokenizer, 0, bench.device.name)
    without = [{key: value for key, value in row.items() if "sample" not in key} for row in rows]
    ours = maker.ours("rpo dpo", copy.deepcopy(policy), without)
    bare = maker.bare("bare PyTorch loop", ours, copy.deepcopy(policy), without, 1 + scale.rounds)
    contestants: list[Contestant] = [
        ours,
        maker.trl(TRL, copy.deepcopy(policy), without),
        maker.trl(COMPACT, copy.deepcopy(policy), without, setting="compact"),
        maker.trl("TRL, reference in the loop", copy.deepcopy(policy), without, reference),
        bare,
        maker.ours(AS_DRAWN, copy.deepcopy(policy), without, as_drawn=True),
        maker.ours("rpo e-dpo", copy.deepcopy(policy), without, "e-dpo", **WITHOUT_KL),
        maker.ours("rpo e-dpo, KL samples", copy.deepcopy(policy), rows, "e-dpo", kl_estimator="sample"),
    ]
    workload = _described(settings, policy, scale.tldr, rows, said)
    spent = race(contestants, scale.rounds, 1, bench.device)
    yield bench.compare("dpo step", workload, spent, "rpo dpo", TRL, 2.0)
    yield bench.compare("dpo step", workload, spent, "rpo dpo", COMPACT, 2.0)
    yield bench.compare("dpo step", workload, spent, "rpo dpo", "TRL, reference in the loop", None)
    yield bench.compare(
        "dpo step, a batch's rows from long to short", workload, spent, "rpo dpo", AS_DRAWN, None
    )
    yield bench.compare("dpo step over the bare loop", workload, spent, "rpo dpo", "bare PyTorch loop", 0.95)
    yield bench.compare(
        f"e-dpo, {scale.members} RMs, no KL samples", workload, spent, "rpo e-dpo", "rpo dpo", 0.97
    )
    yield bench.compare(
        f"e-dpo, {scale.members} RMs, KL samples", workload, spent, "rpo e-dpo, KL samples", "rpo dpo", 0.85
    )


def policy_naive(bench: Bench) -> Iterator[Comparison]:
    """e-dpo beside e-dpo with its reference and five reward models in the loop."""
    yield from _against_the_naive_way(bench, bench.scale.llama)


def policy_naive_neox(bench: Bench) -> Iterator[Comparison]:
    """The same on another architecture and a vocabulary of 50k."""
    yield from _against_the_naive_way(bench, bench.scale.neox)


def _against_the_naive_way(bench: Bench, settings: dict[str, Any]) -> Iterator[Comparison]:
    scale = bench.scale
    maker, batch, said = bench.step_maker()
    rounds = scale.rounds
    rows = pairs(scale.tldr, (1 + rounds) * batch, settings["vocab_size"], maker.tokenizer)
    reference = bench.reference_logps(settings, rows, maker)
    rms = bench.margins(settings, rows, maker)
    policy = causal(settings, maker.tokenizer, 0, bench.device.name)
    ours = maker.ours("rpo e-dpo", copy.deepcopy(policy), rows, "e-dpo", **WITHOUT_KL)
    settings_of: dict[str, Setting] = {NAIVE: "stock", NAIVE_COMPACT: "compact"}
    naive = [
        maker.naive(name, ours, copy.deepcopy(policy), rows, reference, rms, how)
        for name, how in settings_of.items()
    ]
    spent = race([ours, *naive], rounds, 1, bench.device)
    workload = _described(settings, policy, scale.tldr, rows, said)
    for name in settings_of:
        yield bench.compare(
            f"e-dpo, {scale.members} RMs, over the naive way", workload, spent, "rpo e-dpo", name, 8.0
        )


def _against_trl(
    bench: Bench, settings: dict[str, Any], shape: Shape, at_least: float | None
) -> Iterator[Comparison]:
    scale = bench.scale
    maker, batch, said = bench.step_maker()
    rounds = scale.rounds
    rows = pairs(shape, (1 + rounds) * batch, settings["vocab_size"], maker.tokenizer)
    bench.reference_logps(settings, rows, maker)
    policy = causal(settings, maker.tokenizer, 0, bench.device.name)
    contestants: list[Contestant] = [
        maker.ours("rpo dpo", copy.deepcopy(policy), rows),
        maker.trl(TRL, copy.deepcopy(policy), rows),
        maker.trl(COMPACT, copy.deepcopy(policy), rows, setting="compact"),
    ]
    spent = race(contestants, rounds, 1, bench.device)
    workload = _described(settings, policy, shape, rows, said)
    yield bench.compare("dpo step", workload, spent, "rpo dpo", TRL, at_least)
    yield bench.compare("dpo step", workload, spent, "rpo dpo", COMPACT, at_least)


def policy_neox(bench: Bench) -> Iterator[Comparison]:
    """dpo on another architecture and a vocabulary of 50k."""
    yield from _against_trl(bench, bench.scale.neox, bench.scale.tldr, 2.0)


def policy_chat(bench: Bench) -> Iterator[Comparison]:
    """dpo where responses are longer than prompts."""
    yield from _against_trl(bench, bench.scale.llama, bench.scale.chat, 1.3)


def policy_miniature(bench: Bench) -> Iterator[Comparison]:
    """dpo and e-dpo on the embedded miniature, where the overhead of a step is what counts."""
    scale, batch = bench.scale, 2 * bench.scale.batch
    maker = bench.maker(batch)
    settings = miniature_model(maker.tokenizer)
    rounds, steps = scale.rounds + 2, scale.miniature_steps
    rows = miniature_pairs((1 + rounds * steps) * batch, maker.tokenizer)
    reference = bench.reference_logps(settings, rows, maker)
    policy = causal(settings, maker.tokenizer, 0, bench.device.name)
    scored = [row | {"margins": [0.1 * k for k in range(scale.members)]} for row in rows]
    ours = maker.ours("rpo dpo", copy.deepcopy(policy), rows)
    contestants: list[Contestant] = [
        ours,
        maker.trl(TRL, copy.deepcopy(policy), rows),
        maker.trl(COMPACT, copy.deepcopy(policy), rows, setting="compact"),
        maker.trl("TRL, reference in the loop", copy.deepcopy(policy), rows, reference),
        maker.bare("bare PyTorch loop", ours, copy.deepcopy(policy), rows, 1 + rounds * steps),
        maker.ours("rpo e-dpo", copy.deepcopy(policy), scored, "e-dpo", **WITHOUT_KL),
    ]
    spent = race(contestants, rounds, steps, bench.device)
    workload = (
        f"miniature: {sum(p.numel() for p in policy.parameters()) / 1e6:.2f}M, {batch} pairs, "
        f"{described(rows)}"
    )
    yield bench.compare("dpo step", workload, spent, "rpo dpo", TRL, None)
    yield bench.compare("dpo step", workload, spent, "rpo dpo", COMPACT, None)
    yield bench.compare("dpo step", workload, spent, "rpo dpo", "TRL, reference in the loop", None)
    yield bench.compare("dpo step over the bare loop", workload, spent, "rpo dpo", "bare PyTorch loop", 0.8)
    yield bench.compare(
        f"e-dpo, {scale.members} RMs, no KL samples", workload, spent, "rpo e-dpo", "rpo dpo", None
    )


def reward_training(bench: Bench) -> Iterator[Comparison]:
    """Reward model training beside TRL's."""
    scale, settings = bench.scale, bench.scale.llama
    maker, batch, said = bench.step_maker()
    rounds = scale.rounds
    rows = pairs(scale.tldr, (1 + rounds) * batch, settings["vocab_size"], maker.tokenizer)
    model = reward(settings, maker.tokenizer, 0, bench.device.name)
    contestants: list[Contestant] = [
        maker.our_reward("rpo", copy.deepcopy(model), rows),
        maker.trl_reward("TRL RewardTrainer", copy.deepcopy(model), rows),
    ]
    spent = race(contestants, rounds, 1, bench.device)
    workload = _described(settings, model, scale.tldr, rows, said)
    yield bench.compare("RM training", workload, spent, "rpo", "TRL RewardTrainer", 1.6, "pairs/s", batch)


def grouping(bench: Bench) -> Iterator[Comparison]:
    """An epoch of dpo on batches of like lengths beside random ones: the same pairs in other company."""
    scale, settings = bench.scale, bench.scale.small
    rows = pairs(scale.tldr, scale.pairs[-1], settings["vocab_size"], bench.maker(scale.batch).tokenizer)
    steps = len(rows) // scale.batch
    names = {"group_by_length": "batches by length", "random": "random batches"}
    maker = bench.maker(scale.batch)
    policy = causal(settings, maker.tokenizer, 0, bench.device.name)
    spent: dict[str, list[Spent]] = {name: [] for name in names.values()}
    run_as("rpo")
    for number in range(scale.rounds):
        for strategy in list(names) if number % 2 == 0 else list(names)[::-1]:
            one = maker.ours(names[strategy], copy.deepcopy(policy), rows, train_sampling_strategy=strategy)
            one.step()  # an epoch from the second step on: the first of the next one closes it
            spent[one.name].append(timed(partial(steps_of, one, steps), bench.device.name))
            one.close()
            if sorted(i for ids in one.ids[:steps] for i in ids) != list(range(steps * scale.batch)):
                raise UnequalWork(f"{one.name}: not every pair once")
    workload = _described(settings, policy, scale.tldr, rows, f"{scale.batch} pairs")
    yield bench.compare(
        "dpo epoch, batches by length", workload, spent, *names.values(), None, "pairs/s", steps * scale.batch
    )


def ensemble_together(bench: Bench) -> Iterator[Comparison]:
    """A step of each member of a tiny ensemble in turn, as `rpo` trains them, beside all at once."""
    scale, steps = bench.scale, bench.scale.miniature_steps
    for batch in (4 * scale.batch, scale.batch):
        maker = bench.maker(batch)
        settings, pad = miniature_model(maker.tokenizer), maker.tokenizer.pad_token_id
        models = [reward(settings, maker.tokenizer, k, bench.device.name) for k in range(scale.members)]
        rows = miniature_pairs(scale.members * batch, maker.tokenizer)
        own = [PairCollator(pad)(rows[k * batch : (k + 1) * batch]) for k in range(scale.members)]
        batches = [{name: t.to(bench.device.name) for name, t in part.items()} for part in own]
        ways = {
            "one after another": one_after_another(models),
            "together, weights stacked": together(models, pad),
        }
        losses: dict[str, Tensor] = {}

        def work(
            name: str, step: Step, batches: list[Batch] = batches, losses: dict[str, Tensor] = losses
        ) -> None:
            for _ in range(steps):
                losses[name] = step(batches)

        def check(losses: dict[str, Tensor] = losses) -> None:
            one, two = losses.values()
            if not torch.allclose(
                one, two, rtol=1e-4, atol=1e-4 if bench.device.dtype_name == "float32" else 2e-2
            ):
                raise UnequalWork(
                    f"losses of members trained together {two.tolist()} and apart {one.tolist()}"
                )

        spent = in_turn(
            {name: partial(work, name, step) for name, step in ways.items()},
            scale.rounds,
            bench.device,
            check,
        )
        size = sum(p.numel() for p in models[0].parameters()) / 1e6
        workload = (
            f"miniature: {scale.members} reward models of {size:.2f}M, {batch} pairs each, {described(rows)}"
        )
        yield bench.compare(
            "tiny RMs, a step of each", workload, spent, *ways, None, "member-steps/s", steps * scale.members
        )


def peak_memory(bench: Bench) -> Iterator[Comparison]:
    """What a policy step needs beyond what is there before it, each in processes of its own."""
    peaks: dict[str, list[float]] = {"rpo dpo": [], TRL: [], COMPACT: []}
    losses: list[float] = []
    settings: dict[str, Setting] = {"rpo dpo": "rpo", TRL: "stock", COMPACT: "compact"}
    toy = bench.scale.memory_runs == 1
    for _ in range(bench.scale.memory_runs):
        for name, seen in peaks.items():
            result = (
                memory.step_peak(settings[name], bench)
                if toy
                else memory.in_own_process(settings[name], bench.device)
            )
            seen.append(result["peak"])
            losses.append(result["loss"])
    if max(losses) - min(losses) > (1e-4 if bench.device.dtype_name == "float32" else 2e-2) * max(
        1.0, max(losses)
    ):
        raise UnequalWork(f"losses of the memory runs differ: {losses}")
    neox = bench.scale.neox
    workload = f"TL;DR: {neox['model_type']}, vocabulary {neox['vocab_size']}, {bench.scale.batch} pairs"
    middle = {name: f"{name}: {statistics.median(seen) / 2**20:.0f} MiB" for name, seen in peaks.items()}
    for name in (TRL, COMPACT):
        ratios = [a / b for a, b in zip(peaks["rpo dpo"], peaks[name], strict=True) if b]
        yield Comparison(
            "peak memory of a dpo step, share of the baseline's",
            workload,
            middle["rpo dpo"],
            middle[name],
            ratios,
            "≤ 0.6",
            statistics.median(ratios) <= 0.6 if ratios else None,
            raw={n: peaks[n] for n in ("rpo dpo", name)},
            note=memory.HOW,
        )


def growth_of_work(bench: Bench) -> Iterator[Comparison]:
    """How time grows with pairs, reward models and cells."""
    for what, workload, line, passed, raw in growth.measured(bench):
        yield Comparison(what, workload, line, "", [], growth.BARS[what], passed, raw)


SECTIONS: Sequence[Callable[[Bench], Iterator[Comparison]]] = (
    policy_miniature, policy_tldr, policy_naive, policy_neox, policy_naive_neox, policy_chat, reward_training,
    scoring, grouping,
    ensemble_together, sampling, peak_memory, growth_of_work,
)  # fmt: skip
