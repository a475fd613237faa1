"""What holds of every architecture that transformers can load, shown on small models of many."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rpo_cli.artifacts import positions_of
from rpo_cli.errors import BadInput
from rpo_cli.models import (
    TokenRow,
    layout_for,
    logps,
    pair_logps,
    pair_rewards,
    response_logps,
    response_rewards,
)

ROOT = Path(__file__).resolve().parent.parent

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


# What is committed, and a handful of kinds tried anew: full attention, ALiBi, windows, states, and positions
# that count from the padding token.
SOME = [
    "llama",
    "gpt2",
    "opt",
    "bloom",
    "falcon",
    "gpt_neo",
    "mistral",
    "gemma3_text",
    "mamba",
    "rwkv",
    "roberta",
]
REFUSED = ["xlnet"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return import_module("tools.architectures")


@pytest.mark.slow
def test_the_committed_page_has_fifty_architectures_and_says_of_some_what_they_do_today(
    tool: ModuleType,
) -> None:
    lines = tool.PAGE.read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) - 1 == len(tool.TYPES) >= 50
    for kind in [*SOME, *REFUSED]:
        assert f"| {' | '.join(tool.row_of(kind))} |" in lines
    assert {tool.row_of(kind)[1] for kind in SOME} == set(tool.READ.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOME)
@torch.no_grad()
def test_log_probs_are_those_of_each_row_alone_in_batches_of_any_size(tool: ModuleType, kind: str) -> None:
    model = tool.build(kind)
    prompts, groups = tool.some_rows()
    expected = [
        [
            model(input_ids=torch.tensor([prompt + answer]))
            .logits[0, len(prompt) - 1 : -1]
            .log_softmax(-1)[range(len(answer)), answer]
            .sum()
            .item()
            for answer in group
        ]
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    rows = [
        TokenRow(str(i), prompt, group) for i, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
    ]
    for shared in (True, False):
        found = pair_logps(model, rows, 6, shared=shared)
        assert found == pytest.approx(np.array(expected), rel=1e-5)
    one = logps(model, prompts, [group[1] for group in groups], 5)
    assert one == pytest.approx(np.array(expected)[:, 1], rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@torch.no_grad()
def test_rewards_are_those_of_each_row_alone_however_small_they_are(tool: ModuleType, scale: float) -> None:
    """GPT-Neo looks back a number of columns: in a shared row a short response would lose its prompt."""
    config = tool.build("gpt_neo").config
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.score.weight *= scale
    prompts, groups = tool.some_rows()
    rows = [
        TokenRow(str(i), prompt, group) for i, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
    ]
    expected = [
        [model(input_ids=torch.tensor([prompt + answer])).logits.item() for answer in group]
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    assert layout_for(model, response_rewards, prompts, groups, shared=True) == "right"
    for shared in (True, False):
        found = pair_rewards(model, rows, 6, shared=shared)
        assert found == pytest.approx(np.array(expected), abs=1e-5 * scale)


@torch.no_grad()
def test_an_encoder_may_be_a_reward_model_but_no_language_model(tool: ModuleType) -> None:
    sizes = {**SIZES, "intermediate_size": 16, "initializer_range": 0.3, "pad_token_id": tool.PAD}
    prompts, groups = tool.some_rows()
    judge = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("bert", **{**sizes, "vocab_size": tool.VOCABULARY}, num_labels=1)
    ).eval()
    rows = [
        TokenRow(str(i), prompt, group) for i, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
    ]
    expected = [
        [judge(input_ids=torch.tensor([prompt + answer])).logits.item() for answer in group]
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    assert pair_rewards(judge, rows, 6) == pytest.approx(np.array(expected), abs=1e-5)
    model = tool.build("bert", is_decoder=False)
    with pytest.raises(BadInput, match="is no causal language model"):
        layout_for(model, response_logps, prompts, groups, shared=True)
    with pytest.raises(BadInput, match="is no causal language model"):
        tool.sampled(model, prompts)
