"""A data file that is damaged anywhere is read or refused; tools/fuzz_data.py runs more of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_damaged_data_files_are_read_or_refused_in_a_line() -> None:
    command = [sys.executable, "-m", "tools.fuzz_data", "--seed", "7", "--count", "20"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1].startswith("20 files, seed 7: exit codes {")
