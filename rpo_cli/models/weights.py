"""The weights of a model's folder: each of them there, none left over, an adapter merged into its base."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import find_adapter_config_file

from rpo_cli.artifacts import all_finite, base_of_adapter, cannot_read, look_for, no_memory, read_json
from rpo_cli.errors import BadInput
from rpo_cli.text import first_line, some

Auto = type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]
# Buffers of older versions of transformers, which are computed today.
COMPUTED = re.compile(r"(inv_freq|position_ids|att(ention|n)\.(masked_)?bias)$")


def read_weights(
    auto: Auto, source: Path, revision: str | None, vocabulary: int, *, new_head: bool, **kwargs: object
) -> PreTrainedModel:
    """A model with exactly the weights that its folder has; of an adapter's folder base and adapter in one.

    Args:
        vocabulary: tokens that there are; a base gets as many before its adapter is added.
        new_head: the head may be missing, as a causal model's that a reward model is made of.

    Raises:
        BadInput: it cannot be loaded, or lacks weights, or has some that its config.json has no place for.
    """
    model, missing = _whole(auto, source, revision, vocabulary, **kwargs)
    if missing and not new_head:
        raise _lacking(source, missing, model)
    return model


def _whole(
    auto: Auto, source: Path, revision: str | None, vocabulary: int, **kwargs: object
) -> tuple[PreTrainedModel, list[str]]:
    """A model, and what weights of a head it does not have."""
    adapter = _adapter_in(source, revision)
    if adapter is None:
        return _read(auto, source, revision, **kwargs)
    return _merged(auto, source, adapter, vocabulary, **kwargs)


def _adapter_in(source: Path, revision: str | None) -> Path | None:
    """The folder of an adapter, for a name of the hub one of its cache; None: it is a whole model."""
    if source.is_dir():
        return source if base_of_adapter(source) is not None else None
    look_for(source)
    try:
        found = find_adapter_config_file(str(source), revision=revision or "main")
    except (OSError, ValueError):
        return None  # as whoever loads the model will say
    folder = None if found is None else Path(found).parent
    return folder if folder is not None and base_of_adapter(folder) is not None else None


def _merged(
    auto: Auto, source: Path, adapter: Path, vocabulary: int, **kwargs: object
) -> tuple[PreTrainedModel, list[str]]:
    """The base with its adapter merged in, and what weights of a head neither of them has."""
    try:
        import peft
    except ImportError as error:
        raise BadInput(f"{source} is an adapter, which needs the extra `lora`: rpo-cli[lora]") from error
    base = Path(str(base_of_adapter(adapter)))
    if kwargs.get("quantization_config") is not None:
        raise BadInput(f"{source} is an adapter, and cannot be merged into 4 bits; set load_in_4bit: false")
    try:
        model, missing = _whole(auto, base, None, vocabulary, **kwargs)
    except BadInput as error:
        raise BadInput(f"{source} is an adapter, and its base model is not to be had: {error}") from error
    if vocabulary > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary)
    try:
        config = peft.PeftConfig.from_pretrained(str(adapter))
        config.task_type = None  # a causal model's may become a part of a reward model
        with warnings.catch_warnings(action="ignore"):  # of keys that are missing, as is said below
            adapted = peft.PeftModel.from_pretrained(model, str(adapter), config=config)
        loaded = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
        there = peft.load_peft_weights(str(adapter), device="cpu")
        merged: PreTrainedModel = adapted.merge_and_unload()
    except Exception as error:  # of peft, whose kinds of adapters are many
        raise BadInput(f"{source}: the adapter cannot be merged into {base}: {first_line(error)}") from error
    # Embeddings are kept whole beside an adapter where its training made new tokens.
    differ = (name for name in loaded.keys() ^ there.keys() if "lora" in name or name in loaded)
    if strange := sorted(name for name in differ if not _of_head(name)):
        raise BadInput(f"{source}: the adapter does not fit {base}: {some(strange)}")
    merged.requires_grad_(True)  # peft froze the base
    merged.name_or_path = str(source)
    brought = getattr(config, "modules_to_save", None) or []
    return merged, [name for name in missing if name.split(".")[0] not in brought]


def _read(
    auto: Auto, source: Path, revision: str | None, **kwargs: object
) -> tuple[PreTrainedModel, list[str]]:
    """A model, and what weights of a head its folder does not have."""
    look_for(source)  # the hub in one attempt, where transformers would try for half a minute
    if source.is_dir() and (strange := _whole_numbers(source)):
        raise BadInput(f"{source}: whole numbers in its weights {some(strange)}, and no quantization_config")
    try:
        model, loading = auto.from_pretrained(
            str(source),
            revision=revision or "main",
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # said below, in a sentence
            output_loading_info=True,
            **kwargs,
        )
    except Exception as error:  # of transformers, safetensors, or the implementation of attention
        if no_memory(error):
            raise
        raise BadInput(f"{source}: no model can be loaded: {cannot_read(source, error)}") from error
    for name, found, expected in sorted(loading["mismatched_keys"]):
        if (
            not _is_body(model, name)
            and "lm_head" not in name
            and len(found) == len(expected)
            and found[1:] == expected[1:]
        ):
            wanted = f"a reward model has {expected[0]}, or reward_label: names the one to read"
            raise BadInput(f"{source}: {name} has {found[0]} labels; {wanted}")
        shapes = f"{list(found)}, and by its config.json {list(expected)}"
        raise BadInput(f"{source}: no model can be loaded: {name} is of shape {shapes}")
    missing = sorted(loading["missing_keys"])
    if any(_is_body(model, name) for name in missing):
        raise _lacking(source, missing, model)
    surplus = sorted(
        name for name in loading["unexpected_keys"] if _is_body(model, name) and not COMPUTED.search(name)
    )
    if surplus:
        raise BadInput(f"{source}: its config.json has no place for its weights {some(surplus)}")
    weights = ((name, each) for name, each in model.named_parameters() if each.is_floating_point())
    if strange := [name for name, each in weights if not all_finite(each)]:
        raise BadInput(f"{source}: not a trained model: NaN or infinity in its weights {some(strange)}")
    return model, missing


def _whole_numbers(folder: Path) -> list[str]:
    """Weights of a folder that are integers, as quantised ones are, though its config.json names no way."""
    if "quantization_config" in (read_json(folder / "config.json") or {}):
        return []
    found = []
    for file in sorted(folder.glob("model*.safetensors")):
        with suppress(SafetensorError), safe_open(file, "pt") as tensors:  # damage is said where it is read
            # safe_open is no mapping: nothing but keys() lists what is in it.
            names = [name for name in tensors.keys() if name.endswith(("weight", "bias"))]  # noqa: SIM118
            found += [name for name in names if tensors.get_slice(name).get_dtype()[0] in "IU"]
    return found


def _is_body(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight is below the head; checkpoints of the body alone have names without its prefix.

    What an encoder pools its rows by is part of the head.
    """
    parts = name.removeprefix(f"{model.base_model_prefix}.").split(".")
    return parts[0] in dict(model.base_model.named_children()) and not _of_head(name)


def _of_head(name: str) -> bool:
    return not {"pooler", "score", "classifier", "lm_head", "embed_out"}.isdisjoint(name.split("."))


def _lacking(source: Path, names: list[str], model: PreTrainedModel) -> BadInput:
    if getattr(model.config, "auto_map", None):
        code = "it needs code of its own (trust_remote_code), which rpo does not run"
        return BadInput(f"{source}: {code}; take a model that transformers itself has")
    return BadInput(f"{source}: not a trained model of this kind: it has no weights for {some(names)}")
