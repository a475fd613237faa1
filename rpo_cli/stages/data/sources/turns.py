"""Conversations: messages with role and content, or with ShareGPT's from and value, for chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trl.trainer.utils import remove_none_values

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.ledger import visible
from rpo_cli.stages.data.sources.base import columns_in, is_conversation, named

Message = dict[str, Any]
Part = str | list[Message]  # of a row: plain text, or messages
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
}
OF_SHAREGPT = {*ROLES, "user", "assistant", "system", "tool"}
AS_TEXT = "messages as text; write a list of them, not in quotes"
EXPECTED = "expected text or messages with role and content"


class TemplateRefuses(BadInput):
    """A conversation that a chat template does not take, in its own words."""


class PromptElsewhere(BadInput):
    """A prompt of text beside whole conversations, none of whose turns says it."""


def part(place: str, column: str, value: object) -> Part:
    """Text as it is, or the messages of a list, or of the one message that stands for it.

    Raises:
        BadInput: it is neither; names the column and the message.
    """
    if isinstance(value, str):
        return value
    turns = [value] if isinstance(value, dict) and not {"role", "from"}.isdisjoint(value) else value
    if not isinstance(turns, list):
        raise BadInput(f"{place}: {column}: {EXPECTED}, got {named(value)}")
    if not turns:
        raise BadInput(f"{place}: {column}: {EXPECTED}, got an empty list")
    return [_message(f"{place}: {column}: message {number}", turn) for number, turn in enumerate(turns, 1)]


def _message(where: str, turn: object) -> Message:
    if not isinstance(turn, dict):
        raise BadInput(f"{where}: expected role and content, got {named(turn)}")
    # A Parquet file has null for keys that only other rows have, such as arguments of calls; so does TRL.
    given = remove_none_values(turn)
    name = "role" if "role" in given else "from"
    if name not in given:
        raise BadInput(f"{where} has no role (has: {columns_in(given)})")
    role = given.pop(name)
    if not isinstance(role, str):
        raise BadInput(f"{where}: {name}: expected text, got {named(role)}")
    if role not in OF_SHAREGPT and role.strip().lower() in OF_SHAREGPT:
        raise BadInput(f"{where}: {name}: {role!r}: write {role.strip().lower()!r}")
    if name == "from" and role not in OF_SHAREGPT:
        known = ", ".join(sorted(OF_SHAREGPT))
        raise BadInput(f"{where}: from: {role[:40]!r} is none of {known}; write role and content instead")
    content = given.pop("content", given.pop("value", None) if name == "from" else None)
    if content is None and not given.get("tool_calls"):
        raise BadInput(f"{where} has no content")
    return {"role": ROLES.get(role, role), "content": _text(where, content), **given}


def _text(where: str, content: object) -> str | None:
    """A message's content as one text; None where it only calls tools."""
    if isinstance(content, list):
        return "".join(_text_part(where, piece) for piece in content)
    if not isinstance(content, str | None):
        raise BadInput(f"{where}: content: expected text, got {named(content)}")
    return content


def _text_part(where: str, piece: object) -> str:
    found = piece.get("text") if isinstance(piece, dict) and piece.get("type", "text") == "text" else piece
    if not isinstance(found, str):
        kind = piece.get("type") if isinstance(piece, dict) else None
        what = f"a part of type {kind[:40]!r}" if isinstance(kind, str) else named(found)
        raise BadInput(f"{where}: content: only parts of text are read, got {what}")
    return found


def as_json(example: Mapping[str, Part], **more: object) -> str | None:
    """The messages of a row's parts as they are kept beside its texts; None: it is plain text.

    more: what else the chat template was given, such as tools (`templated.given_to_template`).
    """
    if any(isinstance(value, str) for value in example.values()):
        return None
    given = {name: value for name, value in more.items() if value}
    return json.dumps({**example, **given}, ensure_ascii=False, default=str)


def answer(text: str) -> list[Message]:
    """A plain response as the assistant's message."""
    return [{"role": "assistant", "content": text}]


def goes_on(prompt: Part) -> bool:
    """Whether a prompt ends inside the assistant's own turn."""
    return isinstance(prompt, list) and prompt[-1]["role"] == "assistant" and not prompt[-1].get("tool_calls")


def is_told_as_text(value: Part) -> bool:
    """Whether a text is a conversation in JSON, as files without lists have it."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return False
    try:
        return is_conversation(json.loads(value))
    except (ValueError, RecursionError):
        return False


def is_blank(value: Part) -> bool:
    """Whether nothing of it can be seen."""
    if isinstance(value, str):
        return not visible(value)
    return not any(turn.get("tool_calls") or visible(turn["content"] or "") for turn in value)
