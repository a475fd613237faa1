"""What an estimate counts for a logit is what a step holds for it."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch
from conftest import Tiny
from test_graphs import record
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rpo_cli.recipes.schema import TrainingRecipe
from rpo_cli.runs.memory import bytes_of_a_logit
from rpo_cli.stages import sft
from rpo_cli.stages.training import arguments
from rpo_cli.stages.training.trl import WholeBatches


class Held(TorchDispatchMode):
    """Of tensors as large as all logits of a step: the most bytes at once for each."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.logits, self.most = words, 0, 0
        self.bytes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor) and each.dim() == 3 and each.shape[-1] == self.words:
                storage = each.untyped_storage()
                self.logits = max(self.logits, each.numel())
                if storage._cdata not in self.bytes:
                    self.bytes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.bytes.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.bytes.values()))
        return found


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Bytes for each logit in every step that is trained."""
    seen: list[float] = []
    step, modes = WholeBatches.training_step, {}

    def watched(self: WholeBatches, *given: object, **more: object) -> torch.Tensor:
        mode = modes.setdefault(self, Held(self.model.config.vocab_size))
        mode.most = 0
        with mode:
            loss = step(self, *given, **more)
        seen.append(mode.most / max(1, mode.logits))
        return loss

    monkeypatch.setattr(WholeBatches, "training_step", watched)
    return seen


def counted(tiny: Tiny, recipe: str, *settings: str, several: bool = False) -> float:
    found = cast(TrainingRecipe, tiny.stage(recipe, *settings).recipe)
    return bytes_of_a_logit(found, several=several)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        ("dpo.yaml",),
        ("p-dpo.yaml",),
        ("p-dpo.yaml", "kl_estimator=full"),
        ("p-dpo.yaml", "kl_estimator=full", "shared_prompts=false"),
    ],
)
def test_a_policys_step_holds_what_is_counted_for_a_logit(
    settings: tuple[str, ...],
    several: bool,
    dtype: str,
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    held: list[float],
) -> None:
    if several:  # accelerate's autocast, or none
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if dtype == "bfloat16" else "no")
        monkeypatch.setattr(WholeBatches, "autocast_smart_context_manager", lambda self: nullcontext())
    more = (f"dtype={dtype}", "max_steps=1", "cuda_graphs=false")
    tiny.make(*settings, *more)
    assert max(held) == pytest.approx(counted(tiny, *settings, *more, several=several))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trls_head_holds_no_logits_and_graphs_six_of_a_kind(
    dtype: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, held: list[float]
) -> None:
    more = (f"dtype={dtype}", "max_steps=2")
    tiny.make("sft.yaml", *more)
    assert max(held) == 0
    record(monkeypatch)
    for module in (arguments, sft):
        monkeypatch.setattr(module, "graphed", lambda *given: True)
    tiny.make("sft.yaml", *more)
    assert held[-1] == pytest.approx(counted(tiny, "sft.yaml", *more, "device=auto"))
