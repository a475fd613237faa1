"""`rpo init --suspect`: what may be biased in somebody's pairs, and the reward models that are told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import SEED, Tiny, rpo

from rpo_cli.errors import BadInput
from rpo_cli.runs.suspects import Suspect, biased_in, said_of, suspects_of
from rpo_cli.stages.data.attributes import PATTERNS, balance

HEDGES = "hedges=maybe"


@pytest.fixture
def here(built: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with `pairs.jsonl`, of which some chosen responses hedge, and the tiny model."""
    monkeypatch.chdir(tmp_path)
    rows = pd.read_parquet(built.root / SEED / "data/pairs.parquet").head(240).to_dict("records")
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            texts = {name: row[name] for name in ("prompt", "chosen", "rejected")}
            texts["chosen"] += " maybe" * (number % 3 == 0)
            texts["rejected"] += " maybe" * (number % 5 == 0)
            file.write(json.dumps(texts) + "\n")
    return built.root / SEED / "sft"


def init(model: Path, *more: object, code: int = 0) -> Any:
    return rpo("init", "mine", "--pairs", "pairs.jsonl", "--model", model, *more, code=code)


def recipes() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(Path("mine.yaml").read_text())["recipes"]
    return found


def test_each_suspect_has_a_reward_model_on_subsets_that_differ_in_it(here: Path) -> None:
    said = init(here, "--suspect", "length", "--suspect", HEDGES).stderr
    found = recipes()
    assert found["data"]["counts"] == {"hedges": "maybe"}
    assert found["splits-hedges"]["ensemble_on"] == ["chosen_hedges", "rejected_hedges"]
    assert found["d-dpo-suspects"]["ensemble"] == [{"members": "rm.yaml"}, {"members": "rm-hedges.yaml"}]
    # As many steps as of a reward model of all pairs, however small the subset.
    assert found["rm"]["max_steps"] >= 50 and "num_train_epochs" not in found["rm"]
    counted = pd.read_parquet(f"runs/mine/{SEED}/data/pairs.parquet")
    more = counted.chosen_hedges - counted.rejected_hedges
    share = f"{100 * more.gt(0).sum() / more.ne(0).sum():.1f} %"
    assert re.search(
        rf"hedges: the chosen response has more in {share} \(.*\) of {more.ne(0).sum()} pairs", said
    )
    assert "no problems" in rpo("recipe", "check", "mine.yaml").stdout
    plan = rpo("train-policy", "mine.yaml:d-dpo-suspects", "--dry-run").stdout
    assert all(f"seed-0/unbiased/{rm}/b-{b}" in plan for rm in ("rm", "rm-hedges") for b in ("0.2", "0.8"))
    assert "d-dpo-suspects" in rpo("compare", "mine.yaml", "--dry-run", "--json").stdout


def test_without_length_among_them_no_member_is_told_of_length_and_e_dpo_has_the_same_members(
    here: Path,
) -> None:
    init(here, "--suspect", HEDGES, "--objective", "e-dpo")
    found = recipes()
    assert found["splits"]["ensemble"] == [] and "ensemble" not in found["rm"]
    members = [{"members": "rm-hedges.yaml"}]
    assert found["e-dpo"]["ensemble"] == found["d-dpo-suspects"]["ensemble"] == members
    plan = rpo("train-policy", "mine.yaml:e-dpo", "--dry-run").stdout
    assert "rm-hedges/b-0.2" in plan and "/rm/b-" not in plan


def test_what_is_biased_is_told_though_nobody_suspects_it(here: Path) -> None:
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    bold = [{**row, "chosen": f"{row['chosen']} **so**"} for row in rows]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bold))
    assert re.search(
        r"pairs that differ in it the chosen response has .*more bold in 100.0 % of \d+", init(here).stderr
    )
    assert "d-dpo-suspects" not in recipes() and "counts" not in recipes()["data"]
    # There is no pair from which a subset of another bias could be drawn.
    said = init(here, "--force", "--suspect", "bold", code=2).stderr
    assert re.search(
        r"--suspect bold: the chosen response has more in \d+ pairs, less in 0: no subsets", said
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["list"], "--suspect list: no such attribute, did you mean lists?"),
        (["zeal"], "--suspect zeal: no such attribute; there are length, bold, "),
        (["bold", "bold=x"], "--suspect bold: named twice"),
        (["length=x"], "--suspect length=x: length is counted in tokens"),
        (["tokens=x"], "--suspect tokens=x: the name is to be part of a column's"),
        (["a b=x"], "--suspect a b=x: the name is to be part of a column's"),
        (["none="], "--suspect none=: finds what is empty, everywhere"),
        (["open=("], "--suspect open=(: no regular expression: missing )"),
    ],
)
def test_what_is_no_suspect_is_refused_in_a_line(asked: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        suspects_of(asked)


def test_scores_that_are_distilled_are_no_attribute(here: Path) -> None:
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    rated = [{**row, "chosen_rating": 5, "rejected_rating": n % 4} for n, row in enumerate(rows)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    assert "rating in" not in init(here, "--scores", "chosen_rating,rejected_rating").stderr


def test_suspects_and_a_teacher_that_is_given_are_refused(here: Path) -> None:
    said = init(here, "--suspect", "length", "--reward-model", here, code=2).stderr
    assert "--suspect: its reward models are trained on the pairs; leave out --reward-model" in said


def test_names_stand_for_patterns_and_expressions_for_themselves() -> None:
    assert suspects_of(["length", "bold", "x=a=b"]) == [
        Suspect("length", None), Suspect("bold", PATTERNS["bold"]), Suspect("x", "a=b"),
    ]  # fmt: skip


def test_members_have_as_many_pairs_as_the_rarer_side_allows() -> None:
    found = balance(np.repeat([1.0, -1.0, 0.0], [300, 80, 20]), np.zeros(400))
    (line,) = said_of([Suspect("bold", "x")], {"bold": found}, 0.2, 0.9, 16)
    assert (
        "78.9 % (74.6 % .. 82.7 %) of 380 pairs that differ" in line
        and "on about 90 pairs each, which is few" in line
    )
    with pytest.raises(
        BadInput, match="--suspect bold: 380 pairs differ in it, which is about 5 for each of"
    ):
        said_of([Suspect("bold", "x")], {"bold": found}, 0.2, 0.05, 16)


def test_only_what_is_shown_to_be_off_a_half_is_called_biased() -> None:
    even, odd = (balance(np.repeat([1.0, -1.0], sides), np.zeros(100)) for sides in ([55, 45], [70, 30]))
    assert biased_in({"even": even}) is None
    assert biased_in({"even": even, "odd": odd}) == (
        "of the pairs that differ in it the chosen response has more odd in 70.0 % of 100"
    )
