"""Run the stages of plan.json on Hugging Face Jobs, in a bucket. Written by `rpo workflow hf-jobs`.

Run it where the plan was made, after `hf auth login`:

    python FOLDER/hf_jobs.py upload USER/BUCKET     # makes the bucket; plan, recipes and files go there
    python FOLDER/hf_jobs.py run USER/BUCKET        # the same command goes on where it was
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path

from huggingface_hub import HfApi, Volume

from rpo_cli.runs.plan import Plan, read_plan
from rpo_cli.runs.workflow.jobs import EngineJob, jobs_of

FOLDER = Path(__file__).parent
PLAN, STATE = FOLDER / "plan.json", FOLDER / "state.json"  # what was started, by name: the job's id
MOUNT = "/rpo"  # where jobs see the bucket, and work
RETRIES = 2


def carried(plan: Plan) -> list[Path]:
    """The files of this machine that the plan's commands read: plan, recipes, data, models, lock file."""
    here = [outside.reference for stage in plan.stages for outside in stage.outside]
    here += [file for stage in plan.stages for file in stage.files.values()]
    here += [*plan.recipes, f"{plan.workspace}.lock.json", os.path.relpath(PLAN)]
    files = {file for place in map(Path, here) for file in (place, *place.rglob("*")) if file.is_file()}
    if away := [str(file) for file in files if file.is_absolute() or ".." in file.parts]:
        sys.exit(f"{min(away)}: not below this folder, so a job would not find it; move or copy it here")
    return sorted(files)


def start(api: HfApi, asked: argparse.Namespace, name: str, command: list[str], job: EngineJob | None) -> str:
    """Start a job that runs a command in the bucket; its id. `job`: the stages it makes, if any."""
    lines = ["set -e", f"cd {MOUNT}", asked.install, shlex.join(command)]
    info = api.run_job(
        image=asked.image,
        command=["bash", "-c", "\n".join(lines)],
        flavor=asked.flavor if job and job.gpus else asked.cpu_flavor,
        timeout=f"{job.minutes if job and job.minutes else 24 * 60}m",
        attempts=1 + RETRIES,
        name=name[:63],
        volumes=[Volume(type="bucket", source=asked.bucket, mount_path=MOUNT)],
        secrets={"HF_TOKEN": api.token} if asked.send_token and api.token else None,
        namespace=asked.bucket.split("/")[0],
    )
    print(f"{name}: started, {info.url}", flush=True)
    return str(info.id)


def run(api: HfApi, asked: argparse.Namespace) -> int:
    """Start what can be started, wait, and go on; the exit code is 1 where something failed."""
    plan, jobs = read_plan(PLAN), jobs_of(PLAN)
    ids: dict[str, str] = json.loads(STATE.read_text()) if STATE.exists() else {}
    known = set(ids)  # of an earlier run: what failed there is started again
    done, failed = set[str](), set[str]()
    while True:
        for name in [name for name in jobs if name in ids and name not in done | failed]:
            stage = api.inspect_job(job_id=ids[name], namespace=asked.bucket.split("/")[0]).status.stage
            if stage == "COMPLETED":
                done.add(name)
                print(f"{name}: done, {len(done)} of {len(jobs)}", flush=True)
            elif stage in ("ERROR", "CANCELED", "DELETED") and name in known:
                del ids[name]
            elif stage in ("ERROR", "CANCELED", "DELETED"):
                failed.add(name)
                print(f"{name}: {stage.lower()}; hf jobs logs {ids[name]}", flush=True)
        known = set()
        ready = [name for name, job in jobs.items() if name not in ids and done >= set(job.needs)]
        for name in ready[: max(0, asked.most - len(ids.keys() & jobs.keys() - done - failed))]:
            command = ["rpo", "stage", *jobs[name].stages, "--plan", os.path.relpath(PLAN)]
            ids[name] = start(api, asked, name, command, jobs[name])
            STATE.write_text(json.dumps(ids, indent=1))
        if not ids.keys() & jobs.keys() - done - failed:
            break
        time.sleep(asked.poll)
    if failed:
        waiting = [name for name in jobs if name not in done | failed]
        print(f"failed: {', '.join(sorted(failed))}; not tried: {', '.join(waiting) or 'nothing'}")
        print("the same command tries again what is left")
        return 1
    last = start(api, asked, plan.then.replace(" ", "-"), plan.finish, None)
    ended = api.wait_for_job(
        last, poll_interval=asked.poll, namespace=asked.bucket.split("/")[0]
    ).status.stage
    print(f"{plan.then}: {ended.lower()}; the results are in hf://buckets/{asked.bucket}")
    if ended == "COMPLETED" and plan.then == "plan again":
        print(
            f"next: hf buckets cp hf://buckets/{asked.bucket}/{os.path.relpath(PLAN)} {os.path.relpath(PLAN)}"
        )
        print("then the same command again")
    return int(ended != "COMPLETED")


def main() -> int:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("what", choices=["upload", "run"])
    parser.add_argument("bucket", help="USER/BUCKET: the folder that all jobs work in")
    parser.add_argument(
        "--flavor", default="a100-large", help="machine of a job with a GPU; hf jobs hardware"
    )
    parser.add_argument("--cpu-flavor", default="cpu-upgrade", help="machine of the others")
    parser.add_argument("--image", default="python:3.12")
    parser.add_argument("--install", default="pip install --quiet rpo-cli", help="command that installs rpo")
    parser.add_argument("--most", type=int, default=8, help="jobs at a time")
    parser.add_argument("--poll", type=float, default=20, help="seconds between two looks")
    parser.add_argument("--send-token", action="store_true", help="give jobs your token, for gated models")
    asked, api = parser.parse_args(), HfApi()
    if asked.what == "run":
        return run(api, asked)
    files = carried(read_plan(PLAN))
    api.create_bucket(asked.bucket, private=True, exist_ok=True)
    api.batch_bucket_files(asked.bucket, add=[(file, file.as_posix()) for file in files])
    print(f"{len(files)} files are in hf://buckets/{asked.bucket}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
