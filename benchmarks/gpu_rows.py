"""A card that is checked, and rows of its table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.bench import Bench, Comparison, _described
from benchmarks.contestants import Maker
from benchmarks.race import Contestant, Done, one_by_one, release
from benchmarks.workloads import Row, Scale, Settings, Shape, causal
from rpo_cli.devices import Device

OURS, TRL, COMPILED = "rpo", "TRL", "layers compiled"
NO_PEFT, NO_BITS = (f"not measured: {name} is not installed" for name in ("peft", "bitsandbytes"))


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

    def drawn(self, settings: Settings, maker: Maker) -> PreTrainedModel:
        """A language model of random weights, the same at each call: each contestant has its own alone."""
        return causal(settings, maker.tokenizer, 0, self.device)

    def described(self, settings: Settings, maker: Maker, shape: Shape, rows: list[Row], said: str) -> str:
        """What is measured, in words."""
        return _described(settings, causal(settings, maker.tokenizer, 0, "meta"), shape, rows, said)


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
    what: str, workload: str, done: dict[str, Done], names: tuple[str, str], bar: float | None = None
) -> Comparison:
    """Peak memory of the first as a share of the second's, weights and AdamW's state included."""
    said = [
        f"{name}: {done[name].peak / 2**30:.1f} GiB, {(done[name].peak - done[name].before) / 2**30:.1f} of "
        "them in a step"
        for name in names
    ]
    share = done[names[0]].peak / done[names[1]].peak
    if bar is None:
        return Comparison(what, workload, *said, [share])
    return Comparison(what, workload, *said, [share], f"≤ {bar:g}", share <= bar)


def by_graphs(check: Check, done: dict[str, Done], promised: Iterable[str] = ()) -> Comparison:
    """Whose passes were graphs to the end: where one cannot be captured, a training goes on without."""
    yes = [one.name for one in done.values() if one.captured]
    no = [one.name for one in done.values() if not one.captured]
    wanted = list(promised) if check.device == "cuda" else []
    ours, others = (", ".join(names) or "nobody" for names in (yes, no))
    bar = f"graphs: {', '.join(wanted)}" if wanted else ""
    held = set(wanted) <= set(yes) if wanted else None
    return fact("passes as CUDA graphs", "", f"as graphs: {ours}", f"without: {others}", bar, held)


def with_reference(bench: Bench, settings: Settings, rows: list[Row], maker: Maker) -> list[Row]:
    """The rows without samples, all with log-probs of another model's and margins."""
    bench.reference_logps(settings, rows, maker)
    margins = np.random.default_rng(1).normal(size=(len(rows), bench.scale.members))
    for row, values in zip(rows, margins.tolist(), strict=True):
        row["margins"] = values
    release()
    return without_samples(rows)


def without_samples(rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if "sample" not in key} for row in rows]
