"""Reward models of other families for test_teachers.py, and what plain transformers say of texts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from preparing import tokenizer_of
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

SMALL = {
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 2, "max_position_embeddings": 512},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "bert": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "max_position_embeddings": 256},
}  # fmt: skip


def model_of(
    folder: Path,
    kind: str,
    tokenizer: str,
    *,
    reward: bool = True,
    pad: bool | str = True,
    **settings: Any,
) -> Path:
    """A random model with a tokenizer of `preparing.SORTS`; `pad`: whether that has a padding token.

    pad = "eos": it pads with its EOS, and so says its config, as of a model that TRL trained.
    """
    torch.manual_seed(len(folder.name))
    made: PreTrainedTokenizerBase = tokenizer_of(tokenizer)
    if pad == "eos":
        made = copy.deepcopy(made)
        made.pad_token = made.eos_token
    special = {
        "pad_token_id": made.pad_token_id if pad == "eos" else None,
        "bos_token_id": None,
        "eos_token_id": made.eos_token_id,
    }
    if reward and "id2label" not in settings:
        settings["num_labels"] = 1
    config = AutoConfig.for_model(kind, vocab_size=len(made), **special, **SMALL[kind], **settings)
    auto = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1:  # larger than they are made, so that rewards differ
                weights.normal_(0, 1.0 if name.endswith("score.weight") else 0.2)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    if not pad:
        again = AutoTokenizer.from_pretrained(folder)
        again.pad_token = None
        again.save_pretrained(folder)
    return folder


@torch.no_grad()
def plainly(
    folder: Path, texts: Sequence[str] | Sequence[list[dict[str, str]]], label: int = 0
) -> list[float]:
    """The reward of each text or conversation alone, by nothing but transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        if isinstance(text, str):
            inputs = tokenizer(text, return_tensors="pt")
        else:
            inputs = tokenizer.apply_chat_template(text, return_tensors="pt", return_dict=True)
        found.append(float(model(**inputs).logits[0, label]))
    return found
