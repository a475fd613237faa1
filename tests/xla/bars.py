"""What the tests of XLA share: a suite built on the plain CPU, XLA's counters, a table of measurements."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Read when transformers, accelerate and the compiler are imported; little optimisation compiles faster.
os.environ |= {"USE_TORCH_XLA": "1", "LOCAL_RANK": "0"}
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import pyarrow.parquet as pq
import pytest
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as met
from conftest import RHO, SEED, Tiny, pairs_of, write_suite
from worlds import Plain, logp

from rpo_cli.stages.data.rows import read_rows, write_rows

# For a process that is to find no trace of this one's.
ORDINARY = {
    name: value
    for name, value in os.environ.items()
    if name not in ("USE_TORCH_XLA", "LOCAL_RANK", "XLA_FLAGS")
}
STEPS = 20
RIVALS = {
    "r-dpo": "length_alpha: 0.05",
    "dpo-sft": "sft_weight: 0.5",
    "robust-dpo": "label_smoothing: 0.1",
    "simpo": "simpo_gamma: 0.5",
}
OBJECTIVES = ("dpo", "ipo", "ipo-norm", "d-dpo", "p-dpo", "dp-dpo", "e-dpo", *RIVALS)
ROWS: list[tuple[str, str, str]] = []


def measured(bar: str, wanted: str, found: object) -> None:
    """A line of the table at the end of the run."""
    ROWS.append((bar, wanted, f"{found:.1e}" if isinstance(found, float) else str(found)))


class Table:
    """Pytest's plugin that prints the bars and what was measured."""

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        widths = [max((len(row[column]) for row in ROWS), default=0) for column in range(3)]
        terminalreporter.section("measured on XLA:CPU")
        for row in ROWS:
            terminalreporter.write_line(
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            )


@dataclass
class Counters:
    """XLA's counters at the end of each optimiser step; a stage's progress calls it."""

    seen: list[dict[str, int]] = field(default_factory=list)

    def __call__(self, step: int, of: int) -> None:
        self.seen.append(counted())

    def between(self) -> list[dict[str, int]]:
        """What each step added: its own program runs when the next step asks for its batch."""
        return [
            {name: after[name] - before[name] for name in after}
            for before, after in zip(self.seen, self.seen[1:], strict=False)
        ]


def counted() -> dict[str, int]:
    """Programs compiled, programs run, and values read by the host, since the process began."""
    xm.wait_device_ops()  # a program is counted when it has ended

    def samples(metric: str) -> int:
        found = met.metric_data(metric)
        return 0 if found is None else int(found[0])

    read = met.counter_value("aten::_local_scalar_dense") or 0
    return {
        "compiled": samples("CompileTime"),
        "run": samples("ExecuteTime") + samples("ExecuteReplicatedTime"),
        "read": samples("TransferFromDeviceTime") + int(read),
    }


def train_counted(tiny: Tiny, recipe: str, settings: Sequence[str]) -> tuple[int, int, list[dict[str, int]]]:
    """Train in a new process, in which nothing is compiled yet.

    Returns the number of shapes, of programs compiled until the last step, and what each step added to the
    counters.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_train_counted, tiny, recipe, settings).result()


def _train_counted(tiny: Tiny, recipe: str, settings: Sequence[str]) -> tuple[int, int, list[dict[str, int]]]:
    counters = Counters()
    tiny.adopt(recipe, *settings)  # of other lengths than the recipes give them
    _, manifest = tiny.make(recipe, *settings, progress=counters)
    steps = manifest["metrics"]["steps"]
    return (
        manifest["metrics"]["shapes"],
        counters.seen[steps - 1]["compiled"],
        counters.between()[: steps - 1],
    )


BUILD = """
import sys
from pathlib import Path
from conftest import Tiny
tiny = Tiny(Path(sys.argv[1]), Path(sys.argv[2]))
tiny.run("evaluate", "e-dpo.yaml")
for name in sys.argv[3:]:
    tiny.run("train-policy", f"{name}.yaml")
tiny.run("train-rm", "rm.yaml")
"""


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Tiny:
    """The suite and its policies, trained for STEPS steps on the plain CPU; one for each module."""
    if not pytestconfig.pluginmanager.has_plugin("bars"):
        pytestconfig.pluginmanager.register(Table(), "bars")
    return _plain(tmp_path_factory.getbasetemp() / "plain")


@functools.cache
def _plain(home: Path) -> Tiny:
    tiny = Tiny(write_suite(home / "tiny"), home / "runs")
    tiny.edit("policy.yaml", f"max_steps: {STEPS}")
    tiny.edit("rm.yaml", f"max_steps: {STEPS}\nlearning_rate: 3e-3")
    tiny.edit("sft.yaml", f"max_steps: {STEPS}")
    for name, more in RIVALS.items():
        (tiny.suite / f"{name}.yaml").write_text(
            f"extends: policy.yaml\nstage: policy\nobjective: {name}\n{more}\n"
        )
    environment = ORDINARY | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", BUILD, str(tiny.suite), str(tiny.root), *OBJECTIVES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tiny


@pytest.fixture
def on_xla(plain: Tiny, tmp_path: Path) -> Iterator[Tiny]:
    """A copy of it in which everything that is made from here on is made on XLA."""
    shutil.copytree(plain.suite, tmp_path / "tiny")
    shutil.copytree(plain.root, tmp_path / "runs")
    tiny = Tiny(tmp_path / "tiny", tmp_path / "runs")
    for recipe in ("base.yaml", "data.yaml", "relabel.yaml", "splits.yaml", "evaluate.yaml"):
        tiny.edit(recipe, "device: xla")
    yield tiny


def stretch(tiny: Tiny) -> None:
    """Give the training rows texts of very different lengths: some are said twice or four times."""
    draw = random.Random(0)
    pairs, written = tiny.root / RHO / "splits/train.parquet", tiny.root / "seed-0/data/sft_train.parquet"
    for file, columns, rows in (
        (pairs, ("prompt", "chosen", "rejected"), pairs_of(tiny.root, f"{RHO}/splits", "train")),
        (written, ("prompt", "completion"), read_rows(written)),
    ):
        write_rows(
            [
                row | {name: " ".join([row[name]] * draw.choice((1,) * 37 + (2, 2, 4))) for name in columns}
                for row in rows
            ],
            file,
        )
    assert pq.read_table(pairs).num_rows
    _refer(tiny, read_rows(pairs))
    tiny.edit("base.yaml", "max_length: 160")


def _refer(tiny: Tiny, rows: Sequence[dict[str, Any]]) -> None:
    """Give rows the reference log-probs of their texts: training starts there."""
    said = Plain(tiny.root)
    model, file = said.policy(f"{SEED}/sft"), tiny.root / SEED / "reference-logps/relabel/logps.parquet"
    known = {row["id"]: row for row in read_rows(file)}
    for row in rows:
        for side in ("chosen", "rejected"):
            logps = logp(model, said.prompt(row["prompt"]), said.response(row[side]))
            known[row["id"]][f"ref_{side}_logps"] = logps
    write_rows(list(known.values()), file)
