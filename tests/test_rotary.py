"""Rotary embeddings in fewer kernels: where they mean the same, with the same numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_norms import LAYERS, model_of
from torch import Tensor
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1Attention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as theirs

from rpo_cli.models.rotary import _fused, fuse_rotary

IDS = torch.arange(3, 12).view(1, -1)


def passes(model: Any, dtype: torch.dtype) -> list[Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(IDS).logits
    torch.autograd.backward(logits.float().square().mean())
    return [logits.detach(), *(weights.grad.clone() for weights in model.parameters())]


@pytest.mark.parametrize(
    ("kind", "layers"), [("llama", LAYERS), ("qwen3", LAYERS), ("gemma", LAYERS), ("gemma2", 0), ("glm", 0)]
)
def test_layers_that_turn_alike_give_the_same_bytes_without_an_autocast(kind: str, layers: int) -> None:
    plain = model_of(kind)
    fused = copy.deepcopy(plain)
    assert fuse_rotary(fused) == layers
    assert fuse_rotary(fused) == 0, "once"
    assert [type(one).__name__ for one in fused.modules()] == [type(one).__name__ for one in plain.modules()]
    for one, other in zip(passes(fused, torch.float32), passes(plain, torch.float32), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(passes(fused, torch.bfloat16), passes(plain, torch.bfloat16), strict=True):
        assert (one - other).norm() <= 2e-2 * other.norm()


def test_a_layer_that_does_more_to_keys_before_attention_stays() -> None:
    model = model_of("hunyuan_v1_dense")
    assert sum(type(module) is HunYuanDenseV1Attention for module in model.modules()) == LAYERS
    assert fuse_rotary(model) == 0, "a norm behind it would read rounded numbers"


def test_turned_rows_are_rounded_once_and_so_are_their_gradients() -> None:
    torch.manual_seed(0)
    query, key, given = (torch.randn(2, 40, heads, 16).transpose(1, 2) for heads in (3, 1, 3))
    angles = 100 * torch.rand(2, 40, 8).repeat(1, 1, 2)

    def turned(turn: Any, *, exact: bool) -> tuple[Tensor, Tensor]:
        low, high = (torch.float64, torch.float64) if exact else (torch.bfloat16, torch.float32)
        rows = query.bfloat16().to(low).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            found, _ = turn(rows, key.bfloat16().to(low), angles.cos().to(high), angles.sin().to(high))
            found = found.to(low)
        (slope,) = torch.autograd.grad(found, rows, given.bfloat16().to(low))
        return found.detach(), slope

    (right, slope), (old, old_slope), (new, new_slope) = (
        turned(theirs, exact=True), turned(theirs, exact=False), turned(_fused(theirs), exact=False)
    )  # fmt: skip
    assert (new - right).norm() <= 1.001 * (old - right).norm()
    assert (new_slope - slope).norm() <= 0.8 * (old_slope - slope).norm()
    assert (new_slope - slope).abs().max() <= 2**-8 * slope.abs().max()


def test_a_key_that_several_queries_share_is_not_rounded_before_its_gradients_are_added_up() -> None:
    query, angles = torch.ones(1, 4, 3, 8).bfloat16(), torch.ones(1, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        for heads, dtype in ((4, torch.bfloat16), (2, torch.float32)):
            turned = _fused(theirs)(query, query[:, :heads], angles, angles)
            assert [each.dtype for each in turned] == [torch.bfloat16, dtype]
