"""The bars of the TPU path, on XLA's CPU backend, which runs the same traces: see docs/tpu.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bars import OBJECTIVES, STEPS, counted, measured, on_xla, plain, stretch, train_counted
from conftest import RHO, Tiny, column

from rpo_cli import devices
from rpo_cli.artifacts import Workspace, job_of
from rpo_cli.errors import RunFailed
from rpo_cli.models import Sampling, load_causal, load_tokenizer, sample
from rpo_cli.recipes.schema import ScoringRecipe
from rpo_cli.runs.work import run_job

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)
RUNS = {
    "dpo": ("dpo.yaml",),
    "e-dpo": ("e-dpo.yaml", "ensemble_min=dataset", "kl_estimator=data"),
    "rm": ("rm.yaml",),
    "sft": ("sft.yaml",),
}
LOG, WARM, LONG = 5, 30, 130


@pytest.mark.parametrize("name", RUNS)
def test_training_on_rows_of_mixed_lengths_compiles_few_programs_and_reads_nothing_back(
    on_xla: Tiny, name: str
) -> None:
    """A program for every shape, logged or not, and a few small; then a run a step, read only for logs.

    One of the small ones reads the first step's losses, which must be those of the reference.
    """
    stretch(on_xla)
    recipe, *settings = RUNS[name]
    shapes, compiled, added = train_counted(
        on_xla, recipe, [*settings, f"max_steps={LONG}", f"logging_steps={LOG}"]
    )
    quiet = [step for number, step in enumerate(added[WARM:], WARM + 1) if number % LOG]
    late = sum(step["compiled"] for step in added[WARM - 1 :])
    measured(f"{name}: compilations in all, {shapes} shapes", f"<= {3 * shapes + 7}", compiled)
    measured(f"{name}: new compilations, steps {WARM} to {LONG}", "0", late)
    measured(
        f"{name}: programs run in a step without a log line",
        "1",
        f"{min(s['run'] for s in quiet)} to {max(s['run'] for s in quiet)}",
    )
    measured(f"{name}: values read in a step without a log line", "0", max(step["read"] for step in quiet))
    assert 2 <= shapes <= 4
    assert compiled <= 3 * shapes + 7
    assert late == 0
    assert {(step["run"], step["read"]) for step in quiet} == {(1, 0)}


@pytest.mark.parametrize("name", [*OBJECTIVES, "rm", "sft"])
def test_losses_are_those_of_the_plain_cpu(plain: Tiny, on_xla: Tiny, name: str) -> None:
    stage = plain.stage(f"{name}.yaml").path
    wanted = column(plain.root / stage, "loss")
    directory, manifest = on_xla.make(f"{name}.yaml")
    assert manifest["device"].startswith("xla, float32")
    difference = max(abs(one - two) for one, two in zip(column(directory, "loss"), wanted, strict=True))
    measured(f"{name}: loss of {STEPS} steps, largest difference to the plain CPU", "<= 1e-4", difference)
    assert len(set(wanted)) == len(wanted) == STEPS
    assert difference <= 1e-4


@pytest.mark.parametrize("scope", ["batch", "dataset"])
def test_a_batch_in_pieces_has_the_losses_of_the_whole(on_xla: Tiny, scope: str) -> None:
    """Each piece is a program of its own, and the ensemble's min is taken over all of them."""
    settings = (f"ensemble_min={scope}", "max_steps=8", "optim=sgd", "learning_rate=0.1")
    whole = column(on_xla.make("e-dpo.yaml", *settings)[0], "loss")
    pieces = column(
        on_xla.make(
            "e-dpo.yaml", *settings, "per_device_train_batch_size=4", "gradient_accumulation_steps=2"
        )[0],
        "loss",
    )
    assert pieces == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("name", ["dpo", "rm"])
def test_gradient_checkpointing_changes_no_loss(plain: Tiny, on_xla: Tiny, name: str) -> None:
    directory, _ = on_xla.make(f"{name}.yaml", "gradient_checkpointing=true")
    assert column(directory, "loss") == pytest.approx(
        column(plain.root / plain.stage(f"{name}.yaml").path, "loss"), abs=1e-4
    )


def test_bfloat16_is_an_autocast_with_float32_weights_and_losses(plain: Tiny, on_xla: Tiny) -> None:
    wanted = column(plain.root / plain.stage("dpo.yaml").path, "loss")
    directory, manifest = on_xla.make("dpo.yaml", "dtype=bfloat16")
    found = column(directory, "loss")
    assert manifest["device"].startswith("xla, bfloat16")
    measured(
        "dpo in bfloat16: loss, largest difference to float32",
        "<= 1e-2, not 0",
        max(abs(a - b) for a, b in zip(found, wanted, strict=True)),
    )
    assert found == pytest.approx(wanted, abs=1e-2) and found != pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", ["dpo", "e-dpo", "rm"])
def test_a_run_that_was_stopped_goes_on_with_the_same_losses(on_xla: Tiny, tmp_path: Path, name: str) -> None:
    settings = ("save_steps=4", "max_steps=8", *(["ensemble_min=dataset"] if name == "e-dpo" else []))
    whole = column(on_xla.make(f"{name}.yaml", *settings)[0], "loss")
    directory = on_xla.root / on_xla.stage(f"{name}.yaml", *settings).path
    shutil.rmtree(directory)

    def stop(step: int, of: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_xla.make(f"{name}.yaml", *settings, progress=stop)
    steps: list[int] = []
    again = column(
        on_xla.make(f"{name}.yaml", *settings, progress=lambda step, of: steps.append(step))[0], "loss"
    )
    assert steps[0] == 5
    difference = max(abs(one - two) for one, two in zip(again, whole, strict=True))
    measured(f"{name}: loss of a run resumed from a checkpoint, largest difference", "0", difference)
    assert again == whole


def test_sampling_compiles_two_programs_for_all_prompts_of_a_bucket(on_xla: Tiny) -> None:
    """And draws what the plain CPU draws."""
    recipe = ScoringRecipe(stage="samples", device="xla", dtype="float32")
    source = on_xla.root / "seed-0/sft"
    tokenizer = load_tokenizer(source)
    prompts = [[5 + (3 * i + j) % 20 for j in range(length)] for i, length in enumerate(range(7, 17))]
    prompts = [prompt for prompt in prompts for _ in range(3)]
    how = Sampling(1.0, 0.9, 24, 10, seed=1)
    wanted = sample(
        load_causal(source, recipe, devices.Device("cpu", "float32", ""), tokenizer),
        tokenizer,
        prompts,
        how,
    )
    model = load_causal(source, recipe, devices.choose(recipe), tokenizer)
    before = counted()
    found = sample(model, tokenizer, prompts, how)
    compiled = counted()["compiled"] - before["compiled"]
    measured("sampler: compilations for 10 prompt lengths in one bucket", "<= 4", compiled)
    measured(
        "sampler: samples that differ from the plain CPU's",
        "0",
        sum(one != two for one, two in zip(found, wanted, strict=True)),
    )
    assert compiled <= 4
    assert found == wanted
    assert len({len(answer) for answer in found}) > 3


def test_the_whole_miniature_runs_on_xla_from_the_command_line(plain: Tiny, tmp_path: Path) -> None:
    shutil.copytree(plain.suite, tmp_path / "tiny")
    tiny = Tiny(tmp_path / "tiny", tmp_path / "runs")
    for recipe in ("sft.yaml", "rm.yaml", "policy.yaml"):
        tiny.edit(recipe, "max_steps: 6")
    before = counted()
    result = tiny.run("evaluate", "e-dpo.yaml", "--device", "xla")
    assert "device: xla, float32" in result.stderr
    made = [json.loads(file.read_text()) for file in sorted(tiny.root.glob("**/manifest.json"))]
    assert {m["kind"] for m in made} >= {
        "data",
        "sft",
        "reward",
        "relabel",
        "splits",
        "reference",
        "samples",
        "scores",
        "policy",
        "evaluate",
    }
    assert {m["device"].split(",")[0] for m in made} == {"xla"}
    measured(
        f"the whole miniature: compilations of its {len(made)} stages",
        "",
        counted()["compiled"] - before["compiled"],
    )


def test_a_loss_that_is_not_finite_stops_the_run(on_xla: Tiny) -> None:
    with pytest.raises(RunFailed, match=r"is (nan|inf|-inf) at step"):
        on_xla.make("ipo.yaml", "learning_rate=1e30", "max_grad_norm=0", "optim=sgd")


def test_held_out_rewards_are_the_plain_cpus(plain: Tiny, on_xla: Tiny) -> None:
    scores = f"{RHO}/scores/rm/b-0.2"
    stage = next(s for s in on_xla.stage("e-dpo.yaml").stages() if s.path == scores)
    run_job(job_of(stage, Workspace(on_xla.root, on_xla.suite.name), {}, force=True), lambda step, of: None)
    for table in ("train", "held_out"):
        one, two = (
            pq.read_table(tiny.root / scores / f"{table}.parquet").to_pydict() for tiny in (plain, on_xla)
        )
        for name in ("chosen", "rejected"):
            assert two[name] == pytest.approx(one[name], abs=1e-4)
