"""Started by accelerate: run jobs, a JSON line each, one after another; imports are paid once.

Usage: a file of jobs, and the step to be stopped at, if any. No job may change a checkpoint that it found.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rpo_cli import devices
from rpo_cli.artifacts import job_from, write_json
from rpo_cli.runs.child import take_part

for line in Path(sys.argv[1]).read_text().splitlines():
    job = job_from(line)
    found = {file: file.read_bytes() for file in job.directory.glob("checkpoints/*/*.json")}

    def progress(step: int, of: int, found: dict[Path, bytes] = found) -> None:
        if sys.argv[2:] == [str(step)]:
            os._exit(1)
        assert all(file.read_bytes() == was for file, was in found.items())
        found.clear()  # after its first step a run may remove older ones

    metrics, device, *_ = take_part(job, progress)
    if devices.rank() == 0:
        write_json(
            job.directory / "manifest.json", {"metrics": json.loads(json.dumps(metrics)), "device": device}
        )
