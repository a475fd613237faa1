"""Training in bfloat16: one process has its autocast around model and loss, several have accelerate's."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny, journal, weights
from test_graphs import trained
from torch import Tensor, nn

from rpo_cli.devices import Device
from rpo_cli.models import Graphs, layout
from rpo_cli.models.rounded import Rounded
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.stages.training.arguments import arguments
from rpo_cli.stages.training.trl import WholeBatches

RUNS = {
    "dpo": ("dpo.yaml",),
    "p-dpo, full": ("p-dpo.yaml", "kl_estimator=full"),
    "e-dpo, batch": ("e-dpo.yaml", "ensemble_min=batch", "per_device_train_batch_size=4"),
    "reward": ("rm.yaml",),
    "reward, early": ("rm.yaml", "stopping=early", "eval_steps=2"),
    "sft": ("sft.yaml",),
    "reward, layers computed again": ("rm.yaml", "gradient_checkpointing=true"),
}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, torch.dtype]]:
    """Which masks models that are trained were given, and which logits they gave."""
    seen = set()
    mask, logps = layout._mask, layout.token_logps

    def masked(model: nn.Module, segments: Tensor) -> Tensor:
        made = mask(model, segments)
        if model.training:
            seen.add(("mask", made.dtype))
        return made

    def taken(logits: Tensor, *given: Tensor) -> Tensor:
        if logits.requires_grad:
            seen.add(("logits", logits.dtype))
        return logps(logits, *given)

    monkeypatch.setattr(layout, "_mask", masked)
    monkeypatch.setattr(layout, "token_logps", taken)
    return seen


@pytest.mark.parametrize("name", RUNS)
def test_a_training_has_the_bytes_of_accelerates_autocast_without_its_float32_copies(
    name: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, read: set[tuple[str, torch.dtype]]
) -> None:
    recipe, *settings = RUNS[name]
    settings += ["dtype=bfloat16", "gradient_accumulation_steps=2", "max_grad_norm=0.1"]
    folder, manifest = tiny.make(recipe, *settings)
    found = weights(folder), journal(folder), manifest["metrics"]
    # The exact KL adds up two gradients of the logits.
    logits = torch.float32 if "full" in name else torch.bfloat16
    expected = {("mask", torch.bfloat16), ("logits", logits)}
    assert read <= expected and len(read) == {"sft.yaml": 0, "rm.yaml": 1}.get(recipe, 2)
    assert "bfloat16" in manifest["device"]
    assert any(line.get("grad_norm", 0) > 0.1 for line in found[1]), "gradients were clipped"

    read.clear()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(WholeBatches, "autocast_smart_context_manager", lambda self: nullcontext())
    folder, manifest = tiny.make(recipe, *settings)
    assert {dtype for _, dtype in read} == (set() if recipe == "sft.yaml" else {torch.float32})
    assert (weights(folder), journal(folder), manifest["metrics"]) == found


@pytest.mark.parametrize("recipe", ["dpo.yaml", "rm.yaml", "sft.yaml"])
def test_passes_of_a_training_that_are_captured_round_all_weights_together(
    recipe: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, read: set[tuple[str, torch.dtype]]
) -> None:
    copies: set[int] = set()
    used = Rounded.used

    def counted(self: Rounded) -> Any:
        copies.add(len(self.copies))
        return used(self)

    monkeypatch.setattr(Rounded, "used", counted)
    trained(tiny, monkeypatch, recipe, Graphs, "dtype=bfloat16")
    # Of each layer queries, keys and values, out, gate and up, down; a head that is not tied.
    assert copies == {2 * 4 + (recipe == "rm.yaml")}
    assert {dtype for _, dtype in read} == {torch.bfloat16}


def test_accelerates_autocast_is_there_where_several_processes_may_share_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = PolicyRecipe(stage="policy", objective="dpo")
    for several, dtype in ((False, "bfloat16"), (True, "bfloat16"), (True, "float32")):
        monkeypatch.setenv("WORLD_SIZE", "2" if several else "1")
        found = arguments(recipe, tmp_path, Device("cuda", dtype, "test"), 0)
        assert found["bf16"] is (several and dtype == "bfloat16")
