"""How weights that nobody trains are held: linear layers in bfloat16, or in 4 bits."""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from rpo_cli.devices import Device
from rpo_cli.errors import BadInput
from rpo_cli.models.layout import head_layers
from rpo_cli.recipes.schema import FourBits


def four_bits(recipe: FourBits, device: Device) -> BitsAndBytesConfig | None:
    """How bitsandbytes holds a frozen base's linear layers (Dettmers et al., 2023, QLoRA); None: not at all.

    Raises:
        BadInput: bitsandbytes is not installed, or cannot work on this device.
    """
    if not recipe.load_in_4bit:
        return None
    if device.name not in ("cpu", "cuda"):
        without = "LoRA without it does (load_in_4bit: false)"
        raise BadInput(f"load_in_4bit: bitsandbytes has no 4 bits on {device.name}; {without}")
    if not is_bitsandbytes_available():
        raise BadInput("load_in_4bit needs the extra `qlora`: pip install 'rpo-cli[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=recipe.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=getattr(torch, device.dtype_name),
    )


class RoundedLinear(torch.nn.Linear):
    """A linear layer held in bfloat16, which computes in float32 where there is no autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return torch.nn.functional.linear(input, self.weight.to(input.dtype), bias)


def hold_in_bfloat16(model: PreTrainedModel) -> None:
    """Round linear layers that nobody trains to what autocast would round them to in every step.

    The numbers are the same, and take half the memory. Embeddings, and a head that is tied to them, norms and
    what gives a reward model's reward stay in float32, in which autocast reads them or training changes them.
    """
    embeddings = model.get_input_embeddings().weight
    kept = set(map(id, head_layers(model)))
    for module in model.modules():
        if type(module) is torch.nn.Linear and id(module) not in kept and module.weight is not embeddings:
            module.to(torch.bfloat16)
            module.__class__ = RoundedLinear
