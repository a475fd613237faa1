"""Started by accelerate: run jobs, a JSON line each, one after another; imports are paid once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rpo_cli import devices
from rpo_cli.artifacts import job_from, write_json
from rpo_cli.runs.child import take_part

for line in Path(sys.argv[1]).read_text().splitlines():
    job = job_from(line)
    metrics, device, *_ = take_part(job, lambda step, of: None)
    if devices.rank() == 0:
        write_json(
            job.directory / "manifest.json", {"metrics": json.loads(json.dumps(metrics)), "device": device}
        )
