"""Snakemake where a user may have it: beside this Python, on the PATH, or where `make test-slurm` puts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from repository import ROOT

PLACES = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{ROOT / '.venv-snakemake/bin'}"
SNAKEMAKE = shutil.which("snakemake", path=PLACES)
FIGURE = "stage: figure\nbootstrap_samples: 50\nrhos: [0.2, 0.5]\npolicies: [dpo.yaml, d-dpo.yaml]\n"
SHORT = "expected_seconds: 2\n"  # so that stages are put together into jobs


def add_figure(suite: Path) -> None:
    """Give a suite a figure of two objectives at two rho, and all its stages the time that they take."""
    for recipe in suite.glob("*.yaml"):
        if not (text := recipe.read_text()).startswith("extends"):
            recipe.write_text(text + SHORT)
    (suite / "figure2.yaml").write_text(FIGURE)


ENVIRONMENT = {"PATH": PLACES, "PYTHONPATH": str(ROOT)}  # this checkout's `rpo` is on the PATH


def run(
    command: Sequence[str | Path], folder: Path, code: int = 0, environment: Mapping[str, str] = os.environ
) -> str:
    """Run a command in a folder; all that it printed."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=folder, env={**environment, **ENVIRONMENT}, text=True, **pipe)
    assert done.returncode == code, done.stdout
    return done.stdout
