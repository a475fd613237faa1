"""RMS norms by torch's own operation: those that mean the same, with the same numbers and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rpo_cli.models.norms import fuse_norms

LAYERS = 2
SIZES: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES))
    for weights in model.parameters():
        weights.data += 0.1 * torch.randn_like(weights)
    return model


@pytest.mark.parametrize(
    ("kind", "norms"),
    [("llama", 2 * LAYERS + 1), ("qwen3", 4 * LAYERS + 1), ("gemma", 0), ("gemma2", 0)],
)
def test_norms_that_mean_the_same_are_torchs(kind: str, norms: int) -> None:
    plain = model_of(kind)
    fused = copy.deepcopy(plain)
    assert fuse_norms(fused) == norms
    assert fuse_norms(fused) == 0, "once"
    assert [type(one).__name__ for one in fused.modules()] == [type(one).__name__ for one in plain.modules()]
    ids = torch.arange(3, 12).view(1, -1)
    for model in (plain, fused):
        torch.autograd.backward(model(ids).logits.square().mean())
    assert torch.allclose(fused(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-6)
    rounded = ids.new_ones(1, 16).to(torch.bfloat16)
    norm = "model.norm"
    assert torch.equal(fused.get_submodule(norm)(rounded), plain.get_submodule(norm)(rounded))


class StrangeRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-6

    def forward(self, rows: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return rows * gate


def test_a_norm_that_takes_something_else_stays() -> None:
    model = nn.Sequential(StrangeRMSNorm())
    assert fuse_norms(model) == 0 and type(model[0]) is StrangeRMSNorm
