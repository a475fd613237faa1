"""What must be equal on a card: first losses, replays, numbers beside the CPU's, two runs, samples alone."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from benchmarks import growth
from benchmarks.bench import Bench, Comparison
from benchmarks.contestants import CAPTURED_CHECKPOINTING, Maker
from benchmarks.gpu_rows import NO_PEFT, Check, fact, without_samples
from benchmarks.race import release, run_as, steps_of
from benchmarks.workloads import Row, pairs, reward, token_rows
from rpo_cli.devices import Device
from rpo_cli.models import (
    Graphs,
    PairCollator,
    logps,
    logps_of,
    pair_logps,
    pair_rewards,
    response_logits,
    response_rewards,
    sample,
)
from rpo_cli.models.draws import Sampling, occurrences, uniforms
from rpo_cli.models.frozen import hold_in_bfloat16
from rpo_cli.models.graphs import TOLERANCE
from rpo_cli.models.layout import Batch, Reader, to_device
from rpo_cli.models.norms import fuse_norms
from rpo_cli.models.rotary import fuse_rotary
from rpo_cli.objectives import OBJECTIVES
from rpo_cli.objectives.dpo import dpo_losses

EXACT = 1e-4  # of the largest number: float32 on two devices
AT_AN_EDGE = 1e-5  # of a distribution: what rounding in float32 may move an edge by, and more than it did


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
    size = 2 * bench.scale.batch
    with bench.device.autocast():
        both = pair_logps(model, token_rows(rows), size)
        prompts, drawn = [row["prompt_ids"] for row in rows], [row["sample_ids"] for row in rows]
        own = logps(model, prompts, drawn, size)
    margins = np.random.default_rng(1).normal(size=(len(rows), bench.scale.members))
    for row, (chosen, rejected), value, teachers in zip(
        rows, both.tolist(), own.tolist(), margins.tolist(), strict=True
    ):
        row |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected, "ref_sample_logps": value}
        row["margins"] = teachers
    return without_samples(rows)


def replays(check: Check) -> Iterator[Comparison]:
    """The gradient of a batch that a graph replays, after the capture with another, beside one without."""
    bench = check.bench()
    maker = bench.maker(bench.scale.batch)

    def policy() -> PreTrainedModel:
        return check.language_model(maker, check.device)

    def judge() -> PreTrainedModel:
        return reward(bench.scale.small, maker.tokenizer, 1, check.device)

    def adapted() -> nn.Module:
        from peft import LoraConfig, get_peft_model

        model = policy()
        hold_in_bfloat16(model)
        config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
        with_adapter: nn.Module = get_peft_model(model, config)
        return with_adapter

    kinds: tuple[tuple[str, Callable[[], nn.Module], Reader, bool], ...] = (
        ("dpo", policy, response_logits, False),
        ("reward model", judge, response_rewards, False),
        ("dpo, LoRA", adapted, response_logits, False),
        ("dpo, layers computed again (not captured as shipped)", policy, response_logits, True),
    )
    rows = pairs(bench.scale.tldr, bench.scale.batch, check.vocabulary, maker.tokenizer)
    others = [row | {"prompt_ids": row["prompt_ids"][::-1]} for row in rows]
    collate = PairCollator(maker.tokenizer.pad_token_id)
    batches = [to_device(collate(each), torch.device(check.device)) for each in (rows, others)]
    run_as("rpo")
    for name, made, read, again in kinds:
        if made is adapted and not is_peft_available():
            yield fact("gradient by graphs beside one without", name, NO_PEFT, "", "", None)
            continue
        torch.manual_seed(0)
        model: Any = made()
        if check.device == "cuda":
            fuse_norms(model)
            fuse_rotary(model)
        model.train()
        if again:
            model.activation_checkpointing_enable(CAPTURED_CHECKPOINTING)
        graphs = Graphs(read)
        with graphs.used():
            found = [_gradient(bench, model, graphs, batch) for batch in batches][1]
            captured = graphs.open and len(graphs.made) == 1
        expected = _gradient(bench, model, read, batches[1])
        apart = float((found - expected).norm() / expected.norm())
        yield fact(
            "gradient by graphs beside one without",
            f"{name}, bfloat16, {check.who}",
            f"apart by {apart:.2g}" if captured else "could not be captured",
            "",
            f"≤ {TOLERANCE:g}",
            captured and apart <= TOLERANCE,
        )
        del model, graphs
        release()


def _gradient(bench: Bench, model: nn.Module, read: Reader | Graphs, batch: Batch) -> Tensor:
    """Of a loss of the pairs, to all weights that are trained, as a trainer takes it."""
    model.zero_grad()
    with bench.device.autocast():
        values = read(model, batch)
        scores = logps_of(values, batch) if values.ndim > 1 else values
        better, worse = scores.chunk(2)
        loss = dpo_losses(better - worse, 0.1).mean()
    torch.autograd.backward(loss)
    found = [weights.grad for weights in model.parameters() if weights.grad is not None]
    return torch.cat([each.detach().float().flatten() for each in found])


def equal_to_the_cpu(check: Check) -> Iterator[Comparison]:
    """Log-probs, rewards and one training step in float32, beside the same on the CPU."""
    found: dict[str, list[Any]] = {"log-probs": [], "rewards": [], "gradient of a step": []}
    for name in ("cpu", check.device):
        bench = replace(check.bench("float32"), device=Device(name, "float32", "benchmark"))
        maker = bench.maker(4)
        rows = pairs(bench.scale.tldr, 4, check.vocabulary, maker.tokenizer)
        policy = check.language_model(maker, "cpu").to(name)
        judge = reward(bench.scale.small, maker.tokenizer, 1, "cpu").to(name)
        found["log-probs"].append(pair_logps(policy, token_rows(rows), 8))
        found["rewards"].append(pair_rewards(judge, token_rows(rows), 8))
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
    drawn = [sample(model, maker.tokenizer, prompts, Sampling(1.0, 1.0, 12, size, seed=0)) for size in sizes]
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
