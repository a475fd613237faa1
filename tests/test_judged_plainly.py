"""What a judge is asked and what is kept of it: texts, their lengths and the oracle's opinion, row by row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import RHO, SEED, Tiny, manifest
from fake_judge import FakeJudge, responses

CELL = "e-dpo/beta-0.2/test"


def test_comparisons_are_of_the_policys_sample_with_the_baselines(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge prefers the longer text, so that a mistaken length or order shows."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def longer(number: int, body: object) -> str:
        a, b = map(len, responses(body))
        return "Verdict: " + ("A" if a > b else "B" if a < b else "tie")

    with FakeJudge(longer) as fake:
        tiny.run("judge", "e-dpo.yaml", "--model", "fake", "--base-url", fake.url)
    ours, theirs = (
        pd.read_parquet(tiny.root / path / "samples.parquet").set_index(["prompt_id", "sample"])
        for path in (f"{RHO}/evaluations/{CELL}", f"{SEED}/evaluations/sft/test")
    )
    table = pd.read_parquet(tiny.root / f"{RHO}/judged/{CELL}/fake/verdicts.parquet")
    rows = table.set_index(["prompt_id", "sample"])
    ours, theirs = ours.loc[rows.index], theirs.loc[rows.index]
    assert rows["response"].equals(ours["response"]) and rows["other"].tolist() == theirs["response"].tolist()
    gap = ours["response"].str.len() - theirs["response"].str.len()
    assert rows["length_difference"].tolist() == gap.tolist() and gap.min() < 0 < gap.max()
    assert rows["oracle"].tolist() == np.sign(ours["reward"] - theirs["reward"]).tolist()
    asked = rows[~rows["identical"]]
    expected = {1.0: ("A", "B"), -1.0: ("B", "A"), 0.0: ("tie", "tie")}
    assert [*zip(asked["first"], asked["second"], strict=True)] == [
        expected[np.sign(gap[row])] for row in asked.index
    ]
    metrics = manifest(tiny.root, f"{RHO}/judged/{CELL}/fake")["metrics"]
    assert metrics["baseline/wins"] == pytest.approx((gap[~rows["identical"]] > 0).sum() / len(rows))
    assert metrics["baseline/length_difference_mean"] == pytest.approx(gap.mean())


@pytest.mark.parametrize("against", ["baseline", "reference"])
def test_where_cut_samples_are_dropped_the_judge_sees_none_of_either_side(
    pupil: Tiny, against: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pupil.edit("evaluate.yaml", f"truncated: drop\njudge: {{model: fake, against: [{against}]}}")
    pupil.run("evaluate", "e-dpo.yaml")
    file = pupil.root / f"{SEED}/evaluations/sft/test/samples.parquet"
    baseline = pd.read_parquet(file)
    baseline.assign(finished=baseline.index % 3 > 0).to_parquet(file)
    with FakeJudge(lambda number, body: "Verdict: A") as fake:
        pupil.run("judge", "e-dpo.yaml", "--base-url", fake.url)
    ours, theirs = (
        pd.read_parquet(place).set_index(["prompt_id", "sample"])["finished"]
        for place in (pupil.root / f"{RHO}/evaluations/{CELL}/samples.parquet", file)
    )
    assert not ours.all() and not theirs[ours].all()
    whole = ours & theirs if against == "baseline" else ours
    table = pd.read_parquet(pupil.root / f"{RHO}/judged/{CELL}/fake/verdicts.parquet")
    assert table.set_index(["prompt_id", "sample"]).index.equals(whole[whole].index)
