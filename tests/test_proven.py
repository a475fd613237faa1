"""What was seen of a model is not tried again of one built alike, and decides as a trial would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_generation import LIMIT, PROMPTS, SETTINGS, SIZES, TOKENIZER, draw, model_of

from rpo_cli.models import choice, decode, layout_for, response_logps
from rpo_cli.models.proven import Proven, built_alike

PAD = TOKENIZER.pad_token_id
GROUPS = [[[5, 6, 7, 1], [8, 1]] for _ in PROMPTS]
# Rotations that look at a batch: the first remembers the longest it has seen, the second takes other factors
# for batches that go beyond a limit.
BY_BATCH = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0},
    "longrope": {
        "rope_type": "longrope", "factor": 2.0, "rope_theta": 100.0, "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4, "original_max_position_embeddings": 20,
    },
}  # fmt: skip


def other_weights(name: str) -> Any:
    """The same model with other weights."""
    model = model_of(name)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(weights.flip(0))
    return model


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time that rows are read alone, to compare with them: what for."""
    made: list[str] = []
    for module in (choice, decode):
        alone = module.read_alone

        def told(*given: Any, name: str = module.__name__, read: Any = alone) -> torch.Tensor:
            made.append(name.rpartition(".")[2])
            found: torch.Tensor = read(*given)
            return found

        monkeypatch.setattr(module, "read_alone", told)
    return made


def layout(model: Any, prompts: list[list[int]] = PROMPTS, groups: Any = GROUPS) -> str:
    return layout_for(model, response_logps, prompts, groups[: len(prompts)], shared=True)


def test_a_layout_is_tried_once_for_models_built_alike_and_again_beyond_its_bounds(trials: list[str]) -> None:
    assert layout(model_of("llama")) == "shared" and trials == ["choice"]
    assert layout(other_weights("llama")) == layout(model_of("llama"), PROMPTS[-2:]) == "shared"
    assert len(trials) == 1
    for count, rows in enumerate(
        (
            ([[9] * 30, *PROMPTS[1:]], GROUPS),  # a longer prompt
            ([[3], *PROMPTS[1:]], GROUPS),  # a shorter row
            (PROMPTS, [[[5] * 20, [1]] for _ in PROMPTS]),  # a longer response
        ),
        2,
    ):
        assert layout(model_of("llama"), *rows) == "shared" and len(trials) == count
    layout(model_of("qwen2"))
    assert len(trials) == 5, "another architecture"


def test_a_layout_that_a_model_cannot_read_is_tried_each_time(
    trials: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of shorter rows it may: what is chosen for them must not depend on what was read before."""
    right = choice._trouble
    monkeypatch.setattr(choice, "_trouble", lambda *given: "no" if given[4] == "shared" else right(*given))
    for count in (1, 2):
        caplog.clear()
        assert layout(model_of("llama")) == "plain" and len(trials) == count
        assert "cannot share prompts: no" in caplog.text
    assert not choice.PROVEN.seen


def test_numbers_that_are_all_the_same_prove_nothing(trials: list[str]) -> None:
    model = model_of("llama")
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
    groups = [[[5, 1], [8, 1]] for _ in PROMPTS]
    assert layout(model, groups=groups) == layout(model, groups=groups) == "shared" and len(trials) == 2


def test_a_cache_is_tried_once_for_models_built_alike_and_again_beyond_its_bounds(trials: list[str]) -> None:
    def decoder(model: Any, prompts: list[list[int]] = PROMPTS, room: int = LIMIT) -> Any:
        return decode.decoder_for(model, prompts, room, len(prompts))

    def times() -> int:
        found = len(trials)
        trials.clear()
        return found

    (first, _), tried = decoder(model_of("llama"), room=1), times()
    assert tried and type(first) is decode._Cached
    decoder(model_of("llama"))
    assert times() >= tried, "without a step its cache was not tried"
    again, even = decoder(other_weights("llama"))
    assert times() == 0 and not even and type(again) is decode._Cached
    assert (
        (again.cache_name, again.ordinary)
        == (first.cache_name, first.ordinary)
        == (decode.cache_name(model_of("llama")), True)
    )
    for prompts, room in ((PROMPTS, LIMIT + 1), ([[3], *PROMPTS], LIMIT), ([[3] * 20, *PROMPTS], LIMIT)):
        decoder(model_of("llama"), prompts, room)
        assert times() > 0


def test_samples_and_numbers_are_the_same_whether_anything_was_tried_before_or_not() -> None:
    def numbers(model: Any) -> tuple[Any, list[float]]:
        samples, chosen = draw(model, PROMPTS), layout(model)
        batch = choice.make_batch(PROMPTS, GROUPS, PAD, chosen)
        with torch.no_grad():
            return samples, response_logps(model, batch).tolist()

    fresh = numbers(other_weights("llama"))
    assert decode.PROVEN.seen and choice.PROVEN.seen
    assert numbers(other_weights("llama")) == fresh


@pytest.mark.parametrize("rotation", BY_BATCH)
def test_of_a_rotation_that_looks_at_its_batch_nothing_is_taken_for_proven(
    rotation: str, monkeypatch: pytest.MonkeyPatch, trials: list[str]
) -> None:
    settings = {"model_type": "llama", **SIZES, "rope_parameters": BY_BATCH[rotation]}
    monkeypatch.setitem(SETTINGS, "by batch", settings)
    assert built_alike(model_of("by batch")) is None
    for count in (1, 2):
        layout(model_of("by batch"))
        assert len(trials) == count
    assert not choice.PROVEN.seen


def test_models_are_alike_only_if_they_read_alike() -> None:
    one = built_alike(model_of("llama"))
    assert one is not None and one == built_alike(other_weights("llama"))
    moved = other_weights("llama")
    moved.config._name_or_path = "elsewhere"
    assert one == built_alike(moved) != built_alike(moved, "more")
    for change in ("half", "window", "eager"):
        model = model_of("llama")
        if change == "half":
            model = model.bfloat16()
        elif change == "window":
            model.config.sliding_window = 3
        else:
            model.set_attn_implementation("eager")
        assert built_alike(model) not in (one, None), change


def test_of_a_model_with_a_way_of_its_own_nothing_is_known_beforehand() -> None:
    patched, hooked = model_of("llama"), model_of("llama")
    patched.forward = lambda *given, **named: None
    hooked.model.register_forward_hook(lambda module, given, output: output)
    assert built_alike(patched) is built_alike(hooked) is built_alike(model_of("mamba")) is None
    proven = Proven()
    proven.note(None, (5, 7))
    assert not proven.holds(None, (1, 1))


def test_what_holds_within_bounds_holds_within_narrower_ones_alone() -> None:
    proven = Proven()
    proven.note("way", (5, 7))
    assert proven.holds("way", (5, 6)) and not proven.holds("way", (6, 6))
    assert not proven.holds("another", (1, 1))
