"""Whether this machine has a TPU and a torch-xla that can use it, found out without ever hanging.

Imports nothing heavy.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.request import Request, urlopen

from packaging.version import Version

from rpo_cli.errors import RunFailed

PATIENCE = 60.0  # seconds: importing torch and starting the TPU's runtime takes some ten of them
GOOGLE = "0x1ae0"  # vendor of PCI devices; the network card of a cloud machine is Google's too
# v2 and v3, v4, v5p, v5e, v6e, 7x; as in torch_xla/_internal/tpu.py
TPUS = ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
PCI = Path("/sys/bus/pci/devices")
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number"
# The runtime waits for hardware that is not there: asked in a process that can be ended.
SCRIPT = """
import json, torch_xla, torch_xla.runtime as runtime
torch_xla.device()
print(json.dumps([runtime.addressable_device_count(), runtime.global_runtime_device_count()]))
"""


@dataclass(frozen=True)
class Probe:
    """What a probe found: devices of this host and of all hosts (0: no TPU to use), and why."""

    devices: int
    everywhere: int
    why: str


def chips() -> int:
    """TPU chips on this machine's PCI bus."""

    def read(file: Path) -> str:
        try:
            return file.read_text().strip()
        except OSError:
            return ""

    return sum(
        read(device / "vendor") == GOOGLE and read(device / "device") in TPUS for device in PCI.glob("*")
    )


def probe_tpu() -> Probe:
    """Look for a TPU: its chips, then, in a process that ends after PATIENCE, its runtime."""
    count = chips()
    if not count:
        return Probe(0, 0, "no TPU chip on the PCI bus")
    found = f"{count} TPU chips on the PCI bus"
    if (problem := torch_xla_problem()) is not None:
        return Probe(0, 0, f"{found}, but {problem}")
    environment = os.environ | {"PJRT_DEVICE": "TPU"}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=PATIENCE, env=environment
        )
    except subprocess.TimeoutExpired:
        late = f"did not start in {PATIENCE:.0f} s (on a pod it waits for the other hosts)"
        return Probe(0, 0, f"{found}, but its runtime {late}")
    if asked.returncode != 0:
        last = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
        return Probe(0, 0, f"{found}, but its runtime did not start: {last}")
    here, everywhere = json.loads(asked.stdout.splitlines()[-1])
    return Probe(
        here, everywhere, f"{found}, {here} devices" + (f" of {everywhere}" if everywhere != here else "")
    )


def host() -> int:
    """Which of a pod's hosts this is, counted from 0; 0 where there is one.

    Raises:
        RunFailed: this is a TPU machine, and its metadata cannot be read.
    """
    if "TPU_WORKER_ID" in os.environ:
        return int(os.environ["TPU_WORKER_ID"])
    if not chips():
        return 0
    try:
        with urlopen(Request(METADATA, headers={"Metadata-Flavor": "Google"}), timeout=10) as answer:
            return int(answer.read())
    except (OSError, ValueError) as error:
        raise RunFailed(
            f"which host of the TPU is this? Its metadata cannot be read ({error}); set TPU_WORKER_ID to "
            "0, 1, ..."
        ) from error


def torch_xla_problem() -> str | None:
    """Why torch-xla cannot be used here, or None: any torch but its own release's crashes its import."""
    if importlib.util.find_spec("torch_xla") is None:
        return "torch-xla is not installed (the extra `tpu`; see docs/tpu.md)"
    ours, theirs = metadata.version("torch-xla"), metadata.version("torch")
    if Version(ours).release[:2] != Version(theirs).release[:2]:
        needed = ".".join(map(str, Version(ours).release[:2]))
        there = f"and torch {theirs} is installed (make setup-tpu)"
        return f"torch-xla {ours} runs with torch {needed} only, {there}"
    return None
