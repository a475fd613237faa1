"""How time grows: with pairs, with reward models, with cells (rho x objectives)."""

from __future__ import annotations

import copy
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from typer.testing import CliRunner

from benchmarks.race import race, run_as, steps_of, timed
from benchmarks.workloads import TOY, causal, miniature_model, miniature_pairs, pairs, reward, token_rows
from rpo_cli.cli import app
from rpo_cli.models import pair_rewards

if TYPE_CHECKING:
    from benchmarks.bench import Bench

PAIRS_SCORED, PAIRS_TRAINED, MEMBERS, CELLS = (
    "scoring, by pairs",
    "training, by pairs",
    "e-dpo step, by RMs",
    "cells, rho x objectives",
)
LINEAR = "linear: no point further than 10 % from the line"
BARS = {
    PAIRS_SCORED: LINEAR,
    PAIRS_TRAINED: LINEAR,
    MEMBERS: "constant: 10 RMs cost at most 5 % more than one",
    CELLS: LINEAR,
}
Measured = tuple[str, str, str, bool, dict[str, list[float]]]


def fitted(x: Sequence[float], y: Sequence[float], unit: str) -> tuple[str, float]:
    """Least-squares line in words, and the largest residual as a share of the value there."""
    slope, start = np.polyfit(x, y, 1)
    worst = float(np.max(np.abs(np.array(y) - (start + slope * np.array(x))) / np.array(y)))
    return f"{start:.3g} s + {slope:.3g} s per {unit}; largest residual {100 * worst:.1f} %", worst


def measured(bench: Bench) -> Iterator[Measured]:
    yield _scored(bench)
    yield _trained(bench)
    yield _members(bench)
    yield _cells(bench)


def _scored(bench: Bench) -> Measured:
    maker, settings = bench.maker(bench.scale.batch), bench.scale.small
    rows = token_rows(pairs(bench.scale.tldr, bench.scale.pairs[-1], settings["vocab_size"], maker.tokenizer))
    model = reward(settings, maker.tokenizer, 0, bench.device.name)
    run_as("rpo")
    pair_rewards(model, rows[:2], 2 * bench.scale.batch)
    seconds: dict[str, list[float]] = {str(n): [] for n in bench.scale.pairs}
    for _ in range(bench.scale.rounds):
        for n in bench.scale.pairs:
            work = partial(pair_rewards, model, rows[:n], 2 * bench.scale.batch)
            seconds[str(n)].append(bench.seconds(timed(work, bench.device.name)))
    line, worst = fitted(bench.scale.pairs, [statistics.median(s) for s in seconds.values()], "pair")
    return PAIRS_SCORED, f"TL;DR, small Llama, {bench.scale.pairs} pairs", line, worst <= 0.1, seconds


def _trained(bench: Bench) -> Measured:
    maker, settings = bench.maker(bench.scale.batch), bench.scale.small
    counts = [n // bench.scale.batch * bench.scale.batch for n in bench.scale.pairs]
    rows = pairs(bench.scale.tldr, counts[-1], settings["vocab_size"], maker.tokenizer)
    policy = causal(settings, maker.tokenizer, 0, bench.device.name)
    run_as("rpo")
    seconds: dict[str, list[float]] = {str(n): [] for n in counts}
    for number in range(max(1, bench.scale.rounds // 2)):
        for n in counts if number % 2 == 0 else counts[::-1]:
            one = maker.ours("rpo", copy.deepcopy(policy), rows[:n])
            one.step()
            took = timed(partial(steps_of, one, n // bench.scale.batch), bench.device.name)
            seconds[str(n)].append(bench.seconds(took))
            one.close()
    line, worst = fitted(counts, [statistics.median(s) for s in seconds.values()], "pair")
    return (
        PAIRS_TRAINED,
        f"TL;DR, small Llama, one epoch of {tuple(counts)} pairs",
        line,
        worst <= 0.1,
        seconds,
    )


def _members(bench: Bench) -> Measured:
    scale, batch = bench.scale, 2 * bench.scale.batch
    maker = bench.maker(batch)
    counts = (1, 2, 5, 10)
    rows = miniature_pairs((1 + scale.rounds * scale.miniature_steps) * batch, maker.tokenizer)
    policy = causal(miniature_model(maker.tokenizer), maker.tokenizer, 0, bench.device.name)
    data = {k: [row | {"margins": [0.1 * i for i in range(k)]} for row in rows] for k in counts}
    # Margins grow with the member's number: at first the first is the least, so that all losses are the same.
    contestants = [
        maker.ours(
            str(k), copy.deepcopy(policy), data[k], "e-dpo", kl_estimator="data", gamma=0.0, gamma_end=None
        )
        for k in counts
    ]
    for one, k in zip(contestants, counts, strict=True):
        one.kind = f"{k} members"
    spent = race(contestants, scale.rounds, scale.miniature_steps, bench.device)
    seconds = {name: [bench.seconds(s) for s in values] for name, values in spent.items()}
    more = statistics.median(b / a for a, b in zip(seconds["1"], seconds["10"], strict=True))
    line, _ = fitted(counts, [statistics.median(seconds[str(k)]) for k in counts], "RM")
    return MEMBERS, f"miniature, {counts} RMs", f"{line}; ten over one: {more:.3f}", more <= 1.05, seconds


OBJECTIVES = ("dpo", "ipo", "ipo-norm")
PLAIN = "device: cpu\ndtype: float32\nthreads: 1\n"
BASE = (
    PLAIN + "max_length: 48\nper_device_train_batch_size: 16\nlr_scheduler_type: constant\n"
    "optim: adamw_torch_fused\n"
)
SUITE = {
    "base.yaml": BASE,
    "data.yaml": PLAIN + "stage: data\nsource: miniature\n"
    "rows: {pretrain: 8, sft_train: 200, sft_validation: 8, warmup: 8, pairs: 800, "
    "pairs_validation: 40, prompts_validation: 16, prompts_test: 64}\n",
    "sft.yaml": "extends: base.yaml\nstage: sft\nmax_steps: 5\nlearning_rate: 1e-2\n"
    "model_config_kwargs: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 3, "
    "num_attention_heads: 4, max_position_embeddings: 64, tie_word_embeddings: true}\n",
    "oracle.yaml": "extends: base.yaml\nstage: reward\ntable: pairs\nmodel_name_or_path: sft.yaml\n"
    "max_steps: 6\nlearning_rate: 3e-3\n",
    "relabel.yaml": PLAIN + "stage: relabel\nmax_length: 48\n",
    "splits.yaml": PLAIN + "stage: splits\nrho: 0.5\nnum_pairs: 128\nheld_out: 24\n"
    "ensemble: [0.2, 0.5, 0.8]\nsubset_size: equal\n",
    "policy.yaml": "extends: base.yaml\nstage: policy\nmodel_name_or_path: sft.yaml\nrho: 0.5\n"
    "max_steps: STEPS\nlearning_rate: 1e-3\n",
    "evaluate.yaml": PLAIN + "stage: evaluate\nmax_length: 48\nmax_new_tokens: 16\nbootstrap_samples: 200\n",
    **{f"{name}.yaml": f"extends: policy.yaml\nstage: policy\nobjective: {name}\n" for name in OBJECTIVES},
}
# Of a toy: little to score and to sample, and a model that is quick on a CPU.
SMALLER = {
    "pairs: 800": "pairs: 200",
    "prompts_test: 64": "prompts_test: 8",
    "num_pairs: 128": "num_pairs: 32",
    "hidden_size: 64, intermediate_size: 128, num_hidden_layers: 3": "hidden_size: 16, "
    "intermediate_size: 32, num_hidden_layers: 1",
    "max_new_tokens: 16": "max_new_tokens: 4",
}
RHOS = (0.4, 0.5, 0.6)


def _cells(bench: Bench) -> Measured:
    """One process, through the command line: data, pi_SFT, its samples and the oracle are there before."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        suite = write_suite(
            Path(folder) / "growth", max(2, bench.scale.miniature_steps), toy=bench.scale is TOY
        )
        ready = Path(folder) / "ready"
        evaluate(suite / "dpo.yaml", [0.3], ready)
        seconds: dict[str, list[float]] = {}
        for number, (rhos, objectives) in enumerate(bench.scale.grids):
            workspace = Path(folder) / f"grid-{number}"
            shutil.copytree(ready, workspace)

            def work(rhos: int = rhos, objectives: int = objectives, workspace: Path = workspace) -> None:
                for name in OBJECTIVES[:objectives]:
                    evaluate(suite / f"{name}.yaml", RHOS[:rhos], workspace)

            seconds[f"{rhos} x {objectives}"] = [bench.seconds(timed(work, "cpu"))]
    cells = [rhos * objectives for rhos, objectives in bench.scale.grids]
    line, worst = fitted(cells, [s[0] for s in seconds.values()], "cell")
    return (
        CELLS,
        f"miniature, short runs without reward models, grids {', '.join(seconds)}",
        line,
        worst <= 0.1,
        seconds,
    )


def write_suite(suite: Path, steps: int, plain: str = PLAIN, *, toy: bool = False) -> Path:
    """Recipes of short runs on the miniature's data, from nothing to evaluated policies."""
    suite.mkdir()
    sizes = {"STEPS": str(steps), **(SMALLER if toy else {}), PLAIN: plain}
    for name, text in SUITE.items():
        for size, other in sizes.items():
            text = text.replace(size, other)
        (suite / name).write_text(text)
    return suite


def evaluate(recipe: Path, rhos: Sequence[float], workspace: Path) -> None:
    """`rpo evaluate` in this process, with all that it needs."""
    words = [
        "evaluate",
        "--recipe",
        str(recipe),
        "--rho",
        ",".join(map(str, rhos)),
        "--workspace",
        str(workspace),
    ]
    done = CliRunner().invoke(app, words)
    if done.exit_code:
        raise RuntimeError(f"rpo {' '.join(words)}: {done.output}")
