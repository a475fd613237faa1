"""Kernels of a step, counted without a GPU: what a pass is to launch, and how much a layer more costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parent.parent
SIZES: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def kernels(layers: int, columns: int = 16, **how: Any) -> tuple[Counter[str], Counter[str]]:
    from benchmarks.counted import counted

    forward, backward = counted(SIZES | {"num_hidden_layers": layers}, (4, columns, 8), **how)
    assert forward.bytes.total() > 0 and backward.bytes.keys() == backward.kernels.keys()
    return forward.kernels, backward.kernels


def of_a_layer(**how: Any) -> tuple[int, int]:
    (one, back), (two, both) = kernels(1, **how), kernels(2, **how)
    return (two - one).total(), (both - back).total()


def test_kernels_of_a_layer_do_not_grow() -> None:
    from benchmarks.counted import PLAIN

    # Four products, two norms, six for rotary embeddings, a cast of each norm's rows and of keys, copies of
    # keys and values, attention, two of the gated MLP, two sums. Backward among others eight products, and
    # seven that add weights' gradients to their sums.
    assert of_a_layer() == (22, 42)
    assert of_a_layer(**PLAIN) == (41, 70), "as transformers has it, with torch's norms"


@pytest.mark.parametrize("columns", [16, 17])
def test_no_layer_casts_or_pads_the_mask(columns: int) -> None:
    from benchmarks.counted import float32_mask

    per_layer = [kernels(layers, columns)[0]["copies and casts"] for layers in (1, 2)]
    before = [kernels(layers, columns, mask=float32_mask)[0]["copies and casts"] for layers in (1, 2)]
    padding = 2 if columns % 8 else 0
    assert before[1] - before[0] == per_layer[1] - per_layer[0] + 1 + padding


class _Masks(TorchFunctionMode):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            self.seen.append(kwargs["attn_mask"])
        return func(*args, **(kwargs or {}))


def test_a_pass_casts_its_mask_once(small: Callable[..., nn.Module]) -> None:
    from rpo_cli.models import logps_of, make_batch, response_logits
    from rpo_cli.models.layout import attention_of

    batch = make_batch([[5, 6, 7], [8, 9]], [[[10, 11, 1], [12, 1]], [[13, 1], [14, 15, 1]]], 2, "shared")
    found = []
    for attention in ("sdpa", "eager"):
        model = small(attention)
        with _Masks() as masks, torch.autocast("cpu", torch.bfloat16):
            found.append(logps_of(response_logits(model, batch), batch))
        if attention == "sdpa":
            first = masks.seen[0]
            assert len(masks.seen) == 2 and all(each is first for each in masks.seen)
            assert first.dtype == torch.bfloat16 and first.stride(2) % 8 == 0
            expected = attention_of(batch["segments"])
            assert torch.equal(first == 0, expected == 0) and first.shape == expected.shape
    with _Masks() as masks:
        logps_of(response_logits(small("sdpa"), batch), batch)
    assert all(torch.equal(each, attention_of(batch["segments"])) for each in masks.seen), "float32 as before"
    assert torch.allclose(*found, rtol=2e-2)


@pytest.fixture
def small() -> Callable[..., nn.Module]:
    from test_norms import SIZES as KEYS
    from transformers import AutoConfig, AutoModelForCausalLM

    def made(attention: str) -> nn.Module:
        torch.manual_seed(0)
        config = AutoConfig.for_model("llama", **KEYS)
        model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        return model

    return made


def test_lists_are_counted_by_the_launches_they_need() -> None:
    from benchmarks.counted import _launches

    small = [torch.zeros(2) for _ in range(130)]
    assert _launches("_foreach_copy_", [small, small]) == 3, "64 tensors of each list in one"
    assert _launches("_foreach_zero_", [small]) == 2, "110 of a single list"
    assert _launches("_foreach_copy_", [[torch.zeros(65536 * 321)]]) == 2, "320 pieces of 65,536 numbers"
    assert _launches("_foreach_add_", [small, [each.bfloat16() for each in small]]) == 130, (
        "no dtype in common"
    )
