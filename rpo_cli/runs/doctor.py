"""`rpo doctor`: the machine and the installation, and what of them would stop or slow a run."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging.specifiers import SpecifierSet

from rpo_cli import __version__
from rpo_cli.artifacts import git_revision, versions, wandb_mode
from rpo_cli.devices import HOST, cpus, free_bytes, xla_probe
from rpo_cli.errors import RunFailed
from rpo_cli.recipes import schema
from rpo_cli.text import aligned, counted, first_line, size

# As in pyproject.toml; private names of TRL change with every minor release.
TESTED_TRL = ">=1.16,<1.17"
NEEDED = ("torch", "transformers", "trl", "accelerate", "datasets", "wandb")
OPTIONAL = ("peft", "bitsandbytes")
ABSENT = "not installed"
LITTLE = 2e9  # bytes of disk or memory below which the miniature's protocol may not fit


@dataclass
class Findings:
    """What was found. `problems` stop runs; `warnings` may."""

    facts: dict[str, Mapping[str, object]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def show_doctor(as_json: bool) -> None:
    """Print versions, device and dtype with the reason, threads, disk, memory, W&B and hub state.

    Raises:
        RunFailed: a problem that would stop every run.
    """
    found = examine()
    if as_json:
        print(json.dumps({**found.facts, "problems": found.problems, "warnings": found.warnings}, indent=2))
    else:
        named = [
            (f"{group} {name}", value)
            for group, facts in found.facts.items()
            for name, value in facts.items()
        ]
        print(aligned([(name, _words(value)) for name, value in named]), end="")
        for kind, lines in (("problem", found.problems), ("warning", found.warnings)):
            for line in lines:
                print(f"{kind}: {line}")
    if found.problems:
        raise RunFailed(f"rpo doctor: {counted(len(found.problems), 'problem')}")


def examine() -> Findings:
    """Look at everything; what is missing or broken is a finding, never an exception."""
    found = Findings()
    found.facts["version"] = _versions(found)
    found.facts["device"] = _device(found)
    found.facts["tpu"] = _tpu(found)
    found.facts["machine"] = _machine(found)
    mode, why = wandb_mode()
    found.facts["wandb"] = {"mode": mode, "why": why}
    found.facts["hub"] = _hub(found)
    return found


def _versions(found: Findings) -> dict[str, str]:
    names = (*NEEDED, *OPTIONAL)
    installed = versions(names)
    told = {"python": installed["python"], "rpo": __version__, "git": git_revision() or "no checkout"}
    told |= {name: installed.get(name, ABSENT) for name in names}
    for name in NEEDED:
        if name not in installed:
            found.problems.append(f"{name} is not installed; run `pip install rpo-cli` again")
    if (trl := installed.get("trl")) is not None:
        tested = SpecifierSet(TESTED_TRL).contains(trl, prereleases=True)
        if not tested:
            found.warnings.append(f"trl {trl} is outside the tested range {TESTED_TRL}")
        told["trl"] += f" (tested: {TESTED_TRL}{'' if tested else ', this one is not'})"
    return told


def _device(found: Findings) -> dict[str, object]:
    try:
        import torch

        from rpo_cli import devices

        chosen = devices.choose(schema.Recipe.model_validate({"stage": "doctor"}))
        # What looks installed may still fail to load, as with libraries built for another CUDA.
        for name in ("transformers", "trl", "wandb"):
            importlib.import_module(name)
    except Exception as error:
        line = f"{type(error).__name__}: {first_line(error)}"
        found.problems.append(f"the libraries cannot be imported: {line}")
        return {}
    threads, there = torch.get_num_threads(), cpus()
    if threads > there:
        found.warnings.append(
            f"torch would use {threads} threads on {there} CPUs; set OMP_NUM_THREADS or `threads:`"
        )
    return {"name": chosen.name, "dtype": chosen.dtype_name, "why": chosen.reason, "torch_threads": threads}


def _tpu(found: Findings) -> dict[str, object]:
    """What stands between this machine and `--device xla`; a runtime that would hang is given a minute."""
    installed = versions(("torch-xla", "torch-tpu"))
    xla = installed.get("torch-xla")
    problem = xla_probe.torch_xla_problem()
    probe = xla_probe.probe_tpu()
    if problem is not None and (xla or xla_probe.chips()):
        found.warnings.append(f"--device xla: {problem}")
    return {
        "torch-xla": xla or ABSENT,
        "devices": probe.devices,
        "why": probe.why,
        "torch-tpu": f"{version} (rpo does not use it yet; see docs/tpu.md)"
        if (version := installed.get("torch-tpu"))
        else ABSENT,
    }


def _machine(found: Findings) -> dict[str, object]:
    here = os.getcwd()
    disk = shutil.disk_usage(here).free
    memory = free_bytes(())[HOST]
    for what, count in (("disk", disk), ("memory", memory)):
        if count is not None and count < LITTLE:
            found.warnings.append(f"only {size(count)} of {what} free")
    if not os.access(here, os.W_OK):
        found.problems.append(f"{here}: cannot be written; choose another directory, or a --workspace")
    return {"cpus": cpus(), "directory": here, "free_disk_bytes": disk, "free_memory_bytes": memory}


def _hub(found: Findings) -> dict[str, object]:
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        found.problems.append(f"huggingface_hub cannot be imported: {error}")
        return {}
    return {
        "offline": constants.HF_HUB_OFFLINE,
        "token": get_token() is not None,
        "cache": constants.HF_HUB_CACHE,
    }


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "unknown"
    return size(value) if isinstance(value, int) and value >= 10_000_000 else str(value)
