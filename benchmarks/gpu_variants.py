"""dpo with LoRA, with layers that are computed again in the backward pass, with both, and on 4 bits.

Each beside TRL with the same keys of a recipe, on the same model: with LoRA both have the frozen base in
bfloat16, as this package holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import is_bitsandbytes_available, is_peft_available

from benchmarks.bench import Bench, Comparison
from benchmarks.contestants import Maker
from benchmarks.gpu_rows import NO_BITS, NO_PEFT, TRL, Check, by_graphs, fact, faster, lighter, with_reference
from benchmarks.race import Contestant, release, same_work
from benchmarks.workloads import pairs
from rpo_cli.models import four_bits, load_causal
from rpo_cli.models.frozen import hold_in_bfloat16
from rpo_cli.recipes.schema import PolicyRecipe

LORA: dict[str, Any] = {"use_peft": True}
RECOMPUTED: dict[str, Any] = {"gradient_checkpointing": True}
FOUR_BITS: dict[str, Any] = {"use_peft": True, "load_in_4bit": True}
Model = Callable[[], PreTrainedModel]


def lora(check: Check) -> Iterator[Comparison]:
    """dpo of an adapter, by graphs like dpo of all weights, beside TRL and beside that."""
    yield from _variant(check, "LoRA", LORA, beside_dpo=True, graphs="promised")


def checkpointing(check: Check) -> Iterator[Comparison]:
    """dpo with layers computed again, launched as shipped and, as a trial, by graphs."""
    yield from _variant(check, "checkpointing", RECOMPUTED, beside_dpo=True, graphs="tried")


def lora_checkpointing(check: Check) -> Iterator[Comparison]:
    """Both: what trains a large model on a small card."""
    yield from _variant(check, "LoRA and checkpointing", LORA | RECOMPUTED, graphs="tried")


def qlora(check: Check) -> Iterator[Comparison]:
    """An adapter on a base of 4 bits, with layers computed again, where bitsandbytes is installed."""
    yield from _variant(check, "QLoRA and checkpointing", FOUR_BITS | RECOMPUTED)


def _variant(
    check: Check, name: str, fields: dict[str, Any], *, beside_dpo: bool = False, graphs: str = ""
) -> Iterator[Comparison]:
    """One kind of dpo beside TRL's, and perhaps beside dpo of all weights that keeps its activations.

    graphs: "promised": its passes are graphs as shipped; "tried": as shipped they are none, and those of one
    more contestant, behind all the others, are.
    """
    lacks = NO_PEFT if "use_peft" in fields and not is_peft_available() else ""
    if "load_in_4bit" in fields and not is_bitsandbytes_available():
        lacks = NO_BITS
    if lacks:
        yield fact(f"dpo step, {name}", "", lacks, "", "", None)
        return
    bench = check.bench()
    settings, shape = bench.scale.llama, bench.scale.tldr
    maker, batch, said = bench.step_maker()
    rows = pairs(shape, check.taken(batch), settings["vocab_size"], maker.tokenizer)
    rows = with_reference(bench, settings, rows, maker)
    whole = partial(check.drawn, settings, maker)
    model = _model(check, bench, maker, fields)
    ours, theirs, captured = f"rpo {name}", f"{TRL} {name}", f"rpo {name}, as graphs"
    makers: list[Callable[[], Contestant]] = [
        lambda: maker.ours(ours, model(), rows, **fields),
        lambda: maker.trl(theirs, model(), rows, **fields),
    ]
    if beside_dpo:
        makers.append(lambda: maker.ours("rpo dpo", whole(), rows))
    done = check.race(bench, *makers)
    workload = check.described(settings, maker, shape, rows, said)
    speed = partial(faster, bench, workload=workload, done=done, work=batch)
    memory = partial(lighter, workload=workload, done=done)
    others = {theirs: f"dpo step, {name}"}
    if beside_dpo:
        others["rpo dpo"] = f"{name} over dpo of all weights, activations kept"
    for other, what in others.items():
        yield speed(what, names=(ours, other))
        yield memory(f"peak memory, {name}", names=(ours, other))
    yield by_graphs(check, done, (ours,) if graphs == "promised" else ())
    if graphs == "tried":
        done |= check.race(bench, lambda: maker.ours(captured, model(), rows, by_graphs=True, **fields))
        same_work(list(done.values()), 2e-2)
        yield speed(f"{name}: as graphs over kernel by kernel", names=(captured, ours))
        yield memory(f"peak memory, {name}, as graphs", names=(captured, ours))
        yield by_graphs(check, {captured: done[captured]})


def _model(check: Check, bench: Bench, maker: Maker, fields: dict[str, Any]) -> Model:
    """What draws a contestant's model, with its base as the package's stages hold it."""
    settings = bench.scale.llama
    if "load_in_4bit" in fields:
        return _in_four_bits(check, bench, maker, fields)

    def drawn() -> PreTrainedModel:
        model = check.drawn(settings, maker)
        if "use_peft" in fields:
            hold_in_bfloat16(model)
        return model

    return drawn


def _in_four_bits(check: Check, bench: Bench, maker: Maker, fields: dict[str, Any]) -> Model:
    """What loads a model of random weights with its base in 4 bits, as the package's stages do."""
    source = check.folder / "whole"
    model = check.drawn(bench.scale.llama, maker)
    model.save_pretrained(source)
    maker.tokenizer.save_pretrained(source)
    del model
    release()
    how: dict[str, Any] = {"dtype": bench.device.dtype_name, **fields}
    recipe = PolicyRecipe(stage="policy", objective="dpo", beta=0.1, **how)
    bits = four_bits(recipe, bench.device)
    return partial(load_causal, source, recipe, bench.device, maker.tokenizer, training=True, bits=bits)
