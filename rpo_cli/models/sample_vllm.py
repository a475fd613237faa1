"""Sampling responses with vLLM: asked as `models.sample`, other random draws.

Written against vLLM's documented offline API and tested with a stand-in; it was never run on a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rpo_cli.errors import BadInput
from rpo_cli.models.draws import Sampling
from rpo_cli.models.score import Done, silent
from rpo_cli.models.tokens import Tokens
from rpo_cli.text import first_line

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput

# Batches at a time: vLLM fills its own batches, more prompts at a time let it; fewer show progress.
CHUNK = 16


def sample(
    model: Path,
    prompts: Sequence[Tokens],
    how: Sampling,
    stops: Sequence[int],
    on_batch: Done = silent,
    *,
    revision: str | None,
    dtype: str,
) -> list[list[int]]:
    """One sample for each prompt: response tokens, ending in a stop token unless max_new_tokens came first.

    model: a directory or a hub name; vLLM loads it itself. stops: the EOS, and what else ends a response.
    Every prompt has a seed of its own, by its place in `prompts`, so the cut into chunks changes no sample;
    whether equal arguments give equal bits is up to vLLM's kernels.

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
            max_model_len=longest + how.max_new_tokens,
            # Not the model's own defaults: a repetition penalty there would not be pi's sample.
            generation_config="vllm",
            trust_remote_code=False,
            load_format="safetensors",  # a pickle can run code
        )
    except ValueError as error:
        raise BadInput(f"{model}: vLLM cannot load it: {first_line(error)}") from error
    result: list[list[int]] = []
    step = CHUNK * how.batch_size
    try:
        for start in range(0, len(prompts), step):
            chunk = prompts[start : start + step]
            settings = [
                SamplingParams(
                    temperature=how.temperature,
                    top_p=how.top_p,
                    max_tokens=how.max_new_tokens,
                    seed=_seed(how.seed, start + place),
                    stop_token_ids=list(stops),
                    detokenize=False,
                )
                for place in range(len(chunk))
            ]
            inputs = [TokensPrompt(prompt_token_ids=list(map(int, prompt))) for prompt in chunk]
            outputs = engine.generate(inputs, settings, use_tqdm=False)
            result += [_response(output.outputs[0], stops) for output in outputs]
            on_batch(len(result))
    finally:
        # The engine holds most of the GPU; the models that score the samples need it next.
        del engine
        gc.collect()
    return result


def _seed(seed: int, index: int) -> int:
    """Seed of one prompt."""
    return (seed * 1_000_003 + index * 7_919 + 17) % 2**63


def _response(output: CompletionOutput, stops: Sequence[int]) -> list[int]:
    """A completion's tokens up to its stop token, which is added where vLLM stopped without listing it."""
    tokens = [int(token) for token in output.token_ids]
    for place, token in enumerate(tokens, 1):
        if token in stops:
            return tokens[:place]
    if output.finish_reason != "stop":
        return tokens
    found = getattr(output, "stop_reason", None)  # None: at the EOS
    return [*tokens, found if isinstance(found, int) else stops[0]]
