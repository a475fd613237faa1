"""What `make setup-tpu` made: fitting torch and torch-xla; one nobody asked for stays out of the way."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from bars import ORDINARY
from conftest import write_suite

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_environment_is_the_pinned_one() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints-tpu.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    for name in ("torch", "torch-xla", "libtpu", "transformers", "trl", "accelerate"):
        assert metadata.version(name) == pins[name]


def test_an_installed_torch_xla_is_not_used_unless_asked_for(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "tiny")
    environment = {
        name: value for name, value in ORDINARY.items() if name not in ("USE_TORCH_XLA", "PJRT_DEVICE")
    }
    script = (
        "import sys\nfrom rpo_cli.cli import app\ntry:\n    app()\nfinally:\n"
        "    print('torch_xla' in sys.modules, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, "train-sft", "--recipe", str(suite / "sft.yaml")]
    for place, options in (
        ("one", []),
        ("two", ["--accelerate", str(ROOT / "recipes/accelerate/cpu-2.yaml")]),
    ):
        root = tmp_path / place
        done = subprocess.run(
            [*command, "--workspace", root, *options], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == "False"
        (file,) = root.glob("**/sft/manifest.json")
        assert json.loads(file.read_text())["device"].startswith("cpu, float32")
