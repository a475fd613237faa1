"""Load and save policies, reward models and their tokenizer, in the plain Hugging Face format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rpo_cli.artifacts import cannot_read, no_memory
from rpo_cli.devices import Device
from rpo_cli.errors import BadInput
from rpo_cli.models.frozen import hold_in_bfloat16
from rpo_cli.models.generation import fit_generation, stops_of, warn_of_turns
from rpo_cli.models.norms import fuse_norms
from rpo_cli.models.rotary import fuse_rotary
from rpo_cli.models.weights import Auto, read_weights
from rpo_cli.recipes import suggest
from rpo_cli.recipes.schema import ModelSource

ROPE = ("rope_theta", "rope_scaling", "partial_rotary_factor")  # which configs take into rope_parameters


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
    label: str | None = None,
    foreign: bool = False,
) -> PreTrainedModel:
    """Sequence classifier whose one logit is the reward; for training, a causal model gets a new head.

    Args:
        bits: its linear layers but the head in 4 bits; see `four_bits`.
        label: of a head with several, the one that is the reward, by its name in the config's id2label.
        foreign: it is only read, with its own tokenizer, which may have no EOS and more tokens than it knows.

    Raises:
        BadInput: it cannot be loaded, or (not for training) has no head of one label: its rewards would be
            random.
    """
    chosen = None if label is None else _number_of(label, source, revision)
    heads: dict[str, object] = {"num_labels": 1} if chosen is None else {}
    auto = AutoModelForSequenceClassification
    model = _load(auto, source, recipe, device, tokenizer, revision, training, bits, foreign, **heads)
    if chosen is not None:
        _keep_label(model, chosen, source)
    return model


def config_at(source: Path, revision: str | None) -> PretrainedConfig:
    """The config of a model; OSError or ValueError: none can be read."""
    found: PretrainedConfig = AutoConfig.from_pretrained(
        str(source), revision=revision or "main", trust_remote_code=False
    )
    return found


def padding_read_over(source: Path, revision: str | None) -> int | None:
    """The token that a published classifier takes for padding: it reads the reward at the last other one.

    So say those of transformers whose head, named `score`, reads every column. None: it has no such head, an
    encoder, or its config names no such token.
    """
    config = config_at(source, revision)
    found: int | None = getattr(config.get_text_config(), "pad_token_id", None)
    if found is None:
        return None
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    names = (name.rpartition(".")[2] for name, _ in model.named_modules())
    return found if "score" in names else None


def _number_of(label: str, source: Path, revision: str | None) -> int | None:
    """Which of a classifier's several labels has this name; None: it has but one, whatever that is called."""
    try:
        config = config_at(source, revision)
    except (OSError, ValueError) as error:
        why = cannot_read(source, error)
        raise BadInput(f"{source}: reward_label: no config can be read: {why}") from error
    names = {str(name): int(number) for number, name in config.id2label.items()}
    if len(names) > 1 and label not in names:
        raise BadInput(f"{source}: reward_label: it has no label {label!r} (has: {', '.join(names)})")
    return names[label] if len(names) > 1 else None


def _keep_label(model: PreTrainedModel, label: int, source: Path) -> None:
    """Leave of a classifier's head the one label."""
    count, body = model.config.num_labels, set(model.base_model.modules())
    heads = [
        module
        for module in model.modules()
        if module not in body and isinstance(module, torch.nn.Linear) and module.out_features == count
    ]
    if not heads:
        raise BadInput(f"{source}: reward_label: its head is of a kind whose labels cannot be told apart")
    head = heads[-1]
    head.weight = torch.nn.Parameter(head.weight.detach()[label : label + 1].clone())
    if head.bias is not None:
        head.bias = torch.nn.Parameter(head.bias.detach()[label : label + 1].clone())
    head.out_features = 1


def _load(
    auto: Auto,
    source: Path,
    recipe: ModelSource,
    device: Device,
    tokenizer: PreTrainedTokenizerBase,
    revision: str | None,
    training: bool,
    bits: BitsAndBytesConfig | None,
    foreign: bool = False,
    **kwargs: object,
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
    if len(tokenizer) > model.get_input_embeddings().num_embeddings and not (training or foreign):
        raise BadInput(
            f"{source}: the pad_token is new to its vocabulary; name an unused token of the vocabulary, "
            "or train from it first"
        )
    fit_to_tokenizer(model, tokenizer)
    if training:
        warn_of_turns(source, tokenizer, stops_of(getattr(model, "generation_config", None), tokenizer))
    disable_dropout(model)
    if device.dtype_name == "bfloat16" and not (training and not getattr(recipe, "use_peft", False)):
        hold_in_bfloat16(model)
    for module in model.modules() if bits is not None else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Else bitsandbytes scores in bfloat16 on such a CPU, but trains in float32: the reference would
            # be another model.
            module.support_avx512bf16_for_cpu = False
    fitted: PreTrainedModel = (model if bits is not None else device.place(model)).eval()
    if device.name == "cuda":  # a CPU's numbers stay as they were
        fuse_norms(fitted)
        fuse_rotary(fitted)
    return fitted


def new_causal(
    settings: Mapping[str, object], tokenizer: PreTrainedTokenizerBase, device: Device, seed: int
) -> PreTrainedModel:
    """A causal model with random weights from `model_type` and the keys of its config."""
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    attention = {} if device.attention is None else {"attn_implementation": device.attention}
    torch.manual_seed(seed)
    model = from_settings(settings, {"vocab_size": len(tokenizer), **special}, **attention)
    disable_dropout(model)
    placed: PreTrainedModel = device.place(model)
    return placed


def from_settings(
    settings: Mapping[str, object], tokens: Mapping[str, object], **kwargs: object
) -> PreTrainedModel:
    """The causal model of `model_type` and the keys of its config, on torch's default device.

    Args:
        tokens: what the tokenizer says, keys of its config too.

    Raises:
        BadInput: transformers makes none of them, a key is misspelt, or a layer would have no weights.
    """
    keys = dict(settings)
    try:
        config = AutoConfig.for_model(keys.pop("model_type"), **tokens, **keys)
        kind, names = type(config).__name__, {*type(config)().to_dict(), *type(config).attribute_map, *ROPE}
        for strange in sorted(keys.keys() - names):  # a config takes any key, misspelt ones too
            if meant := suggest(strange, names):  # others may be read where they are needed, such as head_dim
                raise ValueError(f"{kind} has no key {strange}{meant}")
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **kwargs)
        layers, heads, groups = (
            getattr(config, f"num_{name}", 1)
            for name in ("hidden_layers", "attention_heads", "key_value_heads")
        )
        if layers < 1:
            raise ValueError(f"num_hidden_layers {layers}: a model has at least one")
        if type(heads) is type(groups) is int and heads % groups:
            raise ValueError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}")
        if empty := [name for name, weight in made.named_parameters() if not weight.numel()]:
            raise ValueError(f"{empty[0]} would have no weights: a size is 0")
    except Exception as error:  # configs have checks of many kinds
        if no_memory(error):
            raise
        raise BadInput(f"model_config_kwargs: {' '.join(str(error).split())}") from error
    return made


def fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make room for an added padding token, and agree on special tokens."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    embeddings = model.get_input_embeddings()
    if getattr(embeddings, "padding_idx", None) == tokenizer.eos_token_id:
        embeddings.padding_idx = None  # an EOS that pads as well is learnt where a text has it
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
