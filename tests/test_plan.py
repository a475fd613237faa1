"""A plan on paper: what it says, that its stages are those of the commands, and one maker of an artifact."""

from __future__ import annotations

import graphlib
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from conftest import RHO, SEED, Tiny, manifest, rpo
from repository import ROOT
from test_pipeline import same_artifact

from rpo_cli.artifacts import Stage, Workspace, files, walk, write_json
from rpo_cli.artifacts.manifest import Identity
from rpo_cli.errors import RunFailed
from rpo_cli.recipes import load, schema
from rpo_cli.runs.groups import groups
from rpo_cli.runs.plan import Plan, rebuilt
from rpo_cli.runs.planner import Planner

SPLITS, RELABEL, DATA, SFT = f"{RHO}/splits", f"{SEED}/relabel", f"{SEED}/data", f"{SEED}/sft"
POLICY = f"{RHO}/policies/dpo/beta-0.2"


def planned(tiny: Tiny, recipe: str, *more: object) -> Plan:
    """The plan of a recipe, written beside the workspace."""
    tiny.run("plan", recipe, "--out", tiny.root.with_name("plan.json"), *more)
    return Plan.model_validate_json(tiny.root.with_name("plan.json").read_text())


def make(tiny: Tiny, *paths: str, code: int = 0) -> str:
    """What is said when stages of that plan are made."""
    said = rpo("stage", *paths, "--plan", tiny.root.with_name("plan.json"), code=code)
    assert said.stdout == ""
    return str(said.stderr)


def pretend(tiny: Tiny, plan: Plan, *paths: str, metrics: Callable[[str], dict[str, Any]]) -> None:
    """Have stages of a plan count as made, with these metrics."""
    for path, stage in rebuilt(plan, paths).items():
        (tiny.root / path).mkdir(parents=True, exist_ok=True)
        told = {"suite": "tiny", "seconds": 6.0, "metrics": metrics(path)}
        write_json(tiny.root / path / "manifest.json", {**stage.identity, **told})


# ── What a plan says ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options", [("miniature/figure2.yaml",), ("tldr/figure2.yaml", "--tune"), ("own-data/dpo.yaml",)]
)
def test_a_stage_that_is_read_from_a_plan_has_the_key_that_its_recipe_gives_it(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = rpo("plan", *options, "--json", "--workspace", tmp_path / "runs").stdout
    plan = Plan.model_validate_json(text)
    assert json.loads(text)["version"] == 1 and len(plan.stages) > 4
    stages = rebuilt(plan, plan.by_path())
    seen: set[str] = set()
    for entry in plan.stages:
        assert stages[entry.path].key == entry.key
        assert {needed.path for needed in entry.inputs} == set(stages[entry.path].needed()) <= seen
        assert entry.command == ["rpo", "stage", entry.path, "--plan", "plan.json"]
        assert (entry.state, entry.why) == ("build", "missing")
        seen.add(entry.path)


def test_a_plan_says_what_is_there_what_is_not_needed_and_how_long_it_took(tiny: Tiny) -> None:
    shutil.rmtree(tiny.root / RELABEL)
    tiny.edit("dp-dpo.yaml", "beta: 0.3")
    plan = planned(tiny, "dp-dpo.yaml").by_path()
    states = {path: (stage.state, stage.why) for path, stage in plan.items()}
    assert states[f"{RHO}/policies/dp-dpo/beta-0.3"] == ("build", "missing")
    assert states[RELABEL] == ("build", f"missing; {SPLITS} names rows of it")
    assert states[SPLITS] == states[DATA] == ("up to date", "")
    assert states[f"{SEED}/oracle"][0] == "up to date"
    needs = plan[SFT].resources
    assert needs.measured and needs.minutes == round(manifest(tiny.root, SFT)["seconds"] / 60, 2)
    assert (needs.gpus, needs.max_gpus) == (0, 0)
    weights = sum(file.stat().st_size for file in (tiny.root / SFT).glob("*.safetensors"))
    assert needs.memory_mb is not None and 1000 < needs.memory_mb < 1001 + 4 * weights / 1e6
    made = plan[f"{RHO}/policies/dp-dpo/beta-0.3"].resources
    assert (made.minutes, made.measured) == (None, False)


def test_training_may_take_as_many_gpus_as_share_its_batch(tiny: Tiny) -> None:
    found = planned(tiny, "dpo.yaml", "--device", "cuda", "--set", "gradient_accumulation_steps=3")
    assert {stage.resources.gpus for stage in found.stages if stage.kind in ("policy", "reference")} == {1}
    assert {stage.path: stage.resources.max_gpus for stage in found.stages} == {
        **dict.fromkeys((DATA, SPLITS), 0), **dict.fromkeys((RELABEL, f"{SEED}/reference-logps/relabel"), 1),
        **dict.fromkeys((SFT, f"{SEED}/oracle", f"{POLICY}-gradient_accumulation_steps-3"), 8),
    }  # fmt: skip


def test_with_a_device_the_plan_has_the_minutes_that_arithmetic_gives(tiny: Tiny) -> None:
    tiny.edit("policy.yaml", "max_steps: 100000")
    plan = planned(tiny, "dpo.yaml", "--tflops", "0.001", "--mfu", "1")
    found = {stage.path: stage.resources for stage in plan.stages}
    asked = ("--tflops", "0.001", "--mfu", "1", "--dry-run", "--json")
    estimate = json.loads(tiny.run("train-policy", "dpo.yaml", *asked).stdout)["estimate"]
    (policy,) = [group for group in estimate["by_kind"] if group["kind"] == "policy"]
    assert found[POLICY].minutes == pytest.approx(60 * policy["hours"], abs=0.01) and policy["hours"] > 0.01
    assert not found[POLICY].measured and found[SFT].measured
    assert "--tflops" in plan.command and "--tflops" not in plan.finish


@pytest.mark.slow
def test_without_json_the_table_of_a_dry_run_is_printed(tiny: Tiny) -> None:
    for recipe, command in (("dpo.yaml", "train-policy"), ("oracle.yaml", "train-rm")):
        assert tiny.run("plan", recipe).stdout == tiny.run(command, recipe, "--dry-run").stdout
    assert "--split test" in shlex.join(planned(tiny, "dpo.yaml", "--split", "test").finish)
    paths = planned(tiny, "dpo.yaml", "--split", "test").by_path()
    assert f"{RHO}/evaluations/dpo/beta-0.2/test" in paths
    assert f"{RHO}/rm/b-0.2" in planned(tiny, "rm.yaml", "--ensemble").by_path()


@pytest.mark.parametrize(
    ("recipe", "option", "said"),
    [
        ("dpo.yaml", "--tune", "--tune: goes with a figure recipe; {} is a policy recipe"),
        ("dpo.yaml", "--ensemble", "--ensemble: goes with a reward recipe; {} is a policy recipe"),
        ("rm.yaml", "--split=test", "--split: goes with a policy or evaluate recipe; {} is a reward recipe"),
        ("figure.yaml", "--seed=3", "--seed 3: a figure has several; write --seeds 3"),
    ],
)
def test_an_option_that_a_recipe_has_no_use_for_is_refused(
    empty: Tiny, recipe: str, option: str, said: str
) -> None:
    (empty.suite / "figure.yaml").write_text("stage: figure\npolicies: [dpo.yaml]\n")
    last = empty.run("plan", recipe, option, code=2).stderr.splitlines()[-1]
    assert last == said.format(empty.suite / recipe)


def test_what_dtype_auto_means_is_said_and_stands_in_the_plan(empty: Tiny) -> None:
    empty.edit("base.yaml", "dtype: auto")
    said = empty.run("plan", "sft.yaml", "--json")
    assert "base.yaml" in said.stderr and "auto is float32 on this machine" in said.stderr
    assert {stage["recipe"]["dtype"] for stage in json.loads(said.stdout)["stages"]} == {"float32"}
    refused = empty.run("plan", "sft.yaml", "--json", "--device", "cuda", code=2).stderr
    assert "this machine has no cuda; write the dtype, such as bfloat16" in refused


def test_a_plan_holds_no_secret_and_fits_its_schema(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "not-to-be-seen")
    text = planned(tiny, "e-dpo.yaml", "--split", "test").model_dump_json()
    assert "not-to-be-seen" not in text
    from tools.reference import plan_schema

    known = json.loads(plan_schema())
    parts = {"": known, **known["$defs"]}

    def check(value: Any, shape: dict[str, Any]) -> None:
        if "$ref" in shape:
            shape = parts[shape["$ref"].rpartition("/")[2]]
        assert value in shape.get("enum", [value]) and value == shape.get("const", value)
        if isinstance(value, dict) and "properties" in shape:
            assert set(shape["required"]) <= value.keys() <= shape["properties"].keys()
            for name, inside in value.items():
                check(inside, shape["properties"][name])
        for item in value if isinstance(value, list) else ():
            check(item, shape["items"])

    check(json.loads(text), known)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"version": 2}', "no plan of version 1: version: Input should be 1"),
        ("nothing", "no plan of version 1: it: Invalid JSON"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_plan_is_refused_in_a_line(empty: Tiny, text: str | None, said: str) -> None:
    file = empty.root.with_name("plan.json")
    if text is not None:
        file.write_text(text)
    assert said in make(empty, DATA, code=2).splitlines()[-1]


def test_a_tuned_plan_is_complete_when_validation_has_chosen(tiny: Tiny) -> None:
    tiny.edit("dpo.yaml", "grid: {beta: [0.1, 0.2]}")
    (tiny.suite / "figure.yaml").write_text("stage: figure\nrhos: [0.5]\npolicies: [dpo.yaml]\nclaims: []\n")
    first = planned(tiny, "figure.yaml", "--tune")
    values = [f"{RHO}/evaluations/dpo/beta-{beta}/validation" for beta in (0.1, 0.2)]
    assert not first.complete and first.then == "plan again" and first.finish[:2] == ["rpo", "plan"]
    assert first.finish[-2:] == ["--out", str(tiny.root.with_name("plan.json"))]
    tests = [path for path in first.by_path() if path.endswith("/test") and "/dpo/" in path]
    assert set(values) <= first.by_path().keys() and tests == []
    paths = [path for path in first.by_path() if "dpo" in path or "/validation" in path]
    seen = ("advantage", "advantage_low", "advantage_high", "tokens_mean", "kl_to_reference")
    pretend(tiny, first, *paths, metrics=lambda path: dict.fromkeys(seen, 0.3 if "beta-0.1" in path else 0.2))
    rpo(*first.finish[1:])
    again = Plan.model_validate_json(tiny.root.with_name("plan.json").read_text())
    assert again.complete and again.then == "finish" and "--tune" in again.finish
    assert again.finish[:3] == ["rpo", "figure", "figure2"]
    assert [path for path in again.by_path() if path.endswith("/test") and "/dpo/" in path] == [
        f"{RHO}/evaluations/dpo/beta-0.1/test"
    ]


@pytest.mark.slow
def test_a_cell_that_diverged_is_planned_no_more_and_the_others_choose(tiny: Tiny) -> None:
    tiny.edit("dpo.yaml", "grid: {beta: [0.2, 1.0e+38]}")
    (tiny.suite / "figure.yaml").write_text("stage: figure\nrhos: [0.5]\npolicies: [dpo.yaml]\nclaims: []\n")
    lost = f"{RHO}/policies/dpo/beta-1e+38"
    first = planned(tiny, "figure.yaml", "--tune")
    made = [stage.path for stage in first.stages if stage.state == "build" and "1e+38" not in stage.path]
    assert f"{lost}: grad_norm is inf at step 1" in make(tiny, *made, lost, code=1)
    again = planned(tiny, "figure.yaml", "--tune")
    assert again.complete and lost not in again.by_path()
    assert f"{RHO}/evaluations/dpo/beta-0.2/test" in again.by_path()
    tiny.edit("dpo.yaml", "grid: {beta: [0.2, 1.0e+38]}\nmax_steps: 7")  # another key: to be tried
    assert not planned(tiny, "figure.yaml", "--tune").complete


# ── Groups ──────────────────────────────────────────────────────────────────────────────────────────────────


def graph(name: str) -> list[Stage]:
    """The stages of a policy recipe's evaluation at two rhos, or a random graph."""
    if name.endswith(".yaml"):
        planner = Planner(0)
        loads = [load(str(ROOT / "recipes" / name), rho=rho) for rho in (0.2, 0.7)]
        return walk([planner.evaluation(each, split) for each in loads for split in ("validation", "test")])
    dice = random.Random(name)
    made: list[Stage] = []
    for number in range(60):
        kind = dice.choice(["relabel", "sft", "scores", "splits"])
        recipe = schema.KINDS[kind].recipe.model_construct(stage=kind, expected_seconds=None)
        inputs = {f"i{other}": made[other] for other in dice.sample(range(number), min(number, 3))}
        made.append(Stage(kind, f"seed-0/rho-0.{dice.randrange(1, 4)}/{number}", recipe, Path(), inputs))
    return made


@pytest.mark.parametrize(
    "name", ["tldr/e-dpo.yaml", "miniature/e-dpo.yaml", *(f"random {i}" for i in range(5))]
)
def test_nothing_outside_a_group_stands_between_its_stages(name: str) -> None:
    stages, dice = graph(name), random.Random(0)
    minutes = {stage.path: dice.choice([None, 1.0, 4.0, 90.0]) for stage in stages}
    found = groups(stages, minutes)
    needs: dict[str, set[str]] = defaultdict(set)
    for stage in stages:
        needs[found[stage.path]] |= {found[path] for path in stage.needed()} - {found[stage.path]}
    graphlib.TopologicalSorter(needs).prepare()  # CycleError where two groups need each other
    for group in set(found.values()):
        short = [minutes[path] for path in found if found[path] == group]
        assert sum(each for each in short if each in (1.0, 4.0)) < 34


def test_short_stages_go_together_and_a_long_training_with_what_reads_its_model() -> None:
    stages = graph("tldr/e-dpo.yaml")
    alone = groups(stages, dict.fromkeys((stage.path for stage in stages), None))
    policy = next(stage.path for stage in stages if stage.kind == "policy" and "rho-0.7" in stage.path)
    assert [path for path in alone if alone[path] == alone[policy]] == [
        policy, *(f"{policy.replace('policies', 'evaluations')}/{split}" for split in ("validation", "test"))
    ]  # fmt: skip
    short = groups(stages, dict.fromkeys((stage.path for stage in stages), 0.1))
    assert set(short.values()) == {"seed-0.0.0", "seed-0__rho-0.2.1.0", "seed-0__rho-0.7.1.0"}


# ── Making stages ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_stages_made_one_by_one_in_any_order_are_those_of_the_command_to_the_byte(
    built: Tiny, empty: Tiny
) -> None:
    plan = planned(empty, "e-dpo.yaml", "--split", "test")
    entries, dice, made = plan.by_path(), random.Random(7), list[str]()
    for entry in plan.stages:  # as an engine makes them before it starts
        (empty.root / entry.manifest).parent.mkdir(parents=True)
    while len(made) < len(entries):
        ready = [
            path
            for path, entry in entries.items()
            if path not in made and all(needed.path in made for needed in entry.inputs)
        ]
        made.append(dice.choice(ready))
        make(empty, made[-1])
    assert made != list(entries)
    for path in made:
        same_artifact(empty.root / path, built.root / path)
        assert manifest(empty.root, path)["key"] == entries[path].key
    before = {path: (empty.root / path / "manifest.json").stat().st_mtime_ns for path in made}
    assert all(f"{path}: up to date" in make(empty, path) for path in made[:3])
    assert before == {path: (empty.root / path / "manifest.json").stat().st_mtime_ns for path in made}
    command = plan.finish[1:]
    assert "0 stages to build" in rpo(*command).stderr


def test_a_stage_whose_inputs_are_missing_stops_only_what_needs_it(tiny: Tiny) -> None:
    plan = planned(tiny, "dpo.yaml", "--split", "test")
    for path in (SPLITS, f"{RHO}/scores"):
        shutil.rmtree(tiny.root / path)
    evaluation = f"{RHO}/evaluations/dpo/beta-0.2/test"
    said = make(tiny, POLICY, evaluation, DATA, code=1).splitlines()
    assert said[0] == f"{DATA}: up to date" and "1 stage failed, 1 not tried" in said[-3]
    assert said[-2].split() == ["not", "tried", evaluation, "needs", POLICY]
    assert said[-1] == f"{POLICY}: needs {SPLITS} (missing); make it first"
    assert not (tiny.root / POLICY).exists() and plan.complete
    make(tiny, SPLITS)
    assert "no stage of" in make(tiny, "seed-0/spilts", code=2)


@pytest.mark.slow
def test_a_changed_recipe_is_refused_unless_it_changes_no_key(tiny: Tiny) -> None:
    planned(tiny, "dpo.yaml")
    shutil.rmtree(tiny.root / SPLITS)
    tiny.edit("splits.yaml", "num_pairs: 60\nensemble: [0.2, 0.5, 0.8]")
    said = make(tiny, SPLITS, code=2).splitlines()
    assert said[0] == f"{SPLITS}: changed since it was planned: num_pairs 64 -> 60"
    assert said[1].startswith("plan again: rpo plan ") and not (tiny.root / SPLITS).exists()
    tiny.edit("splits.yaml", "num_pairs: 64\n# as it was\nexpected_seconds: 3")
    make(tiny, SPLITS)
    tiny.edit("splits.yaml", "num_pairs: many")
    assert "cannot be planned again" in make(tiny, SPLITS, code=2)


def test_a_file_that_has_changed_and_a_plan_that_was_edited_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": f"b{i}", "rejected": "c"} for i in range(4)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tiny.suite / "own.yaml").write_text(f"stage: data\nsource: files\nfiles: {{pairs: {file}}}\n")
    planned(tiny, "own.yaml")
    file.write_text(json.dumps(rows[0]) + "\n")
    assert f"{SEED}/own: files: {file} is not what it was when it was planned" in make(
        tiny, f"{SEED}/own", code=2
    )
    plan = tiny.root.with_name("plan.json")
    text = planned(tiny, "splits.yaml").model_dump_json()
    plan.write_text(text.replace('"num_pairs":64', '"num_pairs":63'))
    assert "or edited" in make(tiny, SPLITS, code=2)


@pytest.mark.slow
def test_what_is_there_is_known_without_torch(tiny: Tiny) -> None:
    planned(tiny, "dpo.yaml")
    words = ["stage", DATA, SFT, "--plan", str(tiny.root.with_name("plan.json"))]
    code = f"import sys; sys.argv[1:] = {words!r}\nfrom rpo_cli.cli import app\napp(standalone_mode=False)\n"
    code += "assert not {'torch', 'transformers'} & sys.modules.keys(), 'imported'"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stderr.splitlines() == [f"{DATA}: up to date", f"{SFT}: up to date"]


# ── One maker of an artifact ────────────────────────────────────────────────────────────────────────────────

ID = Identity(kind="data", format=1, recipe={}, options={}, inputs={}, key="k")
DONE: Any = {**ID, "metrics": {}, "seconds": 1.0, "suite": "tiny"}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace in which a lease is stale after half a second."""
    monkeypatch.setattr(files, "STALE", 0.5)
    made = Workspace(tmp_path / "runs", "tiny")
    made.open()
    return made


def lease(shop: Workspace) -> Path:
    return shop.root / ".locks" / "seed-0__data.lease"


def test_of_two_that_make_the_same_artifact_one_waits_and_then_finds_it_there(shop: Workspace) -> None:
    began, let_go = Event(), Event()

    def first() -> None:
        with shop.building(DATA, ID) as directory:
            assert directory is not None
            began.set()
            let_go.wait()
            shop.publish(DATA, DONE)

    def second() -> bool:
        began.wait()
        with Workspace(shop.root, "tiny").building(DATA, ID) as directory:
            return directory is None

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(first), pool.submit(second)
        began.wait()
        assert "pid=" in lease(shop).read_text() and not other.done()
        let_go.set()
        one.result()
        assert other.result()
    assert not lease(shop).exists()


@pytest.mark.parametrize("end", ["killed here", "silent elsewhere"])
def test_a_lease_is_taken_over_from_who_is_gone(shop: Workspace, end: str) -> None:
    with shop.building(DATA, ID):
        marker = lease(shop).read_text()
    if end == "killed here":
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        marker = re.sub(r"pid=\d+", f"pid={gone.pid}", marker)
    else:  # another machine's, whose process this one cannot see
        marker = re.sub(r"host=.*", "host=elsewhere", marker)
    lease(shop).write_text(marker)
    with shop.building(DATA, ID) as directory:
        assert directory is not None and lease(shop).read_text() != marker


@pytest.mark.slow
def test_a_lease_that_a_kill_left_empty_is_waited_for_aloud_and_then_taken_over(
    shop: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    lease(shop).parent.mkdir(exist_ok=True)
    lease(shop).touch()
    with shop.building(DATA, ID) as directory:
        assert directory is not None and "pid=" in lease(shop).read_text()
    assert [record.getMessage() for record in caplog.records if record.name == "rpo"] == [
        f"waiting for another process that makes the same ({lease(shop)})"
    ]


def test_what_a_kill_left_of_a_half_written_file_is_not_published(shop: Workspace) -> None:
    with shop.building(DATA, ID) as directory:
        assert directory is not None
        (directory / "checkpoints").mkdir()
        parts = [directory / ".rpo_recipe.yaml.1.tmp", directory / "checkpoints" / ".rpo_state.json.1.tmp"]
        for part in parts:
            part.touch()
        (directory / "pairs.parquet").touch()
    with shop.building(DATA, ID) as directory:
        assert directory is not None and not any(part.exists() for part in parts)
        assert (directory / "pairs.parquet").exists()


def test_who_has_lost_its_lease_publishes_nothing(shop: Workspace) -> None:
    with shop.building(DATA, ID):
        lease(shop).unlink()
        lease(shop).write_text("filelock/2\n")
        with pytest.raises(RunFailed, match=r"another process has taken it over .owner-changed.; nothing is"):
            while True:
                shop.require_lease(DATA)
        with pytest.raises(RunFailed):
            shop.publish(DATA, DONE)
    assert shop.manifest(DATA) is None
