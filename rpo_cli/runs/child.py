"""What `accelerate launch` starts: one process of several that train one artifact together.

Usage: python -m rpo_cli.runs.child JOB, a job written by `processes.run`. With a preset for a TPU it runs by
itself, one on each host, also for a stage that trains nothing. Standard output carries JSON lines to the
process that launched: steps and the result from the first process, a failure from any. Standard input carries
nothing; that it closes means that the other end is gone, and that nobody wants the result.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from rpo_cli import devices
from rpo_cli.artifacts import Job, Outcome, Progress, job_from
from rpo_cli.errors import BadInput, RunFailed, encode_error
from rpo_cli.recipes.schema import Recipe
from rpo_cli.runs.work import logged, run_here, told_in_a_line


def main() -> None:
    """Run the job's stage in this process, with the others."""
    job = job_from(Path(sys.argv[1]).read_text())
    voice = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the log
    threading.Thread(target=_end_with_the_launching, daemon=True).start()

    def say(**message: object) -> None:
        voice.write(json.dumps(message) + "\n")
        voice.flush()

    try:
        if devices.is_spmd() and job.launch is not None:
            devices.join_spread(job.launch.processes)
        first = devices.rank() == 0
        outcome = take_part(job, lambda step, of: say(step=[step, of]) if first else None)
    except (BadInput, RunFailed) as error:
        say(error=encode_error(error), rank=devices.rank())
        os._exit(1)  # at once: the others wait for this process in vain, and it would wait for them
    if first:
        say(done=outcome)
    _leave()


def take_part(job: Job[Recipe], progress: Progress) -> Outcome:
    """Run the stage's function in this process, with the others; of theirs, only errors reach the log."""
    with logged(job.directory / "log.txt", quietly=devices.rank() != 0), told_in_a_line(job):
        return run_here(job, progress)


def _end_with_the_launching() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
