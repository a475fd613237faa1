"""Several pickled jobs in turn: spread over all devices under accelerate's TPU launcher, else on one."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from rpo_cli import devices
from rpo_cli.artifacts import write_json
from rpo_cli.errors import RunFailed
from rpo_cli.runs.child import take_part

DEVICES = 4


def main() -> None:
    """Run the jobs, each up to its step if it has one, as if it were killed there."""
    if devices.is_spmd():
        devices.join_spread(DEVICES)
    for job, last in pickle.loads(Path(sys.argv[1]).read_bytes()):

        def progress(step: int, of: int, last: int | None = last) -> None:
            if step == last:
                raise RunFailed("killed")

        try:
            metrics, device, *_ = take_part(job, progress)
        except RunFailed as error:
            if not str(error).endswith("killed"):
                raise
            continue
        write_json(
            job.directory / "manifest.json", {"metrics": json.loads(json.dumps(metrics)), "device": device}
        )


if __name__ == "__main__":
    main()
