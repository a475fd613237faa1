"""What a step of training computes is what its tables and models say, recomputed one sequence at a time.

A batch holds all pairs, so that the metrics of the second step are means over the whole D_rho under the
weights that one step leaves behind: nothing is at the reference any more, and no order of rows matters.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RHO, SEED, Tiny, journal, weights
from worlds import BIASES, LIMIT, SAMPLES, Plain, kl, logp

WHOLE = ("per_device_train_batch_size=64", "learning_rate=0.01")
BETA, TAU, GAMMA_END = 0.2, 0.1, 0.5  # the last is in force at the second of two steps
E_DPO = "kl_estimator=data"
# peft asks transformers for an old name.
PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def made(root: Path, path: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((root / path / "manifest.json").read_text())["metrics"]
    return metrics


class Step:
    """The second step of a policy: its line of metrics, and everything that should be in it."""

    def __init__(self, tiny: Tiny, recipe: str, *settings: str) -> None:
        directory, manifest = tiny.make(recipe, *WHOLE, *settings, "max_steps=2")
        self.plain, self.metrics = Plain(tiny.root), manifest["metrics"]
        self.first, self.line = journal(directory)
        self.policy = self.plain.policy(tiny.make(recipe, *WHOLE, *settings, "max_steps=1")[0])
        self.reference = self.plain.policy(f"{SEED}/sft")
        self.pairs = self.plain.pairs()
        self.chosen, self.rejected = (
            np.array([logp(self.policy, pair.prompt, getattr(pair, side)) for pair in self.pairs])
            for side in ("chosen", "rejected")
        )
        logps = self.plain.table(f"{SEED}/reference-logps/relabel/logps.parquet").set_index("id")
        kept = logps.loc[[pair.id for pair in self.pairs]]
        self.h_chosen = self.chosen - kept["ref_chosen_logps"].to_numpy()
        self.h_rejected = self.rejected - kept["ref_rejected_logps"].to_numpy()

    @cached_property
    def drawn(self) -> dict[str, list[list[int]]]:
        """The reference's samples for each prompt."""
        drawn = {
            prompt: rows["sample_ids"].tolist() for prompt, rows in self.plain.samples().groupby("prompt")
        }
        assert {len(samples) for samples in drawn.values()} == {SAMPLES}
        assert max(len(sample) for samples in drawn.values() for sample in samples) == LIMIT
        return drawn

    @cached_property
    def samples(self) -> list[tuple[list[int], list[int]]]:
        """Prompt and sample of each pair in the second step, which is the second pass over them."""
        return self.of_pass(1)

    def of_pass(self, number: int) -> list[tuple[list[int], list[int]]]:
        """Passes, and the pairs of a prompt, take turns with the prompt's samples."""
        turns: Counter[str] = Counter()
        found = []
        for pair in self.pairs:
            found.append((pair.prompt, self.drawn[pair.text][(turns[pair.text] + number) % SAMPLES]))
            turns[pair.text] += 1
        return found

    def kl(self, estimator: str) -> float:
        if estimator == "data":
            return float(-(self.h_chosen + self.h_rejected).mean() / 2)
        if estimator == "full":
            return float(np.mean([kl(self.reference, self.policy, *both) for both in self.samples]))
        return float(
            np.mean([logp(self.reference, *both) - logp(self.policy, *both) for both in self.samples])
        )

    def members(self) -> np.ndarray:
        """Squared residuals [k, n] of the pairs for each calibrated member."""
        margins = [
            self.plain.scores(b)["margin"].to_numpy() / self.metrics[f"temperature/{b:g}"] for b in BIASES
        ]
        assert self.plain.scores(0.2)["id"].tolist() == [pair.id for pair in self.pairs]
        return np.array((np.stack(margins) - BETA * (self.h_chosen - self.h_rejected)) ** 2)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


@pytest.mark.parametrize("objective", ["dpo", "ipo", "ipo-norm", "d-dpo"])
def test_loss_and_rewards_are_the_objectives_formula_over_the_pairs(pupil: Tiny, objective: str) -> None:
    step = Step(pupil, f"{objective}.yaml")
    h = delta_h = step.h_chosen - step.h_rejected
    if objective == "ipo-norm":
        lengths = [
            np.array([len(getattr(pair, side)) for pair in step.pairs]) for side in ("chosen", "rejected")
        ]
        delta_h = step.h_chosen / lengths[0] - step.h_rejected / lengths[1]
    expected = {
        "dpo": lambda: softplus(-BETA * h),
        "ipo": lambda: (h - 1 / (2 * TAU)) ** 2,
        "ipo-norm": lambda: (delta_h - 1 / (2 * TAU)) ** 2,
        "d-dpo": lambda: (margins_of_the_one_teacher(step) - BETA * h) ** 2,
    }[objective]()
    assert np.abs(delta_h).mean() > 0.02
    assert step.line["loss"] == pytest.approx(expected.mean(), rel=1e-4)
    assert step.line["loss"] < step.first["loss"]
    strength = 1.0 if objective.startswith("ipo") else BETA
    rewards = {
        "rewards/chosen": strength * step.h_chosen.mean(),
        "rewards/rejected": strength * step.h_rejected.mean(),
        "rewards/margins": strength * h.mean(),
        "rewards/accuracies": (h > 0).mean(),
        "kl_data": -(step.h_chosen.mean() + step.h_rejected.mean()) / 2,
        "logps/chosen": step.chosen.mean(),
        "logps/rejected": step.rejected.mean(),
    }
    for name, value in rewards.items():
        assert step.line[name] == pytest.approx(value, rel=1e-3, abs=2e-4), name
    assert rewards["rewards/chosen"] != pytest.approx(rewards["rewards/rejected"], abs=1e-3)


def margins_of_the_one_teacher(step: Step) -> np.ndarray:
    scores = step.plain.table(f"{RHO}/scores/rm/all/train.parquet").set_index("id")
    scores = scores.loc[[pair.id for pair in step.pairs]]
    return np.array(scores["chosen"] - scores["rejected"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "shared"), [("full", "true"), ("full", "false"), ("sample", "true"), ("data", "true")]
)
def test_the_kl_is_along_the_samples_of_the_pairs_in_both_layouts(
    pupil: Tiny, estimator: str, shared: str
) -> None:
    step = Step(pupil, "p-dpo.yaml", f"kl_estimator={estimator}", f"shared_prompts={shared}")
    expected = step.kl(estimator)
    assert step.metrics["shared_prompts"] == (shared == "true")
    assert abs(expected) > 5e-3
    assert step.line["kl_to_reference"] == pytest.approx(expected, rel=2e-3, abs=2e-5)
    preference = softplus(-BETA * (step.h_chosen - step.h_rejected)).mean()
    assert step.line["losses/preference"] == pytest.approx(preference, rel=1e-4)
    assert step.line["loss"] == pytest.approx(
        preference + 0.5 * expected, rel=1e-3
    )  # gamma_end at the last step
    if (estimator, shared) == ("sample", "true"):
        step.samples = step.of_pass(0)
        assert abs(step.kl("sample") - expected) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["example", "batch", "dataset"])
def test_an_ensembles_loss_is_the_least_of_its_calibrated_members_in_its_scope(
    pupil: Tiny, scope: str
) -> None:
    step = Step(pupil, "e-dpo.yaml", E_DPO, f"ensemble_min={scope}")
    losses = step.members()
    assert len({step.metrics[f"temperature/{b:g}"] for b in BIASES}) == 3
    chosen = losses.argmin(0) if scope == "example" else np.full(64, losses.mean(1).argmin())
    expected = np.take_along_axis(losses, chosen[None], 0).mean()
    assert step.line["losses/preference"] == pytest.approx(expected, rel=1e-3)
    shares = [step.line[f"members/{b:g}"] for b in BIASES]
    assert shares == pytest.approx([(chosen == i).mean() for i in range(3)], abs=1 / 64)
    if scope == "example":
        assert min(shares) > 0


@pytest.mark.slow
def test_policies_of_one_process_read_their_own_samples(pupil: Tiny) -> None:
    one, two, again = (
        weights(pupil.make("p-dpo.yaml", f"sampling_seed={seed}", "max_steps=2")[0]) for seed in (1, 2, 1)
    )
    assert one == again != two


@pytest.mark.slow
def test_policies_of_one_process_read_their_own_pairs(pupil: Tiny) -> None:
    logps = Plain(pupil.root).table(f"{SEED}/reference-logps/relabel/logps.parquet").set_index("id")
    pupil.edit("rm.yaml", "ensemble: [0.5]")
    pupil.edit("splits.yaml", "held_out: 16\nensemble: [0.5]")
    for rho in (0.3, 0.5, 0.3):
        directory, _ = pupil.make("dpo.yaml", f"rho={rho}", *WHOLE, "max_steps=1", "learning_rate=1e-30")
        own = [pair.id for pair in Plain(pupil.root).pairs(rho=f"{SEED}/rho-{rho:g}")]
        assert journal(directory)[0]["logps/chosen"] == pytest.approx(
            logps.loc[own, "ref_chosen_logps"].mean(), abs=1e-4
        )


@PEFT
def test_the_choice_over_a_batch_uses_up_no_random_numbers_and_leaves_the_mode_of_training(
    pupil: Tiny,
) -> None:
    """With one member there is nothing to choose: a batch's min is the data set's, to the bit."""
    pytest.importorskip("peft")
    pupil.edit("rm.yaml", "ensemble: [0.5]")
    settings = (
        "use_peft=true",
        "lora_r=2",
        "lora_dropout=0.5",
        "gradient_accumulation_steps=2",
        "max_steps=4",
        E_DPO,
    )
    scopes = {
        scope: weights(pupil.make("e-dpo.yaml", f"ensemble_min={scope}", *settings)[0])
        for scope in ("dataset", "batch")
    }
    assert scopes["batch"] == scopes["dataset"]


@pytest.mark.slow
@PEFT
@pytest.mark.parametrize("recipe", ["dpo.yaml", "rm.yaml"])
def test_dropout_of_an_adapter_has_an_effect(pupil: Tiny, recipe: str) -> None:
    settings = ("use_peft=true", "lora_r=2", "max_steps=3")
    with_dropout = weights(pupil.make(recipe, "lora_dropout=0.5", *settings)[0])
    assert with_dropout != weights(pupil.make(recipe, *settings)[0])
