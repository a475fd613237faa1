"""A model's generation_config: the tokens that end its responses, and what of it can be saved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rpo_cli.errors import BadInput


def stops_of(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a response: the tokenizer's EOS, and what else the model's `generate` ends at.

    Raises:
        BadInput: its generation_config has something else than numbers of tokens.
    """
    found = None if generation is None else generation.eos_token_id
    others = found if isinstance(found, list) else [] if found is None else [found]
    if strange := [each for each in others if not isinstance(each, int)]:
        why = f"eos_token_id: expected the number of a token, got {strange[0]!r}"
        raise BadInput(f"{tokenizer.name_or_path}: generation_config.json: {why}")
    return list(dict.fromkeys([int(tokenizer.eos_token_id), *others]))


def stops_in(source: Path, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`stops_of` a model that is not loaded."""
    try:
        generation = GenerationConfig.from_pretrained(str(source), revision=revision or "main")
    except (OSError, ValueError):
        generation = None  # it has no such file
    return stops_of(generation, tokenizer)


def warn_of_turns(source: Path, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> None:
    """Log a warning where the chat template ends turns in another token than the EOS of responses."""
    if not tokenizer.chat_template:
        return
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # templates raise what they like, and the data stage says so
        return
    behind = tokenizer(text.rpartition("B")[2].strip(), add_special_tokens=False)["input_ids"]
    special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    if not behind or behind[0] == tokenizer.eos_token_id or behind[0] not in special:
        return
    end, eos = tokenizer.convert_ids_to_tokens(behind[0]), tokenizer.eos_token
    known = "sampling stops at either" if behind[0] in stops else "which does not stop sampling"
    log = logging.getLogger("rpo")
    log.warning(
        "%s: the chat template ends turns in %s, %s; responses end in the EOS %s", source, end, known, eos
    )


def fit_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have generation_config and config agree with the tokenizer, so that `generate` ends as sampling here.

    What transformers would not save, as a temperature of a model that does not sample, is left out now:
    training must not end in it.
    """
    generation = getattr(model, "generation_config", None)
    if tokenizer.eos_token_id is None:  # an encoder's, which is only read
        model.config.pad_token_id = tokenizer.pad_token_id
        return
    stops = stops_of(generation, tokenizer)
    eos = stops if len(stops) > 1 else stops[0]
    model.config.pad_token_id, model.config.eos_token_id = tokenizer.pad_token_id, eos
    if generation is None:
        return
    generation.pad_token_id, generation.eos_token_id = tokenizer.pad_token_id, eos
    model.generation_config, left_out = _savable(generation)
    if left_out:
        contradict = f"{', '.join(left_out)} of generation_config.json contradict the rest of it"
        logging.getLogger("rpo").warning("%s: %s; left out", model.name_or_path, contradict)


def _savable(generation: GenerationConfig) -> tuple[GenerationConfig, Sequence[str]]:
    try:
        generation.validate(strict=True)
        return generation, ()
    except ValueError:
        kept, left_out = GenerationConfig(), []
    for name, value in generation.to_diff_dict().items():
        before = getattr(kept, name, None)
        setattr(kept, name, value)
        try:
            kept.validate(strict=True)
        except ValueError:
            setattr(kept, name, before)
            left_out.append(name)
    return kept, left_out
