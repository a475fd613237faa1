"""Properties of a model spread over four devices: learns as on one, weights are cut, resumes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bars import ORDINARY, measured, plain
from conftest import Tiny, column
from safetensors.torch import load_file
from spread_jobs import DEVICES

from rpo_cli.artifacts import Workspace, job_of
from rpo_cli.runs import processes

ROOT = Path(__file__).resolve().parent.parent.parent
TOLERANCE = 1e-4
SAVES = ("max_steps=6", "save_steps=2")
RUNS = {"dpo": ("dpo.yaml", *SAVES), "e-dpo": ("e-dpo.yaml", *SAVES), "rm": ("rm.yaml", *SAVES)}
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


def preset(directory: Path) -> Path:
    """The preset of a v3-8 for as many devices as are here."""
    file = directory / "tpu.yaml"
    file.write_text(
        (ROOT / "recipes/accelerate/tpu-v3-8.yaml")
        .read_text()
        .replace("num_processes: 8", f"num_processes: {DEVICES}")
    )
    return file


def run(command: list[object], **more: str) -> str:
    """Standard output of a process for which XLA has four devices."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests/xla")))
    environment = ORDINARY | {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": str(DEVICES),
        "PYTHONPATH": paths,
        **more,
    }
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def twins(plain: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Path]]:
    """Artifacts of each of RUNS: on the plain CPU, over four devices, and so with a break in the middle."""
    home = tmp_path_factory.mktemp("spread")
    alone, spread = [], []
    for name, (recipe, *settings) in RUNS.items():
        job = replace(
            job_of(plain.stage(recipe, *settings), Workspace(plain.root, plain.suite.name), {}), root=home
        )
        rows, pieces = processes.spread(job.recipe, DEVICES)
        update = {"device": "xla", "per_device_train_batch_size": rows, "gradient_accumulation_steps": pieces}
        on_xla = replace(job, recipe=job.recipe.model_copy(update=update))
        one, whole, broken = (
            replace(base, path=f"{name}, {what}")
            for base, what in ((job, "plain"), (on_xla, "whole"), (on_xla, "broken"))
        )
        for made in (one, whole, broken):
            made.directory.mkdir()
        alone.append((one, None))
        spread += [(whole, None), (broken, 3), (broken, None)]
    (home / "alone").write_bytes(pickle.dumps(alone))
    (home / "spread").write_bytes(pickle.dumps(spread))
    run([sys.executable, "-m", "spread_jobs", home / "alone"], USE_TORCH_XLA="0")
    launch = [*ACCELERATE, "--config_file", preset(home), "-m", "spread_jobs", home / "spread"]
    run(launch, USE_TORCH_XLA="1", XLA_USE_SPMD="1", LOCAL_RANK="0")
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
        ]
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
import json, torch, torch_xla
from rpo_cli.devices import spmd
mesh = spmd.mesh(8)
model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 6)).to('xla')
optimizer = torch.optim.AdamW(model.parameters())
spmd.shard_model(model, mesh)
batch = {'x': torch.ones(8, 8).to('xla'), 'odd': torch.ones(6).to('xla')}
spmd.shard_batch(batch, mesh)
model(batch['x']).sum().backward()
optimizer.step()
torch_xla.sync()
cut = torch_xla._XLAC._get_xla_sharding_spec
spec = lambda *shape: spmd.spec_of(torch.Size(shape), mesh)
print(json.dumps({'weights': [cut(weight) for weight in model.parameters()],
    'batch': [cut(batch['x']), cut(batch['odd'])],
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
    assert found["batch"] == [rows, ""]
    assert found["few"] == [{"rows": 2, "rest": 2}, [None, ["rows", "rest"]], [None, None]]
