"""A stage that fails stops only what needs it; what dies is tried again; what is damaged is named."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pyarrow as pa
import pytest
import torch
import transformers
from conftest import RHO, SEED, Tiny, manifest, rpo, weights
from test_pipeline import plan, same_artifact
from test_policy_training import Stop, teach

from rpo_cli.artifacts import Stage, Workspace, job_of
from rpo_cli.artifacts.damage import all_finite, damaged_files
from rpo_cli.artifacts.files import no_memory
from rpo_cli.artifacts.tracker import Tracker
from rpo_cli.errors import BadInput, Diverged, NoRoom, OutOfMemory, RunFailed, decode_error, encode_error
from rpo_cli.figures.tuning import choose
from rpo_cli.recipes import schema
from rpo_cli.runs import work
from rpo_cli.runs.failures import Failures
from rpo_cli.runs.progress import PlanProgress, fitted
from rpo_cli.runs.todo import ReadyQueue, Todo
from rpo_cli.runs.work import run_job, start_arrow
from rpo_cli.runs.workers import Worker
from rpo_cli.stages.training import loop

TINY = Workspace(Path("runs"), "tiny")
POLICIES = "seed-0/rho-{}/policies/dpo/beta-{}"
# At rho 0.2 a strength under which DPO's gradient is infinite in its first step.
DIVERGES = "by_rho: {0.2: {beta: 1.0e+38}}"


def stages(needs: dict[str, list[str]]) -> dict[str, Stage]:
    """A graph of stages by name, each with those that it needs."""
    made: dict[str, Stage] = {}
    for name, inputs in needs.items():
        recipe = schema.RelabelRecipe(stage="relabel")
        made[name] = Stage("relabel", name, recipe, Path(), {other: made[other] for other in inputs})
    return made


GRAPH = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": [], "f": ["e", "d"]}


# ── What goes on ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("longest_first", [False, True])
@pytest.mark.parametrize("fails", GRAPH)
def test_all_that_does_not_need_a_failed_stage_is_taken(fails: str, longest_first: bool) -> None:
    made = stages(GRAPH)
    line = ReadyQueue([Todo(stage, "missing") for stage in made.values()], longest_first=longest_first)
    taken = []
    for stage in line:
        taken.append(stage.path)
        if stage.path != fails:
            line.done(stage)
    behind = line.behind(made[fails])
    assert sorted([*taken, *behind]) == sorted(GRAPH) and not set(taken) & set(behind)
    assert all(taken.index(needed) < taken.index(name) for name in taken for needed in GRAPH[name])


def test_one_failure_is_its_own_line_and_several_are_a_table_with_what_they_kept() -> None:
    found = Failures()
    assert found.error(TINY) is None
    found.add("a", RunFailed("a: no\nmore"), [])
    assert str(found.error(TINY)) == "a: no\nmore"
    found.add("b", BadInput("file.jsonl:3: no"), ["c", "d"])
    assert str(found.error(TINY)).splitlines() == [
        "2 stages failed, 2 not tried; the same command tries these again",
        "not tried  c  needs b",
        "not tried  d  needs b",
        "failed  a  no",
        "failed  b  file.jsonl:3: no",
    ]


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([BadInput("x"), BadInput("y")], BadInput),
        ([BadInput("x"), RunFailed("y")], RunFailed),
        ([Diverged("x")], RunFailed),
    ],
)
def test_only_where_all_was_bad_input_it_is_bad_input(errors: list[Any], kind: type[Exception]) -> None:
    found = Failures()
    for number, error in enumerate(errors):
        found.add(str(number), error, [])
    assert isinstance(found.error(TINY), kind)


def test_a_failure_holds_no_memory_of_its_stage_while_others_run() -> None:
    try:
        raise RunFailed("a: x") from ValueError("x")
    except RunFailed as error:
        found = Failures({"a": error})
    found.let_go()
    assert found.failed["a"].__traceback__ is None and found.failed["a"].__cause__ is None


def test_after_a_full_disk_nothing_more_is_tried() -> None:
    found = Failures()
    found.add("a", RunFailed("x"), [])
    assert not found.hopeless
    found.add("b", NoRoom("full"), [])
    found.leave(["c"])
    assert found.hopeless and "not tried  c  no room on the disk" in str(found.error(TINY))


@pytest.mark.parametrize(
    "error", [BadInput("x"), RunFailed("x"), Diverged("x"), OutOfMemory("x"), NoRoom("x")]
)
def test_errors_are_the_same_in_another_process(error: BadInput | RunFailed) -> None:
    again = decode_error(*json.loads(json.dumps(encode_error(error))))
    assert type(again) is type(error) and str(again) == str(error)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_stage_stops_only_what_needs_it_and_the_same_command_tries_just_that_again(
    tiny: Tiny, jobs: int
) -> None:
    tiny.edit("dpo.yaml", DIVERGES)
    command = ("evaluate", "dpo.yaml", "--rho", "0.2,0.5", "--jobs", jobs)
    lines = tiny.run(*command, code=1).stderr.splitlines()
    failed, kept = POLICIES.format(0.2, "1e+38"), "seed-0/rho-0.2/evaluations/dpo/beta-1e+38/test"
    assert lines[-3] == "1 stage failed, 1 not tried; the same command tries these again"
    assert lines[-2].split() == ["not", "tried", kept, "needs", failed]
    what = "grad_norm is inf at step 1; try a smaller learning_rate (now 0.003) or another beta (now 1e+38)"
    assert lines[-1] == f"{failed}: {what}"
    assert (tiny.root / "seed-0/rho-0.5/evaluations/dpo/beta-0.2/test/manifest.json").exists()
    assert set(plan(tiny, *command[:-2])) == {failed, kept}
    tiny.edit("dpo.yaml", "by_rho: {0.2: {beta: 0.2}}")
    tiny.run(*command[:-2])


@pytest.mark.slow
@pytest.mark.parametrize("select", ["last", "validation"])
def test_a_diverged_cell_is_the_worst_choice_of_its_grid(tiny: Tiny, select: str) -> None:
    tiny.edit("dpo.yaml", f"grid: {{beta: [0.1, 1.0e+38]}}\nselect: {select}\ncheckpoints: 2")
    sweep = ("sweep", "dpo.yaml", "--rho", "0.5", "--seeds", "0")
    said = tiny.run(*sweep, "--json")
    assert json.loads(said.stdout)["chosen"] == {"dpo": {"0.5": {"beta": 0.1}}}
    assert "note: dpo at rho 0.5, seed 0: diverged at beta 1e+38: the worst choice" in said.stderr
    with (tiny.root / "sweeps/dpo.csv").open() as file:
        assert [bool(row["advantage"]) for row in csv.DictReader(file)] == [True, False]
    tiny.edit("dpo.yaml", "grid: {beta: [1.0e+38, 2.0e+38]}")
    before = (tiny.suite / "dpo.yaml").read_bytes()
    lines = tiny.run(*sweep, code=1).stderr.splitlines()
    assert lines[-1] == "dpo at rho 0.5: training diverged under every value of its grid"
    assert (tiny.suite / "dpo.yaml").read_bytes() == before  # nothing is written where nothing was chosen


@pytest.mark.slow
def test_a_choice_without_resampling_is_not_written_where_other_rhos_would_be_trained_with_it(
    tiny: Tiny,
) -> None:
    tiny.edit("dpo.yaml", "grid: {beta: [0.1]}")
    before = (tiny.suite / "dpo.yaml").read_bytes()
    said = tiny.run("sweep", "dpo.yaml", "--rho", "none", "--seeds", "0").stderr.splitlines()[-1]
    assert said.startswith("note: a choice without resampling is not written, for beta of ")
    assert said.endswith("holds at every rho that its by_rho leaves out; --rho none --set beta=0.1 takes it")
    assert (tiny.suite / "dpo.yaml").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("tune", [False, True])
def test_a_figure_with_a_failed_cell_is_drawn_only_if_gaps_are_allowed(tiny: Tiny, tune: bool) -> None:
    tiny.edit("dpo.yaml", "grid: {beta: [0.1, 0.2]}")
    change = "grid: {beta: [1.0e+38, 2.0e+38]}" if tune else "beta: 1.0e+38"
    (tiny.suite / "figure.yaml").write_text(
        "stage: figure\nkind: gamma\nbootstrap_samples: 50\nrhos: [0.5]\n"
        f"variants: [{{name: good, recipe: dpo.yaml}}, {{name: bad, recipe: dpo.yaml, set: {{{change}}}}}]\n"
    )
    figure = ("figure gamma", "figure.yaml", *(["--tune"] if tune else []))
    lines = tiny.run(*figure, code=1).stderr.splitlines()
    assert "no figure is drawn; --allow-missing draws what there is" in lines
    assert "bad at rho 0.5" in lines[-1] if tune else "grad_norm is inf" in lines[-1]
    assert not (tiny.root / "figures").exists()
    tiny.run(*figure, "--allow-missing")
    found = json.loads((tiny.root / "figures/figure/gamma.json").read_text())
    assert [cell["policy"] for cell in found["missing"]] == ["bad"]


def test_what_diverged_is_known_for_its_key_until_it_is_made_after_all(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, "suite")
    one, other = (cast(Any, {"key": key}) for key in ("one", "other"))
    (tmp_path / "policy").mkdir()
    workspace.note_divergence("policy", one, "loss is nan")
    assert workspace.has_diverged("policy", one) and not workspace.has_diverged("policy", other)
    workspace.publish("policy", one)
    assert not workspace.has_diverged("policy", one)


def test_a_value_that_diverged_under_one_seed_is_not_chosen_for_the_others() -> None:
    def row(value: float, seed: int, advantage: float | None) -> dict[str, Any]:
        place = {"policy": "dpo", "rho": 0.5, "parameter": "beta", "value": value}
        return place | {"seed": seed, "advantage": advantage}

    rows = [row(0.1, 0, -3.0), row(0.1, 1, -2.0), row(9, 0, 5.0), row(9, 1, None)]
    assert choose(rows) == {"dpo": {0.5: {"beta": 0.1}}}
    assert choose(rows[2:]) == {}


# ── Workers that die, and memory ────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_stage(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once, in the middle of two trainings."""
    settings = ("--set", "max_steps=8", "--rho", "0.5,0.2")
    undisturbed = Tiny(tiny.suite, Path(shutil.copytree(tiny.root, tiny.root.with_name("undisturbed"))))
    undisturbed.run("train-policy", "dpo.yaml", *settings)
    killed: list[int] = []
    step = PlanProgress.step

    def kill(self: PlanProgress, path: str, done: int, of: int) -> None:
        step(self, path, done, of)
        if "policies" in path and done == 3 and not killed:
            workers = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
            killed.extend(worker.pid for worker in workers)
            for worker in workers:
                worker.send_signal(signal.SIGKILL)

    monkeypatch.setattr(PlanProgress, "step", kill)
    said = tiny.run("train-policy", "dpo.yaml", *settings, "--jobs", 2).stderr
    assert killed and "was killed, as if out of memory" in said and "it is tried once more, alone" in said
    for rho in (0.5, 0.2):
        path = f"seed-0/rho-{rho}/policies/dpo/beta-0.2-max_steps-8"
        same_artifact(tiny.root / path, undisturbed.root / path)


def test_what_is_no_want_of_memory_is_not_tried_again_in_smaller_pieces(built: Tiny) -> None:
    job = job_of(built.stage("dpo.yaml", "auto_find_batch_size=true"), Workspace(built.root, "tiny"), {})
    tried: list[int] = []

    def run(job: Any, report: Any) -> dict[str, Any]:
        tried.append(job.recipe.per_device_train_batch_size)
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        work._as_memory_allows(run, job, cast(Any, SimpleNamespace(tell=print)))
    assert tried == [8]


@pytest.mark.slow
def test_a_batch_that_memory_does_not_hold_is_cut_in_pieces_and_trains_to_the_same_weights(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a card: of more than two pairs at a time it says what CUDA says."""

    def trained() -> tuple[str, bytes]:
        said = tiny.run("train-policy", "dpo.yaml", "--force").stderr
        (weights,) = tiny.root.glob("seed-0/rho-0.5/policies/dpo/*/model.safetensors")
        return said, weights.read_bytes()

    tiny.edit("dpo.yaml", "per_device_train_batch_size: 2\ngradient_accumulation_steps: 4")
    _, expected = trained()
    tiny.edit("dpo.yaml", "per_device_train_batch_size: 8\ngradient_accumulation_steps: 1")
    step = transformers.Trainer.training_step

    def starved(self: Any, model: Any, inputs: Any, *args: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return step(self, model, inputs, *args)

    monkeypatch.setattr(transformers.Trainer, "training_step", starved)
    failed = tiny.run("train-policy", "dpo.yaml", "--force", code=1).stderr
    assert "per_device_train_batch_size" in failed
    tiny.edit("dpo.yaml", "auto_find_batch_size: true")
    said, found = trained()
    assert [f"no memory for {size} rows at a time" in said for size in (8, 4, 2)] == [True, True, False]
    assert found == expected


@pytest.mark.slow
def test_a_worker_that_dies_or_has_no_memory_left_ends_in_words_and_knows_its_stage(tiny: Tiny) -> None:
    """A limit to its memory, so that no thread and no tensor can be made any more once it trains."""
    resource = pytest.importorskip("resource")
    worker = Worker(0, {}, tiny.stage("sft.yaml"))
    try:
        for recipe, at in (("sft.yaml", None), ("dpo.yaml", 1)):
            stage = tiny.stage(recipe, "max_steps=2000")
            worker.take(stage, job_of(stage, Workspace(tiny.root, "tiny"), {}, force=True))
            pid = worker._process.pid
            assert pid is not None
            while True:
                heard = worker.hear()
                if not isinstance(heard, tuple) or hasattr(heard, "manifest"):
                    break
                if at is None and heard[0] == 1:
                    size = psutil.Process(pid).memory_info().vms
                    resource.prlimit(pid, resource.RLIMIT_AS, (size + 2**20, size + 2**20))
                    at = 0
                elif at == 1:
                    os.kill(pid, signal.SIGSEGV)
            if isinstance(heard, RunFailed):
                assert stage.path in str(heard)
            if recipe == "dpo.yaml":
                assert isinstance(heard, RunFailed)
    finally:
        worker.end()


def test_a_checkpoint_that_a_run_comes_by_again_stays_whole(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"best_model_checkpoint": "elsewhere/checkpoint-4"}')
    args = cast(Any, SimpleNamespace(output_dir=str(tmp_path)))
    state = cast(Any, SimpleNamespace(global_step=4, is_world_process_zero=True))
    for _ in range(2):
        loop.Journal(cast(Any, None), dict).on_save(args, state, cast(Any, None))
        assert loop._damaged(folder) is None
    (folder / "trainer_state.json").write_text('{"best_model_checkpoint": "elsewhere/checkpoint-2"}')
    assert loop._damaged(folder) == folder / "trainer_state.json"


def test_a_checkpoint_whose_best_one_is_damaged_is_passed_over(tmp_path: Path) -> None:
    args, told = cast(Any, SimpleNamespace(output_dir=str(tmp_path))), list[str]()
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text('{"best_model_checkpoint": "elsewhere/checkpoint-2"}')
        state = cast(Any, SimpleNamespace(global_step=step, is_world_process_zero=True))
        loop.Journal(cast(Any, None), dict).on_save(args, state, cast(Any, None))
    assert loop.last_checkpoint(tmp_path, 6, told.append) == tmp_path / "checkpoint-4" and not told
    (tmp_path / "checkpoint-2/trainer_state.json").write_text("{}")
    assert loop.last_checkpoint(tmp_path, 6, told.append) is None
    assert "checkpoint-2/trainer_state.json is damaged" in told[0]


LIMITED = """
import resource, sys, psutil
import pyarrow.parquet as pq
from rpo_cli.runs.work import start_arrow
start_arrow()
size = psutil.Process().memory_info().vms + 3 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (size, size))
print(len(pq.read_table(sys.argv[1])))
"""


def test_a_table_is_read_where_no_thread_can_be_started_any_more(built: Tiny) -> None:
    """By itself Arrow waits for ever."""
    command = [sys.executable, "-c", LIMITED, str(built.root / SEED / "data/pairs.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout == "360\n", done.stderr


def test_threads_that_arrow_may_not_start_are_memory_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise pa.ArrowException("Failed to launch worker thread")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile.iter_batches", refused)
    with pytest.raises(MemoryError, match="Failed to launch"):
        start_arrow()


def test_out_of_memory_names_the_stage_and_the_batch(tiny: Tiny) -> None:
    """The allocator's own refusal: 64 TB for one layer."""
    (settings,) = (
        line for line in (tiny.suite / "sft.yaml").read_text().splitlines() if "model_type" in line
    )
    tiny.edit("sft.yaml", settings.replace("intermediate_size: 32", "intermediate_size: 1000000000000"))
    (line,) = tiny.run("train-sft", "sft.yaml", code=1).stderr.splitlines()[-1:]
    assert line.startswith("seed-0/sft: out of memory (") and "can't allocate memory" in line
    assert "; a smaller per_device_train_batch_size (now 8) or fewer --jobs need less (log: " in line


@pytest.mark.parametrize(
    ("error", "starved"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of HBM"), True),
        (RuntimeError("Bad StatusOr access: Attempting to allocate 1.2G. That was not possible."), True),
        (OSError(12, os.strerror(12)), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_too_little_memory_is_known_by_any_name(error: Exception, starved: bool) -> None:
    outer = RuntimeError("while training")
    outer.__cause__ = error
    assert no_memory(error) is starved and no_memory(outer) is starved


# ── Damage ──────────────────────────────────────────────────────────────────────────────────────────────────


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_out(file: Path) -> None:
    file.write_bytes(b"")


def remove(file: Path) -> None:
    file.unlink()


@pytest.fixture(scope="module")
def interrupted(built: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, dict[str, Any], bytes]:
    """A policy that was stopped after two checkpoints; the manifest and weights of one that was not."""
    home = tmp_path_factory.mktemp("interrupted")
    tiny = Tiny(
        Path(shutil.copytree(built.suite, home / "tiny")), Path(shutil.copytree(built.root, home / "runs"))
    )
    teach(tiny)
    directory, undisturbed = tiny.make("e-dpo.yaml", *SAVING)
    final = weights(directory)
    with pytest.raises(KeyboardInterrupt):
        tiny.make("e-dpo.yaml", *SAVING, progress=Stop(at=5))
    shutil.rmtree(tiny.root / ".replaced")  # or the undisturbed one would be brought back
    return tiny, undisturbed, final


def other(file: Path) -> None:
    """The same file of another checkpoint, whole and of the same size."""
    earlier = file.parent.with_name("checkpoint-2") / file.name
    assert earlier.stat().st_size == file.stat().st_size
    shutil.copy(earlier, file)


SAVING = ("save_steps=2", "ensemble_min=dataset", "ema_decay=0.5")
DAMAGED: dict[str, tuple[Callable[[Path], None], str, tuple[int, ...]]] = {
    "the optimizer's state, cut short": (cut, "optimizer.pt", (4,)),
    "the schedule's state, empty": (empty_out, "scheduler.pt", (4,)),
    "the generators' state, removed": (remove, "rng_state.pth", (4,)),
    "the trainer's state, cut short": (cut, "trainer_state.json", (4,)),
    "the weights, cut short": (cut, "model.safetensors", (4,)),
    "the weights of all, removed": (remove, "model.safetensors", (4, 2)),
    "the weights of another checkpoint": (other, "model.safetensors", (4,)),
    "the optimizer's state of another checkpoint": (other, "optimizer.pt", (4,)),
    "the list of its files, empty": (empty_out, "rpo_state.json", (4,)),
    "written before files were listed": (cut, "optimizer.pt", (4,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_checkpoint_is_passed_over_and_the_result_is_the_same(
    interrupted: tuple[Tiny, dict[str, Any], bytes], tmp_path: Path, case: str
) -> None:
    home, undisturbed, final = interrupted
    tiny = Tiny(home.suite, Path(shutil.copytree(home.root, tmp_path / "runs")))
    directory = tiny.root / tiny.stage("e-dpo.yaml", *SAVING).path
    damage, name, numbers = DAMAGED[case]
    for number in numbers:
        damage(directory / f"checkpoints/checkpoint-{number}" / name)
        if case.startswith("written before"):
            state = directory / f"checkpoints/checkpoint-{number}/rpo_state.json"
            state.write_text(
                json.dumps(
                    {k: v for k, v in json.loads(state.read_text()).items() if k not in ("files", "sums")}
                )
            )
    said = run_job(
        job_of(tiny.stage("e-dpo.yaml", *SAVING), Workspace(tiny.root, "tiny"), {}), (watch := Stop())
    )
    assert watch.steps == list(range(1 if len(numbers) == 2 else 3, 7))
    assert weights(directory) == final
    kept = json.loads((directory / "manifest.json").read_text())
    assert all(kept.get(name) == undisturbed.get(name) for name in ("metrics", "warnings"))
    if name != "rpo_state.json":  # without it a checkpoint was never whole
        assert f"checkpoint-4/{name} is damaged: training goes on from" in "\n".join(said["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, empty_out])
@pytest.mark.parametrize(
    ("file", "command"),
    [
        (f"{SEED}/sft/model.safetensors", ("train-policy", "dpo.yaml")),
        (f"{SEED}/sft/config.json", ("train-policy", "dpo.yaml")),
        (f"{SEED}/sft/tokenizer.json", ("train-policy", "dpo.yaml")),
        (f"{RHO}/splits/train.parquet", ("train-policy", "dpo.yaml")),
    ],
)
def test_a_damaged_file_of_an_input_is_named_with_its_cure(
    tiny: Tiny, file: str, command: tuple[str, str], damage: Callable[[Path], None]
) -> None:
    damage(tiny.root / file)
    line = tiny.run(*command, code=1).stderr.splitlines()[-1]
    assert f"{tiny.root / file} is damaged (" in line
    assert line.endswith(f"delete {(tiny.root / file).parent}, and the same command makes it again")
    shutil.rmtree((tiny.root / file).parent)
    tiny.run(*command)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "command"),
    [
        (f"{SEED}/data/pairs.parquet", ("relabel", "relabel.yaml", "--force")),
        (f"{SEED}/evaluations/sft/test/samples.parquet", ("evaluate", "e-dpo.yaml", "--force")),
        (f"{RHO}/splits/train.parquet", ("train-policy", "dpo.yaml")),
    ],
)
def test_a_file_of_an_input_that_is_gone_is_named_with_its_cure(
    tiny: Tiny, file: str, command: tuple[str, ...]
) -> None:
    (tiny.root / file).unlink()
    line = tiny.run(*command, code=1).stderr.splitlines()[-1]
    assert "a file of a finished stage is gone (" in line and str(tiny.root / file) in line
    assert line.endswith(f"delete {(tiny.root / file).parent}, and the same command makes it again")
    shutil.rmtree((tiny.root / file).parent)
    tiny.run(*command)


def test_weights_that_are_no_numbers_are_damage_of_their_file_not_a_learning_rate(tiny: Tiny) -> None:
    file = tiny.root / SEED / "sft/model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4000] + b"\xff" * 4000)
    line = tiny.run("train-policy", "dpo.yaml", code=1).stderr.splitlines()[-1]
    assert f"{file} is damaged (" in line and "learning_rate" not in line
    assert [path for path, _ in damaged_files(file.parent)] == [file]


MANIFESTS: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "{}": lambda text: "{}",
    "a list": lambda text: "[]",
    "cut short": lambda text: text[: len(text) // 2],
    "another type": lambda text: json.dumps(json.loads(text) | {"inputs": ["x"]}),
    "keys that are none": lambda text: json.dumps(json.loads(text) | {"inputs": {"data": 5}}),
    "seconds that are none": lambda text: json.dumps(json.loads(text) | {"seconds": "x"}),
    "seconds without end": lambda text: json.dumps(json.loads(text) | {"seconds": float("nan")}),
    "a suite that is none": lambda text: json.dumps(json.loads(text) | {"suite": ["tiny"]}),
    "without end": lambda text: '{"a":' * 9000,
    "no metrics": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "metrics"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_damaged_manifest_is_said_and_its_artifact_is_made_again(
    built: Tiny, tiny: Tiny, name: str
) -> None:
    splits = f"{RHO}/splits"
    file = tiny.root / splits / "manifest.json"
    file.write_text(MANIFESTS[name](file.read_text()))
    found = json.loads(tiny.run("status", "e-dpo.yaml", "--json").stdout)
    assert {a["path"]: a["state"] for a in found["artifacts"]}[splits] == "damaged"
    assert "its manifest.json is damaged" in tiny.run("status", "splits.yaml").stdout
    assert plan(tiny, "make-biased-splits", "splits.yaml") == {splits: "its manifest.json is damaged"}
    tiny.run("make-biased-splits", "splits.yaml")
    same_artifact(tiny.root / splits, built.root / splits)


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"suite": 5}', '{"suite": "ti'])
def test_a_workspace_whose_name_was_lost_is_known_by_its_artifacts(tiny: Tiny, content: str | None) -> None:
    file = tiny.root / "workspace.json"
    file.unlink() if content is None else file.write_text(content)
    shutil.rmtree(tiny.root / RHO / "splits")
    assert "splits" in tiny.run("status", "splits.yaml").stdout
    assert "not 'other'" in tiny.run("train-sft", "sft.yaml", "--set", "suite=other", code=2).stderr
    said = tiny.run("make-biased-splits", "splits.yaml").stderr
    assert "workspace.json was lost or damaged; it is written again" in said and "1 stage to build" in said
    assert json.loads(file.read_text()) == {"suite": "tiny"}


def test_folders_that_another_program_made_before_are_no_obstacle_and_its_files_are_named(
    empty: Tiny,
) -> None:
    (empty.root / "seed-0/data").mkdir(parents=True)
    (empty.root / ".gitkeep").touch()
    (empty.root / "workspace.json").touch()
    (empty.root / "notes").mkdir()
    data = ("data inspect", "data.yaml")
    (empty.root / "notes/today.txt").write_text("mine")
    said = empty.run(*data, code=2).stderr
    assert "neither empty nor a workspace of rpo: it holds notes/today.txt; choose another" in said
    (empty.root / "notes/today.txt").unlink()
    empty.run(*data)
    assert (empty.root / "seed-0/data/manifest.json").exists()


# ── Side services ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble", ["a folder that cannot be written", "no mode of its own", "no connection"]
)
def test_no_trouble_of_wandb_ends_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    pytest.importorskip("wandb")
    told: list[str] = []
    monkeypatch.setenv("WANDB_MODE", "nonsense" if trouble == "no mode of its own" else "offline")
    root = tmp_path
    if trouble == "no connection":
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    elif trouble.startswith("a folder"):
        (tmp_path / "file").touch()
        root = tmp_path / "file"
    for _ in range(2):
        tracker = Tracker(told.append)
        tracker.start(root, project="p", id="a" * 16)
        tracker.log({"loss": 1.0}, 1)
        tracker.summary({"loss": 1.0})
        tracker.finish()
    assert len(told) == 1 and told[0].startswith("Weights & Biases: ")  # the second stage did not try again
    assert os.environ["WANDB_MODE"] == ("offline" if trouble == "no connection" else "disabled")


@pytest.mark.parametrize(
    ("place", "mode"), [("netrc", "online"), ("~nobody-of-this-name/netrc", "offline"), ("", "offline")]
)
def test_a_login_that_cannot_be_read_stops_no_plan(
    empty: Tiny, monkeypatch: pytest.MonkeyPatch, place: str, mode: str
) -> None:
    (empty.suite / "netrc").write_bytes(b"machine \xff\nmachine api.wandb.ai password x\n")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", place if place.startswith("~") else str(empty.suite / place))
    said = empty.run("train-sft", "sft.yaml", "--wandb", "--dry-run").stderr
    assert ("Weights & Biases: offline" in said) == (mode == "offline")


def test_a_server_that_does_not_answer_is_told_of_before_the_first_stage(
    empty: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said = empty.run("train-sft", "sft.yaml", "--wandb", "--dry-run").stderr
    assert "WANDB_API_KEY is set; not reachable now: " in said and "a" * 40 not in said


# ── What is said ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("eta", ["ETA 0s", "ETA 3m05s", "ETA 123h02m"])
def test_a_line_is_shortened_never_its_eta(width: int, eta: str) -> None:
    name = "seed-12/rho-0.2/evaluations/e-dpo/beta-0.4-max_steps-120/validation: 1234/5000"
    shown, tail = fitted(name, f"{eta}, 123/184 stages, 12 not made", width)
    assert tail.startswith(eta) and len(shown) + 1 + len(tail) <= width
    assert name.endswith(shown.removeprefix("…"))


@pytest.mark.slow
def test_a_figure_of_ensembles_without_a_b_is_drawn(tiny: Tiny) -> None:
    (tiny.suite / "figure.yaml").write_text(
        "stage: figure\nkind: ensemble\nbootstrap_samples: 50\nrhos: [0.5]\n"
        "variants: [{name: dpo, recipe: dpo.yaml}, {name: other, recipe: dp-dpo.yaml}]\n"
    )
    tiny.run("figure ensemble", "figure.yaml")
    assert (tiny.root / "figures/figure/ensemble.png").exists()
    assert rpo("figure", "ensemble", "--from", tiny.root / "figures/figure", "--out", tiny.root / "again")


def test_finite_numbers_whose_sum_overflows_are_finite() -> None:
    assert all_finite(torch.full((70_000,), 3.0).half())
    assert not all_finite(torch.tensor([torch.inf, -torch.inf]))
    assert all_finite(torch.ones(2).to(torch.float8_e5m2)), "which has no sums"


def test_the_seconds_of_a_stage_are_those_of_all_its_attempts(tiny: Tiny) -> None:
    stage = tiny.stage("sft.yaml")
    workspace = Workspace(tiny.root, tiny.suite.name)
    job = job_of(stage, workspace, {}, force=True)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, Stop(at=3))
    workspace.note_spent(stage.path, 5000)
    run_job(job, Stop())
    assert 5000 < manifest(tiny.root, stage.path)["seconds"] < 6000
    assert workspace.spent(stage.path) == 0
