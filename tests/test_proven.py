"""What was seen of a model is not tried again of one built alike, and decides as a trial would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_generation import LIMIT, PROMPTS, TOKENIZER, draw, forwarded, model_of

from rpo_cli.models import choice, decode, layout_for, response_logps
from rpo_cli.models.proven import Proven, built_alike

PAD = TOKENIZER.pad_token_id
GROUPS = [[[5, 6, 7, 1], [8, 1]] for _ in PROMPTS]


def other_weights(name: str) -> Any:
    """The same model with other weights."""
    model = model_of(name)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(weights.flip(0))
    return model


def layout(model: Any, prompts: list[list[int]] = PROMPTS) -> tuple[str, int]:
    """The layout for these prompts, and how often the model was read to choose it."""
    with forwarded(model) as seen:
        found = layout_for(model, response_logps, prompts, GROUPS[: len(prompts)], PAD, shared=True)
    return found, len(seen)


def decoder(model: Any, prompts: list[list[int]] = PROMPTS, room: int = LIMIT) -> tuple[Any, int]:
    """How the model is read step by step, and how often it was read to choose it."""
    with forwarded(model) as seen:
        found = decode.decoder_for(model, prompts, PAD, room, len(prompts))
    return found, len(seen)


def test_a_layout_is_tried_once_for_models_built_alike_and_again_for_longer_rows() -> None:
    first, again = layout(model_of("llama")), layout(other_weights("llama"))
    assert first[0] == again[0] == "shared" and first[1] > 4 and again[1] == 0
    assert layout(model_of("llama"), PROMPTS[:2]) == ("shared", 0)
    assert layout(model_of("llama"), [[9] * 30, *PROMPTS[1:]])[1] > 4
    assert layout(model_of("qwen2"))[1] > 4, "another architecture"


def test_a_layout_that_a_model_cannot_read_is_tried_each_time(caplog: pytest.LogCaptureFixture) -> None:
    """Of shorter rows it may: what is chosen for them must not depend on what was read before."""
    for _ in range(2):
        caplog.clear()
        found, times = layout(model_of("mamba"))
        assert found != "shared" and times > 4 and "cannot share prompts" in caplog.text
    assert not choice.PROVEN.seen


def test_a_cache_is_tried_once_for_models_built_alike_and_again_for_longer_texts() -> None:
    (first, _), times = decoder(model_of("llama"))
    (again, even), few = decoder(other_weights("llama"))
    assert times > 10 and few == 1 and not even and type(again) is type(first)
    assert again.cache_name == first.cache_name and again.ordinary
    assert decoder(model_of("llama"), room=LIMIT + 1)[1] > 10
    assert decoder(model_of("llama"), [[3], *PROMPTS])[1] > 10, "a shorter prompt: more padding"


def test_samples_are_the_same_whether_a_cache_was_tried_before_or_not() -> None:
    model = other_weights("llama")
    fresh = draw(model, PROMPTS)
    assert decode.PROVEN.seen
    assert draw(model, PROMPTS) == fresh


def test_models_are_alike_only_if_they_read_alike() -> None:
    one = built_alike(model_of("llama"))
    assert one == built_alike(other_weights("llama"))
    moved = other_weights("llama")
    moved.config._name_or_path = "elsewhere"
    assert one == built_alike(moved)
    for change in ("half", "window", "patched"):
        model = model_of("llama")
        if change == "half":
            model = model.bfloat16()
        elif change == "window":
            model.config.sliding_window = 3
        else:
            model.forward = lambda *given, **named: None
        assert one != built_alike(model), change


def test_what_holds_of_long_texts_holds_of_shorter_ones_alone() -> None:
    proven = Proven()
    proven.note("way", (5, 7))
    assert proven.holds("way", (5, 6)) and not proven.holds("way", (6, 6))
    assert not proven.holds("another", (1, 1))
