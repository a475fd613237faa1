"""The table of the mutation tool is about the code as it is: every snippet is there, exactly once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools/mutate.py"


@pytest.mark.slow
def test_every_mutant_finds_its_place() -> None:
    found = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert int(found.stdout.split()[0]) >= 60
