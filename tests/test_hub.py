"""A hub that cannot be reached is found out in one attempt, and said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from conftest import Tiny
from huggingface_hub import constants

from rpo_cli.artifacts import hub
from rpo_cli.errors import BadInput
from rpo_cli.models import load_tokenizer


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is asked of a network that is down; the client believes that it is up."""
    asked: list[str] = []

    class Session:
        def head(self, url: str, timeout: float) -> Any:
            asked.append(url)
            assert timeout == hub.SECONDS
            raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    hub.unreachable.cache_clear()
    yield asked
    hub.unreachable.cache_clear()


def test_one_attempt_then_only_the_cache(attempts: list[str]) -> None:
    for name in ("some/model", "some/other"):
        with pytest.raises(
            BadInput,
            match=f"{name}: no tokenizer can be loaded: .*cannot be reached: .*Name or service not known",
        ):
            load_tokenizer(Path(name))
    assert attempts == [constants.ENDPOINT] and constants.HF_HUB_OFFLINE is True


def test_a_directory_asks_nobody(attempts: list[str], built: Tiny) -> None:
    load_tokenizer(built.root / "seed-0/sft")
    assert attempts == [] and constants.HF_HUB_OFFLINE is False


def test_a_command_that_needs_the_hub_says_so_in_its_last_line(attempts: list[str], tiny: Tiny) -> None:
    before = (tiny.root / "seed-0/oracle/manifest.json").read_bytes()
    result = tiny.run("train-rm", "oracle.yaml", "--set", "model_name_or_path=some/model", code=2)
    last = result.stderr.splitlines()[-1]
    assert (
        "cannot be reached" in last
        and "lacks model some/model@main. Where there is a network: rpo data fetch --recipe" in last
    )
    assert "Retrying" not in result.output and len(attempts) == 1
    assert (
        tiny.root / "seed-0/oracle/manifest.json"
    ).read_bytes() == before  # found out before anything is taken down
