"""Sampling responses with vLLM: arguments and results as those of `models.sample`, other random draws.

Written against vLLM's documented offline API and tested with a stand-in; it was never run on a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from rpo_cli.errors import BadInput
from rpo_cli.models.tokens import Tokens
from rpo_cli.text import first_line

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput

# Batches at a time: vLLM fills its own batches, more prompts at a time let it; fewer show progress.
CHUNK = 16


def sample(
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    on_batch: Callable[[int], None] = lambda done: None,
    revision: str | None = None,
    dtype: str = "auto",
    stops: Sequence[int] = (),
) -> list[list[int]]:
    """One sample for each prompt: response tokens, ending in a stop token unless max_new_tokens came first.

    model: a directory or a hub name; vLLM loads it itself. stops: besides the tokenizer's EOS. Every prompt
    has a seed of its own, by its place in `prompts`, so the cut into chunks changes no sample; whether equal
    arguments give equal bits is up to vLLM's kernels.

    Raises:
        BadInput: vLLM is not installed, or cannot load the model, or has no room for a prompt.
    """
    try:
        from vllm import LLM, SamplingParams
        from vllm.inputs import TokensPrompt
    except ImportError as error:
        raise BadInput(
            f"sampler: vllm: {error}; pip install 'rpo-cli[vllm]', or set sampler: transformers"
        ) from error
    longest = max((len(p) for p in prompts), default=0)
    try:
        engine = LLM(
            model=str(model),
            revision=revision,
            dtype=dtype,
            seed=0,
            max_model_len=longest + max_new_tokens,
            # Not the model's own defaults: a repetition penalty there would not be pi's sample.
            generation_config="vllm",
            trust_remote_code=False,
            load_format="safetensors",  # a pickle can run code
        )
    except ValueError as error:
        raise BadInput(f"{model}: vLLM cannot load it: {first_line(error)}") from error
    ends = list(dict.fromkeys([int(tokenizer.eos_token_id), *stops]))
    result: list[list[int]] = []
    step = CHUNK * batch_size
    try:
        for start in range(0, len(prompts), step):
            chunk = prompts[start : start + step]
            settings = [
                SamplingParams(
                    temperature=temperature,
                    top_p=top_p,
                    max_tokens=max_new_tokens,
                    seed=_seed(seed, start + place),
                    stop_token_ids=ends,
                    detokenize=False,
                )
                for place in range(len(chunk))
            ]
            inputs = [TokensPrompt(prompt_token_ids=list(map(int, prompt))) for prompt in chunk]
            outputs = engine.generate(inputs, settings, use_tqdm=False)
            result += [_response(output.outputs[0], ends) for output in outputs]
            on_batch(len(result))
    finally:
        # The engine holds most of the GPU; the models that score the samples need it next.
        del engine
        gc.collect()
    return result


def _seed(seed: int, index: int) -> int:
    """Seed of one prompt."""
    return (seed * 1_000_003 + index * 7_919 + 17) % 2**63


def _response(output: CompletionOutput, ends: Sequence[int]) -> list[int]:
    """A completion's tokens up to its stop token, which is added where vLLM stopped without listing it."""
    tokens = [int(token) for token in output.token_ids]
    for place, token in enumerate(tokens, 1):
        if token in ends:
            return tokens[:place]
    if output.finish_reason != "stop":
        return tokens
    found = getattr(output, "stop_reason", None)  # None: at the EOS
    return [*tokens, found if isinstance(found, int) else ends[0]]
