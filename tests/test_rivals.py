"""Other papers' objectives and teachers: equal to TRL's where it has them, and what makes each what it is."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import RHO, Tiny, column, weights
from safetensors.torch import load_file, save_file
from test_policy_training import SGD, cut, distance, stock
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rpo_cli.artifacts import Workspace, job_of
from rpo_cli.errors import RunFailed
from rpo_cli.objectives.cdpo import cdpo_losses
from rpo_cli.objectives.chi_po import chi_po_losses
from rpo_cli.objectives.dpo import dpo_losses
from rpo_cli.objectives.dpo_sft import nll_losses
from rpo_cli.objectives.r_dpo import r_dpo_losses
from rpo_cli.objectives.rm_dpo import labelled_losses
from rpo_cli.objectives.robust_dpo import robust_dpo_losses
from rpo_cli.objectives.simpo import simpo_losses
from rpo_cli.objectives.teachers import lcb_margins, mean_margins
from rpo_cli.recipes import RecipeError, load
from rpo_cli.recipes.schema import PolicyRecipe, result_fields
from rpo_cli.stages.training.teachers import calibrated_margins
from rpo_cli.stages.warm import mean_weights

RIVALS = {
    "r-dpo": "length_alpha=0.3",
    "dpo-sft": "sft_weight=0.7",
    "robust-dpo": "label_smoothing=0.2",
    "simpo": "simpo_gamma=0.4",
}


def doubles(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_(grad)


# ── Losses ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_rivals_have_the_values_computed_by_hand() -> None:
    one = torch.ones(1, dtype=torch.float64)
    softplus = lambda z: math.log1p(math.exp(-z))  # noqa: E731
    assert r_dpo_losses(2 * one, 5 * one, 8 * one, 0.5, 0.1).item() == pytest.approx(
        softplus(1 - 0.3), abs=1e-15
    )
    assert nll_losses(-6 * one, 4 * one).item() == 1.5
    assert robust_dpo_losses(2 * one, 0.5, 0.2).item() == pytest.approx(
        (0.8 * softplus(1) - 0.2 * softplus(-1)) / 0.6, abs=1e-15
    )
    assert simpo_losses(-6 * one, -8 * one, 4 * one, 2 * one, 2.0, 0.5).item() == pytest.approx(
        softplus(5 - 0.5), abs=1e-15
    )
    assert cdpo_losses(2 * one, 0.5, 0.2).item() == pytest.approx(
        0.8 * softplus(1) + 0.2 * softplus(-1), abs=1e-15
    )
    difference = 0.5 * (math.e + 1 - (1 / math.e - 1))
    assert chi_po_losses(one, -one, 0.5, 20.0).item() == pytest.approx(softplus(difference), abs=1e-15)


def test_gradients_of_rivals_equal_finite_differences() -> None:
    h, lengths = doubles(5, grad=True), torch.tensor([3, 5, 2, 8, 1])
    for loss in (
        lambda x: r_dpo_losses(x, lengths, lengths.flip(0), 0.7, 0.2),
        lambda x: nll_losses(x, lengths),
        lambda x: robust_dpo_losses(x, 0.7, 0.3),
        lambda x: cdpo_losses(x, 0.7, 0.2),
        lambda x: chi_po_losses(x, x.flip(0) / 2, 0.3, 20.0),
        lambda x: simpo_losses(x, 2 * x.flip(0), lengths, lengths.flip(0), 1.3, 0.5),
        lambda x: labelled_losses(x, lengths - 3.5, 0.7, "soft"),
    ):
        assert torch.autograd.gradcheck(loss, (h,))


def test_rivals_without_their_addition_are_dpo() -> None:
    h, lengths = doubles(6), torch.arange(1, 7)
    assert torch.equal(r_dpo_losses(h, lengths, lengths.flip(0), 0.7, 0.0), dpo_losses(h, 0.7))
    assert torch.equal(r_dpo_losses(h, lengths, lengths, 0.7, 5.0), dpo_losses(h, 0.7))
    assert torch.equal(robust_dpo_losses(h, 0.7, 0.0), dpo_losses(h, 0.7))
    assert torch.equal(cdpo_losses(h, 0.7, 0.0), dpo_losses(h, 0.7))


def test_r_dpo_is_stationary_at_the_policy_of_the_reward_that_charges_length() -> None:
    """With Bradley–Terry labels of r on all pairs: at π_ref e^{(r − α|y|)/β}, so α > 0 charges length."""
    n, beta, alpha = 6, 0.5, 0.3
    ref, reward, lengths = (
        doubles(n, seed=1),
        doubles(n, seed=2),
        torch.tensor([1.0, 4, 2, 7, 3, 5], dtype=torch.float64),
    )
    i, j = torch.triu_indices(n, n, 1)
    chosen, rejected = torch.cat([i, j]), torch.cat([j, i])
    share = torch.sigmoid(reward[chosen] - reward[rejected])

    def gradient(sign: float) -> Tensor:
        theta = (ref + (reward - sign * alpha * lengths) / beta).requires_grad_()
        h = theta.log_softmax(0) - ref.log_softmax(0)
        losses = r_dpo_losses(h[chosen] - h[rejected], lengths[chosen], lengths[rejected], beta, alpha)
        return torch.autograd.grad((share * losses).sum(), theta)[0]

    assert gradient(1).abs().max() < 1e-14
    assert gradient(-1).abs().max() > 0.1


def test_robust_dpo_under_flipped_labels_is_dpo_under_clean_ones_on_average() -> None:
    h, flip = doubles(6), 0.2
    noisy = (1 - flip) * robust_dpo_losses(h, 0.7, flip) + flip * robust_dpo_losses(-h, 0.7, flip)
    torch.testing.assert_close(noisy, dpo_losses(h, 0.7), rtol=0, atol=1e-14)


def test_simpo_is_trls_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer

    logits, tokens = doubles(8, 6, 11), torch.randint(11, (8, 6), generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([1, 2, 3, 4, 5, 5, 3, 2])
    mask = torch.arange(6) < lengths.unsqueeze(1) + 1
    mask[:, 0] = False  # the prompt
    average = CPOTrainer.get_batch_logps(logits, tokens.masked_fill(~mask, -100), average_log_prob=True)
    trainer = SimpleNamespace(
        alpha=0.0,
        loss_type="simpo",
        simpo_gamma=0.4,
        beta=1.7,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    theirs, _, _ = CPOTrainer.cpo_loss(trainer, average[:4], average[4:])
    picked = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
    logps = (picked * mask[:, 1:]).sum(1)
    ours = simpo_losses(logps[:4], logps[4:], lengths[:4], lengths[4:], 1.7, 0.4)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # stock TRL's own
@pytest.mark.parametrize(
    ("objective", "rows", "theirs"),
    [
        ("robust-dpo", 8, {"loss_type": ["robust"], "label_smoothing": 0.2}),
        # One pair at a time, TRL's mean over tokens is the mean over the response's tokens.
        (
            "dpo-sft",
            1,
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "gradient_accumulation_steps": 8},
        ),
    ],
)
def test_robust_dpo_and_dpo_sft_train_as_trls_own_up_to_rounding(
    built: Tiny, tiny: Tiny, tmp_path: Path, objective: str, rows: int, theirs: dict[str, object]
) -> None:
    losses, final = stock(built, tmp_path / "trl", rows, beta=0.3, optim="sgd", learning_rate=0.1, **theirs)
    directory, _ = tiny.make("dpo.yaml", f"objective={objective}", "beta=0.3", RIVALS[objective], *SGD)
    assert column(directory, "loss") == pytest.approx(losses, rel=1e-5)
    assert distance(directory, final) < 1e-5
    assert distance(directory, built.root / "seed-0/sft") > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("objective", RIVALS)
def test_rivals_do_not_depend_on_how_the_batch_is_cut_and_differ_from_dpo(tiny: Tiny, objective: str) -> None:
    settings = (f"objective={objective}", RIVALS[objective], *SGD)
    whole, pieces = (tiny.make("dpo.yaml", *settings, *cut(*sizes))[0] for sizes in ((8, 1), (1, 8)))
    assert column(pieces, "loss") == pytest.approx(column(whole, "loss"), rel=1e-5, abs=1e-7)
    assert distance(whole, pieces) < 1e-6
    dpo, _ = tiny.make("dpo.yaml", *SGD)
    assert distance(whole, dpo) > 1e-3


def test_simpo_needs_no_reference(tiny: Tiny) -> None:
    settings = ("objective=simpo", "beta=1.2", *SGD)
    before = weights(tiny.make("dpo.yaml", *settings)[0])
    file = tiny.root / "seed-0/reference-logps/relabel/logps.parquet"
    table = pq.read_table(file)
    moved = pa.chunked_array([np.linspace(-90, 0, len(table)).astype(np.float32)])
    pq.write_table(table.set_column(1, "ref_chosen_logps", moved), file)
    assert weights(tiny.make("dpo.yaml", *settings)[0]) == before


# ── Teachers ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_lower_bound_ignores_each_members_shift_of_a_prompts_rewards() -> None:
    chosen, rejected, shifts = doubles(5, 40), doubles(5, 40, seed=1), 10 * doubles(5, 40, seed=2)
    moved = (chosen + shifts) - (rejected + shifts)
    torch.testing.assert_close(
        lcb_margins(moved, 0.7), lcb_margins(chosen - rejected, 0.7), rtol=0, atol=1e-13
    )


def test_the_lower_bound_shrinks_the_mean_towards_zero_the_same_for_either_order_of_the_pair() -> None:
    margins = doubles(5, 200)
    mean, bound = mean_margins(margins), lcb_margins(margins, 0.7)
    assert torch.equal(lcb_margins(-margins, 0.7), -bound)
    assert torch.equal(lcb_margins(margins, 0.0), mean)
    assert (bound * mean >= 0).all() and (bound.abs() <= mean.abs()).all()
    unsure = mean.abs() <= 0.7 * margins.std(0, correction=0)
    assert torch.equal(bound == 0, unsure) and 0 < unsure.sum() < 200
    torch.testing.assert_close(
        mean.abs() - bound.abs(), torch.where(unsure, mean.abs(), 0.7 * margins.std(0, correction=0))
    )


def test_members_that_agree_and_a_single_member_are_not_shrunk() -> None:
    margins = doubles(1, 7)
    assert torch.equal(lcb_margins(margins, 3.0), margins[0])
    torch.testing.assert_close(lcb_margins(margins.expand(4, 7), 3.0), margins[0], rtol=0, atol=1e-7)


def spread(tiny: Tiny) -> np.ndarray:
    """Give the ensemble's members calibratable margins of different scales; [k, n] of training pairs."""
    rng, margins = np.random.default_rng(0), []
    for scale, folder in enumerate(sorted((tiny.root / RHO / "scores/rm").glob("b-*")), start=1):
        for name in ("held_out", "train"):
            ids = pq.read_table(folder / f"{name}.parquet")["id"].to_pylist()
            values = scale * rng.normal(0.5, 1, size=len(ids))
            pq.write_table(
                pa.table({"id": ids, "chosen": values, "rejected": np.zeros(len(ids))}),
                folder / f"{name}.parquet",
            )
        margins.append(values)
    return np.stack(margins)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["mean", "lcb"])
@pytest.mark.parametrize("calibration", ["temperature", "none"])
def test_the_teacher_is_made_of_the_members_that_e_dpo_compares(
    tiny: Tiny, teacher: str, calibration: str
) -> None:
    raw = spread(tiny)
    settings = (f"calibration={calibration}", "calibration_mix=data")
    stages = (
        tiny.stage("e-dpo.yaml", *settings),
        tiny.stage("d-dpo.yaml", f"teacher={teacher}", "lcb_lambda=0.5", *settings),
    )
    assert {n: s.key for n, s in stages[0].inputs.items() if n.startswith("scores")} == {
        n: s.key for n, s in stages[1].inputs.items() if n.startswith("scores")
    }
    members, one = (calibrated_margins(job_of(stage, Workspace(tiny.root, "tiny"), {})) for stage in stages)
    stacked = torch.tensor(list(members.margins.values()), dtype=torch.float64).T
    assert (calibration == "none") == np.allclose(stacked, raw)
    expected = mean_margins(stacked) if teacher == "mean" else lcb_margins(stacked, 0.5)
    assert [row[0] for row in one.margins.values()] == pytest.approx(expected.tolist(), abs=1e-12)
    assert {len(row) for row in one.margins.values()} == {1} and list(one.margins) == list(members.margins)
    directory, manifest = tiny.make("d-dpo.yaml", f"teacher={teacher}", "lcb_lambda=0.5", *settings)
    start = float((expected**2).mean())
    assert column(directory, "loss")[0] < 6 * start and manifest["metrics"]["rows"] == len(expected)
    assert (f"temperature/{0.2:g}" in manifest["metrics"]) and not any(
        name.startswith("members/") for name in manifest["metrics"]
    )


def test_weight_averaged_members_are_one_reward_model_scored_like_any(tiny: Tiny) -> None:
    tiny.run("train-policy", "d-dpo.yaml", "--set", "teacher=warm")
    folder = tiny.root / RHO / "rm/warm"
    members = [load_file(path / "model.safetensors") for path in sorted((tiny.root / RHO / "rm").glob("b-*"))]
    found = load_file(folder / "model.safetensors")
    assert len(members) == 3 and found.keys() == members[0].keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, torch.stack([member[name] for member in members]).mean(0), rtol=1e-6, atol=1e-7
        )
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1 and model.config.pad_token_id is not None
    scores = [
        pq.read_table(tiny.root / RHO / f"scores/rm/{name}/train.parquet")["chosen"]
        for name in ("warm", "b-0.2", "all")
    ]
    assert scores[0] != scores[1] and scores[0] != scores[2]
    assert "up to date" in tiny.run("train-policy", "d-dpo.yaml", "--set", "teacher=warm", "--dry-run").stderr


def test_the_mean_of_equal_weights_is_those_weights_and_other_models_are_refused(tmp_path: Path) -> None:
    tensors = {"score.weight": torch.randn(1, 4), "layer": torch.randn(3, 4)}
    for index, contents in enumerate((tensors, tensors, {**tensors, "layer": torch.zeros(4, 3)})):
        (tmp_path / str(index)).mkdir()
        save_file(contents, tmp_path / str(index) / "model.safetensors")
    same = mean_weights([tmp_path / "0", tmp_path / "1", tmp_path / "0"])
    assert all(torch.equal(same[name], tensors[name]) for name in tensors)
    with pytest.raises(RunFailed, match="differ in name, shape or type"):
        mean_weights([tmp_path / "0", tmp_path / "2"])


# ── Recipes ─────────────────────────────────────────────────────────────────────────────────────────────────

NEW = {"teacher", "lcb_lambda", "length_alpha", "sft_weight", "label_smoothing", "simpo_gamma"}


def policy(**fields: object) -> PolicyRecipe:
    return PolicyRecipe.model_validate({"stage": "policy", **fields})


@pytest.mark.parametrize("objective", ["dpo", "ipo", "ipo-norm", "p-dpo", "d-dpo", "dp-dpo", "e-dpo"])
def test_the_keys_of_the_papers_policies_know_nothing_of_rivals(objective: str) -> None:
    assert not NEW & result_fields(policy(objective=objective)).keys()


def test_a_rivals_key_holds_its_own_field_and_no_others() -> None:
    for objective, setting in RIVALS.items():
        assert NEW & result_fields(policy(objective=objective)).keys() == {setting.split("=")[0]}
    for teacher, fields in {
        "mean": {"teacher"},
        "warm": {"teacher"},
        "lcb": {"teacher", "lcb_lambda"},
    }.items():
        found = result_fields(policy(objective="dp-dpo", teacher=teacher))
        assert NEW & found.keys() == fields
        assert "ensemble" in found and "reward_model" not in found and "ensemble_min" not in found
        assert ("calibration" in found) == (teacher != "warm")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("teacher=warm", "ensemble=[rm.yaml, oracle.yaml]"),
            "teacher: warm averages members of one initialisation",
        ),
        (("teacher=mean", "ensemble=[rm.yaml, oracle.yaml]"), "have no bias b of their own"),
        (("teacher=median",), "teacher"),
        (("teacher=lcb", "ensemble=[]"), "teacher: lcb needs at least one reward model"),
    ],
)
def test_teachers_that_cannot_be_made_are_refused_before_anything_is_built(
    empty: Tiny, settings: tuple[str, ...], message: str
) -> None:
    arguments = [word for setting in settings for word in ("--set", setting)]
    found = empty.run("train-policy", "d-dpo.yaml", "--dry-run", *arguments, code=2)
    assert message in found.stderr and "Traceback" not in found.stderr


def test_half_of_all_labels_flipped_cannot_be_undone() -> None:
    with pytest.raises(RecipeError, match="label_smoothing"):
        load("miniature/robust-dpo.yaml", overrides=["label_smoothing=0.5"])


def test_rivals_figure_gives_every_policy_as_many_values() -> None:
    figure = load("miniature/rivals.yaml").recipe
    recipes = [load(f"miniature/{variant.recipe}").recipe for variant in figure.variants]
    assert [len(recipe.grid["beta"]) for recipe in recipes] == [7] * 10
    assert {recipe.objective for recipe in recipes} >= RIVALS.keys()
    assert {recipe.teacher for recipe in recipes} == {"one", "mean", "lcb", "warm"}
