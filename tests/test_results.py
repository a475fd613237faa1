"""What a person is told of an artifact: what matters first, with its interval; and while it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import RHO, SEED, Tiny, manifest

from rpo_cli.artifacts import Workspace, write_json
from rpo_cli.runs.results import in_words, latest, training_words, warnings_of
from rpo_cli.runs.session import Session

EVALUATED = {
    "advantage": 0.0812, "advantage_low": -0.761, "advantage_high": 0.894, "prompts": 300, "samples": 300,
    "tokens_mean": 24.0, "baseline_tokens_mean": 24.04, "win_rate": 0.67, "win_rate_low": 0.61,
    "win_rate_high": 0.73, "length_controlled_advantage": 0.1, "length_controlled_advantage_low": -0.7,
    "length_controlled_advantage_high": 0.9, "kl_to_reference": 1.2, "kl_to_reference_low": 1.1,
    "kl_to_reference_high": 1.3, "unfinished_share": 0.25, "baseline_unfinished_share": 0.0,
}  # fmt: skip


TRAINED = {"first_loss": 0.7, "last_loss": 0.5, "steps": 20, "rows": 9}


def test_an_evaluation_is_said_in_human_order_with_intervals() -> None:
    said = in_words("evaluate", EVALUATED)
    assert said[0] == (
        "advantage +0.08 [-0.76, +0.89] on 300 prompts; tokens 24.0 against 24.0; wins 67 [61, 73] %"
    )
    assert "KL to the reference 1.20 [1.10, 1.30] nats" in said[1]
    assert in_words("evaluate", EVALUATED, {"temperature": 1.0, "top_p": 1.0}) == said


@pytest.mark.parametrize("recipe", [{"temperature": 0.7, "top_p": 1.0}, {"temperature": 1.0, "top_p": 0.9}])
def test_samples_that_are_not_the_policys_own_draws_have_no_kl(recipe: dict[str, float]) -> None:
    said = " ".join(in_words("evaluate", EVALUATED, recipe))
    assert "log-ratio to the reference 1.20 [1.10, 1.30] nats" in said and "KL" not in said


def test_an_evaluation_without_an_oracle_says_what_needs_none() -> None:
    rewards = ("advantage", "win_rate", "length_controlled")
    found = {name: value for name, value in EVALUATED.items() if not name.startswith(rewards)}
    assert in_words("evaluate", found)[0] == (
        "tokens 24.0 against 24.0 on 300 prompts; KL to the reference 1.20 [1.10, 1.30] nats"
    )


def test_more_than_a_fifth_of_unfinished_samples_is_a_warning() -> None:
    assert "25 % of the samples reached max_new_tokens" in warnings_of(EVALUATED)[0]
    assert warnings_of(EVALUATED | {"unfinished_share": 0.2}) == []


def test_what_has_no_words_of_its_own_is_not_hidden() -> None:
    assert in_words("data", {"rows/pairs": 3}) == [] and in_words("evaluate", {"other": 1}) == []
    assert in_words("relabel", {"rows": 3}) == [] and in_words("policy", {"first_loss": 1.0}) == []


def test_a_loss_that_was_logged_once_is_called_a_mean() -> None:
    found = {"first_loss": 0.6645, "last_loss": 0.6645, "steps": 20, "rows": 9}
    assert in_words("sft", found)[0] == "mean loss 0.6645 in 20 steps on 9 rows"
    assert in_words("sft", found | {"last_loss": 0.5})[0] == "loss 0.6645 to 0.5 in 20 steps on 9 rows"


def test_commands_end_in_results_a_person_reads_and_json_has_every_metric(built: Tiny) -> None:
    trained = built.run("train-policy", "e-dpo.yaml")
    assert "loss " in trained.stdout and "members taught: 0.2 " in trained.stdout
    assert "at its end accuracy " in trained.stdout and "KL " in trained.stdout
    model = built.run("train-rm", "rm.yaml").stdout
    assert "held-out accuracy " in model and "where the shorter won" in model
    assert "advantage " in built.run("evaluate", "e-dpo.yaml").stdout
    path = f"{RHO}/policies/e-dpo/beta-0.2"
    found = json.loads(built.run("train-policy", "e-dpo.yaml", "--json").stdout)[path]["metrics"]
    assert found == manifest(built.root, path)["metrics"] and "ended/rewards/accuracies" in found


def test_a_path_is_printed_as_it_is_called_whatever_brackets_and_colons_it_has(
    empty: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, workspace = empty.stage("data.yaml"), Workspace(tmp_path / "[a]" / "[/b]z" / ":x:", "tiny")
    session = Session(recipe="data.yaml")
    for kind, metrics, said in (
        ("data", {"of [/b] and :x:": 1}, "of [/b] and :x:"),
        ("policy", {**TRAINED, "members/[b]": 0.5}, "members taught: [b] 50%"),
    ):
        (workspace.root / stage.path).mkdir(parents=True, exist_ok=True)
        nothing: dict[str, object] = {"recipe": {}, "options": {}, "inputs": {}}
        known = {"kind": kind, "key": stage.key, "metrics": metrics, **nothing}
        write_json(workspace.root / stage.path / "manifest.json", known)
        session.result(workspace, [stage])
        told = capsys.readouterr().out
        assert told.splitlines()[0] == str(workspace.root / stage.path) and said in told
    session.say("mine.yaml:x: unknown")
    assert capsys.readouterr().err == "mine.yaml:x: unknown\n"


def test_manifests_from_before_a_metric_was_measured_are_told_without_it(built: Tiny) -> None:
    for kind, path in (("policy", f"{RHO}/policies/e-dpo/beta-0.2"), ("reward", f"{SEED}/oracle")):
        metrics = manifest(built.root, path)["metrics"]
        old = {name: value for name, value in metrics.items() if "ended/" not in name and "/" not in name}
        assert 0 < len(in_words(kind, old)) <= len(in_words(kind, metrics))


def test_while_a_policy_trains_its_accuracy_margin_and_kl_are_told(tmp_path: Path) -> None:
    step = {"step": 3, "loss": 0.52, "rewards/accuracies": 0.71, "rewards/margins": 0.42, "kl_data": 2.5}
    journal = tmp_path / "metrics.jsonl"
    assert latest(journal) == ""
    journal.write_text(
        json.dumps({"step": 2, "loss": 9.0}) + "\n" + json.dumps(step) + "\n" + '{"step": 4, "lo'
    )
    told = "loss 0.52, accuracy 71%, margin +0.42"
    # What its own pairs say is no KL to the reference.
    assert latest(journal) == f"{told}, log-ratio -2.50" == training_words(step)
    assert training_words(step | {"kl_to_reference": 1.3}) == f"{told}, forward KL 1.30"
    journal.write_text("x" * 5000)
    assert latest(journal) == ""


@pytest.mark.parametrize(("objective", "distance"), [("dpo", "log-ratio "), ("e-dpo", "forward KL ")])
def test_every_policys_journal_has_accuracy_margin_and_how_far_it_went(
    tiny: Tiny, objective: str, distance: str
) -> None:
    folder, _ = tiny.make(f"{objective}.yaml", "max_steps=1")
    said = latest(folder / "metrics.jsonl")
    assert all(name in said for name in ("loss ", "accuracy ", "margin ", distance))


HELD_OUT = {"rows": 40, "accuracy": 0.6, "margin": 0.3, "validation/rows": 16, "validation/accuracy": 0.75,
            "validation/margin": 0.4, "test/rows": 24, "test/accuracy": 0.5, "test/margin": 0.2}  # fmt: skip


def test_a_share_of_held_out_pairs_has_its_interval_and_the_half_that_chose_nothing_its_own() -> None:
    assert in_words("held_out", HELD_OUT) == [
        "held-out accuracy 60 % [45, 74] on 40 pairs, 50 % [31, 69] on the 24 of them that chose no "
        "strength or checkpoint (which may be chosen on the others); margin +0.30 nats"
    ]
    undivided = {"rows": 40, "accuracy": 0.6, "margin": 0.3}  # of an older version, or of one half alone
    said = ["held-out accuracy 60 % [45, 74] on 40 pairs; margin +0.30 nats"]
    assert in_words("held_out", undivided) == said
    alone = undivided | {"test/rows": 0, "test/accuracy": 0.6, "validation/rows": 40}
    assert in_words("held_out", alone) == said
    looked = {**TRAINED, "monitor/accuracy": 0.75, "monitor/margin": 0.1, "monitor/tokens": 9.0}
    looked |= {"monitor/tokens_before": 8.0, "monitor/pairs": 8}
    assert "held-out accuracy 75 % [41, 93] on 8 pairs, margin +0.10;" in in_words("policy", looked)[1]
    scored = {"train/accuracy": 0.9, "train/rows": 100, "held_out/accuracy": 0.75, "held_out/rows": 8}
    assert in_words("scores", scored) == [
        "prefers what the labels prefer in 90 % [83, 94] of the 100 training pairs and 75 % [41, 93] of the "
        "8 held-out pairs"
    ]


def test_prompts_that_were_trained_on_and_equal_rewards_are_said_beside_the_accuracy() -> None:
    measured = {**TRAINED, "held_out_accuracy": 0.5, "held_out_rows": 8}
    assert in_words("reward", measured)[0] == "held-out accuracy 50 % [22, 78] on 8 pairs"
    more = {"held_out_shared_prompts": 3, "held_out_equal_rewards": 2}
    said = in_words("reward", measured | more)
    assert said[0] == "held-out accuracy 50 % [22, 78] on 8 pairs, 3 of them of prompts that were trained on"
    assert said[1] == "equal rewards in 2 of these pairs, which count as wrong"


def test_a_judges_line_says_how_many_comparisons_are_of_one_text() -> None:
    of = {"win_rate": 0.5, "length_controlled_win_rate": 0.5, "comparisons": 4, "identical": 4}
    (said,) = in_words("judge", {f"baseline/{name}": value for name, value in of.items()})
    assert said == (
        "against the baseline: wins 50 % of 4 comparisons, 50 % at equal length; 4 of them the same text, "
        "a tie that nobody was asked about"
    )
