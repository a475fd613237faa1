"""Sampling responses with a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rpo_cli.batches import by_length
from rpo_cli.errors import BadInput


def batch_seed(seed: int, index: int) -> int:
    """Seed of one batch, so that a resumed run draws what the undisturbed one drew."""
    return (seed * 1_000_003 + index * 7_919 + 17) % 2**63


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """One sample for each prompt: response tokens, ending in EOS unless max_new_tokens came first.

    Prompts are grouped by length; each batch is drawn under a seed of its own, so equal arguments give equal samples.
    """
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    # generate() fills what a config leaves open from the model's own: a repetition penalty there would not be pi's sample.
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    room = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(p) for p in prompts), default=0) + max_new_tokens
    if room is not None and longest > room:
        raise BadInput(
            f"a prompt of {longest - max_new_tokens} tokens and max_new_tokens {max_new_tokens} exceed the model's {room} positions"
        )
    result: list[list[int]] = [[] for _ in prompts]
    done = 0
    model.eval()
    for index, rows in enumerate(by_length([len(p) for p in prompts], batch_size)):
        width = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(prompts[i])) + list(prompts[i]) for i in rows])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
        torch.manual_seed(batch_seed(seed, index))
        output = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config)
        for i, tokens in zip(rows, output[:, width:].tolist(), strict=True):
            end = tokens.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in tokens else len(tokens)
            result[i] = tokens[:end]
        done += len(rows)
        on_batch(done)
    return result
