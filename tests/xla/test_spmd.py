"""Properties of a model spread over four devices: it learns what one device does, its weights are cut, and it resumes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Tiny, built, journal, weights  # noqa: F401  built is a fixture
from safetensors.torch import load_file
from spread_jobs import DEVICES

from rpo_cli import processes
from rpo_cli.launch import take_part
from rpo_cli.pipeline import job_of
from rpo_cli.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent.parent
TOLERANCE = 1e-4
SAVES = ("max_steps=6", "save_steps=2")
RUNS = {"dpo": ("dpo.yaml", *SAVES), "e-dpo": ("e-dpo.yaml", *SAVES), "reward": ("rm.yaml", *SAVES)}


def preset(directory: Path) -> Path:
    """The preset of a v3-8 for as many devices as are here."""
    file = directory / "tpu.yaml"
    file.write_text((ROOT / "recipes/accelerate/tpu-v3-8.yaml").read_text().replace("num_processes: 8", f"num_processes: {DEVICES}"))
    return file


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(DEVICES), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/xla'}", **more}


@pytest.fixture(scope="module")
def twins(built: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Path]]:  # noqa: F811
    """Artifacts of each of RUNS: on the CPU without XLA, spread over four devices, and spread with a break in the middle."""
    home = tmp_path_factory.mktemp("spread")
    jobs = []
    for name, (recipe, *settings) in RUNS.items():
        plain = replace(job_of(built.stage(recipe, *settings), Workspace(built.root, "tiny"), {}), root=home, path=f"{name}, plain")
        plain.directory.mkdir()
        take_part(plain, lambda step, of: None)
        rows, pieces = processes.spread(plain.recipe, DEVICES)
        update = {"device": "xla", "per_device_train_batch_size": rows, "gradient_accumulation_steps": pieces}
        on_xla = replace(plain, recipe=plain.recipe.model_copy(update=update))
        whole, broken = replace(on_xla, path=f"{name}, whole"), replace(on_xla, path=f"{name}, broken")
        for job in (whole, broken):
            job.directory.mkdir()
        jobs += [(whole, None), (broken, 3), (broken, None)]
    (home / "jobs").write_bytes(pickle.dumps(jobs))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", preset(home), "-m", "spread_jobs", home / "jobs"]
    more = {"USE_TORCH_XLA": "1", "XLA_USE_SPMD": "1", "LOCAL_RANK": "0"}
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return lambda name: (home / f"{name}, plain", home / f"{name}, whole", home / f"{name}, broken")


@pytest.mark.parametrize("name", RUNS)
def test_four_devices_learn_what_one_does(twins: Callable[[str], tuple[Path, Path, Path]], name: str) -> None:
    plain, whole, _ = twins(name)
    lines, others = journal(plain), journal(whole)
    assert len(others) == len(lines) >= 6
    for ours, theirs in zip(lines, others, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=TOLERANCE)
    ours, theirs = load_file(plain / "model.safetensors"), load_file(whole / "model.safetensors")
    assert max(float((theirs[key] - ours[key]).abs().max()) for key in ours) < TOLERANCE
    assert json.loads((whole / "manifest.json").read_text())["device"].startswith("xla, float32")


@pytest.mark.parametrize("name", RUNS)
def test_a_spread_run_goes_on_from_its_checkpoint(twins: Callable[[str], tuple[Path, Path, Path]], name: str) -> None:
    _, whole, broken = twins(name)
    assert [line["loss"] for line in journal(broken)] == pytest.approx([line["loss"] for line in journal(whole)], abs=1e-6)
    ours, theirs = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
    assert max(float((theirs[key] - ours[key]).abs().max()) for key in ours) < 1e-6
    assert not (broken / "checkpoints").exists()


def test_weights_and_what_the_optimiser_knows_of_them_are_cut() -> None:
    script = """
import json, torch, torch_xla
from rpo_cli import spmd
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
print(json.dumps({'weights': [cut(weight) for weight in model.parameters()], 'batch': [cut(batch['x']), cut(batch['odd'])],
    'state': [cut(optimizer.state[weight]['exp_avg']) for weight in model.parameters()],
    'few': [spmd.mesh(2).shape(), spmd.spec_of(torch.Size([3, 8]), mesh), spmd.spec_of(torch.Size([3, 5]), mesh)]}))
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(XLA_USE_SPMD="1"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    rows, columns, all_of_a_vector = "{devices=[4,1]0,1,2,3}", "{devices=[1,4]0,1,2,3}", "{devices=[4]0,1,2,3}"
    assert found["weights"] == [rows, all_of_a_vector, columns, ""]  # 6 outputs are not divided by 4
    assert found["state"][:3] == found["weights"][:3]
    assert found["batch"] == [rows, ""]
    assert found["few"] == [{"rows": 2, "rest": 2}, [None, ["rows", "rest"]], [None, None]]
