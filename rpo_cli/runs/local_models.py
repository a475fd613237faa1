"""What is known of a plan's models before anything heavy is imported: from folders that are there already."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rpo_cli.artifacts import External, Stage, below_adapters, read_json
from rpo_cli.artifacts.model_folder import content_of
from rpo_cli.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Node = Stage | External
# Keys of configs of which the second divides the first.
DIVIDED = (("hidden_size", "num_attention_heads"), ("n_embd", "n_head"), ("d_model", "n_heads"))


@dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer as its files have it; what they do not name is not known."""

    folder: Path
    eos: str | None
    pad: str | None

    def padded(self, token: str | None) -> TokenizerFacts:
        """The same with another padding token, if one is given."""
        return self if token is None else replace(self, pad=token)

    def differs(self, other: TokenizerFacts) -> str | None:
        """In what another tokenizer differs, as far as their files say; None: in nothing."""
        for what, ours, theirs in (("EOS", self.eos, other.eos), ("padding token", self.pad, other.pad)):
            if None not in (ours, theirs) and ours != theirs:
                return f"{what} ({ours} and {theirs})"
        if self.folder == other.folder:
            return None
        mine, others = _vocabulary(self.folder), _vocabulary(other.folder)
        return "vocabulary" if None not in (mine, others) and mine != others else None


def base_of(node: Node) -> Node:
    """What a model comes from: a folder or hub name, or the stage that makes one from scratch."""
    while isinstance(node, Stage) and (below := _below(node)) is not None:
        node = below
    return node


def _below(stage: Stage) -> Node | None:
    """The model that a stage goes on with; None where it makes one from scratch."""
    if stage.kind == "warm":
        return next(iter(stage.inputs.values()))
    return None if settings_of(stage) is not None else stage.inputs.get("model")


def settings_of(node: Node) -> Mapping[str, Any] | None:
    """The keys of a config for a stage that makes a model from scratch."""
    return getattr(node.recipe, "model_config_kwargs", None) if isinstance(node, Stage) else None


def folder_of(node: Node) -> Path | None:
    """The folder of a model that no stage makes: its own, or its snapshot in the hub's cache."""
    if not isinstance(node, External):
        return None
    if not node.on_hub:
        return Path(node.reference)
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(node.reference, "config.json", revision=node.commit or node.revision)
    except ValueError:  # no possible name of a repository
        return None
    return Path(found).parent if isinstance(found, str) else None


def config_of(node: Node) -> Mapping[str, Any] | None:
    """The config.json behind a model, of an adapter its base's; None where it is not here."""
    base = base_of(node)
    if (folder := folder_of(base)) is None:
        return settings_of(base)
    try:
        return _json(below_adapters(folder) / "config.json")
    except BadInput:  # which `preflight` says of the adapter
        return None


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """A classifier's labels; two where its config does not say, as in transformers."""
    named = config.get("id2label")
    if isinstance(named, Mapping):
        return [str(name) for name in named.values()]
    return [f"LABEL_{number}" for number in range(int(config.get("num_labels") or 2))]


def no_merge(folder: Path, *, four_bits: bool = False) -> str | None:
    """Why the adapters of a model's folder cannot be merged into what is below them; None: they can."""
    try:
        if below_adapters(folder) == folder:
            return None
    except BadInput as error:
        return str(error)
    if importlib.util.find_spec("peft") is None:
        return f"{folder} is an adapter, which needs the extra `lora`: pip install 'rpo-cli[lora]'"
    into = "cannot be merged into 4 bits; set load_in_4bit: false"
    return f"{folder} is an adapter, and {into}" if four_bits else None


def no_reward(node: External, label: str | None, key: str) -> str | None:
    """Why a model gives no reward, as far as its config says; `key` names the label. None: it gives one."""
    folder = folder_of(node)
    if folder is None or (config := read_json(folder / "config.json")) is None:
        return None
    made, labels = str((config.get("architectures") or [""])[0]), labels_of(config)
    if made and "SequenceClassification" not in made:
        code = ", and code of its own (trust_remote_code) is not run" if config.get("auto_map") else ""
        return f"{node.reference} is a {made}, no reward model{code}"
    if len(labels) == 1 or label in labels:
        return None
    has = (
        f"has no label {label!r}"
        if label is not None
        else f"has {len(labels)} labels; a reward model has one"
    )
    return f"{node.reference} {has}; {key} says which is the reward: {', '.join(labels)}"


def tokens_of(node: Node) -> TokenizerFacts | None:
    """The tokenizer that a model has, padding tokens that recipes give it included; None: not known here."""
    if isinstance(node, Stage):
        found = None if (below := _below(node)) is None else tokens_of(below)
        return None if found is None else found.padded(getattr(node.recipe, "pad_token", None))
    folder = folder_of(node)
    config = None if folder is None else _json(folder / "tokenizer_config.json")
    if folder is None or config is None:
        return None
    special = {**(_json(folder / "special_tokens_map.json") or {}), **config}
    eos, pad = (content_of(special.get(f"{name}_token")) for name in ("eos", "pad"))
    return TokenizerFacts(folder, eos, None if pad == eos else pad)  # another is found when it is loaded


def has_chat_template(folder: Path) -> bool:
    """Whether a tokenizer's folder brings a chat template, in one of the places where transformers looks."""
    beside = [
        folder / "chat_template.jinja",
        folder / "chat_template.json",
        folder / "additional_chat_templates",
    ]
    return any(path.exists() for path in beside) or bool(
        (_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    )


def _vocabulary(folder: Path) -> dict[str, int] | None:
    """Every token's number, as a fast tokenizer's file has it; None without one."""
    found = _json(folder / "tokenizer.json")
    try:
        words = cast(Any, found)["model"]["vocab"]
        known = dict(words) if isinstance(words, dict) else {pair[0]: n for n, pair in enumerate(words)}
        return known | {token["content"]: token["id"] for token in cast(Any, found)["added_tokens"]}
    except (TypeError, KeyError, ValueError):
        return None


def shapes_of(folder: Path) -> dict[str, list[int]]:
    """The shapes of a model's weights by name, from the headers of its safetensors files."""
    found: dict[str, list[int]] = {}
    if not (folder / "config.json").is_file():  # an adapter's weights are no model's
        return found
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            found |= {name: list(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError):
            continue  # the stage that loads it says what is wrong
    return found


def parameters_in(folder: Path | None) -> int:
    """How many weights the model in a folder has; 0 where there is none."""
    return 0 if folder is None else sum(map(math.prod, shapes_of(folder).values()))


def modules_of(node: Node) -> set[str]:
    """Names of a model's modules with weights; empty where they are not known here.

    Of a model from scratch they are read off the model on the meta device, which imports transformers.
    """
    base = base_of(node)
    settings, folder = settings_of(base), folder_of(base)
    model = None if settings is None else on_paper(settings)
    names = shapes_of(folder) if folder is not None else {}
    if model is not None and not isinstance(model, BadInput):
        names = dict(model.named_parameters())
    return {name.rpartition(".")[0] for name in names}


def on_paper(settings: Mapping[str, Any]) -> PreTrainedModel | BadInput:
    """The model of a stage that makes one from scratch, on the meta device; or why there is none."""
    return _on_paper(json.dumps(dict(settings)))


@cache
def _on_paper(settings: str) -> PreTrainedModel | BadInput:
    import torch

    from rpo_cli.models import from_settings

    try:
        with torch.device("meta"):
            return from_settings(json.loads(settings), {})
    except BadInput as error:
        return error


def doubtful(settings: Mapping[str, Any]) -> bool:
    """Whether a model of these settings is so odd that it is worth importing torch to see it `on_paper`."""
    spec = importlib.util.find_spec("transformers")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    text = "".join((place / "models/auto/modeling_auto.py").read_text() for place in places)
    causal = re.search(r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = .*?^\)", text, re.DOTALL | re.MULTILINE)
    known = causal is None or f'("{settings["model_type"]}", ' in causal[0]
    named = [pair for pair in DIVIDED if settings.keys() & {*pair}]
    whole = all(_divides(*(settings.get(name) for name in pair)) for pair in named)
    numbers = [value for value in settings.values() if type(value) in (int, float)]
    return not known or not whole or min(numbers, default=1) <= 0


def _divides(width: object, heads: object) -> bool:
    return isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads == 0


def _json(file: Path) -> dict[str, Any] | None:
    try:
        return read_json(file)
    except (OSError, ValueError, RecursionError):
        return None
