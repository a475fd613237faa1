"""Peak memory of a policy step, as JSON: `python -m benchmarks.memory rpo|stock|compact DEVICE DTYPE`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.peak import Peak
from benchmarks.quiet import quiet
from benchmarks.race import Setting, run_as
from benchmarks.workloads import FULL, causal, pairs
from rpo_cli.devices import Device

HOW = (
    "CPU: VmHWM, reset through /proc/self/clear_refs, minus the resident memory before the second step "
    "(weights and AdamW state are "
    "there already), a process for each, malloc returning freed blocks at once; GPU: "
    "torch.cuda.max_memory_allocated likewise, and what CUDA graphs hold of their pools"
)
# Freed blocks above 64 KiB go back at once, so that what is resident is what is in use.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def step_peak(who: Setting, bench: Bench) -> dict[str, float]:
    """Peak of the second step of rpo or TRL on the GPT-NeoX workload, and its loss."""
    scale = bench.scale
    maker = bench.maker(scale.batch)
    rows = pairs(scale.tldr, 4 * scale.batch, scale.neox["vocab_size"], maker.tokenizer)
    policy = causal(scale.neox, maker.tokenizer, 0, bench.device.name)
    contestant: Any = (
        maker.ours(who, policy, rows) if who == "rpo" else maker.trl(who, policy, rows, setting=who)
    )
    run_as(contestant.setting)
    contestant.step()
    peak = Peak(bench.device.name)
    contestant.step()
    used = peak.bytes()
    loss = float(contestant.losses[1])
    contestant.close()
    return {"peak": used, "before": peak.before, "loss": loss}


def in_own_process(who: Setting, device: Device) -> dict[str, float]:
    """`step_peak` at full scale in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", who, device.name, device.dtype_name]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        command, env=os.environ | MALLOC, capture_output=True, text=True, cwd=root, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    who: Any
    who, name, dtype = sys.argv[1:]
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        result = step_peak(who, Bench(FULL, Device(name, dtype, "benchmark"), Path(folder)))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
