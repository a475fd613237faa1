"""Properties of a model spread over four devices: learns as on one, weights are cut, resumes."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bars import ORDINARY, measured, plain
from conftest import Tiny, column
from safetensors.torch import load_file
from spread_jobs import DEVICES

from rpo_cli.artifacts import Job, Stage, Workspace, job_of
from rpo_cli.runs import processes

SPREAD = {"USE_TORCH_XLA": "1", "XLA_USE_SPMD": "1", "LOCAL_RANK": "0"}
ROOT = Path(__file__).resolve().parent.parent.parent
TOLERANCE = 1e-4
SAVES = ("max_steps=6", "save_steps=2")
QUIET = ("max_steps=6", "logging_steps=6")
RUNS = {"dpo": ("dpo.yaml", *SAVES), "e-dpo": ("e-dpo.yaml", *SAVES), "rm": ("rm.yaml", *SAVES)}
TWO_CHIPS = ROOT / "tests/xla/two_chips"
# What hosts do together beside steps: score what an adapter was merged into, and keep checkpoints.
TOGETHER = {
    "rm": ("rm.yaml", "max_steps=1", "use_peft=true", "lora_target_modules=[q_proj]"),
    "kept": ("dpo.yaml", "max_steps=6", "select=validation", "checkpoints=2"),
}


def preset(directory: Path) -> Path:
    """The preset of a v3-8 for as many devices as are here."""
    file = directory / "tpu.yaml"
    file.write_text(
        (ROOT / "recipes/accelerate/tpu-v3-8.yaml")
        .read_text()
        .replace("num_processes: 8", f"num_processes: {DEVICES}")
    )
    return file


def run(command: list[object], *paths: Path, **more: str) -> str:
    """Standard output of a process for which XLA has four devices, and Python these paths besides."""
    places = os.pathsep.join(map(str, (*paths, ROOT, ROOT / "tests", ROOT / "tests/xla")))
    environment = ORDINARY | {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": str(DEVICES),
        "PYTHONPATH": places,
        **more,
    }
    done = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


def job_on_all(plain: Tiny, stage: Stage, home: Path, name: str) -> Job[Any]:
    """A stage's job in a place of its own, as `processes.run` has it spread over all devices."""
    job = job_of(stage, Workspace(plain.root, plain.suite.name), {})
    rows, pieces = processes.spread(job.recipe, DEVICES)
    update = {"device": "xla", "per_device_train_batch_size": rows, "gradient_accumulation_steps": pieces}
    made = replace(job, recipe=job.recipe.model_copy(update=update), root=home, path=name)
    made.directory.mkdir()
    return made


@pytest.fixture(scope="module")
def twins(plain: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Path]]:
    """Artifacts of each of RUNS: on the plain CPU, over four devices, and so with a break in the middle."""
    home = tmp_path_factory.mktemp("spread")
    alone, spread = [], []
    for name, (recipe, *settings) in RUNS.items():
        stage = plain.stage(recipe, *settings)
        one = replace(
            job_of(stage, Workspace(plain.root, plain.suite.name), {}), root=home, path=f"{name}, plain"
        )
        one.directory.mkdir()
        whole, broken, quiet = (
            job_on_all(plain, made, home, f"{name}, {what}")
            for made, what in (
                (stage, "whole"),
                (stage, "broken"),
                (plain.stage(recipe, *QUIET), "quiet"),
            )
        )
        alone.append((one, None, False))
        spread += [(whole, None, False), (broken, 3, False), (broken, None, False), (quiet, None, True)]
    (home / "alone").write_bytes(pickle.dumps(alone))
    (home / "spread").write_bytes(pickle.dumps(spread))
    run([sys.executable, "-m", "spread_jobs", home / "alone"], USE_TORCH_XLA="0")
    run([sys.executable, "-m", "spread_jobs", home / "spread"], **SPREAD)
    return lambda name: (home / f"{name}, plain", home / f"{name}, whole", home / f"{name}, broken")


def apart(one: Path, other: Path) -> tuple[float, float]:
    """The largest difference of two artifacts' losses, and of their weights."""
    losses, others = column(one, "loss"), column(other, "loss")
    assert len(losses) == len(others) == 6
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return max(abs(a - b) for a, b in zip(losses, others, strict=True)), max(
        float((ours[n] - theirs[n]).abs().max()) for n in ours
    )


@pytest.mark.parametrize("name", RUNS)
def test_four_devices_learn_what_one_does(twins: Callable[[str], tuple[Path, Path, Path]], name: str) -> None:
    one, whole, _ = twins(name)
    losses, weights = apart(one, whole)
    measured(
        f"{name} on {DEVICES} devices: loss of 6 steps, largest difference to the plain CPU",
        "<= 1e-4",
        losses,
    )
    measured(f"{name} on {DEVICES} devices: weights then, largest difference", "<= 1e-4", weights)
    assert losses <= TOLERANCE and weights <= TOLERANCE
    assert json.loads((whole / "manifest.json").read_text())["device"].startswith("xla, float32")


@pytest.mark.parametrize("name", RUNS)
def test_a_spread_step_without_a_log_line_reads_nothing_back(
    twins: Callable[[str], tuple[Path, Path, Path]], name: str
) -> None:
    quiet = twins(name)[0].with_name(f"{name}, quiet")
    steps = json.loads((quiet / "manifest.json").read_text())["counters"]
    added = [{key: after[key] - before[key] for key in after} for before, after in itertools.pairwise(steps)]
    read = [step["read"] for step in added[:-1]]  # steps 2 to 5
    measured(f"{name} on {DEVICES} devices: values read in a step without a log line", "0", max(read))
    assert read == [0, 0, 0, 0]


def test_every_host_runs_the_programs_of_the_first_and_the_first_alone_writes(
    plain: Tiny, twins: Callable[[str], tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    """On a pod a program that one host runs alone waits for the others; here none is linked to another."""
    counters = []
    for host in ("0", "1"):
        home = tmp_path / host
        home.mkdir()
        jobs = []
        for name, (recipe, *settings) in TOGETHER.items():
            stage = plain.stage(recipe, *settings)
            by_path = {each.path: each for each in stage.stages()}
            jobs.append(job_on_all(plain, by_path.get(f"{stage.path}-checkpoints", stage), home, name))
        (home / "jobs").write_bytes(pickle.dumps([(job, None, False) for job in jobs]))
        run([sys.executable, "-m", "spread_jobs", home / "jobs"], **SPREAD, TPU_WORKER_ID=host)
        counters.append(json.loads((home / "jobs-counters.json").read_text()))
    assert counters[0] == counters[1] and counters[0]["run"] > 0
    kept = load_file(tmp_path / "0/kept/checkpoint-2/model.safetensors")
    assert (tmp_path / "0/kept/checkpoint-1/model.safetensors").is_file()
    assert not list((tmp_path / "1").rglob("*.safetensors"))
    whole = load_file(twins("dpo")[1] / "model.safetensors")
    assert max(float((kept[name] - whole[name]).abs().max()) for name in whole) <= TOLERANCE


@pytest.mark.parametrize("name", RUNS)
def test_a_spread_run_goes_on_from_its_checkpoint(
    twins: Callable[[str], tuple[Path, Path, Path]], name: str
) -> None:
    _, whole, broken = twins(name)
    losses, weights = apart(whole, broken)
    measured(
        f"{name} on {DEVICES} devices: loss of a run resumed from a checkpoint, largest difference",
        "0",
        losses,
    )
    assert losses == weights == 0
    assert not (broken / "checkpoints").exists()


@pytest.mark.parametrize(("command", "recipe"), [("evaluate", "dpo.yaml"), ("train-rm", "rm.yaml")])
def test_the_command_line_trains_on_four_devices_and_does_the_rest_on_one(
    plain: Tiny,
    twins: Callable[[str], tuple[Path, Path, Path]],
    tmp_path: Path,
    command: str,
    recipe: str,
) -> None:
    shutil.copytree(plain.suite, tmp_path / "tiny")
    shutil.copytree(plain.root, tmp_path / "runs")
    tiny = Tiny(tmp_path / "tiny", tmp_path / "runs")
    sets = [word for setting in SAVES for word in ("--set", setting)]
    options = ["--workspace", tiny.root, "--device", "xla", "--accelerate", preset(tmp_path), *sets]
    run(
        [
            sys.executable,
            "-c",
            "from rpo_cli.cli import app; app()",
            command,
            "--recipe",
            tiny.suite / recipe,
            *options,
        ],
        TWO_CHIPS,  # the training is one process nevertheless
    )
    directory = tiny.root / tiny.stage(recipe, *SAVES).path
    assert json.loads((directory / "manifest.json").read_text())["processes"] == DEVICES
    assert max(apart(twins(recipe.removesuffix(".yaml"))[0], directory)) <= TOLERANCE
    made = [json.loads(file.read_text()) for file in tiny.root.glob("**/manifest.json")]
    found = {(m["kind"], m["processes"]) for m in made if m["device"].startswith("xla")}
    assert found == (
        {("policy", DEVICES), ("evaluate", 1)} if command == "evaluate" else {("reward", DEVICES)}
    )


def test_weights_and_what_the_optimiser_knows_of_them_are_cut() -> None:
    script = """
import json, torch, torch_xla, torch_xla.core.xla_model as xm
from rpo_cli.devices import spmd
mesh = spmd.mesh(8)
model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 6)).to('xla')
optimizer = torch.optim.AdamW(model.parameters())
spmd.shard_model(model, mesh)
batch = {'x': torch.ones(8, 8), 'number': torch.ones(8), 'odd': torch.ones(6, 2)}
batch = xm.send_cpu_data_to_device(batch, torch_xla.device(), spmd.Rows(mesh))
model(batch['x']).sum().backward()
optimizer.step()
torch_xla.sync()
cut = torch_xla._XLAC._get_xla_sharding_spec
spec = lambda *shape: spmd.spec_of(torch.Size(shape), mesh)
print(json.dumps({'weights': [cut(weight) for weight in model.parameters()],
    'batch': [cut(tensor) for tensor in batch.values()],
    'state': [cut(optimizer.state[weight]['exp_avg']) for weight in model.parameters()],
    'few': [spmd.mesh(2).shape(), spec(3, 8), spec(3, 5)]}))
"""
    found = json.loads(run([sys.executable, "-c", script], XLA_USE_SPMD="1").splitlines()[-1])
    rows, columns, all_of_a_vector = (
        "{devices=[4,1]0,1,2,3}",
        "{devices=[1,4]0,1,2,3}",
        "{devices=[4]0,1,2,3}",
    )
    assert found["weights"] == [
        rows,
        all_of_a_vector,
        columns,
        "{replicated}",
    ]  # 6 outputs are not divided by 4
    assert found["state"][:3] == found["weights"][:3]
    assert found["batch"] == [rows, "{replicated}", "{replicated}"]
    assert found["few"] == [{"rows": 2, "rest": 2}, [None, ["rows", "rest"]], [None, None]]
