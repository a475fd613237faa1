"""What a model's folder says before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rpo_cli.artifacts.files import read_json
from rpo_cli.errors import BadInput

# Model types with a table of positions as long as their max_position_embeddings.
LEARNT = {
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot",
    "blenderbot-small", "electra", "ernie", "git", "gpt_neo", "marian", "mbart", "megatron-bert", "mvp",
    "opt", "pegasus", "plbart", "prophetnet", "reformer", "rembert", "roc_bert", "roformer", "trocr", "xlm",
}  # fmt: skip
# Here the table begins behind the padding token's id.
BEHIND_PADDING = {
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
OTHERS = {"mpt": "max_seq_len", "whisper": "max_target_positions"}


class Config(Protocol):
    """A transformers PretrainedConfig."""

    def to_dict(self) -> dict[str, Any]: ...


def positions_of(config: Mapping[str, Any] | Config) -> int | None:
    """How many tokens a row may have: the length of the model's table of positions; None: it has none.

    Rotary embeddings, ALiBi and recurrent states have no table. A rotary model's `max_position_embeddings`
    says what it was trained for: beyond it a model is bad, not broken.
    """
    found = config if isinstance(config, Mapping) else config.to_dict()
    if isinstance(found.get("text_config"), Mapping):
        return positions_of(found["text_config"])
    kind, longest = found.get("model_type"), found.get("max_position_embeddings")
    if kind in BEHIND_PADDING and longest is not None:
        padding = found.get("pad_token_id")
        return int(longest) - (1 if padding is None else int(padding)) - 1
    if kind not in LEARNT:
        longest = found.get(OTHERS.get(str(kind), "n_positions"))
    return None if longest is None else int(longest)


def base_of_adapter(folder: Path) -> str | None:
    """The base model, a folder or a name of the hub, of a folder with an adapter only; None: it is another.

    Raises:
        BadInput: it names none, or a folder that is not there.
    """
    config = folder / "adapter_config.json"
    if not config.is_file() or (folder / "config.json").is_file():
        return None
    base = (read_json(config) or {}).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise BadInput(f"{config}: base_model_name_or_path is missing; an adapter is no model without it")
    for place in (Path(base), folder / base):
        if place.is_dir() and place.resolve() != folder.resolve():
            return str(place)
    if Path(base).is_absolute() or base.startswith(".") or base.count("/") > 1:
        raise BadInput(f"{folder} is an adapter whose base model {base} is not there; correct {config.name}")
    return base


def below_adapters(folder: Path) -> Path:
    """The model, a folder or a name of the hub, at the bottom of a folder's adapters; itself if it has none.

    Raises:
        BadInput: as `base_of_adapter`, or adapters that are each other's base.
    """
    seen = [folder]
    while (base := base_of_adapter(seen[-1])) is not None:
        if Path(base).resolve() in {place.resolve() for place in seen}:
            raise BadInput(f"{seen[-1] / 'adapter_config.json'}: its base {base} is an adapter on it in turn")
        seen.append(Path(base))
    return seen[-1]


def may_end_in_padding(folder: Path) -> bool:
    """Whether a published classifier may take the EOS of a row for padding, or its tokenizer names none."""
    try:
        config = read_json(below_adapters(folder) / "config.json") or {}
    except BadInput:
        return True
    eos = config.get("eos_token_id")
    if config.get("pad_token_id") in (eos if isinstance(eos, list) else [eos]):
        return True
    special = read_json(folder / "tokenizer_config.json") or {}
    pad, end = (content_of(special.get(f"{name}_token")) for name in ("pad", "eos"))
    return pad is None or pad == end


def content_of(token: object) -> str | None:
    """A special token's text, which a tokenizer's files have bare or in a mapping."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None
