"""A suite of tiny recipes, and one workspace in which the real command line has built the chain once."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# Read when huggingface_hub, tokenizers and torch are imported, hence before any fixture runs.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}

import pytest
import typer.testing
from filelock import FileLock
from typer.main import get_command
from typer.testing import CliRunner

from rpo_cli.artifacts import Stage, Workspace, job_of, walk
from rpo_cli.cli import app
from rpo_cli.recipes import load
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.todo import what_to_run
from rpo_cli.runs.work import run_job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rpo_cli.models import Row, TokenRow

# The command line is built once, as a process of its own does, and not by every one of thousands of calls.
assert hasattr(typer.testing, "_get_command"), "typer's CliRunner builds its command in another way now"
typer.testing._get_command = cache(get_command)

SEED = "seed-0"
RHO = "seed-0/rho-0.5"
PLAIN = "device: cpu\ndtype: float32\nthreads: 1\n"
BASE = (
    PLAIN + "max_length: 48\nlogging_steps: 1\nper_device_train_batch_size: 8\nlr_scheduler_type: constant\n"
)
OBJECTIVES = {
    "dpo": "",
    "ipo": "tau: 0.1\n",
    "ipo-norm": "tau: 0.1\n",
    "d-dpo": "",
    "p-dpo": "",
    "dp-dpo": "",
}
OBJECTIVES["e-dpo"] = "ensemble: rm.yaml\nensemble_min: example\ncalibration: none\n"
RECIPES = {
    "base.yaml": BASE,
    "data.yaml": PLAIN + "stage: data\nsource: miniature\n"
    "rows: {pretrain: 8, sft_train: 200, sft_validation: 8, warmup: 8, pairs: 360, pairs_validation: 40, "
    "prompts_validation: 16, prompts_test: 24}\n",
    "sft.yaml": "extends: base.yaml\nstage: sft\nmax_steps: 5\nlearning_rate: 1e-2\n"
    "model_config_kwargs: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 64, tie_word_embeddings: true, "
    "attention_dropout: 0.3}\n",
    "oracle.yaml": "extends: base.yaml\nstage: reward\ntable: pairs\nmodel_name_or_path: sft.yaml\n"
    "max_steps: 6\nlearning_rate: 3e-3\n",
    "relabel.yaml": PLAIN + "stage: relabel\nmax_length: 48\n",
    "splits.yaml": PLAIN + "stage: splits\nrho: 0.5\nnum_pairs: 64\nheld_out: 24\n"
    "ensemble: [0.2, 0.5, 0.8]\nsubset_size: equal\n",
    "rm.yaml": "extends: base.yaml\nstage: reward\ndata: splits.yaml\nmodel_name_or_path: sft.yaml\n"
    "rho: 0.5\nensemble: [0.2, 0.5, 0.8]\nmax_steps: 6\nlearning_rate: 1e-2\n",
    "policy.yaml": "extends: base.yaml\nstage: policy\nmodel_name_or_path: sft.yaml\nrho: 0.5\n"
    "max_steps: 6\nlearning_rate: 3e-3\nbeta: 0.2\nmax_new_tokens: 8\ngamma: 0.1\ngamma_end: 0.5\n",
    "evaluate.yaml": PLAIN + "stage: evaluate\nmax_length: 48\nnum_samples: 2\nmax_new_tokens: 8\n"
    "bootstrap_samples: 200\nper_device_eval_batch_size: 16\n",
} | {
    f"{name}.yaml": f"extends: policy.yaml\nstage: policy\nobjective: {name}\n{more}"
    for name, more in OBJECTIVES.items()
}


def rpo(*arguments: object, code: int = 0) -> Any:
    """Run the real command line in this process; the result has stdout, stderr and output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{arguments}\n{result.output}\n{result.exception!r}"
    return result


@pytest.fixture(autouse=True)
def nothing_proven() -> None:
    """No test knows what another has seen of its models."""
    for name in ("choice", "decode", "sample_graphs"):
        if (module := sys.modules.get(f"rpo_cli.models.{name}")) is not None:
            module.PROVEN.seen.clear()


@dataclass
class Tiny:
    """A suite and a workspace that a test may change as it likes."""

    suite: Path
    root: Path
    seed: int | None = None
    _planner: Planner = field(default_factory=Planner)

    def edit(self, recipe: str, text: str) -> None:
        """Append lines to a recipe; a key that is already there is replaced."""
        file = self.suite / recipe
        keys = {line.split(":")[0] for line in text.splitlines()}
        kept = [line for line in file.read_text().splitlines() if line.split(":")[0] not in keys]
        file.write_text("\n".join([*kept, text]) + "\n")

    def run(self, command: str, recipe: str, *arguments: object, code: int = 0) -> Any:
        """A command of the CLI on a recipe of the suite, in the workspace."""
        return rpo(
            *command.split(), "--recipe", self.suite / recipe, "--workspace", self.root, *arguments, code=code
        )

    def stage(self, recipe: str, *overrides: str, member: float | None = None) -> Stage:
        """The planned artifact of a recipe under these overrides."""
        loaded = load(str(self.suite / recipe), seed=self.seed, overrides=overrides)
        planner = Planner(self.seed)
        return (
            planner.build(loaded)
            if member is None
            else {s.options["member"]: s for s in planner.members(loaded)}[member]
        )

    def make(
        self,
        recipe: str,
        *overrides: str,
        member: float | None = None,
        progress: Callable[[int, int], None] = lambda step, of: None,
    ) -> tuple[Path, dict[str, Any]]:
        """Make one artifact anew, in this process, after what it lacks; its directory and its manifest."""
        stage, workspace = (
            self.stage(recipe, *overrides, member=member),
            Workspace(self.root, self.suite.name),
        )
        for item in what_to_run(list(stage.stages()), workspace):
            run_job(job_of(item.stage, workspace, {}), lambda step, of: None)
        manifest = run_job(job_of(stage, workspace, {}, force=True), progress)
        return self.root / stage.path, manifest

    def adopt(self, recipe: str, *overrides: str) -> None:
        """Have what is there count as the inputs of a recipe's artifact, whatever it was made with."""
        for needed in walk(list(self.stage(recipe, *overrides).stages())):
            file = self.root / needed.path / "manifest.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"key": needed.key}))


def write_suite(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in RECIPES.items():
        (folder / name).write_text(text)
    return folder


def once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """A folder that one of pytest-xdist's processes builds, and all read; tools/mutate.py keeps it longer."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    home = Path(os.environ.get("RPO_TESTS_WORLDS") or base) / name
    with FileLock(home.with_suffix(".lock")):
        if not (done := home.with_suffix(".done")).exists():
            shutil.rmtree(home, ignore_errors=True)
            build(home)
            done.touch()
    return home


def set_aside() -> None:
    """Trainers collect garbage, which takes a third of a second unless the objects of torch are set aside."""
    import_module("rpo_cli.stages.policy")
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The chain at rho 0.5, built once: read it, never write to it."""

    def build(home: Path) -> None:
        tiny = Tiny(write_suite(home / "tiny"), home / "runs")
        tiny.run("evaluate", "e-dpo.yaml")
        tiny.run("train-policy", "dp-dpo.yaml")

    home = once(tmp_path_factory, "built", build)
    set_aside()
    return Tiny(home / "tiny", home / "runs")


@pytest.fixture
def tiny(built: Tiny, tmp_path: Path) -> Tiny:
    """A copy of the suite and of the workspace, for one test."""
    shutil.copytree(built.suite, tmp_path / "tiny")
    shutil.copytree(built.root, tmp_path / "runs")
    return Tiny(tmp_path / "tiny", tmp_path / "runs")


@pytest.fixture(scope="session")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A second chain, whose models have learnt more (worlds.py), built once: read it, never write to it."""
    from worlds import learnt_world

    home = once(tmp_path_factory, "learnt", learnt_world)
    set_aside()
    return Tiny(home / "tiny", home / "runs")


@pytest.fixture
def pupil(learnt: Tiny, tmp_path: Path) -> Tiny:
    """A copy of that chain, for one test."""
    shutil.copytree(learnt.suite, tmp_path / "tiny")
    shutil.copytree(learnt.root, tmp_path / "runs")
    return Tiny(tmp_path / "tiny", tmp_path / "runs")


@pytest.fixture
def empty(tmp_path: Path) -> Tiny:
    """The suite, and a workspace that is not there yet."""
    return Tiny(write_suite(tmp_path / "tiny"), tmp_path / "runs")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in an empty directory, so that whatever a command leaves behind shows."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


CHAIN = (f"{RHO}/splits", f"{SEED}/relabel", f"{SEED}/data")


def pairs_of(root: Path, path: str, table: str = "pairs") -> list[dict[str, Any]]:
    """Pairs of an artifact with their texts, wherever these are."""
    from rpo_cli.stages.data.rows import find_rows
    from rpo_cli.stages.data.token_cache import TokenCache

    folders = [root / place for place in CHAIN[CHAIN.index(path) :]]
    return find_rows(folders, table, TokenCache(root)).to_list()


def weights(directory: Path) -> bytes:
    """The saved weights of an artifact, to the byte."""
    return (directory / "model.safetensors").read_bytes()


def journal(directory: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times, which no two runs share."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.endswith(("_runtime", "_per_second"))}
        for line in lines
    ]


def column(directory: Path, name: str) -> list[float]:
    """One metric of every step that logged it."""
    return [line[name] for line in journal(directory) if name in line]


def manifest(root: Path, path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / path / "manifest.json").read_text())
    return found


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "seconds"}


def tokenise(
    rows: Sequence[Row],
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    overlong: Literal["error", "drop"],
    what: str,
) -> list[TokenRow]:
    """Tokens of rows that are in no workspace: prompt, response columns."""
    from rpo_cli.models import TokenRow, encode, fitting

    prompts, *responses = (
        encode(column, [row[column] for row in rows], tokenizer).to_pylist()
        for column in ("prompt", *columns)
    )
    found = [
        TokenRow(str(row.get("id", index)), prompts[index], [ids[index] for ids in responses])
        for index, row in enumerate(rows)
    ]
    return fitting(found, max_length, overlong, what)
