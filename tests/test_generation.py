"""A sample is a function of model, prompt, seed and copy: not of the batch, its order, or what left it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaForCausalLM, TopPLogitsWarper

from rpo_cli.devices import Device
from rpo_cli.errors import RunFailed
from rpo_cli.models import Sampling, decode, new_causal, sample
from rpo_cli.models.draws import occurrences, pick, uniforms
from rpo_cli.models.sample_static import in_batches
from rpo_cli.models.score import silent
from rpo_cli.stages.data import miniature

SAMPLING = import_module("rpo_cli.models.sample")  # the file: in its package the name is the function's
TOKENIZER = miniature.build_tokenizer()
EOS = TOKENIZER.eos_token_id
LIMIT = 14
HOW = Sampling(1.5, 0.9, LIMIT, 7, seed=3)
USUAL = decode._Kind(decode.cache_name(LlamaForCausalLM), ordinary=True)
# Large weights: a shifted position, a padding token seen or a state of another row would show.
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES},
    "qwen2": {"model_type": "qwen2", **SIZES, "num_key_value_heads": 1},
    "qwen3": {"model_type": "qwen3", **GROUPED},
    "gpt_neox": {"model_type": "gpt_neox", **SIZES},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64,
    "initializer_range": 0.5},
    # Windows shorter than the prompts.
    "gemma2": {"model_type": "gemma2", **GROUPED, "sliding_window": 6},
    "gemma3": {"model_type": "gemma3_text", **GROUPED, "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 6},
    "mistral": {"model_type": "mistral", **GROUPED, "sliding_window": 6},
    "mamba": {"model_type": "mamba", "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2,
    "initializer_range": 0.5},
    "falcon_h1": {
        "model_type": "falcon_h1", **GROUPED, "mamba_d_ssm": 16, "mamba_n_heads": 4, "mamba_d_head": 4,
        "mamba_d_state": 4,
        "mamba_n_groups": 1, "mamba_chunk_size": 8,
    },
    "openai-gpt": {"model_type": "openai-gpt", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64,
    "initializer_range": 0.5},
    "rwkv": {
        "model_type": "rwkv", "hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2,
        "context_length": 64,
    },
    "bart": {
        "model_type": "bart", "d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32, "max_position_embeddings": 64, "init_std": 0.5,
    },
    "gpt_neo": {
        "model_type": "gpt_neo", "hidden_size": 16, "num_layers": 2, "num_heads": 2, "window_size": 6,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
        "initializer_range": 0.5,
    },
    "bloom": {"model_type": "bloom", "hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5},
    "opt": {"model_type": "opt", **SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16},
}  # fmt: skip
UNCACHED = ("openai-gpt", "rwkv")
UNEVEN = ("bart",)  # which heeds padding in front, and is read without
QUICK = ("llama", "mistral", "openai-gpt", "bart")  # one of each kind of cache
# Lengths 3 to 12; others of equal length, and copies that lie apart.
PROMPTS = [
    list(range(first, first + length))
    for first, length in ((5, 3), (5, 9), (20, 9), (5, 4), (20, 9), (7, 7), (5, 3), (9, 12))
] * 3


def model_of(name: str) -> Any:
    return new_causal(SETTINGS[name], TOKENIZER, Device("cpu", "float32", "test"), 0).eval()


@pytest.fixture(scope="module")
def llama() -> Any:
    return model_of("llama")


def draw(model: Any, prompts: list[list[int]], batch_size: int = 7, **more: Any) -> list[list[int]]:
    return sample(model, TOKENIZER, prompts, replace(HOW, batch_size=batch_size, **more))


@torch.inference_mode()
def alone(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """`draw`, row by row, the whole sequence in every step, without cache or padding."""
    answers = []
    for prompt, copy in zip(prompts, occurrences(prompts), strict=True):
        numbers = uniforms([prompt], [copy], LIMIT, 3)[0]
        answer: list[int] = []
        while len(answer) < LIMIT and EOS not in answer:
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[:, -1]
            answer += pick(logits, numbers[len(answer)][None], 1.5, 0.9).tolist()
        answers.append(answer)
    return answers


@contextmanager
def forwarded(model: Any) -> Iterator[list[tuple[int, int]]]:
    """(rows, columns) of every forward pass."""
    seen: list[tuple[int, int]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_samples_are_those_of_each_row_alone_without_a_cache_in_batches_of_any_size(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(name)
    with caplog.at_level(logging.WARNING, "rpo"):
        expected = alone(model, PROMPTS)
        assert len({len(answer) for answer in expected}) > 1
        for size in (1, 5, 100):
            assert draw(model, PROMPTS, size) == expected
        monkeypatch.setattr(SAMPLING, "RETIRE", 2.0)
        assert draw(model, PROMPTS, 100) == expected
    assert ("has no cache this sampler knows" in caplog.text) == (name in UNCACHED)
    assert ("those of one length go together" in caplog.text) == (name in UNEVEN)


def test_samples_do_not_depend_on_the_order_or_on_the_other_prompts(llama: Any) -> None:
    distinct = [list(prompt) for prompt in dict.fromkeys(map(tuple, PROMPTS))]
    answers = draw(llama, distinct)
    assert draw(llama, distinct[::-1]) == answers[::-1]
    assert draw(llama, distinct[:3]) == answers[:3]
    # What a run draws after an interruption, when it knows how many copies it had.
    assert draw(llama, PROMPTS)[: len(PROMPTS) // 2] == draw(llama, PROMPTS[: len(PROMPTS) // 2])


def test_copies_of_a_prompt_and_other_seeds_have_samples_of_their_own(llama: Any) -> None:
    copies = draw(llama, [[5, 6, 7]] * 20)
    assert len(set(map(tuple, copies))) > 15
    others = draw(llama, [[5, 6, 7]] * 20, seed=4)
    assert sum(one == other for one, other in zip(copies, others, strict=True)) < 5


def test_a_smaller_limit_cuts_the_same_samples(llama: Any) -> None:
    long, short = draw(llama, PROMPTS), draw(llama, PROMPTS, max_new_tokens=5)
    assert short == [answer[:5] for answer in long]
    assert any(len(answer) == LIMIT and answer[-1] != EOS for answer in long) and any(
        answer[-1] == EOS for answer in short
    )
    assert all(EOS not in answer[:-1] for answer in long)


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba", "openai-gpt"])
def test_ended_rows_are_read_no_further_and_copies_read_their_prompt_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    monkeypatch.setattr(SAMPLING, "RETIRE", 1e-9)
    with forwarded(model) as seen:
        answers = draw(model, PROMPTS, len(PROMPTS))
    expected = [sum(len(answer) > step for answer in answers) for step in range(1, max(map(len, answers)))]
    prompts, *steps = seen[-len(expected) - 1 :]  # what is before them are trials
    assert [rows for rows, _ in steps] == expected and expected[-1] < len(PROMPTS)
    if name in UNCACHED:
        return
    assert prompts == (len(set(map(tuple, PROMPTS))), 12)
    assert {columns for _, columns in steps} == {1}


class Casts(TorchDispatchMode):
    """Counts how often each of a model's weights is cast."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.names = {weights.data_ptr(): name for name, weights in model.named_parameters()}
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("to", "_to_copy") and args[0].data_ptr() in self.names:
            self.seen[self.names[args[0].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


def test_a_sampler_in_bfloat16_casts_a_weight_once_however_many_steps_it_takes(llama: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            with Casts(llama) as casts:
                draw(llama, PROMPTS)
            # The second time as well: what was cast is not kept until the autocast ends.
            assert casts.seen and set(casts.seen.values()) == {1}


def test_rows_leave_when_enough_of_them_have_ended(llama: Any) -> None:
    with forwarded(llama) as seen:
        answers = draw(llama, PROMPTS, len(PROMPTS))
    open_rows = [sum(len(answer) > step for answer in answers) for step in range(1, max(map(len, answers)))]
    (_, first), *_ = prompts_and_steps = seen[-len(open_rows) - 1 :]
    steps = [rows for rows, _ in prompts_and_steps[1:]]
    assert first == 12
    assert all(
        going <= rows < going / (1 - SAMPLING.RETIRE) for rows, going in zip(steps, open_rows, strict=True)
    )


def test_a_response_ends_at_the_first_of_the_models_stop_tokens_in_both_samplers() -> None:
    model = model_of("llama")
    plain = draw(model, PROMPTS)
    stops = [EOS, plain[0][1], plain[1][2]]
    model.generation_config.eos_token_id = stops[1:]
    ends = [next((at for at, token in enumerate(answer, 1) if token in stops), LIMIT) for answer in plain]
    expected = [answer[:end] for answer, end in zip(plain, ends, strict=True)]
    assert draw(model, PROMPTS) == expected != plain
    with torch.inference_mode():
        static = in_batches(model, PROMPTS, HOW, stops, silent)
    assert static == expected


def test_a_cache_that_gives_other_logits_is_not_used(llama: Any, caplog: pytest.LogCaptureFixture) -> None:
    def shifted(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        cached = kwargs["input_ids"].shape[1] == 1 and kwargs.get(USUAL.name) is not None
        return args, {**kwargs, "input_ids": (kwargs["input_ids"] + 1) % 70} if cached else kwargs

    right = draw(llama, PROMPTS)
    handle = llama.register_forward_pre_hook(shifted, with_kwargs=True)
    decode.PROVEN.seen.clear()
    try:
        assert draw(llama, PROMPTS) == right
    finally:
        handle.remove()
    assert "gives other logits with its cache than without: every step reads the whole" in caplog.text


def test_too_little_memory_for_a_cache_says_nothing_of_it(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(DynamicCache, "update", full)
    monkeypatch.setattr(decode, "_cache_of", lambda model, token: USUAL)
    with pytest.raises(torch.OutOfMemoryError):
        draw(llama, PROMPTS)


def test_a_cache_in_bfloat16_has_half_the_bytes_and_gives_the_same_logits(llama: Any) -> None:
    decoder: Any
    decoder, _ = decode.decoder_for(llama, PROMPTS, LIMIT, len(PROMPTS))
    found, sizes = [], []
    for ordinary in (True, False):
        decoder.ordinary = ordinary
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            logits = [decoder.start(PROMPTS, 3)]
            logits += [decoder.step(torch.arange(len(PROMPTS)) + shift) for shift in (5, 9)]
        found.append(torch.stack(logits))
        layer = decoder.cache.layers[0]
        sizes.append((layer.keys.element_size(), layer.values.element_size()))
    assert sizes[0] == (2, 2) and sizes[1][0] == 4
    assert torch.equal(*found)


def test_a_cache_that_rows_cannot_leave_is_not_used(
    llama: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished rows leave the batch; the states of some models, as MiniMax's, stay in their places."""
    right = draw(llama, PROMPTS)
    monkeypatch.setattr(DynamicCache, "reorder_cache", lambda cache, rows: None)
    decode.PROVEN.seen.clear()
    assert draw(llama, PROMPTS) == right
    assert "gives other logits with its cache than without: every step reads the whole" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("behind", [1, 3])
def test_samples_are_the_same_when_the_host_looks_at_tokens_some_steps_later(name: str, behind: int) -> None:
    model = model_of(name)
    numbers = uniforms(PROMPTS, occurrences(PROMPTS), LIMIT, 3)
    decoder, even = decode.decoder_for(model, PROMPTS, LIMIT, len(PROMPTS))
    same = [i for i, prompt in enumerate(PROMPTS) if len(prompt) == 9 or not even]
    prompts = [PROMPTS[i] for i in same]
    with torch.inference_mode(), forwarded(model) as seen:
        found = SAMPLING._respond(decoder, prompts, numbers[same], HOW, [EOS], behind)
    expected = alone(model, PROMPTS)
    assert found == [expected[i] for i in same]
    longest = max(map(len, found))
    assert longest <= len(seen) <= longest + behind


@pytest.mark.parametrize(
    ("name", "right"), [("llama", True), ("gpt_neox", True), ("mistral", False), ("bloom", False)]
)
def test_a_mask_made_here_gives_the_same_logits_or_is_found_out(name: str, right: bool) -> None:
    model = model_of(name)
    with decode.exactly(model):
        texts = decode.telling_texts(model, max(PROMPTS, key=len), 3, LIMIT)
        more = [(text * 2)[:4] for text in texts]
        alone = torch.cat([decode.read_alone(model, *row) for row in zip(texts, more, strict=True)])
        for own_mask in (False, True):
            decoder = decode._Cached(model, USUAL, own_mask=own_mask)
            assert decode._gives(alone, decoder, [(texts, more)]) == (right or not own_mask)


# ── The choice of a token ───────────────────────────────────────────────────────────────────────────────────


def shares(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """What pick chooses over a fine grid of u: the probability of every token to 1e-5."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    return np.bincount(
        pick(logits.expand(len(u), -1), u, temperature, top_p).numpy(), minlength=len(logits)
    ) / len(u)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.3, 0.8, 1.0])
def test_tokens_have_the_probabilities_of_temperature_and_top_p(temperature: float, top_p: float) -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(1)) * 2
    logits[4] = -torch.inf
    warped = logits / temperature
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), warped[None])[0]
    expected = warped.double().softmax(-1).numpy()
    found = shares(logits, temperature, top_p)
    assert found == pytest.approx(expected, abs=2e-5)
    assert (found[expected == 0] == 0).all()


def test_no_number_chooses_a_token_of_no_probability() -> None:
    edges = torch.tensor([0.0, 2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    for size in (8, 150_000):
        logits = torch.full((size,), -torch.inf)
        logits[size // 4 : size // 2] = torch.linspace(-30, 0, size // 2 - size // 4)
        for top_p in (0.9, 1.0):
            found = pick(logits.expand(4, -1), edges, 1.0, top_p)
            assert (found >= size // 4).all() and (found < size // 2).all()
            assert found[-1] == size // 2 - 1  # the last that has any
    only = torch.full((2, 5), -torch.inf)
    only[:, 3] = -1e30
    assert pick(only, edges[[0, 3]], 1e-30, 0.01).tolist() == [3, 3]


def test_the_likeliest_of_150_thousand_is_drawn_as_often_as_it_should() -> None:
    """Many small probabilities: their sum in float32 would lose the tail."""
    logits = torch.zeros(150_000)
    logits[0] = np.log(150_000 - 1)  # one half
    u = torch.tensor([0.4999, 0.5001, 0.75], dtype=torch.float64)
    found = pick(logits.expand(3, -1), u, 1.0, 1.0).tolist()
    assert found[0] == 0 and found[1] == pytest.approx(30, abs=2) and found[2] == pytest.approx(75_000, abs=2)


def test_what_is_as_likely_as_the_last_of_top_p_stays() -> None:
    assert shares(torch.tensor([0.0, 1.0, 0.0, -9.0]), 1.0, 0.6) == pytest.approx(
        np.array([1, np.e, 1, 0]) / (2 + np.e), abs=2e-5
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_stop_the_run(llama: Any, value: float) -> None:
    def broken(module: Any, args: Any, output: Any) -> None:
        output.logits[..., 3] = value

    handle = llama.register_forward_hook(broken)
    try:
        with pytest.raises(RunFailed, match="logits that are not finite"):
            draw(llama, PROMPTS)
    finally:
        handle.remove()


# ── The numbers ─────────────────────────────────────────────────────────────────────────────────────────────


def test_numbers_are_uniform_and_those_of_no_other_row() -> None:
    rows = [[5, 6], [5, 6, 0], [6, 5], [5]]
    table = uniforms([*rows, [5, 6], [5, 6]], [0, 0, 0, 0, 1, 11], 2000, 0)
    assert table.dtype == torch.float64 and table.shape == (6, 2000)
    assert bool((table >= 0).all()) and bool((table < 1).all())
    other = uniforms([[5, 6], [5, 6]], [0, 1], 2000, 1)
    pooled = torch.cat([table, other])
    assert np.abs(np.corrcoef(pooled.numpy()) - np.eye(8)).max() < 0.12
    counts = np.histogram(pooled.numpy(), bins=50, range=(0, 1))[0]
    expected = pooled.numel() / 50
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 5 * 98**0.5


def test_numbers_never_change() -> None:
    """Samples that were published must be drawn again by every later version."""
    assert uniforms([[5, 6, 7]], [1], 3, 42)[0].tolist() == [
        0.7493398084216005,
        0.9172332677879435,
        0.7454329627887204,
    ]
    assert torch.equal(uniforms([[5, 6, 7]], [1], 9, 42)[:, :3], uniforms([[5, 6, 7]], [1], 3, 42))


def test_nothing_to_sample_is_nothing(llama: Any) -> None:
    assert draw(llama, []) == []
