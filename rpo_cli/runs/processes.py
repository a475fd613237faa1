"""Training in several processes: what accelerate's file asks for, the share of each, their launch.

Only the stages that train run there; this process plans, scores, evaluates, holds the artifact's lock and
publishes it. On a TPU, which one process holds at a time, the other stages run in a process of their own
each. Imports accelerate, and with it torch, only for a file that could be a configuration.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import yaml

from rpo_cli import devices
from rpo_cli.artifacts import Job, Launch, Outcome, Progress, Stage
from rpo_cli.devices import xla_probe
from rpo_cli.errors import BadInput, RunFailed, decode_error
from rpo_cli.recipes import RecipeError, find, shown, suggest
from rpo_cli.recipes.schema import KINDS, Recipe, TrainingRecipe
from rpo_cli.recipes.yaml_lines import read
from rpo_cli.runs.ends import died, fallen, lost_others
from rpo_cli.text import counted, first_line

STRATEGIES = ("NO", "MULTI_GPU", "FSDP", "XLA")
# Names that accelerate once had, or has for what rpo starts otherwise.
MISTAKEN = {
    "MULTI_CPU": "MULTI_CPU needs MPI; write MULTI_GPU with `use_cpu: true`, as "
    "recipes/accelerate/cpu-2.yaml does",
    "TPU": "accelerate's name for TPUs is XLA, as in recipes/accelerate/tpu-v3-8.yaml",
}
DTYPE = "the recipe's `dtype:` says it"
# key, the one value it may have, why.
FIXED = (
    ("compute_environment", "LOCAL_MACHINE", "rpo starts processes on this machine"),
    ("num_machines", 1, "rpo starts processes on this machine"),
    ("mixed_precision", "no", f"{DTYPE}, so that it is part of the artifact's key; write 'no', in quotes"),
    ("downcast_bf16", "no", f"{DTYPE}; write 'no', in quotes"),
    ("tpu_use_cluster", False, "on a pod run the same command on every host; see docs/tpu.md"),
)
# What these switch on would change the mathematics behind the recipe's back, or was never tried here.
FOREIGN = (
    *("deepspeed_config", "megatron_lm_config", "fp8_config"),
    *("dynamo_config", "parallelism_config", "mpirun_config"),
)


def read_launch(path: Path) -> Launch:
    """What an accelerate configuration asks for.

    Raises:
        BadInput: it is missing, accelerate cannot read it, or it asks for what rpo does not do.
    """
    path = _found(path)
    document = read(path)
    if document.problems:
        line, keys, message = document.problems[0]
        what = f"{keys[0]}: {message}" if keys else message.split(": a recipe")[0]
        raise BadInput(f"{shown(path)}:{line}: {what}")
    values = yaml.safe_load(path.read_text())  # accelerate reads YAML 1.1, where `no` is false

    def wrong(key: str, message: str) -> BadInput:
        return BadInput(f"{shown(path)}:{document.lines.get((key,), 1)}: {key}: {message}")

    strategy = values.get("distributed_type")
    if strategy in MISTAKEN:
        raise wrong("distributed_type", MISTAKEN[strategy])
    if strategy not in STRATEGIES:
        raise wrong("distributed_type", f"expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    processes = values.get("num_processes", 1 if strategy == "NO" else None)
    least = 1 if strategy in ("NO", "XLA") else 2
    if type(processes) is not int or processes < least:
        expected = "1" if strategy == "NO" else f"at least {least}"
        raise wrong("num_processes", f"expected a whole number, {expected}, got {processes!r}")
    if strategy == "NO" and processes > 1:
        raise wrong("num_processes", "several processes need distributed_type MULTI_GPU or FSDP")
    for key, only, why in FIXED:
        if values.get(key, only) not in (only, None):
            raise wrong(key, f"expected {only}, got {values[key]!r}: {why}")
    for key in FOREIGN:
        if values.get(key):
            raise wrong(key, "rpo does not support it")
    if strategy == "XLA" and values.get("main_training_function", "main") != "main":
        raise wrong("main_training_function", f"expected main, got {values['main_training_function']!r}")
    if strategy == "FSDP" and (values.get("fsdp_config") or {}).get("fsdp_version") != 2:
        raise wrong("fsdp_config", "fsdp_version: expected 2")
    _parse(path, values, wrong)
    port_given = values.get("main_process_port") is not None
    return Launch(path.resolve(), processes, strategy, bool(values.get("use_cpu")), port_given)


def _found(path: Path) -> Path:
    """The file of this name; a preset is found as recipes are, by `recipes/accelerate/NAME` or less of it."""
    if not path.is_file() and str(path.parent) in (".", "accelerate", "recipes/accelerate"):
        with suppress(RecipeError):
            return find(f"accelerate/{path.name}")
    if not path.is_file():
        raise BadInput(f"--accelerate {path}: no such file")
    return path


def _parse(path: Path, values: dict[str, object], wrong: Callable[[str, str], BadInput]) -> None:
    """Have accelerate read the file as `accelerate launch` will."""
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    known = set(ClusterConfig.__dataclass_fields__)
    for key in values:
        if key not in known:
            raise wrong(key, f"unknown to accelerate{suggest(key, known)}")
    try:
        load_config_from_file(str(path))
    except (ValueError, TypeError) as error:
        raise BadInput(f"{shown(path)}: {first_line(error)}") from error


def check(stages: Iterable[Stage], launch: Launch | None) -> None:
    """Raise BadInput when one of the stages cannot be trained as a configuration, if there is one, asks."""
    if launch is not None:
        for stage in stages:
            _check(stage, launch)


def _check(stage: Stage, launch: Launch) -> None:
    recipe, file = stage.recipe, shown(launch.config)
    if not isinstance(recipe, TrainingRecipe):
        return
    if (recipe.device == "xla") != (launch.strategy == "XLA"):
        raise BadInput(
            f"{file}: distributed_type: {launch.strategy}, but {stage.path} has device: {recipe.device}; "
            "XLA and --device xla go together"
        )
    if launch.strategy == "FSDP" and recipe.use_peft:
        what = f"FSDP trains no adapters, but {stage.path} has use_peft; take MULTI_GPU"
        raise BadInput(f"{file}: distributed_type: {what}")
    if launch.strategy == "XLA":
        return
    if launch.use_cpu and (found := devices.choose(recipe)).name != "cpu":
        raise BadInput(f"{file}: use_cpu: true, but {stage.path} runs on {found}; give --device cpu")
    try:
        share(recipe, launch.processes)
    except BadInput as error:
        raise BadInput(f"{file}: num_processes: {stage.path}: {error}") from None


def share(recipe: TrainingRecipe, processes: int) -> tuple[int, int]:
    """Rows at a time and pieces of one process; all see the recipe's batch together in a step.

    The batch of an optimiser step, per_device_train_batch_size x gradient_accumulation_steps, belongs to the
    recipe and to the artifact's key; how many processes share it changes the order of sums only, and is
    written in the manifest.

    Raises:
        BadInput: the batch cannot be shared equally.
    """
    rows, pieces = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    each, rest = divmod(rows * pieces, processes)
    if rest:
        raise BadInput(
            f"{processes} processes cannot share a batch of {rows * pieces} rows ({rows} x {pieces}) "
            "equally; change per_device_train_batch_size, gradient_accumulation_steps or num_processes"
        )
    if pieces % processes == 0:
        return rows, pieces // processes
    size = max(size for size in range(1, min(rows, each) + 1) if each % size == 0)
    return size, each // size


def spread(recipe: TrainingRecipe, cores: int) -> tuple[int, int]:
    """Rows at a time, over all cores of a TPU, and accumulated pieces.

    As many cores as divide the batch have rows of their own, each what a process would have; the others share
    their work.
    """
    slots = math.gcd(recipe.batch, cores)
    rows, pieces = share(recipe, slots)
    return rows * slots, pieces


def are_several(launch: Launch | None) -> bool:
    """Whether what trains does so in several processes, each with a model of its own or a part of one."""
    return launch is not None and launch.processes > 1 and launch.strategy != "XLA"


def cut_of(recipe: TrainingRecipe, launch: Launch | None) -> str:
    """How the batch of an optimiser step is cut, in words."""
    count = 1 if launch is None else launch.processes
    if launch is not None and launch.strategy == "XLA":
        rows, pieces = spread(recipe, count)
        return f"{rows * pieces} = {rows} rows over {count} cores x {pieces} accumulated"
    rows, pieces = share(recipe, count)
    started = counted(count, "process", "processes")
    return f"{rows * pieces * count} = {rows} rows x {pieces} accumulated x {started}"


def follows(job: Job[Recipe]) -> bool:
    """Whether this is a further host of a pod, which trains the job's artifact with the first one."""
    on_xla = job.launch is not None and job.launch.strategy == "XLA"
    return on_xla and KINDS[job.kind].trains and xla_probe.host() > 0


def run(job: Job[Recipe], progress: Progress) -> Outcome:
    """Run a stage's function in the processes of its `launch`; what the first returns, if it is here.

    Raises:
        BadInput, RunFailed: of the first process that failed.
    """
    launch, asked = job.launch, job
    assert launch is not None
    if isinstance(job.recipe, TrainingRecipe) and KINDS[job.kind].trains:
        rows, pieces = (spread if launch.strategy == "XLA" else share)(job.recipe, launch.processes)
        update: dict[str, object] = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": pieces,
        }
        if launch.use_cpu:
            update["device"] = "cpu"
        job = replace(job, recipe=job.recipe.model_copy(update=update))
        _need_devices(job, launch)
    command, environment = _command(job, launch)
    file = job.directory / f"job-{xla_probe.host()}.json"  # the hosts of a pod share the directory
    file.write_text(job.to_json())
    with (job.directory / "log.txt").open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", *command, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C is for this process, which then stops the others
        )
        try:
            return _listen(asked, process, progress, start)
        finally:
            _stop(process)
            file.unlink(missing_ok=True)


def _command(job: Job[Recipe], launch: Launch) -> tuple[list[str], dict[str, str]]:
    """The module that runs a job, its arguments, and what its environment needs besides our own."""
    on_xla = devices.environment([job.recipe]) if launch.strategy == "XLA" else {}
    child = "rpo_cli.runs.child"
    if not KINDS[job.kind].trains:
        return [child], on_xla | devices.one_chip()
    if on_xla:  # SPMD wants one process a host, and accelerate's launcher starts one a chip
        return [child], on_xla | {"XLA_USE_SPMD": "1"}
    options = ["--config_file", str(launch.config)]
    if not launch.port_given:
        options += ["--main_process_port", "0"]
    if job.recipe.threads is not None:
        options += ["--num_cpu_threads_per_process", str(job.recipe.threads)]
    return ["accelerate.commands.launch", *options, "-m", child], {}


def _need_devices(job: Job[Recipe], launch: Launch) -> None:
    """Refuse what the processes could only fail at; leave them this process's idle GPU memory."""
    name = devices.choose(job.recipe).name
    if name == "xla":
        return  # each process counts for itself: this one may not hold the TPU
    import torch

    file = shown(launch.config)
    if name == "cpu":
        if launch.strategy == "FSDP":
            raise BadInput(f"{file}: distributed_type: FSDP needs GPUs, and {job.path} runs on the CPU")
        return
    if (count := torch.cuda.device_count()) < launch.processes:
        raise BadInput(f"{file}: num_processes: {launch.processes}, but torch sees {count} CUDA devices")
    torch.cuda.empty_cache()


def _listen(job: Job[Recipe], process: subprocess.Popen[str], progress: Progress, start: int = 0) -> Outcome:
    """Follow the processes' lines to the end; `start`: where in the log this launch begins."""
    failures: list[BadInput | RunFailed] = []
    heard: set[int] = set()
    done: Outcome | None = None
    assert process.stdout is not None
    for line in process.stdout:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:  # the launcher's own talk, or a line that a kill cut short
            continue
        if "step" in message:
            progress(*message["step"])
        elif "done" in message:
            done = Outcome(*message["done"])
        else:
            failures.append(decode_error(*message["error"]))
            heard.add(message.get("rank", 0))
    code = process.wait()
    if own := [failure for failure in failures if not lost_others(failure)]:
        raise own[0]
    if code == 0 and not failures and follows(job):
        return Outcome({}, "", [], [])  # the first process is on the first host
    if code != 0 or done is None:
        # That others lost their peer is no cause; it is said where nothing is known of that peer.
        found = fallen(job.directory / "log.txt", start, heard)
        if found is None and failures:
            raise failures[0]
        rank, status = found or (None, code)
        raise died(job, status, "a process" if rank is None else f"the process of rank {rank}")
    return done


def _stop(process: subprocess.Popen[str]) -> None:
    """End the launcher and its processes, which end when their standard input closes."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(OSError):
        process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdout.close()
