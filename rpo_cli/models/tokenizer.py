"""A model's tokenizer, with the tokens that end and pad its rows."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rpo_cli.artifacts import base_of_adapter, cannot_read, look_for
from rpo_cli.errors import BadInput
from rpo_cli.recipes.schema import ModelSource

NEW_PAD = "[PAD]"
SPARE = ("pad", "reserved", "unused", "endoftext", "")  # what a spare token may be called, the best first


def load_tokenizer(
    source: Path,
    recipe: ModelSource | None = None,
    revision: str | None = None,
    *,
    need_pad: bool = True,
    need_eos: bool = True,
    own_pad: bool = False,
) -> PreTrainedTokenizerBase:
    """Tokenizer with an EOS and a padding token, padding on the left as generation needs.

    Where it has no padding token, or pads with its EOS, a spare token of its vocabulary becomes one. Without
    one the EOS pads: batches are read by masks, so that only those at the end of responses are learnt.

    Args:
        own_pad: rather add a token than have the EOS pad: of a reward model, which transformers read at the
            last token that is no padding.

    Raises:
        BadInput: no tokenizer there, no EOS, or a recipe's `pad_token` that is the EOS.
    """
    if source.is_absolute() and not source.exists():
        raise BadInput(f"{source}: no such model directory")
    while not (source / "tokenizer_config.json").is_file() and (base := base_of_adapter(source)) is not None:
        source = Path(base)  # an adapter's folder may have no tokenizer of its own
    look_for(source)  # the hub in one attempt, where transformers would try for half a minute
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(source), revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # of transformers, tokenizers, or what reads a config
        raise BadInput(f"{source}: no tokenizer can be loaded: {cannot_read(source, error)}") from error
    tokenizer.init_kwargs.pop("local_files_only", None)  # saved with it, and another where the hub is reached
    if need_eos and tokenizer.eos_token_id is None:
        raise BadInput(f"{source}: the tokenizer has no EOS token, so a response could never end")
    vars(tokenizer)["published_pad"] = tokenizer.pad_token_id  # which may be replaced, here and below
    if recipe is not None and recipe.pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": recipe.pad_token})
    if not need_pad:
        return tokenizer
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        if recipe is not None and recipe.pad_token is not None:
            raise BadInput(f"pad_token: {recipe.pad_token} is the EOS of {source}; leave the key out")
        new = NEW_PAD if own_pad else tokenizer.eos_token
        tokenizer.add_special_tokens({"pad_token": spare_token(tokenizer) or new or NEW_PAD})
    tokenizer.padding_side = "left"
    return tokenizer


def spare_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A special token that no text of this tokenizer is made of, to pad with; None: it has none to spare."""
    entries = tokenizer.added_tokens_decoder.items()
    special = [(number, entry.content) for number, entry in entries if entry.special]
    used = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template or "")
    spare = [(number, text) for number, text in special if text not in used and text not in template]

    def rank(token: tuple[int, str]) -> tuple[int, int]:
        return next(n for n, name in enumerate(SPARE) if name in token[1].lower()), token[0]

    return min(spare, key=rank)[1] if spare else None


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers have the same vocabulary, EOS and padding token, as loaded or as published."""
    pads = ("pad_token_id", "published_pad")
    padded_alike = any(getattr(one, name, -1) == getattr(other, name, -2) for name in pads)
    alike = padded_alike and one.eos_token_id == other.eos_token_id
    return alike and one.get_vocab() == other.get_vocab()
