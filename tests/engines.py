"""Snakemake as a user has it: beside this Python, on the PATH, or where `make test-slurm` puts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from repository import ROOT

PLACES = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{ROOT / '.venv-snakemake/bin'}"
SNAKEMAKE = shutil.which("snakemake", path=PLACES)
FIGURE = (
    "stage: figure\nkind: gamma\nbootstrap_samples: 50\nrhos: [0.2, 0.5]\n"
    "variants: [{name: dpo, recipe: dpo.yaml}, {name: d-dpo, recipe: d-dpo.yaml}]\nclaims: []\n"
)


def run(
    command: list[str | Path], folder: Path, code: int = 0, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command in a folder, with this checkout's `rpo` on the PATH; all that it printed."""
    found = {**(environment or os.environ), "PATH": PLACES, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=found, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == code, done.stdout
    return done.stdout
