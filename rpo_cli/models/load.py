"""Load and save policies, reward models and their tokenizer, in the plain Hugging Face format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available

from rpo_cli.artifacts import base_of_adapter, look_for
from rpo_cli.devices import Device
from rpo_cli.errors import BadInput
from rpo_cli.models.generation import fit_generation, stops_of, warn_of_turns
from rpo_cli.models.weights import read_weights
from rpo_cli.recipes.schema import FourBits, ModelSource
from rpo_cli.text import first_line

WORD_MARKS = " \u2581\u0120#"  # with which vocabularies mark a word's beginning or its end
PAD_HINT = "set `pad_token:` to an unused token, or to a new one such as '[PAD]'"


def load_tokenizer(
    source: Path, recipe: ModelSource | None = None, revision: str | None = None, *, need_pad: bool = True
) -> PreTrainedTokenizerBase:
    """Tokenizer with an EOS and a padding token of its own, padding on the left as generation needs.

    Raises:
        BadInput: no tokenizer there, no EOS, no padding token, padding = EOS (models would never learn to
            stop and reward models would read the token before the EOS), or a word for padding.
    """
    if source.is_absolute() and not source.exists():
        raise BadInput(f"{source}: no such model directory")
    while not (source / "tokenizer_config.json").is_file() and (base := base_of_adapter(source)) is not None:
        source = Path(base)  # an adapter's folder may have no tokenizer of its own
    offline = look_for(source)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(source), revision=revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        why = first_line(error)
        raise BadInput(f"{source}: no tokenizer can be loaded: {why}{offline}") from error
    if tokenizer.eos_token_id is None:
        raise BadInput(f"{source}: the tokenizer has no EOS token, so a response could never end")
    if recipe is not None and recipe.pad_token is not None:
        if recipe.pad_token.strip(WORD_MARKS).isalnum():
            raise BadInput(f"pad_token: {recipe.pad_token!r} is a word, which a text may hold; {PAD_HINT}")
        tokenizer.add_special_tokens({"pad_token": recipe.pad_token})
    if not need_pad:
        return tokenizer
    if tokenizer.pad_token_id is None:
        raise BadInput(f"{source}: the tokenizer has no padding token; {PAD_HINT}")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise BadInput(f"{source}: the padding token is the EOS ({tokenizer.eos_token}); {PAD_HINT}")
    tokenizer.padding_side = "left"
    return tokenizer


def require_same_tokens(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, source: Path, other_source: Path
) -> None:
    """Raise BadInput when two tokenizers differ: rewards are read over exactly the policy's tokens."""
    for what, ours, theirs in (
        ("EOS", one.eos_token_id, other.eos_token_id),
        ("padding", one.pad_token_id, other.pad_token_id),
        ("vocabulary", one.get_vocab(), other.get_vocab()),
    ):
        if ours != theirs:
            differ = f"{source} and {other_source}: their tokenizers differ in {what}"
            raise BadInput(f"{differ}; policy and reward models must share one")


def load_causal(
    source: Path,
    recipe: ModelSource,
    device: Device,
    tokenizer: PreTrainedTokenizerBase,
    revision: str | None = None,
    *,
    training: bool = False,
    bits: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """Causal language model that agrees with the tokenizer: float32 weights, no dropout, in evaluation mode.

    Where nothing of it is trained and bfloat16 is computed in, its linear layers are held in that.

    Args:
        bits: its linear layers in 4 bits instead; see `four_bits`.

    Raises:
        BadInput: it cannot be loaded, or lacks weights.
    """
    return _load(AutoModelForCausalLM, source, recipe, device, tokenizer, revision, training, bits)


def load_reward(
    source: Path,
    recipe: ModelSource,
    device: Device,
    tokenizer: PreTrainedTokenizerBase,
    revision: str | None = None,
    *,
    training: bool = False,
    bits: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """Sequence classifier whose one logit is the reward; for training, a causal model gets a new head.

    Args:
        bits: its linear layers but the head in 4 bits; see `four_bits`.

    Raises:
        BadInput: it cannot be loaded, or (not for training) has no head of one label: its rewards would be
            random.
    """
    auto = AutoModelForSequenceClassification
    return _load(auto, source, recipe, device, tokenizer, revision, training, bits, num_labels=1)


def four_bits(recipe: FourBits, device: Device) -> BitsAndBytesConfig | None:
    """How bitsandbytes holds a frozen base's linear layers (Dettmers et al., 2023, QLoRA); None: not at all.

    Raises:
        BadInput: bitsandbytes is not installed, or cannot work on this device.
    """
    if not recipe.load_in_4bit:
        return None
    if device.name not in ("cpu", "cuda"):
        without = "LoRA without it does (load_in_4bit: false)"
        raise BadInput(f"load_in_4bit: bitsandbytes has no 4 bits on {device.name}; {without}")
    if not is_bitsandbytes_available():
        raise BadInput("load_in_4bit needs the extra `qlora`: pip install 'rpo-cli[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=recipe.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=getattr(torch, device.dtype_name),
    )


def _load(
    auto: Any,
    source: Path,
    recipe: ModelSource,
    device: Device,
    tokenizer: PreTrainedTokenizerBase,
    revision: str | None,
    training: bool,
    bits: BitsAndBytesConfig | None,
    **kwargs: Any,
) -> PreTrainedModel:
    attention = recipe.attn_implementation or device.attention
    if attention is not None:
        kwargs["attn_implementation"] = attention
    device_map = None
    if bits is not None:
        device_map = {"": torch.cuda.current_device() if device.name == "cuda" else device.name}
    model = read_weights(
        auto,
        source,
        revision,
        len(tokenizer),
        new_head=training and "num_labels" in kwargs,
        # bfloat16, if asked for, comes by autocast, the same in training and in scoring.
        dtype=torch.float32,
        quantization_config=bits,
        device_map=device_map,
        **kwargs,
    )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings and not training:
        raise BadInput(
            f"{source}: the pad_token is new to its vocabulary; name an unused token of the vocabulary, "
            "or train from it first"
        )
    fit_to_tokenizer(model, tokenizer)
    if training:
        warn_of_turns(source, tokenizer, stops_of(getattr(model, "generation_config", None), tokenizer))
    disable_dropout(model)
    if device.trains_in_autocast and not (training and not getattr(recipe, "use_peft", False)):
        hold_in_bfloat16(model)
    for module in model.modules() if bits is not None else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Else bitsandbytes scores in bfloat16 on such a CPU, but trains in float32: the reference would
            # be another model.
            module.support_avx512bf16_for_cpu = False
    fitted: PreTrainedModel = (model if bits is not None else device.place(model)).eval()
    return fitted


class RoundedLinear(torch.nn.Linear):
    """A linear layer held in bfloat16, which computes in float32 where there is no autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return torch.nn.functional.linear(input, self.weight.to(input.dtype), bias)


def hold_in_bfloat16(model: PreTrainedModel) -> None:
    """Round linear layers that nobody trains to what autocast would round them to in every step.

    The numbers are the same, and take half the memory. Embeddings, and a head that is tied to them, norms and
    a reward model's head stay in float32, in which autocast reads them or training changes them.
    """
    embeddings = model.get_input_embeddings().weight
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and name != "score" and module.weight is not embeddings:
            module.to(torch.bfloat16)
            module.__class__ = RoundedLinear


def new_causal(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, device: Device, seed: int
) -> PreTrainedModel:
    """A causal model with random weights from `model_type` and the keys of its config."""
    keys = dict(settings)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    try:
        config = AutoConfig.for_model(keys.pop("model_type"), vocab_size=len(tokenizer), **special, **keys)
    except (KeyError, ValueError, TypeError) as error:
        raise BadInput(f"model_config_kwargs: {error}") from error
    torch.manual_seed(seed)
    attention = {} if device.attention is None else {"attn_implementation": device.attention}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **attention)
    disable_dropout(model)
    placed: PreTrainedModel = device.place(model)
    return placed


def fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make room for an added padding token, and agree on special tokens."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    fit_generation(model, tokenizer)


def disable_dropout(model: PreTrainedModel) -> None:
    """Zero dropout in modules *and* configs: attention dropout is functional, and read from an attribute."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):  # attention_dropout, and OPT's layerdrop
                setattr(module, name, 0.0)
    for name, value in model.config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(model.config, name, 0.0)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save weights (safetensors), config and tokenizer so that the Auto classes load them."""
    model.config.use_cache = True  # training switched it off
    tokenizer.padding_side = "left"  # whoever generates in batches needs it
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
