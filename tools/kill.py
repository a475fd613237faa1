"""Does a chain that is killed again and again end as an undisturbed one does, to the byte?

    python tools/kill.py --kills 40 --seed 0    exit code 1 if a chain ends otherwise, or not at all

A small chain of the tests (data, SFT, oracle, two rhos with ensembles, policies, evaluations) is run once
undisturbed. Then it is run with --jobs 1 and 2, disturbed at random moments, and the same command is repeated
until it is done. A disturbance is a kill -9 of all its processes, of the first alone, or of one worker; a
SIGTERM; or a kill -9 after which a file of a checkpoint is cut short, emptied or deleted. The seed decides
which and when; how far a chain is by then, the machine. Takes a quarter of a minute or so for each kill.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import Tiny, write_suite  # noqa: E402
from test_pipeline import same_artifact  # noqa: E402

from rpo_cli.artifacts import Workspace  # noqa: E402

LONGEST = 20.0  # seconds after the first step until a disturbance
ENDS = 900.0  # seconds in which an undisturbed command must have ended
STEPS = {"sft.yaml": 150, "oracle.yaml": 60, "rm.yaml": 40, "policy.yaml": 80}
# Pairs enough for rho 0.2 wherever it runs: on some processors this oracle prefers few short responses.
PLENTY = (
    "rows: {pretrain: 8, sft_train: 200, sft_validation: 8, warmup: 8, pairs: 720, pairs_validation: 40, "
    "prompts_validation: 16, prompts_test: 24}"
)
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
WAYS = ("all", "first", "worker", "term", "damage")


def chain(home: Path) -> Path:
    """The suite, with enough steps and checkpoints to be killed among."""
    suite = Tiny(write_suite(home / "tiny"), home / "runs")
    for recipe, steps in STEPS.items():
        suite.edit(recipe, f"max_steps: {steps}\nsave_steps: 10")
    suite.edit("data.yaml", PLENTY)
    return suite.suite


def start(suite: Path, root: Path, jobs: int) -> subprocess.Popen[bytes]:
    """The command, in a group of processes of its own; what it says is kept beside the workspace."""
    command = ["evaluate", "--recipe", suite / "e-dpo.yaml", "--rho", "0.5,0.2", "--workspace", root]
    with root.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rpo_cli.cli", *map(str, command), "--jobs", str(jobs)],
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Its worker processes."""
    with suppress(psutil.Error):
        return [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    return []


def disturb(process: subprocess.Popen[bytes], root: Path, way: str, dice: random.Random) -> str:
    """Do it; what was done."""
    if way == "damage":
        for _ in range(600):  # tenths of a second, until there is a checkpoint
            if process.poll() is not None or any(root.glob("seed-*/**/checkpoints/*/rpo_state.json")):
                break
            time.sleep(0.1)
    with suppress(ProcessLookupError, psutil.Error):
        if way == "worker" and (found := workers(process)):
            dice.choice(found).kill()
            return "a worker was killed"
        if way == "term":
            process.terminate()
        elif way == "first":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait(ENDS)
    with suppress(ProcessLookupError):  # workers end by themselves when the first is gone
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        raise SystemExit(f"{way}: workers outlive their parent by ten seconds")
    files = sorted(file for file in root.glob("seed-*/**/checkpoints/*/*") if file.is_file())
    if way == "damage" and files:
        file, how = dice.choice(files), dice.choice(("cut short", "emptied", "deleted"))
        content = file.read_bytes()
        file.unlink() if how == "deleted" else file.write_bytes(
            content[: len(content) // 2] if how == "cut short" else b""
        )
        return f"a checkpoint damaged, {file.relative_to(root)} {how}"
    return {"term": "SIGTERM", "first": "the first process killed"}.get(way, "all killed")


def differences(root: Path, undisturbed: Path) -> list[str]:
    """The artifacts that are not as those of an undisturbed run."""
    found = []
    for path, _ in Workspace(undisturbed, "tiny").artifacts():
        try:
            same_artifact(root / path, undisturbed / path)
        except (AssertionError, OSError) as error:
            found.append(f"{path}: {str(error).splitlines()[0] if str(error) else 'differs'}")
    return found


def run_chain(suite: Path, root: Path, jobs: int, disturbances: int, dice: random.Random) -> list[str]:
    """Repeat the command until it is done, disturbed so many times at most; what was done, one line each.

    Raises:
        RuntimeError: it ended otherwise than it should, or not at all.
    """
    done: list[str] = []
    while True:
        process, killed = start(suite, root, jobs), 0
        while process.poll() is None:
            quiet = len(done) >= disturbances
            try:
                process.wait(ENDS if quiet else dice.uniform(2, LONGEST))
            except subprocess.TimeoutExpired:
                if quiet:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise RuntimeError(f"did not end within {ENDS:.0f} s") from None
                ways = [way for way in WAYS if way != "worker" or jobs > 1]
                done.append(disturb(process, root, dice.choice(ways), dice))
                killed += done[-1] == "a worker was killed"
                print(f"{root.name}, --jobs {jobs}: {done[-1]}", flush=True)
        if process.returncode == 0:
            return done
        twice = process.returncode == 1 and killed > 1  # a stage is tried once more, not twice
        # Interrupted in code that a library keeps as text, Python ends by SIGINT: 130 for a shell.
        # -SIGTERM: it came before the command listened, or when it was done.
        if process.returncode not in (130, *(-number for number in ENDINGS)) and not twice:
            raise RuntimeError(f"ended with {process.returncode}")


def main() -> int:
    """Run chains until there were enough disturbances."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, help="disturbances in all (default 40)")
    parser.add_argument("--each", type=int, default=5, help="of one chain, at most (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice, done, wrong, number = random.Random(given.seed), Counter[str](), 0, 0
    home = Path(tempfile.mkdtemp(prefix="rpo-kill-"))
    suite, undisturbed = chain(home), home / "undisturbed"
    run_chain(suite, undisturbed, 1, 0, dice)
    while done.total() < given.kills:
        number += 1
        root, count = home / f"chain-{number}", min(given.each, given.kills - done.total())
        try:
            done.update(said.split(", ")[0] for said in run_chain(suite, root, 1 + number % 2, count, dice))
            found = differences(root, undisturbed)
        except RuntimeError as error:
            found = [str(error)]
        if found:
            wrong += 1
            print("\n".join([f"{root.name} is not as the undisturbed one:", *found, f"see {root}.log"]))
        else:
            shutil.rmtree(root)
    counts = ", ".join(f"{count} x {what}" for what, count in done.most_common())
    print(f"{done.total()} disturbances in {number} chains, {wrong} of these wrong: {counts}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
