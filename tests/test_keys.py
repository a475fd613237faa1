"""Properties of keys: they hold what changes a result and nothing else, and cost no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import RHO, SEED, Tiny, manifest

from rpo_cli import devices
from rpo_cli.artifacts import walk
from rpo_cli.devices import Device
from rpo_cli.devices.device import DeviceError
from rpo_cli.errors import BadInput
from rpo_cli.recipes.schema import Recipe, result_fields

GPU = Device("cuda", "bfloat16", "a test says so")
WITH_MODEL = ("sft", "reward", "relabel", "reference", "samples", "scores", "policy", "evaluate")


def on_this_machine(monkeypatch: pytest.MonkeyPatch, choose: Callable[[Recipe], Device]) -> None:
    """Have every question for the device answered so."""
    monkeypatch.setattr(devices, "choose", choose)
    monkeypatch.setattr("rpo_cli.devices.choice.choose", choose)


def leave_open(tiny: Tiny) -> None:
    """Recipes that leave device and dtype to the machine."""
    for file in tiny.suite.glob("*.yaml"):
        file.write_text(file.read_text().replace("dtype: float32\n", "").replace("device: cpu\n", ""))


def reasons(tiny: Tiny, command: str, recipe: str, *arguments: object) -> dict[str, str]:
    return {
        item["path"]: item["reason"]
        for item in json.loads(tiny.run(command, recipe, "--dry-run", "--json", *arguments).stdout)
    }


def test_a_dtype_left_to_the_machine_and_the_same_one_spelt_out_are_one_key(tiny: Tiny) -> None:
    leave_open(tiny)
    assert "float32" not in (tiny.suite / "sft.yaml").read_text()
    assert devices.choose(tiny.stage("sft.yaml").recipe).dtype_name == "float32", (
        "this machine's own dtype is another"
    )
    assert reasons(tiny, "evaluate", "e-dpo.yaml") == {}


def test_a_workspace_on_another_machine_is_stale_from_the_first_model_on(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_open(tiny)
    on_this_machine(monkeypatch, lambda recipe: GPU)
    found = reasons(tiny, "evaluate", "e-dpo.yaml")
    assert found[f"{SEED}/sft"] == "dtype float32 -> bfloat16"
    assert found[f"{RHO}/policies/e-dpo/beta-0.2"].startswith("dtype float32 -> bfloat16; input")
    assert found[f"{RHO}/splits"] == "input data changed; input tokenizer changed"  # no model of its own
    assert f"{SEED}/data" not in found and len(found) == 15
    for stage in walk([tiny.stage("e-dpo.yaml")]):
        assert ("dtype" in stage.identity["recipe"]) == (stage.kind in WITH_MODEL)


def test_threads_that_one_stage_asks_for_are_not_the_next_ones() -> None:
    devices.prepare(None)
    own = torch.get_num_threads()
    devices.prepare(own + 1)
    assert torch.get_num_threads() == own + 1
    devices.prepare(None)
    assert torch.get_num_threads() == own


def test_the_threads_that_are_said_are_shared_by_no_more_jobs_than_there_are_stages(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise BadInput("enough was said")

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("rpo_cli.devices.memory.cpus", lambda: 8)
    monkeypatch.setattr("rpo_cli.devices.memory._own_threads", lambda: 8)
    monkeypatch.setattr("rpo_cli.runs.session.execute", stop)
    on_this_machine(monkeypatch, lambda recipe: GPU)
    for more, stages, threads in (("--force", "1 stage", 8), ("--seed=5", "6 stages", 2)):
        said = tiny.run("train-rm", "rm.yaml", "--jobs", 4, "--set", "threads=null", more, code=2).stderr
        assert f": {stages} to build" in said and f"; threads: {threads}\n" in said, said


def test_algorithms_are_deterministic_on_the_cpu_unless_told_otherwise_and_the_manifest_says_so(
    tiny: Tiny,
) -> None:
    _, plain = tiny.make("splits.yaml")
    assert torch.are_deterministic_algorithms_enabled() and "deterministic" not in plain["device"]
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    _, fast = tiny.make("splits.yaml", "deterministic=false")
    assert not torch.are_deterministic_algorithms_enabled()
    assert fast["device"].endswith("; deterministic algorithms off") and fast["key"] != plain["key"]
    tiny.make("splits.yaml", "deterministic=true")
    assert torch.are_deterministic_algorithms_enabled()
    assert devices.Device("cpu", "float32", "").repeats and not devices.Device("cuda", "bfloat16", "").repeats


@pytest.mark.parametrize(("name", "strict"), [("cpu", False), ("cuda", True)])
def test_on_a_gpu_what_has_no_deterministic_algorithm_is_an_error(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str, strict: bool
) -> None:
    """There attention warns else, and takes another algorithm than its deterministic one."""
    prepared = []
    monkeypatch.setattr(devices, "choose", lambda recipe: Device(name, "float32", "a test says so"))
    monkeypatch.setattr(devices, "prepare", lambda threads, on, strict: prepared.append((on, strict)))
    tiny.make("splits.yaml", "deterministic=true", "seed=0")
    assert prepared == [(True, strict)]


def test_processes_on_the_cpu_are_refused_where_the_plan_is_for_a_gpu(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_open(tiny)
    preset = Path(__file__).parents[1] / "recipes/accelerate/cpu-2.yaml"
    tiny.run("train-sft", "sft.yaml", "--accelerate", preset, "--dry-run")
    on_this_machine(monkeypatch, lambda recipe: GPU)
    said = tiny.run("train-sft", "sft.yaml", "--accelerate", preset, code=2).stderr.splitlines()[-1]
    assert "cpu-2.yaml: use_cpu: true, but seed-0/sft runs on cuda" in said and said.endswith(
        "give --device cpu"
    )


def test_a_dtype_that_a_recipe_names_is_not_asked_of_the_machine(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(recipe: Recipe) -> Device:
        raise AssertionError("asked")

    on_this_machine(monkeypatch, ask)
    assert reasons(tiny, "evaluate", "e-dpo.yaml") == {}


def test_without_the_device_the_plan_is_shown_and_the_run_refused(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(recipe: Recipe) -> Device:
        raise DeviceError("device: cuda was asked for, but torch sees no CUDA device (try `rpo doctor`)")

    on_this_machine(monkeypatch, none)
    here = ("--set", "device=cuda", "--set", "dtype=auto")
    assert reasons(tiny, "train-sft", "sft.yaml", *here) == {f"{SEED}/sft": "dtype float32 -> auto"}
    assert "device: cuda was asked for" in tiny.run("train-sft", "sft.yaml", *here, code=2).stderr
    assert (tiny.root / SEED / "sft/manifest.json").is_file()


def test_reused_artifacts_of_another_device_are_mentioned(tiny: Tiny) -> None:
    file = tiny.root / SEED / "sft/manifest.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"device": "cuda, float32 (moved here)"}))
    result = tiny.run("train-policy", "dpo.yaml")
    assert "note: reuses 1 artifact made on cuda, in the dtype asked for; this is cpu" in result.stderr
    assert result.stderr.count("note:") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train-sft", "--recipe", "sft.yaml", "--dry-run"], 0),
        (["train-sft", "--recipe", "sft.yaml", "--set", "max_step=1"], 2),
        (["train-policy", "--recipe", "e-dpo.yaml", "--set", "data=oracle.yaml"], 2),
        (["recipe", "check", "."], 0),
    ],
)
def test_planning_in_an_empty_workspace_needs_no_torch_though_the_machine_decides(
    empty: Tiny, arguments: list[str], code: int
) -> None:
    leave_open(empty)
    program = (
        "import sys\nfrom rpo_cli.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert end.code == {code}, end.code\n"
        "print('TORCH', 'torch' in sys.modules)"
    )
    here = {"cwd": empty.suite, "env": {"PYTHONPATH": str(Path(__file__).parents[1])}}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, **here
    )  # type: ignore[call-overload]
    assert ended.stdout.endswith("TORCH False\n"), ended.stdout + ended.stderr


# ── Seeds ───────────────────────────────────────────────────────────────────────────────────────────────────


def seeds(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name.endswith("seed")}


def test_a_key_holds_the_seeds_that_its_stage_draws_under_and_no_other(built: Tiny) -> None:
    found = {
        stage.kind: seeds(stage.identity["recipe"])
        for stage in walk([built.stage("e-dpo.yaml", "seed=3", "policy_seed=7")])
    }
    # The planner's master seed is what stages below run under.
    assert found["policy"] == {"policy_seed": 7, "sampling_seed": 3}
    assert found["data"] == found["splits"] == {"data_seed": 3}
    assert found["sft"] == {"policy_seed": 3}
    assert found["reward"] == {"rm_seed": 3}
    assert found["samples"] == {"sampling_seed": 3}
    assert found["relabel"] == found["reference"] == found["scores"] == {}
    assert seeds(result_fields(built.stage("dpo.yaml").recipe)) == {"policy_seed": 0}
    assert seeds(result_fields(built.stage("relabel.yaml", "labels=sample").recipe)) == {"data_seed": 0}


@pytest.mark.parametrize("line", ["rm_seed: 5", "data_seed: 5", "policy_seed: 0"])
def test_a_seed_without_effect_in_a_file_makes_nothing_stale(tiny: Tiny, line: str) -> None:
    tiny.edit("e-dpo.yaml", line)
    assert reasons(tiny, "evaluate", "e-dpo.yaml") == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "recipe", "seed", "takers"),
    [
        ("train-policy", "e-dpo.yaml", "rm_seed", "reward"),
        ("train-policy", "e-dpo.yaml", "data_seed", "data or pairs or relabel or splits"),
        ("train-sft", "sft.yaml", "sampling_seed", "pairs or policy or evaluate"),
        ("train-rm", "rm.yaml", "policy_seed", "sft or policy"),
        ("make-biased-splits", "splits.yaml", "policy_seed", "sft or policy"),
    ],
)
def test_a_seed_that_a_stage_never_draws_under_is_refused_on_the_command_line(
    built: Tiny, command: str, recipe: str, seed: str, takers: str
) -> None:
    result = built.run(command, recipe, "--set", f"{seed}=5", code=2)
    stage = built.stage(recipe).recipe.stage  # type: ignore[attr-defined]
    assert (
        result.stderr.strip()
        == f"--set {seed}: has no effect in a {stage} recipe; set it in a {takers} recipe"
    )


def test_a_seed_that_this_objective_does_not_draw_under_is_noted(tiny: Tiny) -> None:
    result = tiny.run("train-policy", "dpo.yaml", "--dry-run", "--set", "sampling_seed=5")
    assert "note: --set sampling_seed: no effect with objective: dpo\n" in result.stderr
    tiny.run("train-policy", "dpo.yaml")
    assert reasons(tiny, "train-policy", "dpo.yaml", "--set", "sampling_seed=5") == {}


def test_another_seed_of_one_purpose_is_named_as_the_reason(tiny: Tiny) -> None:
    found = reasons(tiny, "train-rm", "rm.yaml", "--set", "rm_seed=5")
    assert found == {f"{RHO}/rm/all": "rm_seed 0 -> 5"} or found == {f"{RHO}/rm/all": "missing"}
    assert reasons(tiny, "train-rm", "oracle.yaml", "--set", "rm_seed=5") == {
        f"{SEED}/oracle": "rm_seed 0 -> 5"
    }


def test_a_policy_under_another_seed_than_its_master_has_a_folder_of_its_own(built: Tiny) -> None:
    plain, own = (built.stage("dpo.yaml", "seed=3", *more).path for more in ((), ("policy_seed=0",)))
    assert plain == "seed-3/rho-0.5/policies/dpo/beta-0.2" and own == f"{plain}-policy_seed-0"


# ── Members ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_member_is_not_trained_again_because_another_joins_or_leaves(tiny: Tiny) -> None:
    tiny.edit("rm.yaml", "ensemble: [0.2, 0.8]")
    assert reasons(tiny, "train-rm", "rm.yaml", "--ensemble") == {}
    found = reasons(tiny, "train-policy", "e-dpo.yaml")
    assert (
        list(found) == [f"{RHO}/policies/e-dpo/beta-0.2"]
        and "input scores/0.5 changed" in found[f"{RHO}/policies/e-dpo/beta-0.2"]
    )
    assert manifest(tiny.root, f"{RHO}/rm/b-0.2")["options"] == {"member": 0.2}
