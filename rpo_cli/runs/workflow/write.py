"""Write a workflow: what an engine needs beside a plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import yaml

from rpo_cli.artifacts import publish

Engine = Literal["snakemake", "hf-jobs"]
HERE = Path(__file__).parent
FILES: dict[Engine, tuple[str, ...]] = {"snakemake": ("Snakefile", "jobs.py"), "hf-jobs": ("hf_jobs.py",)}
SHARED = {
    "snakefile": "../Snakefile",
    "directory": "..",
    "keep-going": True,  # a job that fails stops only what needs it
    "retries": 1,
    "rerun-triggers": "input",  # keys say what is stale; times of files say nothing
    "rerun-incomplete": True,
    "nolock": True,  # after a kill the same command goes on; leases keep two from making one stage
    "show-failed-logs": True,
    "default-resources": {"tasks": 0},  # else Slurm starts a process for each GPU of a job
}
PROFILES: dict[str, dict[str, object]] = {
    "local": {"cores": os.cpu_count() or 1},
    "gpus": {"cores": 8, "resources": {"gpu": 8}},
    "slurm": {"executor": "slurm", "jobs": 50, "local-cores": 1, "latency-wait": 60},
}


def write(engine: Engine, folder: Path) -> None:
    """Write what an engine needs into a folder that holds a plan, each profile into a folder below."""
    for name in FILES[engine]:
        publish(folder / name, (HERE / name).read_bytes())
    for name, settings in PROFILES.items() if engine == "snakemake" else ():
        config = {"here": str(Path.cwd())} | ({"gpus": "0 1 2 3 4 5 6 7"} if name == "gpus" else {})
        text = yaml.safe_dump({**SHARED, **settings, "config": config}, sort_keys=False)
        if not (file := folder / name / "config.yaml").exists():  # accounts and partitions are the user's
            publish(file, text.encode())
