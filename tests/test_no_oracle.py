"""Comparisons without an oracle: pairs, lengths and KL, and which half of the pairs chooses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import RHO, SEED, Tiny, manifest
from test_compare import compare, row

from rpo_cli.artifacts import Workspace
from rpo_cli.figures.cells import Cell, Cells
from rpo_cli.figures.frames import Frame, _pairs, in_deviations
from rpo_cli.figures.numbers import _few_prompts, _half_notes, _left_out, _rows, why_half
from rpo_cli.figures.selection import Selection
from rpo_cli.figures.table import Bootstrap, of_all
from rpo_cli.recipes import load

# ── Without an oracle ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_without_an_oracle_pairs_lengths_and_kl_are_compared_and_a_half_of_the_pairs_chooses(
    tiny: Tiny, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "model"
    # Nor is there an SFT recipe to compare with: the baseline is a model that lies somewhere.
    tiny.edit(
        "evaluate.yaml", f"oracle: null\nbaseline: {shutil.copytree(tiny.root / SEED / 'sft', elsewhere)}"
    )
    tiny.edit("dp-dpo.yaml", "grid: {beta: [0.2]}")
    tiny.edit("e-dpo.yaml", "grid: {beta: [0.2]}")
    said = tiny.run("evaluate", "dp-dpo.yaml")
    assert "held-out/dp-dpo" in said.stderr and "advantage" not in said.output
    samples = pd.read_parquet(tiny.root / RHO / "evaluations/dp-dpo/beta-0.2/test/samples.parquet")
    assert "reward" not in samples and samples["logp"].notna().all()
    assert (tiny.root / SEED / "evaluations/evaluate/test/manifest.json").is_file()
    metrics = manifest(tiny.root, f"{RHO}/evaluations/dp-dpo/beta-0.2/test")["metrics"]
    assert {"tokens_mean", "kl_to_reference", "unfinished_share"} <= metrics.keys()
    assert not {"advantage", "win_rate", "reward_mean"} & metrics.keys()

    chosen = json.loads(compare(tiny, "--sweep", "--json").stdout)
    assert [measure["name"] for measure in chosen["measures"]] == (
        ["accuracy", "margin", "teachers", "tokens", "kl", "unfinished"]
    )
    table = pd.read_csv(tiny.root / "sweeps/e-dpo.csv")
    assert list(table.columns[-2:]) == ["accuracy", "margin"]
    halves = manifest(tiny.root, f"{RHO}/held-out/dp-dpo/beta-0.2")["metrics"]
    assert row(chosen, "dp-dpo", "margin")["mean"] == pytest.approx(halves["test/margin"], abs=1e-4)
    notes = " ".join(chosen["notes"])
    assert "the half that chooses nothing: the sweep chose the strengths on the others" in notes
    assert "held-out pairs are too few to tell policies apart: an accuracy on them" in notes
    assert "chosen on policies of the seeds that are reported here" in notes
    # A sweep may have written what the recipes say by now.
    later = json.loads(compare(tiny, "--json").stdout)
    assert row(later, "dp-dpo", "margin")["mean"] == pytest.approx(halves["test/margin"], abs=1e-4)
    said = "a sweep, whenever it ran, chooses strengths on the others (e-dpo, dp-dpo have a grid or by_rho)"
    assert said in " ".join(later["notes"])


def planned(tiny: Tiny, *names: str) -> list[Cell]:
    """The cells of a comparison, of which nothing is made."""
    loads = [load(str(tiny.suite / name), expect="policy") for name in names]
    maker = Cells(loads[0], (), loads[1:])
    return maker.test(Selection(list(maker.variants), [0.2], [0]))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", None),
        ("grid: {beta: [0.2]}", "chooses strengths on the others (e-dpo has a grid or by_rho)"),
        ("by_rho: {0.2: {beta: 0.2}}", "chooses strengths on the others (e-dpo has a grid or by_rho)"),
        ("select: validation", "chose among checkpoints (e-dpo)"),
    ],
)
def test_without_an_oracle_pairs_that_may_have_chosen_do_not_report(
    empty: Tiny, line: str, said: str | None
) -> None:
    text = (empty.suite / "e-dpo.yaml").read_text().splitlines(keepends=True)
    kept = [each for each in text if not each.startswith(("grid:", "by_rho:", "select:"))]
    (empty.suite / "e-dpo.yaml").write_text("".join(kept) + line + "\n")
    assert why_half(planned(empty, "e-dpo.yaml"), swept=True) is None  # an oracle chooses
    empty.edit("evaluate.yaml", "oracle: null")
    cells = planned(empty, "e-dpo.yaml")
    found = why_half(cells, swept=False)
    assert found is None if said is None else found is not None and found.endswith(said)
    assert why_half(cells, swept=True) == "the sweep chose the strengths on the others"


def test_a_half_of_the_held_out_pairs_that_is_empty_is_said_to_be(empty: Tiny) -> None:
    (cell,) = planned(empty, "e-dpo.yaml")
    workspace = Workspace(empty.root, "tiny")
    assert cell.held_out is not None
    folder = workspace.root / cell.held_out.path
    folder.mkdir(parents=True)
    pairs = pd.DataFrame(
        {"prompt_id": ["a", "b"], "half": ["validation", "test"], "h_chosen": [1.0, 2.0], "h_rejected": 0.0}
    )
    pairs.to_parquet(folder / "pairs.parquet")
    assert _pairs(cell, workspace, half=True)["prompt_id"].tolist() == ["b"]
    said = "accuracy and margin are of 1 of 2 held-out pairs, the half that chooses nothing: x"
    assert list(_half_notes([cell], workspace, "x")) == [said]
    assert list(_half_notes([cell], workspace, None)) == []
    pairs[:1].to_parquet(folder / "pairs.parquet")
    assert _pairs(cell, workspace, half=True)["prompt_id"].tolist() == ["a"]
    (_, empty_half) = _half_notes([cell], workspace, "x")
    assert empty_half.startswith("seed 0: that half is empty, so accuracy and margin are of pairs")


def test_differences_are_of_the_prompts_that_all_policies_have() -> None:
    """A policy that lacks a hard prompt, which was dropped or has no verdict, is no better for it."""
    values = {"dpo": [1.0, 2.0, 3.0, 60.0], "e-dpo": [2.0, 3.0, 4.0]}
    cells = pd.DataFrame(
        {"prompt_id": f"p{number}", "tokens": value, "policy": policy, "rho": float("nan"), "seed": 0}
        for policy, numbers in values.items()
        for number, value in enumerate(numbers)
    )
    whole = Frame("evaluation", ("tokens",), cells)
    kept = whole._replace(cells=of_all(cells))
    assert (
        list(_left_out(whole, kept)) == ["length: 1 of 4 prompts left out, where a policy has no value"]
        and list(_left_out(kept, kept)) == []
    )
    for frame in (whole, kept):
        plain, ours = _rows(frame, list(values), Selection(list(values), [None], [0]), "dpo", Bootstrap(200))
        assert (plain["mean"], ours["mean"]) == (2, 3)
        assert ours["difference"] is not None and ours["difference"]["mean"] == 1


@pytest.mark.parametrize(("of", "count", "known"), [(0.0, 3, True), (1.0, 3, False), (1.0, 60, True)])
def test_equal_differences_of_few_prompts_have_no_interval(of: float, count: int, known: bool) -> None:
    cells = pd.DataFrame(
        {
            "prompt_id": f"p{number}",
            "tokens": number + added,
            "policy": policy,
            "rho": float("nan"),
            "seed": 0,
        }
        for policy, added in (("dpo", 0.0), ("e-dpo", of))
        for number in range(count)
    )
    frame, policies = Frame("evaluation", ("tokens",), cells), ["dpo", "e-dpo"]
    _, ours = _rows(frame, policies, Selection(policies, [None], [0]), "dpo", Bootstrap(200))
    apart = ours["difference"]
    assert apart is not None and apart["mean"] == of
    ends = apart["low"], apart["high"]
    assert ends == (pytest.approx((of, of)) if known else (None, None))


def test_a_difference_of_shares_has_no_end_beyond_a_hundred_points() -> None:
    right = {"dpo": (0.0, 100.0, 0.0), "e-dpo": (100.0, 0.0, 100.0)}
    cells = pd.DataFrame(
        {"prompt_id": f"p{n}", "accuracy": value, "pairs": 1.0, "policy": policy, "rho": np.nan, "seed": 0}
        for policy, values in right.items()
        for n, value in enumerate(values)
    )
    frame, policies = Frame("held_out", ("accuracy",), cells, pairs=True), ["dpo", "e-dpo"]
    _, ours = _rows(frame, policies, Selection(policies, [None], [0]), "dpo", Bootstrap(200))
    apart = ours["difference"]
    assert apart is not None and apart["mean"] == pytest.approx(100 / 3)
    assert apart["low"] == -100.0 and apart["high"] == 100.0


def test_few_prompts_are_said_to_be_few() -> None:
    counts: dict[str, dict[str, object]] = {"tokens": {"prompts": 49}, "accuracy": {"prompts": 3}}
    assert [note[:20] for note in _few_prompts(counts)] == ["49 prompts are few: "]
    assert list(_few_prompts({"tokens": {"prompts": 50}})) == []


def test_teachers_of_different_scales_weigh_the_same() -> None:
    rewards = pd.DataFrame({"prompt_id": ["a", "b"], "reward": [2.0, 2.0], "baseline_reward": [0.0, 1.0]})
    other = rewards.assign(reward=100 * rewards["reward"], baseline_reward=100 * rewards["baseline_reward"])
    assert in_deviations(rewards).tolist() == pytest.approx(in_deviations(other).tolist())
    assert in_deviations(rewards)["a"] == pytest.approx(2 / 0.5**0.5)
    assert in_deviations(rewards[:1])["a"] == 2


def test_a_figure_without_an_oracle_is_refused_before_anything_is_built(empty: Tiny) -> None:
    empty.edit("evaluate.yaml", "oracle: null")
    (empty.suite / "figure.yaml").write_text("stage: figure\npolicies: [dpo.yaml]\nrhos: [0.5]\n")
    said = empty.run("figure figure2", "figure.yaml", code=2)
    assert re.search(r"evaluate.yaml:\d+: oracle: is null, .*`rpo compare` needs no oracle", said.stderr)
    assert not empty.root.exists()
