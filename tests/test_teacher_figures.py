"""What teachers know beside what their pupils reach, and reward against KL: numbers, redraws, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from conftest import RHO, Tiny, rpo
from matplotlib.figure import Figure
from test_figures import contents

from rpo_cli.figures.drawing import Picture, looks_of_lines
from rpo_cli.figures.kinds import KINDS
from rpo_cli.figures.kinds.teachers import as_taught, beside
from rpo_cli.recipes import load
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.recipes.schema.figure import Kind
from rpo_cli.stages.diagnosis import price_of_tokens
from rpo_cli.statistics import t_interval, wilson

VARIANTS = (
    "variants:\n  - {name: dpo, recipe: dpo.yaml}\n  - {name: one, recipe: d-dpo.yaml}\n"
    "  - {name: min, recipe: e-dpo.yaml}\n"
)
FIGURE = "stage: figure\nrhos: [0.5]\nbootstrap_samples: 100\n" + VARIANTS


@pytest.mark.slow
def test_teachers_are_told_by_their_scores_and_pupils_by_their_lead_and_results_draw_it_all_again(
    tiny: Tiny, tmp_path: Path
) -> None:
    claim = "claims: [{claim: leads, more: one, measure: lead}]\n"
    (tiny.suite / "teachers.yaml").write_text(f"{FIGURE}kind: teachers\n{claim}")
    tiny.run("figure teachers", "teachers.yaml")
    folder = tiny.root / "figures/teachers"
    known = pd.read_csv(folder / "accuracies.csv")
    table = pd.read_csv(folder / "accuracies.csv").set_index(["policy", "member"])
    assert known["policy"].tolist() == ["one"] * 2 + ["min"] * 4
    scores = pd.read_parquet(tiny.root / f"{RHO}/scores/rm/b-0.2/held_out.parquet").set_index("id")
    pairs = pd.read_parquet(tiny.root / f"{RHO}/splits/held_out.parquet").set_index("id").loc[scores.index]
    margins = (scores["chosen"] - scores["rejected"]).to_numpy()
    row = table.loc[("min", "0.2")]
    for side, kind in (("longer", 1), ("shorter", -1)):
        of_kind = margins[(pairs["longer_preferred"] == kind).to_numpy()]
        assert row[f"{side}_pairs"] == len(of_kind) > 0
        assert row[side] == pytest.approx((of_kind > 0).mean(), abs=1e-6)
    price = price_of_tokens(margins, (pairs["chosen_tokens"] - pairs["rejected_tokens"]).to_numpy(float))
    assert price is not None and row["price"] == pytest.approx(price.mean, abs=1e-5)
    cells = pd.read_parquet(folder / "cells.parquet").astype({"policy": str, "prompt_id": str})
    wide = cells.pivot(index="prompt_id", columns="policy", values=["advantage", "lead"])
    lead = wide["advantage"]["one"] - wide["advantage"]["dpo"]
    assert np.allclose(wide["lead"]["one"], lead, atol=2e-4) and not wide["lead"]["dpo"].any()
    drawn = pd.read_json(folder / "teachers.json", typ="series")["table"]
    own = {row["policy"]: row for row in drawn}
    assert own["dpo"]["longer"] is None and own["one"]["longer_low"] < own["one"]["longer_high"]

    (tiny.suite / "reward-kl.yaml").write_text(f"{FIGURE}kind: reward-kl\n")
    (tiny.suite / "two.yaml").write_text(f"{FIGURE}claims: [{{claim: more, more: one}}]\n")
    for kind, recipe in (("reward-kl", "reward-kl"), ("figure2", "two")):
        said = tiny.run(f"figure {kind}", f"{recipe}.yaml")
        assert "0 stages to build" in said.stderr
        # Without claims there is no table of them, and so no head of one.
        assert ("verdict" in said.stdout) == (recipe == "two")
    for kind, name in (("teachers", "teachers"), ("reward-kl", "reward-kl")):
        rpo("figure", kind, "--from", tiny.root / "figures" / name, "--out", tmp_path / kind)
        again = contents(tmp_path / kind)
        assert again and all(contents(tiny.root / "figures" / name)[file] == again[file] for file in again)
    rpo("figure", "reward-kl", "--from", tiny.root / "figures/two", "--out", tmp_path / "two")
    pictures = [tmp_path / folder / "reward-kl.png" for folder in ("two", "reward-kl")]
    assert {picture.stat().st_size > 0 for picture in pictures} == {True}
    assert (
        "holds results of figure2"
        in rpo("figure", "teachers", "--from", tiny.root / "figures/two", code=2).stderr
    )


def test_reward_against_kl_is_not_drawn_from_cells_without_a_kl() -> None:
    said = rpo("figure", "reward-kl", "--from", "results/miniature", code=2).stderr
    assert "its cells have no kl, which rpo figure reward-kl draws" in said


def test_a_figure_of_teachers_alone_is_refused_before_anything_is_built(empty: Tiny) -> None:
    text = FIGURE.replace("  - {name: dpo, recipe: dpo.yaml}\n", "")
    (empty.suite / "teachers.yaml").write_text(f"{text}kind: teachers\n")
    said = empty.run("figure teachers", "teachers.yaml", code=2).stderr
    assert "every one has a teacher, so none has a lead" in said and not empty.root.exists()


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_sweep_takes_every_figure_of_policies_that_are_evaluated(empty: Tiny, kind: str) -> None:
    for recipe, grid in (("dpo", [0.1, 0.2]), ("d-dpo", [0.3, 0.4]), ("e-dpo", [0.5, 0.6])):
        empty.edit(f"{recipe}.yaml", f"grid: {{beta: {grid}}}")
    text = FIGURE if kind != "kl" else "".join(FIGURE.splitlines(keepends=True)[:5])
    (empty.suite / "figure.yaml").write_text(f"{text}kind: {kind}\n")
    measured = kind in ("degeneracy", "kl")
    said = empty.run("sweep", "figure.yaml", "--dry-run", code=2 if measured else 0)
    if measured:
        assert f"is a recipe of kind {kind}; use rpo figure {kind}" in said.stderr
    else:
        assert "3 policies x 1 rho x 1 seed, 2 grid values each: 6 cells on validation" in said.stdout


def test_a_min_teaches_at_first_what_the_member_nearest_to_zero_says(empty: Tiny) -> None:
    margins = np.array([[1.0, -3.0, 2.0], [-0.5, 4.0, 2.5]])
    recipe = load(str(empty.suite / "e-dpo.yaml")).recipe
    assert isinstance(recipe, PolicyRecipe)
    assert as_taught(margins, recipe).tolist() == [-0.5, -3.0, 2.0]
    over_all = recipe.model_copy(update={"ensemble_min": "dataset"})
    assert as_taught(margins, over_all).tolist() == [1.0, -3.0, 2.0]
    mean = load(str(empty.suite / "d-dpo.yaml"), overrides=["teacher=mean"]).recipe
    assert isinstance(mean, PolicyRecipe) and as_taught(margins, mean).tolist() == [0.25, 0.5, 2.25]


def test_what_a_teacher_knows_has_wilsons_interval_of_one_seed_and_students_of_several() -> None:
    known = pd.DataFrame(
        {"policy": "d", "rho": 0.2, "seed": [0, 1, 2], "member": None}
        | {side: [0.7, 0.8, 0.75] for side in ("all", "longer", "shorter")}
        | {f"{side}_pairs": 20 for side in ("all", "longer", "shorter", "ties")}
        | {"ties": np.nan, "price": [0.1, 0.3, 0.2], "price_low": -1.0, "price_high": 1.0}
    )
    table = pd.DataFrame({"policy": ["d", "dpo"], "rho": 0.2})
    several = beside(table, {"accuracies.csv": known}).iloc[0]
    wanted = t_interval(np.array([0.7, 0.8, 0.75]))
    assert several[["longer", "longer_low", "longer_high"]].tolist() == pytest.approx(wanted, abs=1e-6)
    one = beside(table, {"accuracies.csv": known[:1]})
    assert one.loc[0, ["longer", "longer_low", "longer_high"]].tolist() == pytest.approx(
        wilson(14, 20), abs=1e-6
    )
    assert one.loc[0, ["price", "price_low", "price_high"]].tolist() == [0.1, -1.0, 1.0]
    assert one.loc[0, ["ties", "ties_low"]].isna().all() and one.loc[1].drop(["policy", "rho"]).isna().all()


@pytest.mark.parametrize("kind", ["reward-kl", "teachers"])
def test_variants_of_one_line_have_one_colour_and_one_name_in_the_legend(kind: str) -> None:
    names = ["dpo 1", "dpo 2", "dpo 4", "alone"]
    meta = {"lines": {name: "dpo" for name in names[:3]}}
    numbers = {
        name: [0.1, 0.3, 0.2, 0.5] for name in ("kl", "advantage", "lead", "longer", "shorter", "price")
    }
    ends = {f"{name}_{end}": values for name, values in numbers.items() for end in ("low", "high")}
    table = pd.DataFrame({"policy": names, "rho": 0.2, **numbers, **ends})
    figure = Figure()
    KINDS[kind].draw(Picture(figure, table, looks_of_lines(names, meta), meta, {}))
    assert [text.get_text() for text in figure.legends[0].texts] == ["dpo", "alone"]
    drawn = figure.axes[0].get_lines()
    colours = [line.get_color() for line in drawn if line.get_marker() not in ("None", None, "")]
    assert len(colours) == 4 and len(set(colours[:3])) == 1 and colours[3] != colours[0]
    joined = [list(line.get_xdata()) for line in drawn if len(line.get_xdata()) == 3]
    assert joined == ([[0.1, 0.3, 0.2]] if kind == "reward-kl" else [])
