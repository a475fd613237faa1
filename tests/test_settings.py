"""What a recipe sets is what is computed with: the optimiser's numbers, a purpose's seed, a rho's draws."""

from __future__ import annotations

import pytest
import torch
from conftest import RHO, SEED, Tiny, column, journal, weights
from safetensors.torch import load_file
from worlds import Plain

from rpo_cli.errors import RunFailed
from rpo_cli.objectives.members import MemberChoice

SHORT = ("max_steps=3", "learning_rate=0.01")
ADAPTER = ("use_peft=true", "lora_r=2", "lora_target_modules=all-linear")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "others"),
    [
        ("weight_decay=0.5", ()),
        ("adam_beta1=0.5", ()),
        ("adam_beta2=0.9", ()),
        ("max_grad_norm=0.001", ("optim=sgd", "learning_rate=0.1")),
        ("lora_r=4", ADAPTER),
        ("lora_alpha=2", ADAPTER),
        ("lora_target_modules=[q_proj]", ADAPTER),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft asks transformers for an old name
def test_every_number_of_the_optimiser_reaches_it(tiny: Tiny, setting: str, others: tuple[str, ...]) -> None:
    without, others_only = (tiny.make("dpo.yaml", *SHORT, *others, *more)[0] for more in ((), (setting,)))
    assert weights(without) != weights(others_only)


def test_gradients_are_clipped_to_the_norm_of_the_recipe(tiny: Tiny) -> None:
    """Plain descent by one clipped step of norm 0.001, at a rate of 0.1."""
    directory, _ = tiny.make(
        "dpo.yaml", "max_steps=1", "optim=sgd", "learning_rate=0.1", "max_grad_norm=0.001"
    )
    before, after = (Plain(tiny.root).policy(path).state_dict() for path in (f"{SEED}/sft", directory))
    names = [name for name in before if name != "lm_head.weight"]  # tied to the embeddings
    moved = torch.cat([(after[name] - before[name]).flatten() for name in names]).double().norm()
    assert float(moved) == pytest.approx(1e-4, rel=0.02)


def test_the_learning_rate_is_the_schedulers_with_its_warm_up(tiny: Tiny) -> None:
    settings = ("max_steps=6", "learning_rate=0.01", "warmup_steps=2")
    for scheduler, expected in {
        "linear": [0.0, 0.005, 0.01, 0.0075, 0.005, 0.0025],
        "constant_with_warmup": [0.0, 0.005, 0.01, 0.01, 0.01, 0.01],
    }.items():
        directory, _ = tiny.make("dpo.yaml", *settings, f"lr_scheduler_type={scheduler}")
        assert column(directory, "learning_rate") == pytest.approx(expected)


@pytest.mark.slow
def test_a_seed_of_one_purpose_changes_the_draws_for_it_alone(tiny: Tiny) -> None:
    for recipe, purpose, other in (
        ("rm.yaml", "rm_seed", None),
        ("dpo.yaml", "policy_seed", "sampling_seed"),
    ):
        before, again, changed = (
            weights(tiny.make(recipe, "max_steps=2", *more)[0])
            for more in ((), (f"{purpose}=0",), (f"{purpose}=5",))
        )
        assert before == again != changed
        if other is not None:
            assert weights(tiny.make(recipe, "max_steps=2", f"{other}=5")[0]) == before


def test_the_head_that_a_reward_model_begins_with_is_drawn_under_its_seed(tiny: Tiny) -> None:
    heads = [
        load_file(directory / "model.safetensors")["score.weight"]
        for seed in (0, 0, 5)
        for directory, _ in [tiny.make("rm.yaml", "max_steps=1", "learning_rate=1e-12", f"rm_seed={seed}")]
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.allclose(heads[0], heads[2], atol=1e-3)


def test_pairs_of_two_rhos_are_drawn_apart(tiny: Tiny) -> None:
    """Drawn alike, the pairs of the smaller share would be the first of those of the larger one."""
    tiny.make("splits.yaml", "rho=0.4")
    longer = {}
    for rho in (0.4, 0.5):
        table = Plain(tiny.root).table(f"{SEED}/rho-{rho:g}/splits/train.parquet")
        longer[rho] = set(table.loc[table["longer_preferred"] == 1, "id"])
    assert len(longer[0.4]) < len(longer[0.5]) and not longer[0.4] <= longer[0.5]
    assert f"{SEED}/rho-0.5" == RHO


def test_the_data_sets_choice_follows_the_mean_of_each_step_of_its_own() -> None:
    """Two micro-batches a step; the average forgets all but a thousandth of the last step."""
    choice = MemberChoice("dataset", ["0.2", "0.8"], torch.tensor([[1.0, 1.0], [2.0, 2.0]]), 0.001)
    taught = []
    for pieces in (([9.0, 1.0], [5.0, 3.0]), ([0.0, 2.0], [2.0, 4.0]), ([4.0, 3.0], [4.0, 4.0])):
        choice.begin_step(None)
        for piece in pieces:
            choice.reduce(torch.tensor(piece)[:, None].expand(2, 3), lambda values: values)
        choice.end_step(lambda values: values, lambda values: values)
        taught.append(choice.shares())
    assert [share["members/0.2"] for share in taught] == [1, 0, 1]
    assert choice.averages.tolist() == pytest.approx([4.0, 3.5], abs=0.01)
    assert choice.all_shares() == {"members/0.2": 2 / 3, "members/0.8": 1 / 3}


@pytest.mark.parametrize("recipe", ["e-dpo.yaml", "rm.yaml"])
def test_a_line_holds_the_metrics_of_its_own_step(tiny: Tiny, recipe: str) -> None:
    """Losses are means since the line before; what is measured on a batch is measured on the line's own."""
    often = {line["step"]: line for line in journal(tiny.make(recipe, "logging_steps=1")[0])}
    lines = journal(tiny.make(recipe, "logging_steps=4")[0])
    names = (
        {"rewards/margins", "logps/chosen", "kl_to_reference", "gamma"}
        if recipe == "e-dpo.yaml"
        else {"margin"}
    )
    assert [line["step"] for line in lines] == [4, 6]
    for line in lines:
        assert {name: line[name] for name in names} == {name: often[line["step"]][name] for name in names}
    for name in names:
        assert len({line[name] for line in often.values()}) == 6


def test_a_loss_that_overflows_is_seen_though_its_gradient_does_not(tiny: Tiny) -> None:
    """A target of 2e19 squared is beyond float32, twice as much is not."""
    with pytest.raises(RunFailed, match=r"loss is inf at step 1; try a smaller learning_rate"):
        tiny.make("ipo-norm.yaml", "tau=2.5e-20", "per_device_train_batch_size=64", "max_steps=1")


def test_pairs_have_the_bias_of_the_recipe_to_the_nearest_pair(tiny: Tiny) -> None:
    """29 of 100, though 100 * 0.29 is a little less."""
    _, made = tiny.make("splits.yaml", "rho=0.29", "num_pairs=100", "held_out=4")
    assert made["metrics"]["train/longer_share"] == 0.29


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "rows", "epochs", "steps"),
    [("dpo.yaml", 64, 1.5, 12), ("sft.yaml", 200, 0.2, 5), ("oracle.yaml", 360, 0.05, 3)],
)
def test_epochs_are_steps_over_the_rows_that_are_trained_on(
    tiny: Tiny, recipe: str, rows: int, epochs: float, steps: int
) -> None:
    """Batches of 8: the same training, to the byte, as under max_steps; the steps stand in the manifest."""
    tiny.edit("policy.yaml", "max_new_tokens: 4\n")
    directory, manifest = tiny.make(recipe, f"num_train_epochs={epochs}")
    assert manifest["metrics"]["rows"] == rows and manifest["metrics"]["steps"] == steps
    by_epochs = weights(directory)
    assert weights(tiny.make(recipe, f"max_steps={steps}")[0]) == by_epochs


def test_epochs_take_the_place_of_steps_and_steps_of_epochs(empty: Tiny) -> None:
    empty.edit("dpo.yaml", "num_train_epochs: 2\n")
    said = empty.run("train-policy", "dpo.yaml", "--dry-run").stderr
    assert "8 rows x 1 accumulated x 1 process, 2 epochs\n" in said
    again = empty.run("train-policy", "dpo.yaml", "--set", "max_steps=3", "--dry-run").stderr
    assert "1 process, 3 steps\n" in again
    empty.edit("dpo.yaml", "max_steps: 6\n")
    wrong = empty.run("train-policy", "dpo.yaml", "--dry-run", code=2).stderr
    assert ": num_train_epochs: max_steps is given too; write one of the two\n" in wrong


def test_epochs_change_no_key_where_they_are_not_given(empty: Tiny) -> None:
    without = empty.stage("dpo.yaml").key
    assert empty.stage("dpo.yaml", "num_train_epochs=null", "max_steps=6").key == without
    assert empty.stage("dpo.yaml", "num_train_epochs=1").key != without


def test_a_warm_up_longer_than_the_epochs_is_refused_with_their_steps(tiny: Tiny) -> None:
    tiny.edit("sft.yaml", "lr_scheduler_type: linear\nwarmup_steps: 14\nnum_train_epochs: 0.5\n")
    text = (tiny.suite / "sft.yaml").read_text()
    (tiny.suite / "sft.yaml").write_text(text.replace("max_steps: 5\n", ""))
    said = tiny.run("train-sft", "sft.yaml", code=2).stderr
    passes = "0.5 epochs over 200 rows in batches of 8"
    assert f"warmup_steps: 14 is more than all 13 steps ({passes})" in said
