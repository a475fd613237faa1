"""What vLLM is asked for and what becomes of its answers: by a stand-in, for lack of a GPU."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import RHO, Tiny, manifest

from rpo_cli.errors import BadInput
from rpo_cli.models import Sampling, load_tokenizer, sample_vllm


@dataclass
class SamplingParams:
    """The fields of vLLM's that are used; another one is a TypeError, as there."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    seed: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    detokenize: bool = True


class TokensPrompt(dict):  # type: ignore[type-arg]
    def __init__(self, *, prompt_token_ids: list[int]) -> None:
        super().__init__(prompt_token_ids=prompt_token_ids)


@dataclass
class Engine:
    """vLLM's LLM: says back what it is told to, a function of each prompt and its own settings."""

    made: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[list[Any], list[SamplingParams]]] = field(default_factory=list)
    refuses: str | None = None
    missing_eos: bool = False

    def __call__(
        self,
        *,
        model: str,
        revision: str | None,
        dtype: str,
        seed: int,
        max_model_len: int,
        generation_config: str,
        trust_remote_code: bool,
        load_format: str,
    ) -> Engine:
        if self.refuses:
            raise ValueError(self.refuses)
        self.made.append(
            {
                "model": model,
                "revision": revision,
                "dtype": dtype,
                "max_model_len": max_model_len,
                "trust": trust_remote_code,
                "weights": load_format,
            }
        )
        return self

    def generate(
        self, prompts: list[Any], sampling_params: list[SamplingParams], *, use_tqdm: bool
    ) -> list[Any]:
        self.calls.append((prompts, sampling_params))
        return [self._answer(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]

    def _answer(self, prompt: list[int], settings: SamplingParams) -> Any:
        (eos,) = settings.stop_token_ids
        assert settings.seed is not None
        length = settings.seed % (settings.max_tokens + 1)
        tokens = [prompt[i % len(prompt)] for i in range(length)]
        tokens = [token for token in tokens if token != eos]
        stopped = length < settings.max_tokens
        if stopped and not self.missing_eos:
            tokens.append(eos)
        output = types.SimpleNamespace(token_ids=tuple(tokens), finish_reason="stop" if stopped else "length")
        return types.SimpleNamespace(outputs=[output])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    module, inputs = types.ModuleType("vllm"), types.ModuleType("vllm.inputs")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams, inputs.TokensPrompt = made, SamplingParams, TokensPrompt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.inputs", inputs)
    return made


PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14], [5]]


def draw(built: Tiny, batch_size: int = 2, seed: int = 3, **more: Any) -> list[list[int]]:
    stops = [load_tokenizer(built.root / "seed-0/sft").eos_token_id]
    how = Sampling(0.7, 0.9, 6, batch_size, seed)
    others: dict[str, Any] = {"revision": "abc", "dtype": "bfloat16", **more}
    return sample_vllm.sample(Path("somewhere"), PROMPTS, how, stops, **others)


def test_every_prompt_has_a_seed_of_its_own_that_no_batch_size_changes(
    built: Tiny, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_vllm, "CHUNK", 1)
    done: list[int] = []
    first = draw(built, on_batch=done.append)
    assert done == [2, 4, 5]
    assert [len(prompts) for prompts, _ in engine.calls] == [2, 2, 1]
    settings = [s for _, each in engine.calls for s in each]
    assert len({s.seed for s in settings}) == len(PROMPTS)
    assert {(s.temperature, s.top_p, s.max_tokens, s.detokenize) for s in settings} == {(0.7, 0.9, 6, False)}
    assert engine.made == [
        {
            "model": "somewhere",
            "revision": "abc",
            "dtype": "bfloat16",
            "max_model_len": 10,
            "trust": False,
            "weights": "safetensors",
        }
    ]
    assert draw(built, batch_size=5) == first
    assert draw(built, seed=4) != first


@pytest.mark.slow
@pytest.mark.parametrize("missing_eos", [False, True])
def test_a_response_ends_in_one_eos_or_at_its_full_length(
    built: Tiny, engine: Engine, missing_eos: bool
) -> None:
    engine.missing_eos = missing_eos
    eos = load_tokenizer(built.root / "seed-0/sft").eos_token_id
    answers = [answer for seed in range(8) for answer in draw(built, seed=seed)]
    assert all(a.count(eos) == 1 and a[-1] == eos if eos in a else len(a) == 6 for a in answers)
    assert {eos in a for a in answers} == {True, False}


def test_what_vllm_refuses_is_one_line(built: Tiny, engine: Engine) -> None:
    engine.refuses = "max_model_len (10) is greater than the model's 8\nand more"
    with pytest.raises(
        BadInput,
        match=r"^somewhere: vLLM cannot load it: max_model_len \(10\) is greater than the model's 8$",
    ):
        draw(built)


def test_without_vllm_nothing_is_built(empty: Tiny) -> None:
    empty.edit("evaluate.yaml", "sampler: vllm")
    assert (
        empty.run("evaluate", "e-dpo.yaml", code=2)
        .stderr.splitlines()[-1]
        .startswith("sampler: vllm needs the extra `vllm`")
    )
    assert not (empty.root / "seed-0").exists()
    empty.run("evaluate", "e-dpo.yaml", "--dry-run")


@pytest.mark.slow
def test_an_evaluation_can_be_sampled_by_it_and_is_another_one(tiny: Tiny, engine: Engine) -> None:
    before = manifest(tiny.root, f"{RHO}/evaluations/e-dpo/beta-0.2/test")
    tiny.edit("evaluate.yaml", "sampler: vllm")
    tiny.run("evaluate", "e-dpo.yaml")
    after = manifest(tiny.root, f"{RHO}/evaluations/e-dpo/beta-0.2/test")
    assert before["key"] != after["key"] and after["recipe"]["sampler"] == "vllm"
    assert [made["model"] for made in engine.made] == [
        str(tiny.root / "seed-0/sft"),
        str(tiny.root / RHO / "policies/e-dpo/beta-0.2"),
    ]
    samples = pd.read_parquet(tiny.root / f"{RHO}/evaluations/e-dpo/beta-0.2/test/samples.parquet")
    assert len(samples) == 48 and samples["finished"].any()
