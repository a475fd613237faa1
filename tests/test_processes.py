"""Properties of training in several processes: as in one up to rounding, resumable, ended with the parent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import RHO, Tiny, journal, manifest, once, rpo, weights
from repository import copy_tracked, tracked
from safetensors.torch import load_file
from test_policy_training import SGD, teach

import rpo_cli.runs.child
from rpo_cli.artifacts import Job, Launch, Workspace, job_from, job_of, write_json
from rpo_cli.errors import BadInput, Diverged, NoRoom, OutOfMemory, RunFailed, encode_error
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.runs import processes
from rpo_cli.runs.child import take_part
from rpo_cli.runs.ends import fallen
from rpo_cli.runs.work import run_job
from rpo_cli.stages.training.loop import STATE

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ROOT / "recipes" / "accelerate"
CPU_2 = PRESETS / "cpu-2.yaml"
LAUNCHER = ("-m", "accelerate.commands.launch", "--config_file", CPU_2, "--main_process_port", 0,
            "--num_cpu_threads_per_process", 1)  # fmt: skip
# Largest difference of weights that float32 rounding explains; any run's smallest step is 100 times that.
ROUNDING = 1e-6

# Every run in two processes with its twin in one: recipe, and settings of plain gradient descent in
# micro-batches of 4 rows.
MICRO = (*SGD, "per_device_train_batch_size=4", "gradient_accumulation_steps=2")
RUNS: dict[str, tuple[str, ...]] = {
    "sft": ("sft.yaml", *MICRO),
    "reward": ("rm.yaml", "optim=sgd", "learning_rate=1"),
    # Not 24, the held-out pairs, and no divisor: batches are ragged, over processes and within.
    "reward, early": (
        "rm.yaml",
        "optim=sgd",
        "learning_rate=1",
        "stopping=early",
        "eval_steps=2",
        "per_device_eval_batch_size=7",
    ),
    "dpo": ("dpo.yaml", *MICRO),
    "dpo, by length": ("dpo.yaml", *MICRO, "train_sampling_strategy=group_by_length"),
    "e-dpo, batch": ("e-dpo.yaml", "ensemble_min=batch", *SGD),
    "e-dpo, batch of pieces": (
        "e-dpo.yaml",
        "ensemble_min=batch",
        *SGD,
        "per_device_train_batch_size=2",
        "gradient_accumulation_steps=4",
    ),
    "e-dpo, dataset": ("e-dpo.yaml", "ensemble_min=dataset", "ema_decay=0.5", *MICRO),
    "e-dpo, example": ("e-dpo.yaml", "ensemble_min=example", *SGD),
    "e-dpo, long": (
        "e-dpo.yaml",
        "ensemble_min=dataset",
        "ema_decay=0.5",
        *SGD,
        "max_steps=60",
        "save_steps=10",
        "logging_steps=7",
    ),
}

BEST = "reward, early"  # the run that ends at its best checkpoint


def start(command: list[object]) -> subprocess.Popen[bytes]:
    """Python with these arguments, this checkout's code and the tests' modules."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


@pytest.fixture(scope="session")
def shared(built: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The chain with an ensemble whose members differ and take turns."""

    def build(home: Path) -> None:
        shutil.copytree(built.suite, home / "tiny")
        shutil.copytree(built.root, home / "runs")
        teach(Tiny(home / "tiny", home / "runs"))

    home = once(tmp_path_factory, "processes", build)
    return Tiny(home / "tiny", home / "runs")


@pytest.fixture(scope="session")
def twins(shared: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Artifacts of each of RUNS, in one process and in two; the two work while the one does, and then die."""
    home = once(tmp_path_factory, "twins", lambda home: run_twins(shared, home))
    return lambda name: (home / f"one, {name}", home / f"two, {name}")


def run_twins(shared: Tiny, home: Path) -> None:
    ones, twos = [], []
    for name, (recipe, *settings) in RUNS.items():
        # In places of their own: nothing that another run reads is written.
        one = replace(
            job_of(shared.stage(recipe, *settings), Workspace(shared.root, "tiny"), {}),
            root=home,
            path=f"one, {name}",
        )
        rows, pieces = processes.share(one.recipe, 2)
        half = one.recipe.model_copy(
            update={"per_device_train_batch_size": rows, "gradient_accumulation_steps": pieces}
        )
        ones.append(one)
        twos.append(replace(one, recipe=half, path=f"two, {name}"))
    # The last one dies on its way.
    here = replace(next(job for job in twos if job.path == f"two, {BEST}"), root=home / "here", path="rm")
    for job in [*ones, *twos, here]:
        job.directory.mkdir(parents=True)
    (here.root / "job").write_text(here.to_json())
    (home / "jobs").write_text("".join(job.to_json() + "\n" for job in [*twos, here]))
    process = start([*LAUNCHER, "-m", "ranks", home / "jobs", 5])
    for job in ones:
        metrics, device, *_ = take_part(job, lambda step, of: None)
        write_json(job.directory / "manifest.json", {"metrics": metrics, "device": device})
    assert process.wait(300) != 0
    assert all((job.directory / "manifest.json").exists() for job in twos)


def residuals(one: Path, two: Path) -> torch.Tensor:
    """Differences of all weights."""
    ours, theirs = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert ours.keys() == theirs.keys()
    return torch.cat([(theirs[name] - ours[name]).flatten() for name in ours])


def compared(line: dict[str, Any]) -> set[str]:
    """Metrics that may not depend on how a batch is cut: no times, no means over unequal pieces."""
    averaged = {"mean_token_accuracy", "entropy"}
    return {key for key in line if not key.startswith("eval_") or key == "eval_loss"} - averaged


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_does(
    shared: Tiny, twins: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    one, two = twins(name)
    apart = residuals(one, two)
    assert apart.abs().max() < ROUNDING
    # Rounding goes both ways: a lost or doubled row, or a wrong factor, would push them to one side.
    up, down = int((apart > 0).sum()), int((apart < 0).sum())
    assert up + down == 0 or 0.25 < up / (up + down) < 0.75
    start_of = "seed-0/sft" if name != "sft" else f"{RHO}/policies/e-dpo/beta-0.2"
    if not name.startswith("reward"):
        assert residuals(shared.root / start_of, one).abs().max() > 100 * ROUNDING
    lines, others = journal(one), journal(two)
    assert len(lines) == len(others) and len(lines) >= 5
    for ours, theirs in zip(lines, others, strict=True):
        keys = compared(ours)
        assert keys == compared(theirs)
        assert {key: theirs[key] for key in keys} == pytest.approx(
            {key: ours[key] for key in keys}, rel=1e-4, abs=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("e-dpo")])
def test_members_teach_the_same_pairs_in_two_processes(
    twins: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    one, two = twins(name)
    chosen, others = (
        [
            {key: value for key, value in line.items() if key.startswith("members/")}
            for line in journal(folder)
        ]
        for folder in (one, two)
    )
    assert others == chosen
    assert len({tuple(shares.values()) for shares in chosen}) > 1  # members do take turns
    final = [json.loads((folder / "manifest.json").read_text())["metrics"] for folder in (one, two)]
    members = {key: value for key, value in final[0].items() if key.startswith("members/")}
    assert len(members) == 3 and sum(members.values()) == pytest.approx(1)
    assert {key: final[1][key] for key in members} == members


@pytest.mark.slow
def test_two_processes_go_on_elsewhere_from_a_best_checkpoint_that_neither_of_them_changes(
    twins: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """One may check a file while the other is further on."""
    _, undisturbed = twins(BEST)
    shutil.copytree(undisturbed.parent / "here", tmp_path / "there")
    job = replace(job_from((tmp_path / "there/job").read_text()), root=tmp_path / "there")
    assert list(job.directory.glob(f"checkpoints/*/{STATE}"))
    (tmp_path / "jobs").write_text(job.to_json() + "\n")
    assert start([*LAUNCHER, "-m", "ranks", tmp_path / "jobs"]).wait(300) == 0
    assert weights(job.directory) == weights(undisturbed)
    assert journal(job.directory) == journal(undisturbed)


# ── Shards ──────────────────────────────────────────────────────────────────────────────────────────────────

SHARDED = {
    "reward": ("rm.yaml", "optim=sgd", "learning_rate=1"),
    "e-dpo": ("e-dpo.yaml", "ensemble_min=dataset", "ema_decay=0.5", *SGD),
}
RESUMED = ("e-dpo.yaml", "ensemble_min=dataset", "ema_decay=0.5", "save_steps=2", "logging_steps=1")


@pytest.mark.slow
def test_sharded_weights_learn_what_whole_ones_do_and_go_on_after_an_interruption(
    shared: Tiny, tmp_path: Path
) -> None:
    """The shipped FSDP2 preset, in two processes on the CPU."""
    preset = yaml.safe_load((PRESETS / "fsdp2.yaml").read_text()) | {"use_cpu": True, "num_processes": 2}
    (tmp_path / "fsdp2.yaml").write_text(yaml.safe_dump(preset))

    def job(name: str, recipe: str, *settings: str) -> Job[Any]:
        made = replace(
            job_of(shared.stage(recipe, *settings), Workspace(shared.root, "tiny"), {}),
            root=tmp_path,
            path=name,
        )
        made.directory.mkdir()
        return made

    def half(whole: Job[Any]) -> Job[Any]:
        rows, pieces = processes.share(whole.recipe, 2)
        return replace(
            whole,
            recipe=whole.recipe.model_copy(
                update={"per_device_train_batch_size": rows, "gradient_accumulation_steps": pieces}
            ),
        )

    ones = {name: job(f"one, {name}", *settings) for name, settings in SHARDED.items()}
    twos = {name: half(job(f"two, {name}", *settings)) for name, settings in SHARDED.items()}
    undisturbed, disturbed = half(job("undisturbed", *RESUMED)), half(job("disturbed", *RESUMED))
    runs = [*((two, None) for two in twos.values()), (undisturbed, None), (disturbed, 5), (disturbed, None)]
    lines = [json.dumps([job.to_json(), stop]) for job, stop in runs]
    (tmp_path / "jobs").write_text("\n".join(lines))
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        tmp_path / "fsdp2.yaml",
        "--main_process_port",
        0,
    ]
    process = start([*launcher, "--num_cpu_threads_per_process", 1, "-m", "sharded", tmp_path / "jobs"])
    for one in ones.values():
        take_part(one, lambda step, of: None)
    assert process.wait(600) == 0
    for name in SHARDED:
        assert residuals(ones[name].directory, twos[name].directory).abs().max() < ROUNDING
    steps = [line["step"] for line in journal(disturbed.directory)]
    assert steps == [1, 2, 3, 4, 5, 6] and journal(disturbed.directory) == journal(undisturbed.directory)
    assert weights(disturbed.directory) == weights(undisturbed.directory)
    assert not (disturbed.directory / "checkpoints").exists()


# ── Through the command line ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_killed_with_its_processes_the_same_command_ends_where_the_undisturbed_run_did(
    shared: Tiny, twins: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    _, undisturbed = twins("e-dpo, long")
    tiny = Tiny(shared.suite, Path(shutil.copytree(shared.root, tmp_path / "runs")))
    recipe, *settings = RUNS["e-dpo, long"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = ["train-policy", "--recipe", tiny.suite / recipe, "--workspace", tiny.root, *overrides]
    in_two = [*command, "--accelerate", CPU_2]
    (planned,) = json.loads(rpo(*in_two, "--dry-run", "--json").stdout)
    folder = tiny.root / planned["path"]
    process = start(["-m", "rpo_cli.cli", *in_two])
    try:
        while not (folder / "checkpoints/checkpoint-10" / STATE).exists():
            assert process.poll() is None
            time.sleep(0.005)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3  # the launcher and two processes
    finally:
        process.kill()
        process.wait()
    assert psutil.wait_procs(children, timeout=None)[1] == []
    assert not (folder / "manifest.json").exists()
    saved = [
        json.loads(file.read_text())["processes"] for file in (folder / "checkpoints").glob(f"*/{STATE}")
    ]
    assert saved and set(saved) == {"2"}
    assert "effective batch: 8 = 4 rows x 1 accumulated x 2 processes, 60 steps" in rpo(*in_two).stderr
    assert weights(folder) == weights(undisturbed)
    assert journal(folder) == journal(undisturbed)
    assert not (folder / "checkpoints").exists() and not list(folder.glob("job*.json"))
    found = manifest(tiny.root, planned["path"])
    expected = json.loads((undisturbed / "manifest.json").read_text())
    assert found["metrics"] == expected["metrics"] and found["processes"] == 2
    # How many processes shared the batch is no part of the key: without --accelerate it is up to date.
    assert json.loads(rpo(*command, "--dry-run", "--json").stdout) == []


@pytest.mark.slow
def test_bad_input_in_a_process_is_one_line_and_exit_code_2(shared: Tiny, tmp_path: Path) -> None:
    tiny = Tiny(shared.suite, Path(shutil.copytree(shared.root, tmp_path / "runs")))
    file = tmp_path / "one.yaml"
    file.write_text("distributed_type: 'NO'\nuse_cpu: true\nnum_processes: 1\n")
    result = tiny.run(
        "train-policy", "dpo.yaml", "--set", "per_device_train_batch_size=100", "--accelerate", file, code=2
    )
    says = "64 rows do not fill one batch of 100; lower per_device_train_batch_size (100)"
    assert result.stderr.splitlines()[-1].endswith(says)
    (folder,) = (tiny.root / RHO / "policies/dpo").iterdir()
    assert not (folder / "manifest.json").exists() and not list(folder.glob("job*.json"))


def listen(shared: Tiny, script: str) -> Any:
    """What the parent makes of a launcher that says this."""
    job = job_of(shared.stage("dpo.yaml"), Workspace(shared.root, "tiny"), {})
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    steps: list[tuple[int, int]] = []
    try:
        return processes._listen(job, process, lambda step, of: steps.append((step, of))), steps
    finally:
        processes._stop(process)


def told(*errors: BadInput | RunFailed) -> str:
    """A launcher of processes of which each says how it failed."""
    lines = "\n".join(json.dumps({"error": encode_error(error)}) for error in errors)
    return f"print({lines!r}); raise SystemExit(1)"


@pytest.mark.parametrize("error", [Diverged("a loss of nan"), OutOfMemory("of 8 GB"), NoRoom("full")])
def test_a_failure_keeps_its_kind_between_the_processes_of_a_training(shared: Tiny, error: RunFailed) -> None:
    with pytest.raises(type(error), match=f"^{error}$"):
        listen(shared, told(error))


def test_the_first_failure_counts_and_a_silent_death_is_a_failure(shared: Tiny) -> None:
    done = '{"done": [{"loss": 1.5}, "cpu", ["a leak"]]}'
    result, steps = listen(shared, f"""print('{{"step": [1, 2]}}\\nnoise\\n{done}')""")
    assert result == ({"loss": 1.5}, "cpu", ["a leak"], ()) and steps == [(1, 2)]
    with pytest.raises(BadInput, match=r"^first$"):
        listen(shared, told(BadInput("first"), RunFailed("peer is gone")))
    with pytest.raises(OutOfMemory, match=r"a process was killed, as if out of memory; a smaller per_device"):
        listen(shared, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(RunFailed, match=r"a process died .exit code 0"):
        listen(shared, "")


GLOO = RunFailed("dpo: RuntimeError: [gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:4242. GLHF")


def test_that_a_process_lost_another_is_told_only_where_nothing_else_is_known(shared: Tiny) -> None:
    with pytest.raises(Diverged, match=r"^a loss of nan$"):
        listen(shared, told(GLOO, Diverged("a loss of nan")))
    with pytest.raises(RunFailed, match="Connection closed by peer"):
        listen(shared, told(GLOO))


# Runs in two processes, of which one dies without a word: how, and what is said of it.
DEATHS = {
    "os.kill(os.getpid(), 9)": "the process of rank 1 was killed, as if out of memory; a smaller "
    "per_device_train_batch_size (now 8) or ",
    "os._exit(7)": "the process of rank 1 died (exit code 7); if for want of memory, a smaller ",
}


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
def test_the_process_that_died_without_a_word_is_named_with_its_exit_code(
    shared: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    tiny = Tiny(shared.suite, Path(shutil.copytree(shared.root, tmp_path / "runs")))
    (tmp_path / "sitecustomize.py").write_text(  # which each of them reads when it starts
        "import os, sys, threading\n"
        "def end():\n"
        "    import time\n"
        "    while 'rpo_cli.stages.training.loop' not in sys.modules: time.sleep(0.01)\n"
        "    from rpo_cli.stages.training.loop import Journal\n"
        f"    def die(*arguments, **more): {death}\n"
        "    Journal.on_step_end = die\n"
        "if os.environ.get('RANK') == '1': threading.Thread(target=end, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    said = tiny.run("train-policy", "dpo.yaml", "--force", "--accelerate", CPU_2, code=1).stderr
    assert DEATHS[death] in " ".join(said.splitlines()) and "GLHF" not in said


@pytest.mark.parametrize(
    ("log", "heard", "expected"),
    [
        ("", set(), None),
        (
            "exit status 3\nCalledProcessError: Command '[x]' returned non-zero exit status 7.\n",
            set(),
            (0, 7),
        ),
        ("CalledProcessError: Command '[x]' died with <Signals.SIGKILL: 9>.\n", set(), (0, -9)),
        ([(0, 1), (1, -9)], {0}, (1, -9)),
        ([(1, -9), (0, 1)], {0}, (1, -9)),
        ([(0, -6), (2, -15), (1, 1)], set(), (1, 1)),  # NCCL ended the one, torch the other
        ([(0, -6)], set(), (0, -6)),
        ([(0, 1)], {0}, None),
    ],
)
def test_the_process_that_ended_a_launch_is_read_from_what_the_launcher_says(
    tmp_path: Path, log: str | list[tuple[int, int]], heard: set[int], expected: tuple[int, int] | None
) -> None:
    if not isinstance(log, str):
        entry = "  rank      : {0} (local_rank: {0})\n  exitcode  : {1} (pid: 42)\n  error_file: <N/A>\n"
        *others, root = [entry.format(*each) for each in log]
        log = "Failures:\n" + "".join(others) + "Root Cause (first observed failure):\n[0]:\n" + root
    file = tmp_path / "log.txt"
    before = "an earlier run\n  rank      : 5 (local_rank: 5)\n  exitcode  : 5 (pid: 42)\n"
    file.write_text(before + log)
    assert fallen(file, len(before), heard) == expected
    assert fallen(tmp_path / "gone", 0, heard) is None


def test_a_pods_other_hosts_train_with_the_first_and_leave_publishing_to_it(
    shared: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    trained: list[str] = []
    monkeypatch.setattr(processes, "run", lambda job, progress: trained.append(job.path))
    workspace = Workspace(tmp_path / "runs", "tiny")
    workspace.open()
    job = replace(
        job_of(shared.stage("dpo.yaml"), workspace, {}),
        launch=Launch(PRESETS / "tpu-v3-32.yaml", 32, "XLA", False, False),
    )

    def first_host(ends: Callable[[], None]) -> Any:
        with ThreadPoolExecutor(1) as pool, workspace.building(job.path, job.identity):
            other = pool.submit(run_job, job, lambda step, of: None)
            while not trained:
                time.sleep(0.01)
            assert not other.done()  # this one holds the lock
            ends()
        return other.result()

    with pytest.raises(RunFailed, match="the first host has not finished it"):
        first_host(lambda: None)
    trained.clear()
    found = {**job.identity, "metrics": {"loss": 1.5}}
    assert first_host(lambda: workspace.publish(job.path, found))["metrics"] == {"loss": 1.5}
    assert trained == [job.path]
    assert run_job(job, lambda step, of: None)["metrics"] == {"loss": 1.5} and trained == [
        job.path
    ]  # there is nothing left to do


def test_a_tpus_chips_are_one_processs_and_other_devices_have_one_each(
    shared: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate's launcher would start a process for each chip, while SPMD wants one for each host."""
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    job = job_of(shared.stage("dpo.yaml", "device=xla"), Workspace(shared.root, "tiny"), {})
    command, environment = processes._command(job, processes.read_launch(PRESETS / "tpu-v3-8.yaml"))
    assert command == ["rpo_cli.runs.child"]
    assert environment["XLA_USE_SPMD"] == environment["USE_TORCH_XLA"] == "1"
    command, environment = processes._command(job, processes.read_launch(CPU_2))
    assert command[0] == "accelerate.commands.launch" and environment == {}


def test_ctrl_c_stops_the_processes_at_once(shared: Tiny) -> None:
    def press(step: int, of: int) -> None:
        raise KeyboardInterrupt

    job = job_of(shared.stage("dpo.yaml"), Workspace(shared.root, "tiny"), {})
    script = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('{\"step\": [1, 2]}', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        with pytest.raises(KeyboardInterrupt):
            processes._listen(job, process, press)
    finally:
        processes._stop(process)
    assert process.returncode == 0  # its input closed; nobody had to kill it


# ── The configuration ───────────────────────────────────────────────────────────────────────────────────────


# Lines of a configuration: how it is wrong, as the end of a message says.
GPUS = "distributed_type: MULTI_GPU\n"
TWO_GPUS = GPUS + "num_processes: 2\n"
TPUS = "distributed_type: XLA\nnum_processes: 8\n"
WRONG = {
    "distributed_type: [": "1: ",
    "": "1: empty",
    "- 1\n": "1: expected lines of `key: value`, got a list",
    "num_processes: 2\n": "1: distributed_type: expected one of NO, MULTI_GPU, FSDP, XLA, got None",
    "num_processes: 2\ndistributed_type: MULTI_CPU\n": "2: distributed_type: MULTI_CPU needs MPI",
    GPUS: "1: num_processes: expected a whole number, at least 2, got None",
    GPUS + "num_processes: two\n": "2: num_processes: expected a whole number, at least 2, got 'two'",
    "distributed_type: 'NO'\nnum_processes: 2\n": "2: num_processes: several processes need distributed_type "
    "MULTI_GPU or FSDP",
    TWO_GPUS + "num_machines: 2\n": "3: num_machines: expected 1, got 2",
    TWO_GPUS + "mixed_precision: bf16\n": "3: mixed_precision: expected no, got 'bf16': the",
    TWO_GPUS + "mixed_precision: no\n": "3: mixed_precision: expected no, got False",
    TWO_GPUS + "dynamo_config: {dynamo_backend: INDUCTOR}\n": "3: dynamo_config: rpo does not",
    "distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_version: 1}\n": "3: fsdp_config: "
    "fsdp_version: expected 2",
    GPUS + "num_procesess: 2\nnum_processes: 2\n": "2: num_procesess: unknown to accelerate, did you "
    "mean num",
    "distributed_type: TPU\nnum_processes: 8\n": "1: distributed_type: accelerate's name for TPUs is XLA",
    TPUS + "mixed_precision: bf16\n": "3: mixed_precision: expected no, got 'bf16': the",
    TPUS + "downcast_bf16: 'yes'\n": "3: downcast_bf16: expected no, got 'yes'",
    TPUS + "tpu_use_cluster: true\n": "3: tpu_use_cluster: expected False, got True: on a pod",
    TPUS + "main_training_function: train\n": "3: main_training_function: expected main, got",
    TPUS: "policies/dpo/beta-0.2 has device: cpu; XLA and --device",
    GPUS + "num_processes: 3\n": "beta-0.2: 3 processes cannot share a batch of 8 rows (8 x 1)",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(shared: Tiny, tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    result = shared.run("train-policy", "dpo.yaml", "--accelerate", file, "--dry-run", code=2)
    assert WRONG[text] in result.stderr.splitlines()[-1] and (
        ": " + WRONG[text] in result.stderr or str(file) in result.stderr
    )


@pytest.mark.slow
def test_a_missing_configuration_is_told_before_torch_is_imported(shared: Tiny, tmp_path: Path) -> None:
    recipe, workspace = str(shared.suite / "dpo.yaml"), str(tmp_path / "w")
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom rpo_cli.cli import app\n"
        f"r = CliRunner().invoke(app, ['train-policy', '--recipe', {recipe!r}, '--workspace', {workspace!r}, "
        "'--accelerate', 'gone.yaml'])\nprint(r.exit_code, 'torch' in sys.modules, r.stderr)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert said.startswith("2 False --accelerate gone.yaml: no such file")
    assert not (tmp_path / "w").exists()


def test_rpo_itself_is_started_once(shared: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (
        "start rpo once, without accelerate launch or torchrun, and with --accelerate"
        in shared.run("train-sft", "sft.yaml", code=2).stderr
    )


@pytest.mark.slow
def test_with_jobs_a_training_has_all_processes_and_other_stages_a_worker_each(
    shared: Tiny, tmp_path: Path
) -> None:
    tiny = Tiny(shared.suite, Path(shutil.copytree(shared.root, tmp_path / "runs")))
    tiny.run("train-policy", "dpo.yaml", "--rho", "0.5")  # its evaluation is at work when the other's turn is
    tiny.run("evaluate", "dpo.yaml", "--rho", "0.2,0.5", "--jobs", 2, "--accelerate", CPU_2)
    assert manifest(tiny.root, "seed-0/rho-0.2/policies/dpo/beta-0.2")["processes"] == 2
    for rho in ("seed-0/rho-0.2", "seed-0/rho-0.5"):
        assert manifest(tiny.root, f"{rho}/evaluations/dpo/beta-0.2/test")["processes"] == 1


def test_presets_are_accelerates_own_and_no_recipes(tmp_path: Path) -> None:
    presets = tracked("recipes/accelerate")
    tpus = ["tpu-v3-32", "tpu-v3-8", "tpu-v4-8", "tpu-v5e-8"]
    assert [path.stem for path in presets] == ["cpu-2", "fsdp2", "multi-gpu", "single-gpu", *tpus]
    for path in presets:
        config = load_config_from_file(str(path))
        launch = processes.read_launch(path)
        assert (launch.processes, launch.strategy) == (config.num_processes, config.distributed_type.value)
        if path.stem in tpus:  # what bf16 here would do to float32: see the presets
            assert (config.distributed_type.value, config.mixed_precision, config.downcast_bf16) == (
                "XLA",
                "no",
                "no",
            )
            assert config.main_training_function == "main" and callable(rpo_cli.runs.child.main)
            assert not config.tpu_use_cluster and not config.tpu_use_sudo
    copy_tracked("recipes/accelerate", tmp_path)
    (tmp_path / "recipes/data.yaml").write_text("stage: data\nsource: miniature\n")
    assert rpo("recipe", "check", tmp_path / "recipes").stdout == "1 recipe, no problems\n"


@pytest.mark.parametrize(
    ("rows", "pieces", "cores", "expected"),
    [(2, 8, 8, (16, 1)), (2, 8, 32, (16, 1)), (8, 8, 32, (64, 1)), (8, 4, 8, (32, 1)), (4, 3, 8, (12, 1))],
)
def test_cores_of_a_tpu_share_the_recipes_batch_though_they_be_more(
    rows: int, pieces: int, cores: int, expected: tuple[int, int]
) -> None:
    recipe = PolicyRecipe(
        stage="policy", objective="dpo", per_device_train_batch_size=rows, gradient_accumulation_steps=pieces
    )
    assert processes.spread(recipe, cores) == expected


def test_a_tpu_preset_needs_the_device_xla_and_says_how_the_batch_is_cut(shared: Tiny) -> None:
    preset = PRESETS / "tpu-v3-32.yaml"
    said = shared.run(
        "train-policy", "dpo.yaml", "--force", "--accelerate", preset, "--dry-run", code=2
    ).stderr
    assert said.splitlines()[-1].endswith("has device: cpu; XLA and --device xla go together")
    said = shared.run(
        "train-policy", "dpo.yaml", "--set", "device=xla", "--force", "--accelerate", preset, "--dry-run"
    ).stderr
    assert "effective batch: 8 = 8 rows over 32 cores x 1 accumulated, 6 steps" in said


@pytest.mark.parametrize(
    ("rows", "pieces", "count", "expected"),
    [
        (8, 1, 1, (8, 1)),
        (8, 1, 2, (4, 1)),
        (8, 4, 2, (8, 2)),
        (16, 3, 2, (12, 2)),
        (4, 2, 8, (1, 1)),
        (6, 5, 3, (5, 2)),
        (7, 6, 4, None),
    ],
)
def test_processes_share_the_recipes_batch_and_no_process_holds_more_at_a_time(
    rows: int, pieces: int, count: int, expected: tuple[int, int] | None
) -> None:
    recipe = PolicyRecipe(
        stage="policy", objective="dpo", per_device_train_batch_size=rows, gradient_accumulation_steps=pieces
    )
    if expected is None:
        with pytest.raises(BadInput, match=r"4 processes cannot share a batch of 42 rows \(7 x 6\) equally"):
            processes.share(recipe, count)
        return
    assert processes.share(recipe, count) == expected
    assert expected[0] * expected[1] * count == rows * pieces and expected[0] <= rows
