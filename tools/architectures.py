"""Write docs/reference/architectures.md: how each architecture of transformers is read and sampled here.

python -m tools.architectures              every model type below, small and random; takes some minutes
python -m tools.architectures llama rwkv   prints the rows of these only
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from rpo_cli.artifacts import positions_of
from rpo_cli.devices import quiet
from rpo_cli.errors import BadInput
from rpo_cli.models import layout_for, response_logps
from rpo_cli.models.decode import decoder_for
from rpo_cli.models.load import disable_dropout

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "architectures.md"
VOCABULARY, PAD, END, ROOM = 60, 0, 1, 16
# What of these a config has: windows are shorter than most rows, weights so large that what is seen shows.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "d_model": 16, "n_embd": 16, "emb_dim": 16,
    "embedding_size": 16, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "decoder_layers": 2, "num_attention_heads": 2, "n_head": 2, "n_heads": 2, "decoder_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 32, "ffn_dim": 32, "decoder_ffn_dim": 32, "d_inner": 32,
    "dff": 32, "head_dim": 8, "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64,
    "context_length": 64, "rotary_dim": 4, "sliding_window": 6, "moe_intermediate_size": 16,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 16, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "word_embed_proj_dim": 16, "attention_hidden_size": 16,
    "state_size": 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "mamba_d_ssm": 16, "mamba_n_heads": 4, "mamba_d_head": 8,
    "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 2,
    "initializer_range": 0.3, "is_decoder": True,
}  # fmt: skip
LAYERS = {"layer_types": ["linear_attention", "full_attention"]}
# Model types that need nothing else, and what others need.
PLAIN = (
    "afmoe", "apertus", "arcee", "aria_text", "bart", "bert", "bert-generation", "big_bird",
    "bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "bloom", "camembert", "cohere", "cohere2",
    "cpmant", "ctrl", "cwm", "doge", "electra", "ernie4_5", "ernie4_5_moe", "exaone4", "falcon",
    "falcon_mamba", "flex_olmo", "gemma", "gemma2", "gemma3_text", "gemma4_text", "glm", "glm4", "glm4_moe",
    "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granitemoe",
    "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jetmoe", "llama", "mamba",
    "megatron-bert", "minimax", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral",
    "modernbert-decoder", "mpt", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "olmoe",
    "openai-gpt", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "roberta", "rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2", "trocr", "vaultgemma", "xglm",
    "xlnet",
)  # fmt: skip
TYPES: dict[str, dict[str, Any]] = {kind: {} for kind in PLAIN} | {
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_embd": 32, "n_head": 4},
    "deepseek_v2": {"num_key_value_heads": 2},
    "deepseek_v3": {"num_key_value_heads": 2},
    "diffllama": {"num_key_value_heads": 2},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_head": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_dt_rank": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"attention_chunk_size": 6},
    "mamba2": {"num_heads": 4, "n_groups": 1},
    "qwen3_5_text": LAYERS,
    "qwen3_next": LAYERS,
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 6},
}


def build(kind: str, **more: Any) -> PreTrainedModel:
    """A small random causal model of a type, without dropout."""
    config = CONFIG_MAPPING[kind]
    known = config().to_dict()
    settings = {name: value for name, value in SMALL.items() if name in known}
    torch.manual_seed(0)
    made = config(**settings | TYPES.get(kind, {}) | more)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    disable_dropout(model)
    model.config.pad_token_id = PAD  # as whoever loads a model has it agree with the tokenizer
    return model.eval()


def some_rows(count: int = 8) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts and pairs of responses on both sides of the windows; the shortest response is the end alone."""
    draw = random.Random(0)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(least, most))]

    prompts = [tokens(2, 20) for _ in range(count)]
    groups = [[[*tokens(0, 12), END] for _ in range(2)] for _ in prompts]
    prompts[0], groups[0] = tokens(24, 24), [[*tokens(9, 9), END], [END]]
    prompts[1], groups[1] = tokens(2, 2), [[*tokens(13, 13), END], [*tokens(13, 13), END]]
    return prompts, groups


def sampled(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> str:
    """How texts are continued, in the words of the page."""
    decoder, even = decoder_for(model, prompts, ROOM, len(prompts))
    return "cache, prompts of one length" if even else KEPT[type(decoder).__name__]


KEPT = {"_Cached": "cache", "_Recomputed": "without cache"}
READ = {"shared": "shared prompts", "plain": "a row each", "right": "a row each, padded behind"}


def row_of(kind: str) -> tuple[str, str, str, str]:
    """Model type, how it is read, how it is sampled, its positions."""
    model = build(kind)
    positions = positions_of(model.config)
    table = "" if positions is None else "table"
    prompts, groups = some_rows()
    try:
        read = READ[layout_for(model, response_logps, prompts, groups, shared=True)]
        return kind, read, sampled(model, prompts), table
    except BadInput as error:
        return kind, f"refused: {str(error).partition(': ')[2]}", "refused", table


def page(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """The page of these rows."""
    lines = [f"| {' | '.join(cells)} |" for cells in sorted(rows)]
    return HEAD.format(count=len(rows), version=transformers.__version__) + "\n".join(lines) + "\n"


HEAD = """\
# Architectures

<!-- Written by `python -m tools.architectures`; do not edit. -->

What becomes of {count} types of `AutoModelForCausalLM` of transformers {version}, each tried as a small
random model whose windows are shorter than its rows. It is no list that `rpo` reads: every stage tries its
own model on rows of its own data before it reads, trains or samples, with a row read alone as the measure,
and says at its end what it fell back to.

- *shared prompts*: a row holds a prompt once and all its responses. *a row each*: prompts end in one column,
  padding on both sides. *a row each, padded behind*: no padding before a prompt.
- *cache*: prompts of any length are sampled together. *cache, prompts of one length*: only such go together.
  *without cache*: every step reads the whole text again, which is slow.
- *table*: the model has a table of positions, which no row may exceed.

| `model_type` | read | sampled | positions |
|---|---|---|---|
"""


def main() -> int:
    """Write the page, or print the rows of some types."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", choices=[*TYPES, []])
    some = parser.parse_args().types
    quiet()
    torch.set_num_threads(1)
    rows = []
    for kind in some or sorted(TYPES):
        rows.append(row_of(kind))
        print(*rows[-1], sep=" | ", flush=True)
    if not some:
        PAGE.write_text(page(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
