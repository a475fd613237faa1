"""Properties of the look for a TPU: bounded, and one line for each thing that can be missing."""

from __future__ import annotations

import subprocess
from importlib import metadata, util
from pathlib import Path

import pytest
from conftest import Tiny

from rpo_cli import devices
from rpo_cli.devices import xla_probe
from rpo_cli.devices.device import DeviceError
from rpo_cli.recipes import schema


@pytest.fixture
def pci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PCI bus with four chips of a TPU v4, the same maker's network card and another's disk."""
    cards = [("0x1ae0", "0x005e")] * 4 + [("0x1ae0", "0x0042"), ("0x8086", "0x005e")]
    for slot, (vendor, device) in enumerate(cards):
        folder = tmp_path / f"0000:00:0{slot}.0"
        folder.mkdir()
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "device").write_text(device + "\n")
    monkeypatch.setattr(xla_probe, "PCI", tmp_path)
    return tmp_path


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch-xla that fits its torch."""
    monkeypatch.setattr(xla_probe, "torch_xla_problem", lambda: None)


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", versions.__getitem__)


def test_without_a_chip_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitting: None
) -> None:
    monkeypatch.setattr(xla_probe, "PCI", tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("a process was started"))
    assert xla_probe.probe_tpu() == xla_probe.Probe(0, 0, "no TPU chip on the PCI bus")


def test_only_tpus_are_counted(pci: Path) -> None:
    assert xla_probe.chips() == 4


def test_a_runtime_that_hangs_is_given_up(pci: Path, fitting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_probe, "SCRIPT", "import time; time.sleep(300)")
    monkeypatch.setattr(xla_probe, "PATIENCE", 1)
    probe = xla_probe.probe_tpu()
    assert probe.devices == 0 and "did not start in 1 s" in probe.why


def test_a_runtime_that_fails_is_quoted(pci: Path, fitting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_probe, "SCRIPT", "raise RuntimeError('The TPU is already in use by process 7')")
    assert xla_probe.probe_tpu().why.endswith(
        "did not start: RuntimeError: The TPU is already in use by process 7"
    )


def test_devices_of_this_host_and_of_all_are_told_apart(
    pci: Path, fitting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        xla_probe,
        "SCRIPT",
        "import os; print('a banner'); print([8, 32] if os.environ['PJRT_DEVICE'] == 'TPU' else 0)",
    )
    assert xla_probe.probe_tpu() == xla_probe.Probe(8, 32, "4 TPU chips on the PCI bus, 8 devices of 32")


def test_a_torch_that_torch_xla_would_crash_with_is_named(pci: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"torch-xla": "2.9.0", "torch": "2.13.0"})
    assert (
        xla_probe.torch_xla_problem()
        == "torch-xla 2.9.0 runs with torch 2.9 only, and torch 2.13.0 is installed (make setup-tpu)"
    )
    assert xla_probe.probe_tpu().why.startswith("4 TPU chips on the PCI bus, but torch-xla 2.9.0 runs with")
    installed(monkeypatch, {"torch-xla": "2.9.0", "torch": "2.9.1+cu128"})
    assert xla_probe.torch_xla_problem() is None


def test_xla_without_a_tpu_is_refused_in_one_line(
    tmp_path: Path, fitting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xla_probe, "PCI", tmp_path)
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    recipe = schema.Recipe.model_validate({"stage": "doctor", "device": "xla"})
    with pytest.raises(DeviceError, match="no TPU chip on the PCI bus"):
        devices.choose(recipe)
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert devices.choose(recipe).name == "xla"


def test_xla_without_torch_xla_is_refused_in_one_line(empty: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_probe, "torch_xla_problem", lambda: "torch-xla is not installed")
    said = empty.run("train-sft", "sft.yaml", "--set", "device=xla", code=2).stderr
    assert said.splitlines()[-1] == "device: xla was asked for, but torch-xla is not installed"
