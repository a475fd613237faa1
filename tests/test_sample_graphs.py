"""Sampling by a captured step: the sampler's own tokens, or its own way where there is no graph."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from recorded import Recorded
from transformers import PreTrainedModel

from rpo_cli.devices import Device, reading
from rpo_cli.errors import Diverged
from rpo_cli.models import new_causal, sample, sample_graphs, static_rows, stops_of
from rpo_cli.models.draws import Sampling, Waiting, occurrences, uniforms
from rpo_cli.models.score import silent
from rpo_cli.stages.data import miniature

TOKENIZER = miniature.build_tokenizer()
LENGTHS = (3, 9, 4, 12, 24, 7, 25, 3, 23, 9, 30)
PROMPTS = [list(range(first, first + length)) for first, length in enumerate(LENGTHS, 5)]


@pytest.fixture
def model() -> PreTrainedModel:
    return model_of()


def model_of(kind: str = "llama", **keys: Any) -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {} if kind == "gpt_neox" else {"num_key_value_heads": 1}
    settings = {"model_type": kind, **sizes, **heads, "max_position_embeddings": 64, **keys}
    if kind == "gpt2":
        settings = {"model_type": kind, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    settings["initializer_range"] = 0.5
    made = new_causal(settings, TOKENIZER, Device("cpu", "float32", "test"), 0)
    made.generation_config.eos_token_id = list(range(5, 9))
    return made


def drawn(
    model: PreTrainedModel,
    *,
    graphs: bool = False,
    prompts: list[list[int]] = PROMPTS,
    batch_size: int = 2,
    **more: Any,
) -> list[list[int]]:
    how = replace(Sampling(1.5, 0.9, 20, batch_size, seed=3), **more)
    if not graphs:
        return sample(model, TOKENIZER, prompts, how)
    stops = stops_of(model.generation_config, TOKENIZER)
    with reading(model.device):
        return sample_graphs._answers(model, prompts, how, stops, silent)


@contextmanager
def forwarded(model: PreTrainedModel) -> Iterator[list[tuple[int, int]]]:
    """(rows, columns) of every forward pass."""
    seen: list[tuple[int, int]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    handle.remove()


def record(monkeypatch: pytest.MonkeyPatch, captured: Callable[..., Any] = Recorded) -> None:
    for module in (sample_graphs, static_rows):
        monkeypatch.setattr(module, "CAPTURES", ("cpu",))
    monkeypatch.setattr(static_rows, "aside", nullcontext)
    monkeypatch.setattr(static_rows, "captured", captured)


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


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_prompts_of_any_length_in_any_number_of_rows_have_the_samplers_tokens(kind: str) -> None:
    model = model_of(kind)
    prompts = [*PROMPTS, [9], [10], *PROMPTS[:4], [9]]  # nothing but a token; copies that lie apart
    assert sample_graphs.why_not(model, prompts, 20) is None
    expected = drawn(model, prompts=prompts, batch_size=8)
    for batch_size in (1, 3, 8, 50):
        assert drawn(model, graphs=True, prompts=prompts, batch_size=batch_size) == expected
    assert drawn(model, graphs=True, prompts=[[9], [10]]) == drawn(model, prompts=[[9], [10]])


def test_the_next_prompts_are_read_into_rows_whose_responses_have_ended(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_graphs, "LOOK", 1)
    longest = [10] * 30
    prompts = [longest, *[text for text in PROMPTS for _ in range(4)]]  # copies of each, side by side
    with forwarded(model) as seen:
        counts = [len(answer) for answer in drawn(model, graphs=True, prompts=prompts, batch_size=8)]
    steps = [shape for shape in seen if shape == (8, 1)]
    one_by_one = sum(max(counts[start : start + 8]) for start in range(0, len(counts), 8))
    assert sum(counts) / 8 <= len(steps) < 0.8 * one_by_one, "rows do not wait for the longest of a batch"
    read = [shape for shape in seen if shape[1] > 1]
    assert sum(rows for rows, _ in read) < 0.8 * len(prompts), "copies that are read together are read once"
    assert [columns for _, columns in read] == sorted((columns for _, columns in read), reverse=True)


def test_rows_that_need_fewer_columns_are_read_with_fewer(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[tuple[int, int]] = []
    advance = static_rows.Rows.advance

    def noted(self: Any, width: int) -> None:
        going = self.position[~self.ended]
        assert len(going) == 0 or int(going.max()) < width, "each token has a column"
        widths.append((width, self.shared.columns))
        advance(self, width)

    monkeypatch.setattr(static_rows.Rows, "advance", noted)
    assert drawn(model, graphs=True) == drawn(model)
    assert {columns for _, columns in widths} == {56}, "for 30 + 20, in eights"
    assert len({width for width, _ in widths}) > 1
    assert [width for width, _ in widths] == sorted((width for width, _ in widths), reverse=True)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_short_responses_take_no_more_steps_than_they_have_tokens(limit: int, model: PreTrainedModel) -> None:
    with forwarded(model) as seen:
        drawn(model, graphs=True, batch_size=4, max_new_tokens=limit)
    assert len([shape for shape in seen if shape == (4, 1)]) == 3 * limit, "three times four rows hold eleven"


def test_prompts_are_read_a_share_of_the_rows_at_a_time(model: PreTrainedModel) -> None:
    with forwarded(model) as seen:
        drawn(model, graphs=True, batch_size=8)
    assert max(rows for rows, columns in seen if columns > 1) == 2


@pytest.mark.parametrize("works", [True, False])
def test_caches_and_graphs_are_gone_when_the_samples_are_there(
    works: bool, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    begin = static_rows.Rows.__init__

    def noted(self: Any, *args: Any) -> None:
        begin(self, *args)
        made.append(weakref.ref(self))

    def second_refused(work: Callable[[], None], pool: object) -> Any:
        if pool is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return WithPool(work)

    class WithPool(Recorded):
        def pool(self) -> object:
            return "a pool"

    monkeypatch.setattr(static_rows.Rows, "__init__", noted)
    record(monkeypatch, Recorded if works else second_refused)
    expected = drawn(model, batch_size=3, seed=4)
    made.clear()
    sample_graphs._given_up.clear()
    gc.collect()
    gc.disable()  # on a GPU a collection would come gigabytes too late
    try:
        assert drawn(model, batch_size=3, seed=4) == expected
        assert made and not [one for one in made if one() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("captured", [False, True])
def test_logits_that_are_not_finite_stop_the_run(
    captured: bool, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if captured:
        record(monkeypatch)
    with torch.no_grad():
        model.get_output_embeddings().weight[11] = float("nan")
    with pytest.raises(Diverged, match="not finite"):
        drawn(model, graphs=True)


@pytest.mark.parametrize("count", [1, 4])
def test_a_graph_whose_replay_gives_other_tokens_is_found_out(
    count: int, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one would that reads what was freed: of plausible tokens nobody would see it."""

    class Stale(Recorded):
        def __init__(self, work: Callable[[], None], pool: object = None) -> None:
            super().__init__(lambda: None)

    expected = drawn(model, batch_size=count)
    record(monkeypatch, Stale)
    with caplog.at_level(logging.WARNING, "rpo"):
        assert drawn(model, batch_size=count) == expected
    assert "without CUDA graphs" in caplog.text and "a replay gives other tokens" in caplog.text


def test_numbers_that_are_made_beforehand_are_those_of_each_prompt_and_copy() -> None:
    prompts = [*PROMPTS, *PROMPTS[:3], [9]]
    how = Sampling(1.0, 1.0, 5, 4, 7)
    waiting, of = Waiting(prompts, how), uniforms(prompts, occurrences(prompts), 5, 7)
    for ahead, most in ((4, 3), (2, 5), (9, 1), (0, 20)):
        waiting.prepare(ahead)
        new, table = waiting.take(most)
        assert torch.equal(table, of[new])
    assert not waiting


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
    assert sample_graphs.why_not(model, PROMPTS, 20) is None
    update = static_rows._Layer.update

    def late(self: Any, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return update(self, keys * (1.01 if keys.shape[2] == 1 else 1), values, *args, **kwargs)

    monkeypatch.setattr(static_rows._Layer, "update", late)
    assert sample_graphs.why_not(model, PROMPTS[:1], 19) is None, "seen of longer texts"
    sample_graphs.PROVEN.seen.clear()
    assert sample_graphs.why_not(model, PROMPTS, 20) == "its logits are others with a cache of fixed size"


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

    def refuse(work: Callable[[], None], pool: object) -> Any:
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
