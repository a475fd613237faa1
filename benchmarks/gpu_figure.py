"""As much of a whole figure as fits into what is left of the minutes; the same call goes on later."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import growth
from benchmarks.bench import Comparison

ROOT = Path(__file__).resolve().parent.parent
RPO = (sys.executable, "-m", "rpo_cli.cli")
JOBS = 4  # processes on one card
LIMIT = 600.0  # seconds from an empty workspace
# Of the small suite before all else: the paper's question where bias is strongest, with strengths as the
# recipes have them, then with chosen ones.
FIRST = "primary.yaml"
TOY = (
    "stage: figure\ntitle: Figure 2 of a toy\nrhos: [0.4]\nseeds: [0]\n"
    "variants: [{name: dpo, recipe: dpo.yaml}]\nclaims: []\n"
)


def recipe_for(folder: Path, model: Path | None, data: Path | None, *, toy: bool) -> Path:
    """The figure's recipe: of `small` at three rho with this model and data; else of the miniature."""
    suite = folder / "suite"
    shutil.rmtree(suite, ignore_errors=True)
    if toy:
        recipe = growth.write_suite(suite, 2, toy=True) / "figure2.yaml"
        recipe.write_text(TOY)
        return recipe
    if model is None or data is None:
        return ROOT / "recipes/miniature/figure2.yaml"
    shutil.copytree(ROOT / "recipes/small", suite)
    _set(suite / "sft.yaml", "model_name_or_path", model.resolve())
    if data.is_dir():  # the indices of a Debian archive
        (suite / "data.yaml").open("a").write(f"dataset: {data.resolve()}\n")
    else:  # lines with prompt and completion
        shutil.copy(suite / "data-tldr.yaml", suite / "data.yaml")
        _set(suite / "data.yaml", "dataset", data.resolve())
    return suite / "figure2.yaml"


def _set(file: Path, key: str, value: object) -> None:
    lines = [
        f"{key}: {value}" if line.startswith(f"{key}:") else line for line in file.read_text().split("\n")
    ]
    file.write_text("\n".join(lines))


def figure(
    recipe: Path,
    folder: Path,
    device: str,
    seconds: float,
    jobs: int = JOBS,
    *,
    tune: bool = False,
    first: str | None = None,
) -> Iterator[Comparison]:
    """Run `rpo figure` for at most so many seconds, from where the call before was stopped.

    A row for each part says when it was there, in seconds of all calls from the empty workspace.
    tune: strengths are chosen on validation prompts. first: a recipe beside this one that is drawn before it,
    without and then with that choice.

    Raises:
        TimeoutError: a part was not finished, after a row that says how far it came.
    """
    clock = folder / "figure_seconds.txt"
    before, started = float(clock.read_text()) if clock.is_file() else 0.0, time.monotonic()
    parts = [(recipe.with_name(first), False), (recipe.with_name(first), True)] if first else []
    for drawn, chosen in [*parts, (recipe, tune)]:
        name = f"{drawn.stem}-tuned" if chosen else drawn.stem
        asked = ["--recipe", str(drawn), "--workspace", str(folder / "workspace")]
        command = [*RPO, "figure", "figure2", *asked, *(["--tune"] if chosen else [])]
        how = ["--device", device, "--jobs", str(jobs), "--out", str(folder / name)]
        code = _run([*command, *how], folder / "figure.log", seconds - (time.monotonic() - started))
        took = before + time.monotonic() - started
        clock.write_text(f"{took:.1f}\n")
        there = folder / f"{name}_seconds.txt"  # kept from the call that drew it first
        if code == 0 and not there.is_file():
            shutil.copy(clock, there)
        took = float(there.read_text()) if there.is_file() else took
        plan = _said([*command, "--dry-run", "--json"])
        each: dict[str, list[float]] = defaultdict(list)
        for artifact in _said([*RPO, "status", *asked, "--json"])["artifacts"]:
            if artifact["state"].startswith("up to date"):
                each[artifact["kind"]].append(artifact["seconds"] or 0.0)
        spent = sorted(each.items(), key=lambda item: -sum(item[1]))
        yield Comparison(
            f"Figure 2 from an empty workspace, --jobs {jobs}",
            f"{drawn.parent.name}/{drawn.name}{', strengths chosen' if chosen else ''}",
            f"{plan['total'] - plan['build']} of {plan['total']} stages in {took:.0f} s",
            ", ".join(f"{len(some)} {kind} of {mean(some):.1f} s" for kind, some in spent),
            [],
            f"≤ {LIMIT:.0f} s",
            None if code is None else code == 0 and took <= LIMIT,
        )
        if code is None:
            raise TimeoutError("not finished; the same command goes on from here")
        if code:
            raise RuntimeError(f"rpo figure ended with {code}: {folder / 'figure.log'}")


def _said(command: list[str]) -> dict[str, Any]:
    """What a command says with --json."""
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def _run(command: list[str], log: Path, seconds: float) -> int | None:
    """How the command ended; None: it was stopped when the seconds were over."""
    with log.open("a") as kept:
        process = subprocess.Popen(command, stdout=kept, stderr=kept, cwd=ROOT)
        try:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(max(seconds, 1.0))
        finally:
            _stop(process)
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would: what is done stays done."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
