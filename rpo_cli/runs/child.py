"""What `accelerate launch` starts: one process of several that train one artifact together.

Usage: python -m rpo_cli.runs.child JOB, a job written by `processes.run`. By itself it runs a stage that
trains nothing, where a preset for a TPU gives that a process too. Standard output carries JSON lines to the
process that launched: steps and the result from the first process, a failure from any. Standard input carries
nothing; that it closes means that the other end is gone, and that nobody wants the result. Accelerate's TPU
launcher imports this module and calls `main` in processes without a standard input: those watch the processes
that they come from.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

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
    spmd = devices.is_spmd()
    watch = _end_with_those_before if spmd else _end_with_the_launching
    threading.Thread(target=watch, daemon=True).start()

    def say(**message: object) -> None:
        voice.write(json.dumps(message) + "\n")
        voice.flush()

    try:
        if spmd and job.launch is not None:
            devices.join_spread(job.launch.processes)
        first = devices.rank() == 0
        outcome = take_part(job, lambda step, of: say(step=[step, of]) if first else None)
    except (BadInput, RunFailed) as error:
        say(error=encode_error(error))
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


def _end_with_those_before() -> None:
    launcher = psutil.Process(os.getppid())
    before = [launcher, *launcher.parents()[:1]]
    while all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in before):
        time.sleep(1)
    with suppress(psutil.Error):
        launcher.terminate()
    os._exit(1)


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
