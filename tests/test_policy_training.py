"""Properties of training: TRL's where it should be, however the batch is cut, repeatable, resumable."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import RHO, Tiny, column, journal, pairs_of, weights
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification
from trl import DPOConfig, DPOTrainer

from rpo_cli.errors import RunFailed
from rpo_cli.stages import policy
from rpo_cli.stages.policy import PolicyTrainer
from rpo_cli.stages.reward import LeanRewardTrainer
from rpo_cli.stages.training.loop import STATE, ending

CUTS = ((8, 1), (4, 2), (2, 4), (1, 8))
# Adam divides by the root of the squared gradient and so blows up rounding where a gradient is almost
# nothing; where two computations are to agree to rounding, plain gradient descent shows it.
SGD = ("optim=sgd", "learning_rate=0.1")
SLOW = pytest.mark.slow


def cut(size: int, steps: int) -> tuple[str, str]:
    return f"per_device_train_batch_size={size}", f"gradient_accumulation_steps={steps}"


def distance(one: Path, other: Path | dict[str, torch.Tensor]) -> float:
    """Largest difference between two models' weights."""
    ours = load_file(one / "model.safetensors")
    theirs = load_file(other / "model.safetensors") if isinstance(other, Path) else other
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def teach(tiny: Tiny) -> None:
    """Replace the ensemble's rewards by noise, so that its members differ and take turns."""
    rng = np.random.default_rng(0)
    for folder in sorted((tiny.root / RHO / "scores/rm").glob("b-*")):
        for file in folder.glob("*.parquet"):
            ids = pq.read_table(file)["id"].to_pylist()
            pq.write_table(
                pa.table({"id": ids, "chosen": rng.normal(size=len(ids)), "rejected": np.zeros(len(ids))}),
                file,
            )


# ── Against TRL ─────────────────────────────────────────────────────────────────────────────────────────────


def stock(
    built: Tiny, home: Path, rows: int = 8, **settings: object
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of each step and final weights of TRL's own DPOTrainer, from the text of the same pairs."""
    source = built.root / "seed-0/sft"
    pairs = [
        {name: row[name] for name in ("prompt", "chosen", "rejected")}
        for row in pairs_of(built.root, f"{RHO}/splits", "train")
    ]
    config = DPOConfig(
        output_dir=str(home), max_steps=6, lr_scheduler_type="constant", per_device_train_batch_size=rows,
        logging_steps=1, seed=0,
        data_seed=0, bf16=False, use_cpu=True, activation_checkpointing=False, max_length=None,
        report_to="none", save_strategy="no",
        disable_tqdm=True, dataloader_drop_last=True, dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    model, reference = (AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32) for _ in range(2))
    trainer = DPOTrainer(
        model,
        reference,
        config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(source),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: value.detach() for name, value in trainer.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # stock TRL's own
@pytest.mark.parametrize(
    ("objective", "loss_type", "strength"), [("dpo", "sigmoid", "beta"), ("ipo-norm", "ipo", "tau")]
)
@pytest.mark.parametrize(("optim", "rate"), [("sgd", 0.1), ("adamw_torch", 3e-3)])
def test_dpo_and_ipo_norm_are_trls_own_up_to_rounding(
    built: Tiny,
    tiny: Tiny,
    tmp_path: Path,
    objective: str,
    loss_type: str,
    strength: str,
    optim: str,
    rate: float,
) -> None:
    losses, final = stock(
        built, tmp_path / "trl", beta=0.3, loss_type=[loss_type], optim=optim, learning_rate=rate
    )
    directory, _ = tiny.make(
        f"{objective}.yaml", f"{strength}=0.3", f"optim={optim}", f"learning_rate={rate}"
    )
    assert column(directory, "loss") == pytest.approx(losses, rel=1e-5)
    assert distance(directory, final) < (1e-5 if optim == "sgd" else 3e-5)
    assert distance(directory, built.root / "seed-0/sft") > 1e-3


# ── However the batch is cut ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["batch", *(pytest.param(s, marks=SLOW) for s in ("dataset", "example"))])
def test_the_ensembles_min_does_not_depend_on_how_the_batch_is_cut(tiny: Tiny, scope: str) -> None:
    teach(tiny)
    runs = [
        tiny.make("e-dpo.yaml", f"ensemble_min={scope}", "ema_decay=0.5", *SGD, *cut(*sizes))[0]
        for sizes in CUTS
    ]
    members = [name for name in journal(runs[0])[0] if name.startswith("members/")]
    assert len(members) == 3
    assert sum(len(set(column(runs[0], name))) > 1 for name in members) > 1  # members do take turns
    for other in runs[1:]:
        assert column(other, "loss") == pytest.approx(column(runs[0], "loss"), rel=1e-5, abs=1e-7)
        assert distance(runs[0], other) < 1e-6
        assert all(column(other, name) == column(runs[0], name) for name in members)


@pytest.mark.slow
def test_a_min_inside_each_micro_batch_would_be_another_objective(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(tiny)
    settings = ("ensemble_min=batch", *SGD)
    whole, _ = tiny.make("e-dpo.yaml", *settings, *cut(8, 1))
    monkeypatch.setattr(PolicyTrainer, "_choose", lambda self, batches: None)
    naive, _ = tiny.make("e-dpo.yaml", *settings, *cut(2, 4))
    assert column(naive, "loss") != pytest.approx(column(whole, "loss"), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "ipo", "ipo-norm", "d-dpo", "p-dpo", "dp-dpo"])
def test_one_pair_eight_times_is_eight_pairs_once(tiny: Tiny, objective: str) -> None:
    settings = ("optim=sgd", "learning_rate=0.01" if objective == "ipo" else "learning_rate=0.1")
    whole, pieces = (tiny.make(f"{objective}.yaml", *settings, *cut(*sizes))[0] for sizes in ((8, 1), (1, 8)))
    assert column(pieces, "loss") == pytest.approx(column(whole, "loss"), rel=1e-5, abs=1e-7)
    assert distance(whole, pieces) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["e-dpo.yaml", "rm.yaml", "sft.yaml"])
def test_every_step_has_a_whole_batch_though_the_rows_do_not_divide(
    tiny: Tiny, tmp_path: Path, recipe: str
) -> None:
    """64 pairs make five batches of 12; the rest is left out however the batch is cut."""
    if recipe == "sft.yaml":
        tiny.edit("data.yaml", "rows: {sft_train: 64, pairs: 360, pairs_validation: 40}")
        tiny.make("data.yaml")
    runs = [
        Path(shutil.copytree(tiny.make(recipe, "max_steps=8", *SGD, *cut(*sizes))[0], tmp_path / f"{sizes}"))
        for sizes in ((12, 1), (3, 4))
    ]
    assert column(runs[1], "epoch") == pytest.approx(column(runs[0], "epoch"))
    assert column(runs[1], "loss") == pytest.approx(column(runs[0], "loss"), rel=1e-4, abs=1e-6)
    assert distance(*runs) < 1e-6


# ── The forward KL ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_exact_kl_has_no_gradient_at_the_reference(tiny: Tiny) -> None:
    dpo, _ = tiny.make("dpo.yaml", "max_steps=1", *SGD)
    exact, _ = tiny.make("p-dpo.yaml", "max_steps=1", "gamma=10", "gamma_end=null", "kl_estimator=full", *SGD)
    noisy, _ = tiny.make(
        "p-dpo.yaml", "max_steps=1", "gamma=10", "gamma_end=null", "kl_estimator=sample", *SGD
    )
    assert column(exact, "kl_to_reference") == pytest.approx([0], abs=1e-6)
    assert column(exact, "grad_norm") == pytest.approx(column(dpo, "grad_norm"), rel=1e-4)
    assert distance(dpo, exact) < 1e-6
    assert column(noisy, "grad_norm") != pytest.approx(column(dpo, "grad_norm"), rel=1)


def test_the_reference_of_the_exact_kl_is_read_as_the_policy_is(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = []
    read = policy.response_logits

    def seen(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = read(model, batch)
        rounded.append((model.training, logits.dtype))
        return logits

    monkeypatch.setattr(policy, "response_logits", seen)
    tiny.make("p-dpo.yaml", "max_steps=1", "kl_estimator=full", "dtype=bfloat16")
    assert sorted(rounded, key=str) == [(False, torch.bfloat16), (True, torch.bfloat16)]


@pytest.mark.parametrize("estimator", ["full", "sample", "data"])
def test_every_kl_estimator_trains_and_logs_the_kl(tiny: Tiny, estimator: str) -> None:
    directory, manifest = tiny.make("p-dpo.yaml", f"kl_estimator={estimator}")
    values = column(directory, "kl_to_reference")
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert len(values) == manifest["metrics"]["steps"] == 6
    assert all(abs(value) > 1e-4 for value in values[1:])
    if estimator == "full":
        assert all(value > 0 for value in values[1:])
    assert column(directory, "gamma") == pytest.approx([0.1, 0.18, 0.26, 0.34, 0.42, 0.5])
    gammas = column(directory, "gamma")
    assert column(directory, "loss") == pytest.approx(
        [p + g * k for p, g, k in zip(column(directory, "losses/preference"), gammas, values, strict=True)]
    )


def test_gamma_beta_is_gamma_times_beta(tiny: Tiny) -> None:
    scaled, _ = tiny.make(
        "p-dpo.yaml", "kl_coefficient=gamma_beta", "beta=0.2", "gamma=0.5", "gamma_end=2", *SGD
    )
    plain, _ = tiny.make("p-dpo.yaml", "kl_coefficient=gamma", "beta=0.2", "gamma=0.1", "gamma_end=0.4", *SGD)
    assert column(scaled, "loss") == pytest.approx(column(plain, "loss"), rel=1e-6)
    assert distance(scaled, plain) < 1e-6
    assert column(scaled, "gamma") == pytest.approx([5 * value for value in column(plain, "gamma")])


# ── Repeatable and resumable ────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(built: Tiny, tiny: Tiny) -> None:
    before = built.root / RHO / "policies/e-dpo/beta-0.2"
    again, manifest = tiny.make("e-dpo.yaml")
    other, _ = tiny.make("e-dpo.yaml", "policy_seed=1")
    assert again != before
    assert weights(again) == weights(before)
    assert (again / "metrics.jsonl").read_bytes() == (before / "metrics.jsonl").read_bytes()
    assert manifest["metrics"] == json.loads((before / "manifest.json").read_text())["metrics"]
    assert weights(other) != weights(before)


class Stop:
    """Progress of a run; presses Ctrl-C at a step, before that step's checkpoint is written."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.steps: list[int] = []

    def __call__(self, step: int, of: int) -> None:
        self.steps.append(step)
        if step == self.at:
            raise KeyboardInterrupt


RESUMED = {
    "policy": ("e-dpo.yaml", "ensemble_min=dataset", "ema_decay=0.5"),
    "policy, kl and example": ("e-dpo.yaml", "ensemble_min=example", "gradient_accumulation_steps=2"),
    # Three steps an epoch: the checkpoint of step 4 lies inside the second.
    "policy, by length": (
        "e-dpo.yaml",
        "train_sampling_strategy=group_by_length",
        "per_device_train_batch_size=20",
    ),
    "reward": ("rm.yaml",),
    "reward, early": ("rm.yaml", "stopping=early", "eval_steps=2"),
    "sft": ("sft.yaml", "max_steps=6"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_run_goes_on_from_its_checkpoint_to_the_same_bytes(tiny: Tiny, name: str) -> None:
    recipe, *settings = RESUMED[name]
    settings += [
        "save_steps=2",
        "logging_steps=3",
    ]  # the checkpoint to resume from lies between two logged steps
    teach(tiny)
    directory, undisturbed = tiny.make(recipe, *settings)
    final, lines = weights(directory), journal(directory)
    assert not (directory / "checkpoints").exists()
    with pytest.raises(KeyboardInterrupt):
        tiny.make(recipe, *settings, progress=Stop(at=5))
    assert not (directory / "manifest.json").exists()
    saved = {path.name for path in (directory / "checkpoints").iterdir()}
    assert "checkpoint-4" in saved
    watch = Stop()
    _, resumed = tiny.make(recipe, *settings, progress=watch)
    assert watch.steps == [5, 6]
    assert weights(directory) == final
    assert journal(directory) == lines
    assert resumed["metrics"] == undisturbed["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("save_steps", [2, 4])
def test_a_run_that_ended_before_it_was_published_ends_the_same(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str, save_steps: int
) -> None:
    recipe, *settings = RESUMED[name]
    settings += [f"save_steps={save_steps}", "logging_steps=3"]
    teach(tiny)
    directory, undisturbed = tiny.make(recipe, *settings)
    final, lines = weights(directory), journal(directory)

    def kill(model: object, tokenizer: object, directory: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rpo_cli.stages.training.publish.save", kill)
        tiny.make(recipe, *settings)
    assert (directory / "checkpoints/checkpoint-6" / STATE).is_file()  # nothing is left to do after this one
    _, resumed = tiny.make(recipe, *settings)
    assert weights(directory) == final
    assert journal(directory) == lines
    assert resumed["metrics"] == undisturbed["metrics"]


def test_the_last_loss_is_that_of_the_last_steps_though_no_line_was_due(tiny: Tiny) -> None:
    directory, made = tiny.make("dpo.yaml", "logging_steps=4")
    assert [line["step"] for line in journal(directory)] == [4, 6]
    assert made["metrics"]["last_loss"] == column(directory, "loss")[-1] != made["metrics"]["first_loss"]


@pytest.mark.parametrize("recipe", ["e-dpo.yaml", "rm.yaml"])
def test_the_line_of_the_last_step_has_every_metric_though_no_line_was_due(tiny: Tiny, recipe: str) -> None:
    directory, _ = tiny.make(recipe, "logging_steps=4")
    due, last = journal(directory)
    assert (due["step"], last["step"]) == (4, 6) and due.keys() == last.keys()
    assert last.keys() >= (
        {"rewards/margins", "members/0.2", "losses/preference"}
        if recipe == "e-dpo.yaml"
        else {"accuracy", "margin"}
    )


@pytest.mark.slow
def test_a_checkpoint_that_a_kill_cut_short_is_not_resumed_from(tiny: Tiny) -> None:
    teach(tiny)
    settings = ("save_steps=2", "ensemble_min=dataset", "ema_decay=0.5")
    directory, _ = tiny.make("e-dpo.yaml", *settings)
    final, lines = weights(directory), journal(directory)
    with pytest.raises(KeyboardInterrupt):
        tiny.make("e-dpo.yaml", *settings, progress=Stop(at=5))
    (directory / "checkpoints/checkpoint-4" / STATE).unlink()
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 0.1')  # the kill cut this line short
    watch = Stop()
    tiny.make("e-dpo.yaml", *settings, progress=watch)
    assert watch.steps == [3, 4, 5, 6]
    assert weights(directory) == final
    assert journal(directory) == lines


def test_a_changed_recipe_does_not_resume_the_old_ones_checkpoint(tiny: Tiny) -> None:
    directory = tiny.root / tiny.stage("dpo.yaml").path
    with pytest.raises(KeyboardInterrupt):
        tiny.make("dpo.yaml", "save_steps=2", progress=Stop(at=5))
    tiny.edit("policy.yaml", "learning_rate: 1e-3")
    watch = Stop()
    tiny.make("dpo.yaml", "save_steps=2", progress=watch)
    assert watch.steps == [1, 2, 3, 4, 5, 6]
    assert column(directory, "learning_rate") == [1e-3] * 6


# ── What stops a run ────────────────────────────────────────────────────────────────────────────────────────


def spoil(monkeypatch: pytest.MonkeyPatch, trainer: type, at: int) -> None:
    """From the `at`-th step on, the loss is not a number."""
    plain = trainer.compute_loss

    def compute_loss(self: object, model: object, inputs: object, *args: object, **kwargs: object) -> object:
        loss = plain(self, model, inputs, *args, **kwargs)
        return loss * float("nan") if self.state.global_step + 1 >= at else loss

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)


@pytest.mark.parametrize(("recipe", "trainer"), [("dpo.yaml", PolicyTrainer), ("rm.yaml", LeanRewardTrainer)])
def test_a_loss_that_is_no_number_stops_the_run_at_its_step(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, recipe: str, trainer: type
) -> None:
    spoil(monkeypatch, trainer, at=3)
    stage = tiny.stage(recipe)
    with pytest.raises(
        RunFailed, match=rf"{stage.path}: (loss|grad_norm) is nan at step 3; try a smaller learning_rate"
    ):
        tiny.make(recipe)
    assert not (tiny.root / stage.path / "manifest.json").exists()
    assert not (tiny.root / stage.path / "model.safetensors").exists()


@pytest.mark.parametrize("at", [1, 6])
def test_a_loss_that_is_no_number_is_seen_though_its_step_is_not_logged(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    spoil(monkeypatch, PolicyTrainer, at=at)
    with pytest.raises(RunFailed, match="nan at step 6"):
        tiny.make("dpo.yaml", "logging_steps=4" if at == 6 else "logging_steps=50")
    assert not (tiny.root / tiny.stage("dpo.yaml").path / "manifest.json").exists()


# ── What is in memory, and dropout ──────────────────────────────────────────────────────────────────────────


def models_while(train: Callable[[Callable[[int, int], None]], object]) -> tuple[int, int]:
    """How many language models and reward models exist in the middle of a run, less those before it."""
    found: list[tuple[int, int]] = []

    def count() -> tuple[int, int]:
        gc.collect()
        things = gc.get_objects()
        return sum(type(x) is LlamaForCausalLM for x in things), sum(
            type(x) is LlamaForSequenceClassification for x in things
        )

    before = count()
    train(lambda step, of: found.append(count()))
    return found[0][0] - before[0], found[0][1] - before[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "estimator", "expected"),
    [("dpo", "sample", 1), ("dp-dpo", "sample", 1), ("e-dpo", "data", 1), ("e-dpo", "full", 2)],
)
def test_neither_reference_nor_reward_model_is_in_memory_but_for_the_full_kl(
    tiny: Tiny, recipe: str, estimator: str, expected: int
) -> None:
    settings = ("max_steps=2", f"kl_estimator={estimator}")
    assert models_while(lambda progress: tiny.make(f"{recipe}.yaml", *settings, progress=progress)) == (
        expected,
        0,
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dpo.yaml", "rm.yaml", "sft.yaml"])
def test_dropout_in_a_models_config_is_off_in_training(tiny: Tiny, recipe: str) -> None:
    results = []
    for dropout in (0.0, 0.5):
        if recipe == "sft.yaml":
            text = (tiny.suite / recipe).read_text()
            (tiny.suite / recipe).write_text(
                text.replace("attention_dropout: 0.3", f"attention_dropout: {dropout}")
            )
            assert "0.3" not in (tiny.suite / recipe).read_text()
        else:
            file = tiny.root / "seed-0/sft/config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_dropout": dropout}))
        directory, _ = tiny.make(recipe)
        results.append(weights(directory))
        shutil.rmtree(directory)
        (tiny.suite / recipe).write_text(
            (tiny.suite / recipe)
            .read_text()
            .replace(f"attention_dropout: {dropout}", "attention_dropout: 0.3")
        )
    assert results[0] == results[1]


def test_a_training_ends_with_the_mean_over_the_last_tenth_of_its_lines() -> None:
    lines = [{"kl_to_reference": float(n)} | ({"kl_data": -1.0} if n == 0 else {}) for n in range(20)]
    assert ending(lines) == {"ended/kl_to_reference": 18.5}
    assert ending(lines[:3]) == {"ended/kl_to_reference": 2.0}


@pytest.mark.parametrize(("ended", "warned"), [(-0.96, 1), (0.2, 0), (None, 0)])
def test_a_kl_below_zero_is_warned_of(monkeypatch: Any, ended: float | None, warned: int) -> None:
    metrics = {"last_loss": 1.0} | ({} if ended is None else {"ended/kl_to_reference": ended})
    monkeypatch.setattr(policy, "train", lambda *args: dict(metrics))
    said: list[str] = []
    trainer, report = cast(Any, SimpleNamespace(members=None)), cast(Any, SimpleNamespace(warn=said.append))
    assert policy.trained(trainer, report, None) == metrics
    assert len(said) == warned and all("forward KL is negative" in line for line in said)
