"""Started by accelerate: run jobs, a JSON line each, one after another; imports are paid once.

Usage: a file of jobs, and the step to die at in the last, if any. None may change a checkpoint that it found.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rpo_cli import devices
from rpo_cli.artifacts import job_from, write_json
from rpo_cli.runs.child import take_part

lines = Path(sys.argv[1]).read_text().splitlines()
for number, line in enumerate(lines, 1):
    job, stop = job_from(line), sys.argv[2:] if number == len(lines) else []
    found = {file: file.read_bytes() for file in job.directory.glob("checkpoints/*/*.json")}

    def progress(step: int, of: int, found: dict[Path, bytes] = found, stop: list[str] = stop) -> None:
        if stop == [str(step)]:
            os._exit(1)
        assert all(file.read_bytes() == was for file, was in found.items())
        found.clear()  # after its first step a run may remove older ones

    metrics, device, *_ = take_part(job, progress)
    if devices.rank() == 0:
        write_json(
            job.directory / "manifest.json", {"metrics": json.loads(json.dumps(metrics)), "device": device}
        )
