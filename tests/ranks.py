"""Started by accelerate: run pickled jobs one after another in each process; imports are paid once."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from rpo_cli import devices
from rpo_cli.artifacts import write_json
from rpo_cli.runs.child import take_part

for job in pickle.loads(Path(sys.argv[1]).read_bytes()):
    metrics, device, _ = take_part(job, lambda step, of: None)
    if devices.rank() == 0:
        write_json(
            job.directory / "manifest.json", {"metrics": json.loads(json.dumps(metrics)), "device": device}
        )
