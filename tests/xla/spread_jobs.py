"""Several pickled jobs in turn, on one device or spread over all of them; as a host of a pod if one is named.

Each is (job, step to be stopped at or None, whether to note XLA's counters after each step). The counters
after them all go beside the jobs.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

from rpo_cli import devices
from rpo_cli.artifacts import Job, write_json
from rpo_cli.errors import RunFailed
from rpo_cli.runs.child import take_part

DEVICES = 4


def count() -> dict[str, int]:
    """XLA's counters; where nothing is spread there are none."""
    if not devices.is_spmd():
        return {}
    from bars import counted

    return counted()


def run(job: Job[Any], last: int | None, *, watched: bool) -> None:
    """Run a job, up to its step if it has one, as if it were killed there."""
    steps: list[dict[str, int]] = []

    def progress(step: int, of: int) -> None:
        if step == last:
            raise RunFailed("killed")
        if watched:
            steps.append(count())

    try:
        metrics, device, *_ = take_part(job, progress)
    except RunFailed as error:
        if not str(error).endswith("killed"):
            raise
        return
    made = {"metrics": json.loads(json.dumps(metrics)), "device": device, "counters": steps}
    write_json(job.directory / "manifest.json", made)


def main() -> None:
    """Run the jobs."""
    file = Path(sys.argv[1])
    if devices.is_spmd():
        devices.join_spread(DEVICES)
    for job, last, watched in pickle.loads(file.read_bytes()):
        run(job, last, watched=watched)
    write_json(file.with_name(f"{file.name}-counters.json"), count())


if __name__ == "__main__":
    main()
