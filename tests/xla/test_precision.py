"""Which numbers a stage computes with on XLA: float32 is multiplied as float32, bfloat16 held as on a GPU."""

from __future__ import annotations

import pytest
import torch
from bars import on_xla, plain
from conftest import Tiny
from torch_xla import _XLAC, backends

from rpo_cli import devices
from rpo_cli.models import layout, load_causal, load_tokenizer
from rpo_cli.models.frozen import RoundedLinear
from rpo_cli.recipes.schema import ScoringRecipe

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


def test_a_stage_on_xla_multiplies_float32_as_float32(on_xla: Tiny) -> None:
    """A TPU's default would round the factors to bfloat16; XLA:CPU shows only what the programs ask for."""
    on_xla.make("sft.yaml", "max_steps=1")
    assert backends.get_mat_mul_precision() == "highest"
    product = torch.ones(4, 4, device="xla") @ torch.ones(4, 4, device="xla")
    assert "operand_precision={highest,highest}" in _XLAC._get_xla_tensors_hlo([product])


def test_a_model_that_is_only_read_in_bfloat16_is_held_in_it_and_says_the_same(plain: Tiny) -> None:
    source = plain.root / "seed-0/sft"
    tokenizer = load_tokenizer(source)
    batch = layout.make_batch([[5, 6, 7], [8, 9]], [[[10, 11], [12]], [[6, 7, 8], [5, 9]]], 0, "plain")
    found = []
    for dtype in ("bfloat16", "float32"):
        recipe = ScoringRecipe(stage="reference", device="xla", dtype=dtype)
        model = load_causal(source, recipe, devices.choose(recipe), tokenizer)
        held = [module for module in model.modules() if isinstance(module, RoundedLinear)]
        assert bool(held) is (dtype == "bfloat16")
        assert all(module.weight.dtype == torch.bfloat16 for module in held)
        on_device = {name: tensor.to("xla") for name, tensor in batch.items()}
        with torch.no_grad(), torch.autocast("xla", torch.bfloat16):
            found.append(layout.response_logps(model, on_device).cpu())
        if held:
            with torch.no_grad():  # as where there is no autocast
                unrounded = layout.response_logps(model, on_device).cpu()
            assert unrounded.dtype == torch.float32 and (unrounded - found[0]).abs().max() < 0.1
    assert torch.equal(found[0], found[1])
