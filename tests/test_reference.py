"""The generated pages of docs/reference say what the program says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from rpo_cli.recipes.editor import json_schema

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_committed_reference_is_what_the_program_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools import reference

    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 0, f"{capsys.readouterr().out}run: python -m tools.reference"


@pytest.mark.slow
def test_a_page_that_is_missing_or_stale_is_named_and_then_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools import reference

    folder = tmp_path / "docs" / "reference"
    folder.mkdir(parents=True)
    monkeypatch.setattr(reference, "FOLDER", folder)
    (folder / "commands.md").write_text("# Commands\n")
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 1
    names = ("commands.md", "recipes.md", "plan.md", "plan-schema.json")
    assert capsys.readouterr().out == "".join(f"stale: docs/reference/{name}\n" for name in names)
    assert not (folder / "recipes.md").exists()
    monkeypatch.setattr(sys, "argv", ["reference"])
    assert reference.main() == 0
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 0


def test_every_key_of_every_recipe_is_in_the_reference() -> None:
    from tools import reference

    written = set(re.findall(r"^\| `(\w+)`", reference.recipes_page(), flags=re.M))
    keys = {key for part in json_schema()["$defs"].values() for key in part.get("properties", {})}
    assert len(keys) >= 80
    assert keys - written == {"stage", "extends", "members"}  # the last is of an entry of `ensemble`
