"""What holds of every architecture that transformers can load, shown on small models of many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rpo_cli.artifacts import positions_of

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


@pytest.mark.parametrize(
    ("kind", "settings", "positions"),
    [
        ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 12}, 12),
        ("opt", {**SIZES, "ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 12}, 12),
        ("roberta", {**SIZES, "max_position_embeddings": 12, "is_decoder": True, "pad_token_id": 1}, 10),
        ("mpt", {"d_model": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 50, "max_seq_len": 12}, 12),
        ("llama", {**SIZES, "intermediate_size": 16, "max_position_embeddings": 12}, None),
        ("bloom", {"hidden_size": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50}, None),
    ],
)
def test_a_models_positions_are_as_many_as_it_can_read(
    kind: str, settings: dict[str, Any], positions: int | None
) -> None:
    config = AutoConfig.for_model(kind, **settings)
    assert positions_of(config) == positions_of(config.to_dict()) == positions
    model = AutoModelForCausalLM.from_config(config).eval()
    model(input_ids=torch.full((1, positions or 30), 5))
    if positions is not None:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, positions + 1), 5))


def test_the_positions_of_a_config_within_another_are_found() -> None:
    assert positions_of({"model_type": "some-vlm", "text_config": {"model_type": "opt"}}) is None
    inside = {"model_type": "opt", "max_position_embeddings": 2048}
    assert positions_of({"model_type": "some-vlm", "text_config": inside}) == 2048
