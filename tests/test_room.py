"""A stage begins where there is memory for it: on the host, and on the GPU with the most room."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from rich.console import Console
from test_going_on import GRAPH, stages

from rpo_cli.artifacts import Stage, Workspace
from rpo_cli.devices.memory import HOST, crowded, free_bytes, named, seen_by
from rpo_cli.errors import BadInput
from rpo_cli.recipes import schema
from rpo_cli.recipes.schema import EvaluateRecipe
from rpo_cli.runs import pool, workers
from rpo_cli.runs.failures import Failures
from rpo_cli.runs.room import LIBRARIES, Room, each_weight
from rpo_cli.runs.todo import ReadyQueue, Todo, width


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 3, ["0", "1", "2"]),
        ("", 3, []),
        ("2,0", 3, ["2", "0"]),
        ("GPU-ab, GPU-cd", 3, ["GPU-ab", "GPU-cd"]),
        ("1,-1,2", 3, ["1"]),
    ],
)
def test_workers_are_spread_over_the_visible_gpus(
    tmp_path: Path, visible: str | None, count: int, expected: list[str]
) -> None:
    gpus = named(visible, lambda: count)
    assert gpus == expected
    stage, held = stages(GRAPH)["a"], list[tuple[Stage, str]]()
    for _ in range(5):
        held.append((stage, Room(Workspace(tmp_path, "tiny"), {}).place(stage, gpus, held)))
    seen = [seen_by(gpu, 5).get("CUDA_VISIBLE_DEVICES") for _, gpu in held]
    assert seen == ([expected[i % len(expected)] for i in range(5)] if expected else [None] * 5)


def test_workers_beside_a_gpu_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpo_cli.devices.memory.cpus", lambda: 16)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [seen_by("0", workers)["OMP_NUM_THREADS"] for workers in (1, 3, 20)] == ["8", "5", "1"]
    assert seen_by("", 3) == {}, "there their number is the recipes'"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert seen_by("0", 3)["OMP_NUM_THREADS"] == "2"


def test_jobs_that_take_each_others_cpus_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    free, fixed = (EvaluateRecipe.model_construct(threads=threads) for threads in (None, 1))
    monkeypatch.setattr("rpo_cli.devices.memory.cpus", lambda: 8)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    said = crowded([fixed, free], 2)
    assert (
        said is not None
        and said.startswith("2 jobs of 8 threads each share 8 CPUs")
        and "`threads: 4`" in said
    )
    assert crowded([free], 1) is None and crowded([fixed], 2) is None
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    assert crowded([free], 2) is None, "a thread for each core, of which there are half as many as CPUs"
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert crowded([free], 2) is None


def test_a_worker_goes_to_a_gpu_with_room_and_of_those_to_the_emptiest(tmp_path: Path) -> None:
    made = stages(GRAPH)
    room = Room(Workspace(tmp_path, "tiny"), {"0": 50, "1": 200, "2": 90})
    room.measured(made["a"], 0, 60)
    held = list[tuple[Stage, str]]()
    for _ in range(4):
        held.append((made["a"], room.place(made["b"], ["0", "1", "2"], held)))
    assert [gpu for _, gpu in held] == ["1", "2", "1", "1"]
    assert room.place(made["b"], [], []) == ""


def test_a_worker_is_started_only_where_its_stage_fits_beside_the_others(tmp_path: Path) -> None:
    made = stages(GRAPH)
    room = Room(Workspace(tmp_path, "tiny"), {HOST: 3 * LIBRARIES, "0": 100, "1": 100})
    assert room.lacks(made["a"], "", []) is None
    assert room.lacks(made["a"], "", [(made["b"], ""), (made["c"], "")]) is None
    assert room.lacks(made["a"], "", [(made["b"], "")] * 3) == HOST
    room.measured(made["a"], LIBRARIES, 60)
    assert room.lacks(made["a"], "0", [(made["b"], "1")]) is None
    assert room.lacks(made["a"], "0", [(made["b"], "0")]) == "0"
    (tmp_path / "a").mkdir()
    (tmp_path / "a/model.safetensors").write_bytes(b"x" * 1000)
    reading = Room(Workspace(tmp_path, "tiny"), {})
    assert (
        reading.need(made["b"], "", HOST) == LIBRARIES + 1000
        and reading.need(made["e"], "", HOST) == LIBRARIES
    )


def test_a_frozen_base_is_expected_to_take_its_weights_alone() -> None:
    assert each_weight(schema.PolicyRecipe(stage="policy", objective="dpo", use_peft=True)) == 4
    assert each_weight(schema.PolicyRecipe(stage="policy", objective="dpo")) == 16
    assert each_weight(schema.EvaluateRecipe(stage="evaluate")) == 4


class Idle:
    """A worker that begins no process."""

    def __init__(self, slot: int, environment: dict[str, str], stage: Stage) -> None:
        self.slot, self.gpu, self.at = slot, environment.get("CUDA_VISIBLE_DEVICES", ""), None
        self.stage, self.ended = stage, False

    def take(self, stage: Stage, job: object) -> None:
        self.stage, self.at = stage, job

    def kill(self) -> None: ...

    def end(self) -> None:
        self.ended = True


def test_a_worker_that_is_there_takes_no_stage_that_its_gpu_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are hired for small stages; three large ones at a time would be more than their GPU holds."""
    names = ["small 0", "small 1", "small 2", "large 0", "large 1", "large 2"]
    line = list(stages({name: [] for name in names}).values())
    need = {stage.path: 34 if "large" in stage.path else 1 for stage in line}
    monkeypatch.setattr(pool, "Worker", Idle)
    monkeypatch.setattr(Room, "need", lambda room, stage, gpu, place: need[stage.path])
    run = SimpleNamespace(
        line=SimpleNamespace(
            next=lambda: line.pop(0) if line else None, put_back=lambda stage: line.insert(0, stage)
        ),
        failures=Failures(),
        job=lambda stage: stage,
        spreads=lambda stage: False,
        progress=SimpleNamespace(start=lambda path: None, note=lambda said: None),
    )
    crew = pool._Crew(3, ["0"], Room(Workspace(tmp_path, "tiny"), {HOST: 40, "0": 79}))
    crew.run = cast(Any, run)
    at_work = []
    while crew._hand_out():
        at_work.append([worker.stage.path for worker in crew.workers if worker.at is not None])
        for worker in crew.workers:
            worker.at = None
    assert at_work == [names[:3], names[3:5], names[5:]]


@pytest.mark.parametrize(("jobs", "free", "hired"), [(4, 100, 2), (1, 100, 1), (4, 15, 1)])
def test_as_many_workers_import_ahead_as_the_plan_can_use_and_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, free: int, hired: int
) -> None:
    monkeypatch.setattr(pool, "Worker", Idle)
    monkeypatch.setattr(Room, "need", lambda room, stage, gpu, place: 10 if stage.path == "b" else 1)
    todo = [Todo(stage, "missing") for stage in stages(GRAPH).values()]
    assert width(todo) == 2, "b beside c; d and f wait for both"
    crew = pool._Crew(jobs, [], Room(Workspace(tmp_path, "tiny"), {HOST: free}))
    crew.hire_ahead(todo, 1)
    crew.hire_ahead(todo, 4)
    assert len(crew.workers) == hired


def test_a_worker_that_was_hired_ahead_takes_no_stage_that_the_machine_has_no_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stages behind the first one read was not there when it was hired."""
    monkeypatch.setattr(pool, "Worker", Idle)
    made = stages({"a": [], "b": ["a"], "c": ["a"]})
    need = dict.fromkeys(made, 1)
    monkeypatch.setattr(Room, "need", lambda room, stage, gpu, place: need[stage.path])
    todo, notes = [Todo(stage, "missing") for stage in made.values()], list[str]()
    crew = pool._Crew(2, [], Room(Workspace(tmp_path, "tiny"), {HOST: 10}))
    crew.hire_ahead(todo, 2)
    assert len(crew.workers) == 2
    line = ReadyQueue(todo, longest_first=True)
    progress = SimpleNamespace(start=lambda path: None, note=notes.append)
    run = SimpleNamespace(line=line, failures=Failures(), progress=progress)
    run.job, run.spreads = lambda stage: stage, lambda stage: False
    crew.run = cast(Any, run)
    at_work = []
    while crew._hand_out():
        at_work.append([worker.stage.path for worker in crew.workers if worker.at is not None])
        for worker in crew.workers:
            if worker.at is not None:
                line.done(worker.stage)
                worker.at = None
        need |= {"b": 7, "c": 7}  # now that their model is there
    assert at_work == [["a"], ["b"], ["c"]] and notes[0].startswith("note: 1 of 2 jobs at a time: c is")


def test_a_worker_that_died_before_it_was_asked_costs_no_stage_its_second_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "Worker", Idle)
    todo = [Todo(stage, "missing") for stage in stages(GRAPH).values()]
    crew = pool._Crew(2, [], Room(Workspace(tmp_path, "tiny"), {HOST: LIBRARIES * 9}))
    crew.hire_ahead(todo, 2)
    dead, alive = crew.workers
    monkeypatch.setattr(pool, "ready", lambda workers, seconds=None: [dead] if seconds == 0 else [])
    monkeypatch.setattr(crew, "_hand_out", lambda: False)
    crew.work(cast(Any, None))
    assert crew.workers == [alive] and cast(Any, dead).ended


@pytest.mark.parametrize("why", [BadInput("no"), KeyboardInterrupt()])
@pytest.mark.parametrize(("launch", "device", "hired"), [(None, "cpu", 2), (1, "cpu", 0), (None, "xla", 0)])
def test_a_plan_that_is_refused_leaves_no_worker_and_no_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    why: BaseException,
    launch: Any,
    device: str,
    hired: int,
) -> None:
    made: list[Idle] = []
    monkeypatch.setattr(
        pool,
        "Worker",
        lambda slot, environment, stage: made.append(Idle(slot, environment, stage)) or made[-1],
    )
    monkeypatch.setattr("rpo_cli.devices.environment", lambda recipes: {})
    monkeypatch.setattr("rpo_cli.devices.cpus", lambda: 3)
    todo = [
        Todo(replace(stage, recipe=schema.RelabelRecipe(stage="relabel", device=device)), "missing")
        for stage in stages(GRAPH).values()
    ]

    def refuse() -> None:
        raise why

    place = Workspace(tmp_path / "runs", "tiny")
    with pytest.raises(type(why)):
        pool.execute(todo, place, Console(stderr=True), jobs=2, launch=launch, check=refuse)
    assert [worker.ended for worker in made] == [True] * hired and not place.root.exists()


def test_a_containers_limit_counts_as_the_machines_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpo_cli.devices.memory.CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 1500\ninactive_file 300\nactive_file 200\n")
    assert free_bytes([])[HOST] == 3500
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes([])[HOST] > 5000


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="a peak begins anew on Linux only"
)
def test_a_small_stage_is_not_told_the_memory_of_a_large_one_before_it() -> None:
    held: list[Any] = [bytearray(200_000_000)]
    held[0][::4096] = b"x" * len(held[0][::4096])  # else nothing is taken
    held.append(held)  # as trainers do
    (large, _) = workers._peaks()
    del held
    workers._peaks()  # it still was there when this one began
    (small, _) = workers._peaks()
    assert small < large - 150_000_000
