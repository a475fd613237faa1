"""Compiled layers: which are, when, and that they change nothing but the time of a step."""

from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import Tiny
from torch import nn
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForSequenceClassification

from rpo_cli.devices import Device
from rpo_cli.models.compiled import cannot_compile, compiled, in_step, layers_of
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.stages.training import loop


def test_the_layers_of_a_model_are_those_that_repeat() -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2,
        num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    assert layers_of(model) == list(model.model.layers)
    experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    blocks = nn.ModuleList([nn.Sequential(experts), nn.Sequential(nn.Identity())])
    assert layers_of(nn.Sequential(nn.Linear(2, 2), blocks)) == list(blocks), "not their own parts"
    assert layers_of(nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])) == []


class Layer(nn.Linear):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(rows).relu()


def test_compiled_code_runs_in_steps_alone_and_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        seen.append(len(inputs))
        return graph.forward

    compile_layer = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compile_layer(self, backend=backend, **how))
    model = nn.Sequential(nn.ModuleList([Layer(3, 3), Layer(3, 3)]))
    layers, rows = list(model[0]), torch.ones(2, 3)
    torch._dynamo.reset()
    with compiled(model):
        layers[0](rows)
        assert not seen, "outside a step"
        with in_step():
            first, second = layers[0](rows), layers[1](torch.ones(5, 3))
        layers[1](rows)
    assert len(seen) == 1, "one code for both layers and for any number of rows"
    assert torch.equal(first, layers[0](rows)) and second.shape == (5, 3)
    with in_step():
        layers[0](rows)
    assert len(seen) == 1


def compiles(device: str, layers: int = 2, **keys: Any) -> tuple[bool, list[str]]:
    told: list[str] = []
    recipe = PolicyRecipe(stage="policy", objective="dpo", beta=0.1, **keys)
    report = cast(Any, SimpleNamespace(job=SimpleNamespace(recipe=recipe), tell=told.append))
    model = nn.Sequential(nn.ModuleList([Layer(3, 3)] * layers))
    trainer = cast(Any, SimpleNamespace(device=Device(device, "float32", "test"), model=model))
    return loop._compiles(trainer, report), told


def test_layers_are_compiled_where_a_recipe_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "cannot_compile", lambda device: None)
    for device in ("cpu", "cuda"):
        assert compiles(device) == (False, [])
        assert compiles(device, torch_compile=True) == (True, [])


def test_where_nothing_can_be_compiled_it_trains_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "cannot_compile", lambda device: "there is no compiler")
    said = "torch_compile: layers are not compiled: {}".format
    assert compiles("cuda", torch_compile=True) == (False, [said("there is no compiler")])
    assert compiles("xla", torch_compile=True) == (False, [said("XLA compiles by itself")])
    alone = said("the model has none that repeat")
    assert compiles("cpu", layers=1, torch_compile=True) == (False, [alone])
    monkeypatch.setattr(loop, "processes", lambda: 2)
    assert compiles("cpu", torch_compile=True) == (False, [said("several processes share the model")])


def test_what_a_compiler_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(import_module("rpo_cli.models.compiled"), "find_spec", lambda name: None)
    assert cannot_compile("cpu") == "there is no compiler (g++)"
    assert cannot_compile("cuda") == "Triton is not installed"


@pytest.mark.slow
@pytest.mark.skipif(cannot_compile("cpu") is not None, reason="torch has nothing to compile with here")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_a_policy_through_compiled_layers_has_the_same_losses(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, frames = [], []
    # In this process: each of the compiler's own would import torch first.
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    # Of few kernels: to have torch's headers compiled beforehand takes longer than it saves.
    monkeypatch.setattr("torch._inductor.config.cpp_cache_precompile_headers", False)
    for compiling in ("false", "true"):
        tiny.edit("dpo.yaml", f"torch_compile: {compiling}")
        counters.clear()
        tiny.run("train-policy", "dpo.yaml")
        frames.append(counters["frames"]["ok"])
        (journal,) = tiny.root.glob("seed-0/rho-0.5/policies/dpo/**/metrics.jsonl")
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert frames[0] == 0 < frames[1]
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-4)
