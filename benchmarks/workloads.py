"""What is measured: shapes of preference pairs, models of random weights, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rpo_cli.models import TokenRow, encode
from rpo_cli.stages.data import miniature

Row = dict[str, Any]
Settings = dict[str, Any]  # a config's, with its model_type
# Token ids below belong to the tokenizer's special tokens.
FIRST_TOKEN = 16


@dataclass(frozen=True)
class Shape:
    """Log-normal lengths of prompts and responses: mean, spread of the logarithm, `longest`."""

    name: str
    prompt: int
    response: int
    spread: tuple[float, float] = (0.35, 0.4)
    longest: int = 512


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    llama: dict[str, Any]
    neox: dict[str, Any]
    small: dict[str, Any]
    tldr: Shape
    chat: Shape
    batch: int
    step: tuple[
        int, int
    ]  # where steps are compared: pairs at a time, and pieces of this size in an optimiser batch
    rounds: int
    members: int
    scored: int
    sampled: tuple[int, int]  # prompts, new tokens of each
    sampled_lengths: tuple[int, int]  # shortest and longest response where they differ
    all_sampled: int  # prompts on a GPU where they are drawn at one go
    miniature_steps: int
    pairs: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    memory_runs: int = 2
    posts: Shape = Shape("posts", 178, 12)  # a package's description and its one-line summary


def llama(vocab: int, hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def neox(vocab: int, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


# The clip takes the mean of these prompts from 375 to about 350.
TLDR, CHAT = Shape("TL;DR", 375, 40), Shape("chat", 100, 200)
FULL = Scale(
    llama=llama(16384, 384, 6, 6, 1024),
    neox=neox(50304, 256, 6, 8),
    small=llama(1024, 128, 3, 4, 256),
    tldr=TLDR,
    chat=CHAT,
    batch=8,
    step=(4, 4),  # the paper's optimiser batch
    rounds=3,
    members=5,
    scored=160,
    sampled=(24, 40),
    sampled_lengths=(10, 128),
    all_sampled=24900,
    miniature_steps=40,
    pairs=(32, 64, 96, 128),
    grids=((1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (2, 3)),
)
TOY = replace(
    FULL, llama=llama(64, 16, 1, 2, 16), neox=neox(64, 16, 1, 2), small=llama(64, 16, 1, 2, 16),
    tldr=replace(TLDR, prompt=12, response=4),
    chat=replace(CHAT, prompt=4, response=8), batch=2, step=(1, 2), rounds=1, members=2, scored=4, sampled=(2,
    3), sampled_lengths=(1, 8), all_sampled=6,
    miniature_steps=1, pairs=(2, 4, 6), grids=((1, 1), (1, 2)), memory_runs=1,
    posts=Shape("posts", 10, 3),
)  # fmt: skip


# What one GPU is checked with: the shapes of Llama-3.2-1B, Pythia-1B and SmolLM2-135M.
CARD = replace(
    FULL,
    llama=llama(128256, 2048, 16, 32, 8192) | {"num_key_value_heads": 8, "tie_word_embeddings": True},
    neox=neox(50304, 2048, 16, 8),
    small=llama(49152, 576, 30, 9, 1536) | {"num_key_value_heads": 3, "tie_word_embeddings": True},
    step=(8, 2),
    scored=1024,
    sampled=(1536, 12),
)


def config_of(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    kind = {"llama": LlamaConfig, "gpt_neox": GPTNeoXConfig}[settings["model_type"]]
    keys = {name: value for name, value in settings.items() if name != "model_type"}
    return kind(
        **keys,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        use_cache=False,
    )


def causal(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int, device: str = "cpu"
) -> PreTrainedModel:
    """A language model of random float32 weights, drawn on its device."""
    torch.manual_seed(seed)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config_of(settings, tokenizer), dtype=torch.float32
        )
    return model.to(device)


def reward(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int, device: str = "cpu"
) -> PreTrainedModel:
    """A reward model of random float32 weights, drawn on its device."""
    torch.manual_seed(seed)
    config = config_of(settings, tokenizer)
    config.num_labels = 1
    with torch.device(device):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    return model.to(device)


def pairs(
    shape: Shape, count: int, vocabulary: int, tokenizer: PreTrainedTokenizerBase, *, samples: bool = False
) -> list[Row]:
    """Pairs of random tokens of the shape's lengths, equal for equal arguments; responses end in EOS.

    Reference log-probs are 0 until something computes them.
    """
    rng = np.random.default_rng(0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids", "sample_ids")
    means = (shape.prompt, shape.response, shape.response, shape.response)
    spreads = (shape.spread[0], *[shape.spread[1]] * 3)
    columns = {}
    for name, mean, spread in zip(names, means, spreads, strict=True):
        lengths = np.clip(
            rng.lognormal(np.log(mean) - spread**2 / 2, spread, count), 2, shape.longest
        ).astype(int)
        columns[name] = [rng.integers(FIRST_TOKEN, vocabulary, length).tolist() for length in lengths]
    rows: list[Row] = []
    for index in range(count):
        row: Row = {"id": index, "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
        row |= {name: column[index] for name, column in columns.items()}
        for name in names[1:]:
            row[name][-1] = tokenizer.eos_token_id
        if samples:
            row["ref_sample_logps"] = 0.0
        else:
            del row["sample_ids"]
        rows.append(row)
    return rows


def miniature_pairs(count: int, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Pairs of the embedded miniature."""
    texts = miniature.generate(0, miniature.TableSizes(pairs=count))["pairs"]
    columns = [
        encode(name, [row[name] for row in texts], tokenizer).to_pylist()
        for name in ("prompt", "chosen", "rejected")
    ]
    return [
        {
            "id": index,
            "prompt_ids": prompt,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "ref_chosen_logps": 0.0,
            "ref_rejected_logps": 0.0,
        }
        for index, (prompt, chosen, rejected) in enumerate(zip(*columns, strict=True))
    ]


def miniature_model(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Settings of the miniature's policy."""
    return {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }


def token_rows(rows: list[Row]) -> list[TokenRow]:
    """The scorer's form of pairs."""
    return [
        TokenRow(str(row["id"]), row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in rows
    ]


def described(rows: list[Row]) -> str:
    """Mean and longest lengths, as drawn."""
    prompts, answers = (
        [len(r["prompt_ids"]) for r in rows],
        [len(r[c]) for r in rows for c in ("chosen_ids", "rejected_ids")],
    )
    return (
        f"prompts {np.mean(prompts):.0f} tokens (longest {max(prompts)}), responses "
        f"{np.mean(answers):.0f} (longest {max(answers)})"
    )
