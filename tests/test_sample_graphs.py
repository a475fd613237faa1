"""Sampling by a captured step: the sampler's own tokens, or its own way where there is no graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from recorded import Recorded
from transformers import PreTrainedModel

from rpo_cli.devices import Device, reading
from rpo_cli.models import new_causal, sample, sample_graphs, stops_of
from rpo_cli.models.draws import Sampling
from rpo_cli.stages.data import miniature

TOKENIZER = miniature.build_tokenizer()
LENGTHS = (3, 9, 4, 12, 24, 7, 25, 3, 23, 9, 30)
PROMPTS = [list(range(first, first + length)) for first, length in enumerate(LENGTHS, 5)]


@pytest.fixture
def model() -> PreTrainedModel:
    return model_of()


def model_of(kind: str = "llama", **keys: Any) -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.5}
    settings = {"model_type": kind, **sizes, **heads, **keys}
    made = new_causal(settings, TOKENIZER, Device("cpu", "float32", "test"), 0)
    made.generation_config.eos_token_id = list(range(5, 9))
    return made


def drawn(model: PreTrainedModel, *, graphs: bool = False) -> list[list[int]]:
    settings: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9, "max_new_tokens": 20, "batch_size": 2}
    if not graphs:
        return sample(model, TOKENIZER, PROMPTS, **settings, seed=3)
    how = Sampling(TOKENIZER.pad_token_id, stops_of(model.generation_config, TOKENIZER), **settings, seed=3)
    with reading(model.device):
        return sample_graphs.in_batches(model, PROMPTS, how)


def record(monkeypatch: pytest.MonkeyPatch, captured: Callable[..., Any] = Recorded) -> None:
    monkeypatch.setattr(sample_graphs, "CAPTURES", ("cpu",))
    monkeypatch.setattr(sample_graphs, "aside", nullcontext)
    monkeypatch.setattr(sample_graphs, "captured", captured)


@pytest.mark.parametrize("captured", [False, True])
def test_a_captured_step_gives_the_samplers_tokens(
    captured: bool, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = drawn(model)
    found = [len(answer) for answer in expected]
    assert min(found) < 8 and max(found) == 20
    if captured:
        record(monkeypatch)
    before = Recorded.made
    assert drawn(model, graphs=True) == expected
    if captured:
        assert 1 < Recorded.made - before < 6, "several widths, fewer than batches"
        assert drawn(model) == expected, "by itself"
    stops = {*range(5, 9), TOKENIZER.eos_token_id}
    with torch.autocast("cpu", torch.bfloat16):
        for answer in drawn(model, graphs=True):
            assert 1 <= len(answer) <= 20 and not stops & {*answer[:-1]}
            assert len(answer) == 20 or answer[-1] in stops


def test_a_model_whose_layers_forget_is_sampled_without_graphs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of("mistral", sliding_window=4)
    expected = drawn(model)
    record(monkeypatch)
    before = Recorded.made
    with caplog.at_level(logging.WARNING, "rpo"):
        assert drawn(model) == expected
    assert Recorded.made == before
    assert "from the same distribution: some of its layers do not see all tokens before" in caplog.text


def test_a_cache_of_fixed_size_that_gives_other_logits_is_found_out(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pad = TOKENIZER.pad_token_id
    assert sample_graphs.why_not(model, PROMPTS, pad, 20) is None
    update = sample_graphs._Layer.update

    def late(self: Any, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return update(self, keys * (1.01 if keys.shape[2] == 1 else 1), values, *args, **kwargs)

    monkeypatch.setattr(sample_graphs._Layer, "update", late)
    assert sample_graphs.why_not(model, PROMPTS[:1], pad, 19) is None, "seen of longer texts"
    sample_graphs.PROVEN.seen.clear()
    assert (
        sample_graphs.why_not(model, PROMPTS, pad, 20) == "its logits are others with a cache of fixed size"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("not permitted when stream is capturing"), "not permitted when stream is capturing"),
        (torch.OutOfMemoryError("CUDA out of memory"), sample_graphs.NO_MEMORY),
        (KeyError("heavily_compressed_attention"), "'heavily_compressed_attention'"),
    ],
)
def test_where_a_step_cannot_be_captured_samples_are_the_same(
    error: Exception,
    told: str,
    model: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, asked = drawn(model), 0

    def refuse(work: Callable[[], None]) -> Any:
        nonlocal asked
        asked += 1
        raise error

    record(monkeypatch, refuse)
    with caplog.at_level(logging.WARNING, "rpo"):
        assert drawn(model) == expected == drawn(model)
    goes_on = "sampling goes on without CUDA graphs, more slowly, from the same distribution"
    said = f"LlamaForCausalLM: {goes_on}: {told}"
    assert [record.getMessage() for record in caplog.records] == [said]
    assert asked == 1, "of one model once"


def test_a_cache_that_cannot_be_made_is_no_error(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(**kwargs: Any) -> Any:
        raise KeyError("heavily_compressed_attention")

    expected = drawn(model)
    record(monkeypatch)
    monkeypatch.setattr(sample_graphs, "StaticCache", unknown)
    assert drawn(model) == expected


def test_a_large_model_is_sampled_without_graphs(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(monkeypatch)
    assert sample_graphs.worth_it(model)
    monkeypatch.setattr(sample_graphs, "HOST_BOUND", model.num_parameters() - 1)
    assert not sample_graphs.worth_it(model)
