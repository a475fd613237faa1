"""What `make setup-tpu` made: torch and torch-xla that fit, and a torch-xla that nobody asked for stays out of the way."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_environment_is_the_pinned_one() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints-tpu.txt").read_text().splitlines() if "==" in line)
    for name in ("torch", "torch-xla", "transformers", "trl", "accelerate", "libtpu"):
        assert metadata.version(name) == pins[name]
