"""`rpo demo`: both policies trained and shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import rpo


def test_the_demo_is_planned_for_less_than_a_minute_and_builds_nothing_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = rpo("demo", "--dry-run")
    assert "policies/dpo" in said.stdout and "policies/e-dpo" in said.stdout
    expected = re.search(r"expected: (\d+)s with --jobs 2", said.stderr)
    assert expected is not None and int(expected[1]) <= 50 and not Path("runs").exists()


@pytest.mark.slow
def test_the_demo_shows_both_policies_beside_the_model_before(tmp_path: Path) -> None:
    text = rpo("demo", "--workspace", tmp_path / "demo").stdout
    for name in ("the model before", "dpo", "e-dpo"):
        assert re.search(rf"^{name} +-?\d+\.\d\d ", text, flags=re.M), text
        assert len(re.findall(rf"^  {name} +reward [+-]\d", text, flags=re.M)) == 2
    assert "80% of its training pairs" in text and "rpo init mine" in text
