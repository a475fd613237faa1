"""Whether the Hugging Face hub can be reached, asked once: its client tries for half a minute a file."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from rpo_cli.text import first_line

SECONDS = 5.0
NOT_CACHED = "find them in the cached files"  # transformers, of a name that it could not ask the hub for


@cache
def unreachable() -> str | None:
    """Why the hub cannot be reached, in one attempt; else None. From then on its cache is read."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of whichever HTTP library; any answer at all is none
        os.environ["HF_HUB_OFFLINE"] = "1"  # for worker processes
        constants.HF_HUB_OFFLINE = True
        return f"{constants.ENDPOINT} cannot be reached: {str(error).strip() or type(error).__name__}"
    return None


def look_for(source: Path | str) -> str:
    """What to add to an error about a model: for a hub name why the hub was not asked."""
    why = None if Path(source).exists() else unreachable()
    return "" if why is None else f" ({why}); give a folder, or what an earlier run has loaded"


def cannot_read(source: Path | str, error: Exception) -> str:
    """What an error about a model says; once, where transformers says of the hub what `look_for` says."""
    said, offline = first_line(error), look_for(source)
    return ("neither a folder nor in the hub's cache" if offline and NOT_CACHED in said else said) + offline
