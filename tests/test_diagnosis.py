"""Diagnosis of reward models: what is measured is what was put in, and what is advised follows from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import RHO, SEED, Tiny, manifest

from rpo_cli.errors import BadInput
from rpo_cli.recipes.schema import DataRecipe
from rpo_cli.runs.diagnose import attributes_of
from rpo_cli.stages.advice import Scores, advice
from rpo_cli.stages.data.build import read_table
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import find_rows, write_columns, write_rows
from rpo_cli.stages.data.token_cache import TokenCache
from rpo_cli.stages.diagnosis import (
    Diagnosis,
    agreement,
    calibration_error,
    diagnosed,
    groups_of,
    price_of_tokens,
    temperature_of,
)
from rpo_cli.stages.splits import LONGER, SHORTER, TIE
from rpo_cli.statistics import Array, Interval, wilson

KINDS = np.repeat([LONGER, SHORTER, TIE], [300, 200, 20])
LENGTHS = np.repeat([6.0, -5.0, 0.0], [300, 200, 20])


def calibrated(size: int, seed: int = 0) -> Array:
    """Margins whose sign is right as often as sigma of their size says."""
    rng = np.random.default_rng(seed)
    sizes = np.abs(rng.normal(0, 2, size))
    return np.where(rng.random(size) < 1 / (1 + np.exp(-sizes)), sizes, -sizes)


def right_in(longer: float, shorter: float) -> Diagnosis:
    """A model that is right in these shares of the pairs of `KINDS`, whatever their lengths."""
    return of_counts((300, longer), (200, shorter), (20, 0.5))


def of_counts(*kinds: tuple[int, float]) -> Diagnosis:
    """A model of so many pairs whose longer response won, whose shorter one did, and of ties, each with the
    share that it has right.
    """
    counts = [count for count, _ in kinds]
    right = np.concatenate([np.arange(count) < share * count for count, share in kinds])
    margins = np.where(right, 1.0, -1.0)
    return diagnosed(margins, np.repeat([LONGER, SHORTER, TIE], counts), np.repeat([6.0, -5.0, 0.0], counts))


def test_calibrated_margins_have_no_calibration_error_and_temperature_one() -> None:
    margins = calibrated(200_000)
    assert calibration_error(margins) < 0.005
    assert temperature_of(margins)[0] == pytest.approx(1, abs=0.02)


def test_margins_three_times_too_large_have_temperature_three_and_a_calibration_error() -> None:
    margins = 3 * calibrated(200_000)
    assert temperature_of(margins)[0] == pytest.approx(3, abs=0.06)
    # Guo et al.'s sum over bins, done by hand from the confidences that were put in.
    right, confidence = margins > 0, 1 / (1 + np.exp(-np.abs(margins)))
    error = 0.0
    for low in np.arange(0.5, 1, 0.05):
        some = (confidence >= low) & ((confidence < low + 0.05) | (low > 0.94))
        error += abs(float(right[some].sum() - confidence[some].sum()))
    assert calibration_error(margins) == pytest.approx(error / len(margins), abs=1e-3)
    assert error / len(margins) > 0.1


def test_a_temperature_that_cannot_be_fitted_is_none_with_the_reason() -> None:
    found, why = temperature_of(np.ones(5))
    assert found is None and "separable" in why


def test_the_price_of_tokens_that_was_put_in_is_found_whichever_response_was_chosen() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(0, 12, 50_000)
    margins = 0.05 * tokens + rng.normal(0, 2, 50_000)
    turned = np.where(rng.random(50_000) < 0.5, 1, -1)
    price = price_of_tokens(turned * margins, turned * tokens)
    assert price is not None
    deviation = np.sqrt((0.05**2 * 144 + 4) / 2)
    assert price.mean == pytest.approx(0.5 / deviation, abs=0.02)
    assert price_of_tokens(margins, np.zeros(50_000)) is None


def test_intervals_hold_what_they_are_of_in_about_95_of_100_draws() -> None:
    rng = np.random.default_rng(0)
    hits = [wilson(int(rng.binomial(60, 0.7)), 60) for _ in range(1000)]
    assert 0.92 < np.mean([each.low <= 0.7 <= each.high for each in hits]) < 0.98
    held = []
    for _ in range(1000):
        tokens = rng.normal(0, 10, 100)
        noise = rng.normal(0, 1, 100) * (1 + 0.1 * np.abs(tokens))  # wider where lengths differ more
        margins = 0.1 * tokens + noise
        price = price_of_tokens(margins, tokens)
        assert price is not None
        held.append(price.low <= 1.0 / np.sqrt((margins**2).mean() / 2) <= price.high)
    assert 0.90 < np.mean(held) < 0.98


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_share_is_that_of_published_tables(
    hits: int, count: int, low: float, high: float
) -> None:
    """Newcombe 1998, table I, method 3."""
    found = wilson(hits, count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def test_nothing_counted_has_no_share() -> None:
    assert np.isnan(wilson(0, 0)).all()
    low, high = wilson(0, 10)[1:]
    assert low == 0 and 0.2 < high < 0.4


def test_accuracy_is_told_apart_by_length_and_by_every_column_of_few_values() -> None:
    margins = np.where(KINDS == LONGER, 1.0, -1.0)
    sources = ["web" if i % 2 else "forum" for i in range(520)]
    found = groups_of(margins, KINDS, {"source": sources, "name": list(range(520))})
    assert list(found) == ["all", "longer", "shorter", "ties", "source=forum", "source=web"]
    assert [found[name].pairs for name in found] == [520, 300, 200, 20, 260, 260]
    assert found["longer"].accuracy.mean == 1 and found["shorter"].accuracy.mean == 0


def test_models_that_agree_in_everything_but_scale_agree_wholly() -> None:
    margins = calibrated(500)
    kinds = np.resize([LONGER, SHORTER, TIE], len(margins))
    found = agreement(np.stack([margins, 5 * margins]), kinds)
    assert found is not None and agreement(margins[None], kinds) is None
    numbers = (found.signs, found.correlation, found.lowest, found.deviation)
    assert numbers == pytest.approx((1, 1, 1, 0))
    against = agreement(np.stack([margins, -margins]), kinds)
    assert against is not None and against.signs == 0 and against.correlation == pytest.approx(-1)
    three = agreement(np.stack([margins, 2 * margins, -margins]), kinds)
    assert three is not None and (three.lowest, three.correlation) == pytest.approx((-1, -1 / 3))


def test_what_members_differ_in_by_length_alone_is_told_from_the_rest() -> None:
    rng = np.random.default_rng(0)
    kinds, members = np.resize([LONGER, SHORTER], 1000), np.array([[-1.0], [0.0], [1.0]])
    quality = rng.normal(size=1000) * 100  # so large that dividing by their scale hardly changes the members
    told = agreement(quality + members * kinds, kinds)
    assert told is not None and told.by_length == pytest.approx(1, abs=0.02)
    half = agreement(quality + members * kinds + rng.normal(size=(3, 1000)), kinds)
    assert half is not None and half.by_length == pytest.approx(0.5, abs=0.04)
    blind = agreement(quality + rng.normal(size=(3, 1000)), kinds)
    assert blind is not None and blind.by_length < 0.01
    ties = agreement(quality + members * kinds, np.full(1000, TIE))
    assert ties is not None and ties.by_length == 0


@pytest.mark.parametrize(
    ("longer", "shorter", "says"),
    [
        (0.95, 0.2, "has learnt length: where the shorter response won"),
        (0.2, 0.95, "has learnt length: where the longer response won"),
        (0.5, 0.5, "not shown to know these labels"),
        (0.2, 0.2, "contradicts these labels more often than it agrees"),
        (0.5, 0.2, "contradicts these labels more often than it agrees"),
        (0.6, 0.58, "not shown to know more than length does"),
        (0.95, 0.7, "leans on length: it is right more often where the longer"),
        (0.95, 0.47, "leans on length: it is right more often where the longer"),
        (0.85, 0.84, "compare d-dpo with dpo"),
    ],
)
def test_what_is_advised_of_one_reward_model_follows_from_its_accuracies(
    longer: float, shorter: float, says: str
) -> None:
    assert says in advice(None, [right_in(longer, shorter)])[0]


def test_a_side_is_blind_only_where_enough_pairs_show_it_and_the_other_side_is_seen() -> None:
    said = advice(None, [of_counts((4, 0), (1, 1), (0, 0))])[0]
    assert "not shown to know these labels" in said and "Train it longer" in said
    assert of_counts((9, 0), (60, 0.9), (0, 0)).blind_side is None
    assert of_counts((10, 0), (60, 0.9), (0, 0)).blind_side == "longer"
    assert of_counts((40, 0.1), (60, 0.5), (0, 0)).blind_side is None


@pytest.mark.parametrize(
    ("against", "equal", "says"),
    [
        (18, 0, "contradict the label in 18 of 50 pairs, 36 % [24, 50]. There d-dpo follows the scores"),
        (20, 8, "40 % [28, 54], and are equal in 8, and are not shown to go with the labels. There"),
        (40, 0, "wrong way round"),
        (0, 0, "in 0 of 50 pairs, 0 % [0, 7]: d-dpo adds how large"),
    ],
)
def test_of_scores_it_is_said_how_many_contradict_the_labels_and_not_to_train_them(
    against: int, equal: int, says: str
) -> None:
    said = advice(None, [right_in(0.5, 0.5)], None, Scores(["a", "b"], 50, against, equal))[0]
    assert f"The scores (a, b) contradict the label in {against}" in said and says in said
    assert "rain" not in said and "reward model" not in said


def test_a_side_of_length_on_which_nothing_is_shown_is_not_said_to_be_known() -> None:
    few = advice(None, [of_counts((60, 0.8), (40, 0.55), (0, 0))])[0]
    assert "not shown where the shorter response won" in few and "whichever" not in few
    ties = advice(None, [of_counts((0, 0), (0, 0), (200, 0.9))])[0]
    assert "not shown where the longer or the shorter response won" in ties


def test_length_alone_is_right_in_half_of_the_pairs_that_are_about_equally_long() -> None:
    told = advice(None, [of_counts((20, 1), (2, 1), (178, 0.9))])[0]
    assert "knows these labels" in told and "more than length" not in told
    unknown = advice(None, [of_counts((160, 0.75), (20, 0.6), (20, 0.5))])[0]
    assert "not shown to know more than length does" in unknown and "85 % of these pairs" in unknown


def test_what_few_pairs_do_not_show_is_not_called_impossible() -> None:
    found = advice(None, [of_counts((10, 0.7), (10, 0.7), (0, 0))])
    assert "not shown to know these labels" in found[0] and not any("cannot" in line for line in found)
    assert "20 held-out pairs are too few" in found[-1]
    members = advice(None, [of_counts((10, 0.7), (10, 0.7), (0, 0))] * 2)
    assert not any("cannot" in line for line in members) and "20 held-out pairs are too few" in members[-1]


def test_a_model_that_is_wrong_more_often_than_right_is_not_said_to_have_a_half_inside() -> None:
    assert "inside" not in advice(None, [right_in(0.2, 0.2)])[0]


def test_a_price_of_length_is_said_to_go_with_length_and_promises_nothing_of_a_policy() -> None:
    told = [line for line in advice(None, [right_in(0.95, 0.8)]) if "go with length" in line]
    assert len(told) == 1 and "longer" in told[0] and "a policy that follows it gets" not in told[0]
    against = [line for line in advice(None, [right_in(0.55, 0.95)]) if "go with length" in line]
    assert len(against) == 1 and "the shorter" in against[0]


@pytest.mark.parametrize(("pairs", "sign", "said"), [(500, 1, True), (60, 1, False), (500, 0, False)])
def test_a_scale_of_margins_is_advised_on_where_enough_pairs_show_that_the_labels_are_known(
    pairs: int, sign: int, said: bool
) -> None:
    margins = 5 * calibrated(pairs)
    kinds = np.where(np.arange(pairs) % 2 == 0, LONGER, SHORTER)
    if not sign:
        margins = margins * np.random.default_rng(1).choice([1, -1], pairs)
    found = diagnosed(margins, kinds, 3.0 * kinds)
    found = replace(found, temperature=5.0)
    assert any("times the beta" in line for line in advice(None, [found])) == said


@pytest.mark.parametrize(
    ("members", "signs", "says"),
    [
        (((0.95, 0.2), (0.9, 0.3)), 0.9, "All members have learnt length"),
        (((0.95, 0.2), (0.8, 0.8)), 0.8, "Some members have learnt length, and of others that is not shown"),
        (((0.95, 0.3), (0.3, 0.95)), 0.6, "Members have learnt length in opposite directions"),
        (((0.95, 0.3), (0.3, 0.95), (0.8, 0.8)), 0.6, "Members have learnt length in opposite directions"),
        (((0.75, 0.75), *[(0.52, 0.52)] * 3), 0.6, "Only 1 of 4 members is shown to know these labels"),
        (((0.75, 0.75), (0.75, 0.75), (0.52, 0.52)), 0.6, "Only 2 of 3 members are shown to know"),
        (((0.5, 0.5), (0.5, 0.45)), 0.9, "No member is shown to know these labels"),
        (((0.9, 0.9), (0.9, 0.9)), 0.97, "nearly one model"),
        (((0.8, 0.8), (0.8, 0.8)), 0.7, "contradict each other"),
        (((0.9, 0.8), (0.8, 0.9)), 0.85, "compare e-dpo and d-dpo"),
    ],
)
def test_what_is_advised_of_members_follows_from_their_accuracies_and_agreement(
    members: tuple[tuple[float, float], ...], signs: float, says: str
) -> None:
    agreed = agreement(np.ones((2, 4)), np.full(4, LONGER))
    assert agreed is not None
    found = replace(agreed, signs=signs)
    told = advice(None, [right_in(*each) for each in members], found)[0]
    assert says in told and "mean does not" not in told and "or their mean, would" not in told


def test_a_bias_of_the_labels_is_said_with_its_side() -> None:
    assert "prefer the longer response in 80 %" in advice(Interval(0.8, 0.7, 0.9), [])[0]
    assert advice(Interval(0.5, 0.4, 0.6), []) == []


def test_a_policys_teachers_and_oracle_are_diagnosed_from_scores_that_are_there(tiny: Tiny) -> None:
    shown = tiny.run("diagnose", "e-dpo.yaml")
    for part in ("train", "held_out", "0.2", "0.8", "oracle", "longer won", "shorter won", "ECE"):
        assert part in shown.stdout
    assert "oracle made these labels" in shown.stdout
    assert "1 stage to build" in shown.stderr  # the oracle's scores
    again = tiny.run("diagnose", "e-dpo.yaml", "--json")
    assert "0 stages to build" in again.stderr
    found = json.loads(again.stdout)[f"{RHO}/splits"]
    assert found["pairs"]["train"]["longer"]["mean"] == 0.5 and found["labelled_by"] == "oracle"
    groups = found["reward_models"]["0.2"]["accuracy"]
    held_out = found["pairs"]["held_out"]["pairs"]
    assert groups["all"]["pairs"] == sum(groups[kind]["pairs"] for kind in ("longer", "shorter")) == held_out
    scores = manifest(tiny.root, f"{RHO}/scores/rm/b-0.2")["metrics"]
    assert groups["all"]["mean"] == scores["held_out/accuracy"]


def test_a_reward_recipes_model_and_its_members_are_diagnosed_on_held_out_pairs(tiny: Tiny) -> None:
    found = json.loads(tiny.run("diagnose", "oracle.yaml", "--json").stdout)[f"{SEED}/data"]
    assert set(found["reward_models"]) == {"oracle"} and found["labelled_by"] is None
    groups = found["reward_models"]["oracle"]["accuracy"]
    trained = manifest(tiny.root, f"{SEED}/oracle")["metrics"]
    assert groups["all"]["mean"] == pytest.approx(trained["held_out_accuracy"])
    for name, pairs in (("longer", groups["longer"]), ("shorter", groups["shorter"])):
        assert trained[f"held_out_accuracy/{name}"] == pytest.approx(pairs["mean"])
        assert trained[f"held_out_rows/{name}"] == pairs["pairs"]
    members = json.loads(tiny.run("diagnose", "rm.yaml", "--ensemble", "--json").stdout)[f"{RHO}/splits"]
    assert set(members["reward_models"]) == {"0.2", "0.5", "0.8"} and members["agreement"] is not None


def test_pairs_without_a_reward_model_are_diagnosed_for_their_lengths(tiny: Tiny) -> None:
    shown = tiny.run("diagnose", "data.yaml").stdout
    assert "pairs_validation" in shown and "reward model" not in shown
    assert tiny.run("diagnose", "sft.yaml", code=2).stderr.strip().endswith("reward or policy recipe")
    assert "members are a reward recipe's" in tiny.run("diagnose", "data.yaml", "--ensemble", code=2).stderr


def test_attributes_of_the_data_tell_pairs_apart_whatever_relabelling_did_to_them(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{n}", "chosen": "a", "rejected": "b", "source": ("web", "forum")[n % 2]}
        for n in range(4)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = DataRecipe.model_validate({"stage": "data", "attributes": ["source"]})
    kept = list(read_table(file, "pairs", recipe, Ledger()))
    for folder in ("data", "relabel", "splits"):
        (tmp_path / folder).mkdir()
    write_rows(kept, tmp_path / "data/pairs.parquet")
    ids = [row["id"] for row in kept]
    write_columns({"id": ids, "swapped": [True, False, False, False]}, tmp_path / "relabel/pairs.parquet")
    write_columns({"id": ids[::-1]}, tmp_path / "splits/held_out.parquet")
    folders = [tmp_path / folder for folder in ("splits", "relabel", "data")]
    found = find_rows(folders, "held_out", TokenCache(tmp_path))
    assert attributes_of(found, ids[1:]) == {"source": ["forum", "web", "forum"]}
    with pytest.raises(BadInput, match=r"pairs.jsonl:1: no column 'topic' \(has: chosen, prompt, "):
        list(read_table(file, "pairs", recipe.model_copy(update={"attributes": ["topic"]}), Ledger()))


def test_diagnosis_builds_nothing_on_a_dry_run(empty: Tiny) -> None:
    shown = empty.run("diagnose", "oracle.yaml", "--dry-run")
    assert f"{SEED}/scores/own/oracle" in shown.stdout and not empty.root.exists()
