"""Properties of the figure: what is drawn, what is claimed, what is refused; on planted cells."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Tiny, rpo

from rpo_cli.artifacts import Workspace
from rpo_cli.errors import BadInput
from rpo_cli.figures import results
from rpo_cli.figures.cells import Cells
from rpo_cli.figures.claims import claims_table, judge
from rpo_cli.figures.drawing import looks_of
from rpo_cli.figures.gather import made
from rpo_cli.figures.kinds.figure2 import numbers as numbers_of
from rpo_cli.figures.redraw import redraw
from rpo_cli.figures.selection import select
from rpo_cli.figures.table import Axes, Bootstrap
from rpo_cli.recipes import load
from rpo_cli.recipes.schema import MEASURES, FigureRecipe
from rpo_cli.recipes.schema.figure import PAPER
from rpo_cli.runs.options import Study

ROOT = Path(__file__).resolve().parent.parent
RHOS = [0.2, 0.5, 0.8]
SEEDS = [0, 1, 2]
# All that the paper claims holds here: above zero; e-dpo leads up to 0.5, is flattest; d-dpo leads above 0.6.
PAPER_CURVES = {
    "dpo": [0.8, 1.5, 1.1],
    "ipo": [0.6, 1.4, 1.0],
    "d-dpo": [0.9, 1.6, 2.4],
    "e-dpo": [1.6, 1.9, 1.8],
}


def planted(curves: dict[str, list[float]], *, prompts: int = 60, between: float = 0.02) -> pd.DataFrame:
    """Cells with the given mean advantages by rho; hard and easy prompts shared by all policies of a seed."""
    rng, parts = np.random.default_rng(0), []
    for seed in SEEDS:
        common = 3 * rng.normal(size=prompts)
        common -= common.mean()
        for policy, curve in curves.items():
            for rho, mean in zip(RHOS, curve, strict=True):
                noise = 0.1 * rng.normal(size=prompts) + between * rng.normal()
                tokens = 5 + 4 * rho + 0.1 * rng.integers(-3, 4, size=prompts)
                keys: dict[str, Any] = {"policy": policy, "rho": rho, "seed": seed}
                numbers = {"advantage": mean + common + noise, "tokens": tokens, "baseline_tokens": 6.0}
                parts.append(pd.DataFrame({"prompt_id": [f"p{i}" for i in range(prompts)]} | keys | numbers))
    return pd.concat(parts, ignore_index=True)


def made_choices() -> pd.DataFrame:
    rows = [("e-dpo", rho, seed, b, 0.5) for rho in RHOS for seed in SEEDS for b in (0.2, 0.8)]
    return pd.DataFrame(rows, columns=["policy", "rho", "seed", "member", "share"])


def axes_of(policies: list[str], rhos: list[float] = RHOS, seeds: list[int] = SEEDS) -> Axes:
    return Axes(policies, list(rhos), seeds, MEASURES["figure2"])


def paper_rows(
    cells: pd.DataFrame, policies: list[str], rhos: list[float], resamples: int
) -> list[dict[str, Any]]:
    return judge(cells, axes_of(policies, rhos), PAPER, Bootstrap(resamples), brief=True)


def table_of(cells: pd.DataFrame, seeds: list[int] = SEEDS, resamples: int = 300) -> pd.DataFrame:
    """The table of Figure 2 for the paper's policies, with the names of its columns in the file."""
    made = numbers_of(cells, axes_of(list(PAPER_CURVES), seeds=seeds), Bootstrap(resamples))
    return made.rename(columns={"advantage_low": "low", "advantage_high": "high"})


def claims(cells: pd.DataFrame, policies: list[str], rhos: list[float] = RHOS) -> dict[str, dict[str, Any]]:
    """Rows of the paper's claims by the start of their detail."""
    rows = paper_rows(cells, policies, rhos, 300)
    for row in rows:
        assert row["passed"] == (row["status"] == "passed")
    return {row["detail"].split(",")[0].split(";")[0]: row for row in rows}


def save(cells: pd.DataFrame, folder: Path, policies: list[str] | None = None) -> Path:
    meta = {
        "policies": policies or list(PAPER_CURVES),
        "rhos": RHOS,
        "seeds": SEEDS,
        "bootstrap_samples": 200,
        "git": "abc",
    }
    results.save_results(results.Results(cells, made_choices(), meta, {}), folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_all_orderings_pass_where_they_are_planted() -> None:
    rows = claims(planted(PAPER_CURVES), list(PAPER_CURVES))
    assert {row["status"] for row in rows.values()} == {"passed"}
    assert rows["all"]["difference"] == pytest.approx(0.6, abs=0.05)
    assert "ipo at rho 0.2" in rows["all"]["detail"]
    assert rows["e-dpo - dpo at rho 0.2"]["difference"] == pytest.approx(0.8, abs=0.1)
    assert rows["range of dpo - range of e-dpo"]["difference"] == pytest.approx(0.4, abs=0.1)
    assert len(rows["all"]["by_seed"]) == 3


def test_orderings_fail_where_the_opposite_is_planted() -> None:
    rows = claims(
        planted(PAPER_CURVES | {"e-dpo": [0.3, 1.9, 2.6], "ipo": [-1.5, 1.4, 1.0]}), list(PAPER_CURVES)
    )
    for detail in (
        "all",
        "ipo",
        "e-dpo - dpo at rho 0.2",
        "d-dpo - e-dpo at rho 0.8",
        "d-dpo - each other at rho 0.8",
    ):
        assert rows[detail]["status"] == "contradicted", detail
    assert rows["range of dpo - range of e-dpo"]["status"] == "contradicted"
    assert rows["d-dpo - dpo at rho 0.8"]["status"] == "passed"


def test_a_difference_on_which_seeds_disagree_does_not_pass() -> None:
    """Prompts alone would call it significant: 60 of them, noise 0.1, difference 0.15."""
    cells = planted(PAPER_CURVES | {"e-dpo": [0.95, 1.9, 1.8]})
    cells.loc[(cells["policy"] == "e-dpo") & (cells["rho"] == 0.2) & (cells["seed"] == 1), "advantage"] -= 0.5
    assert claims(cells, list(PAPER_CURVES))["e-dpo - dpo at rho 0.2"]["status"] == "not significant"


def test_claims_compare_the_same_prompts() -> None:
    """Prompts differ by 3, policies by 0.8: unpaired intervals would be wider than the difference."""
    row = claims(planted(PAPER_CURVES), list(PAPER_CURVES))["e-dpo - dpo at rho 0.2"]
    assert row["high"] - row["low"] < 0.2
    numbers = table_of(planted(PAPER_CURVES))
    assert (numbers["high"] - numbers["low"]).min() > 0.7


def test_absent_policies_and_rhos_are_not_measured_and_never_pass() -> None:
    rows = claims(planted({"dpo": PAPER_CURVES["dpo"], "d-dpo": PAPER_CURVES["d-dpo"]}), ["dpo", "d-dpo"])
    for detail in ("e-dpo - dpo at rho 0.2", "e-dpo - ipo at rho 0.5", "range of dpo - range of e-dpo"):
        assert rows[detail]["status"] == "not measured"
        assert rows[detail]["low"] is None
    cells = planted(PAPER_CURVES)
    only = claims(cells[cells["rho"] == 0.5], list(PAPER_CURVES), [0.5])
    assert only["no such rho"]["status"] == "not measured"
    holes = claims(cells[~((cells["policy"] == "dpo") & (cells["rho"] == 0.5))], list(PAPER_CURVES))
    assert holes["dpo"]["status"] == holes["all"]["status"] == "not measured"
    assert "1 of 3 not measured" in holes["dpo"]["detail"]
    assert holes["e-dpo - dpo at rho 0.5"]["status"] == "not measured"
    assert holes["range of dpo - range of e-dpo"]["status"] == "not measured"
    assert holes["e-dpo - ipo at rho 0.5"]["status"] == "passed"


def test_table_holds_means_over_seeds_and_both_kinds_of_interval() -> None:
    cells = planted(PAPER_CURVES, between=0.5)
    cells["advantage"] -= cells.groupby(["seed", "prompt_id"])["advantage"].transform(
        "mean"
    )  # leaves little prompt noise
    numbers = table_of(cells)
    assert list(zip(numbers["policy"], numbers["rho"], strict=True)) == [
        (p, r) for p in PAPER_CURVES for r in RHOS
    ]
    wanted = cells.groupby(["policy", "rho"])["advantage"].mean()
    np.testing.assert_allclose(
        numbers["advantage"], [wanted[p, r] for p in PAPER_CURVES for r in RHOS], atol=1e-4
    )
    assert (numbers["low"] < numbers["prompt_low"]).all() and (numbers["prompt_high"] < numbers["high"]).all()
    assert (
        set(numbers["seeds"]) == {3}
        and set(numbers["prompts"]) == {60}
        and set(numbers["baseline_tokens"]) == {6.0}
    )


@pytest.mark.slow
def test_redraw_is_byte_equal(tmp_path: Path) -> None:
    folder = save(planted(PAPER_CURVES), tmp_path / "results")
    paths, rows = redraw(folder, tmp_path / "a", "figure2")
    redraw(folder, tmp_path / "b", "figure2")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    names = {f"figure2.{suffix}" for suffix in ("png", "svg", "pdf", "csv", "json")}
    names |= {f"members.{suffix}" for suffix in ("png", "svg", "pdf")}
    assert {path.name for path in paths} == names == set(contents(tmp_path / "a"))
    drawn = json.loads((tmp_path / "a" / "figure2.json").read_text())
    assert drawn["orderings"] == rows and drawn["missing"] == [] and drawn["provenance"]["git"] == "abc"


@pytest.mark.slow
def test_of_one_seed_it_is_said_that_others_may_contradict_the_claims(tmp_path: Path) -> None:
    cells = planted(PAPER_CURVES, prompts=20)
    for seeds in (SEEDS[:1], SEEDS):
        folder = tmp_path / str(len(seeds))
        meta = {"policies": list(PAPER_CURVES), "rhos": RHOS, "seeds": seeds, "bootstrap_samples": 50}
        some = cells[cells["seed"].isin(seeds)]
        results.save_results(results.Results(some, made_choices().iloc[:0], meta, {}), folder)
        out = tmp_path / "[a]" / "[/b]drawn"
        shown = rpo("figure", "figure2", "--from", folder, "--out", out)
        assert ("one seed: " in shown.stderr) == (len(seeds) == 1)
        assert str(out / "figure2.png") in shown.stdout.splitlines()


def test_results_saved_again_are_the_same_bytes_whatever_the_order_of_rows(tmp_path: Path) -> None:
    cells = planted(PAPER_CURVES)
    save(cells, tmp_path / "a")
    save(cells.sample(frac=1, random_state=0), tmp_path / "b")
    kept = results.load_results(tmp_path / "a")
    results.save_results(kept, tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    merged = kept.cells.merge(cells, on=["policy", "rho", "seed", "prompt_id"], validate="one_to_one")
    assert len(merged) == len(cells)
    assert (merged["advantage_x"] - merged["advantage_y"]).abs().max() < 5.1e-5


def test_a_whole_figure_of_results_stays_below_a_megabyte(tmp_path: Path) -> None:
    rng, names = np.random.default_rng(0), [f"test-{i:05d}" for i in range(1000)]
    index = pd.MultiIndex.from_product(
        [["dpo", "ipo", "p-dpo", "d-dpo", "dp-dpo", "e-dpo"], range(7), range(3), names]
    )
    cells = index.set_names(["policy", "rho", "seed", "prompt_id"]).to_frame(index=False)
    cells["advantage"] = rng.normal(size=len(cells))
    cells["tokens"] = rng.integers(6, 30, size=len(cells)) / 2
    cells["baseline_tokens"] = rng.integers(6, 30, size=len(cells)) / 2
    path, *_ = results.save_results(results.Results(cells, made_choices(), {}, {}), tmp_path)
    assert path.stat().st_size < 1_000_000


@pytest.mark.slow
def test_missing_cells_are_refused_by_name_unless_asked_for_then_listed(tmp_path: Path) -> None:
    cells = planted(PAPER_CURVES)
    whole_gap = (cells["policy"] == "dpo") & (cells["rho"] == 0.5)
    one_seed = (cells["policy"] == "e-dpo") & (cells["rho"] == 0.8) & (cells["seed"] == 2)
    folder = save(cells[~whole_gap & ~one_seed], tmp_path / "results")
    with pytest.raises(
        BadInput, match=r"4 cells are missing: dpo at rho 0.5, seed 0; .*e-dpo at rho 0.8, seed 2"
    ):
        redraw(folder, tmp_path / "out", "figure2")
    assert not (tmp_path / "out").exists()
    redraw(folder, tmp_path / "out", "figure2", allow_missing=True)
    drawn = json.loads((tmp_path / "out" / "figure2.json").read_text())
    assert len(drawn["missing"]) == 4 and drawn["missing"][-1] == {"policy": "e-dpo", "rho": 0.8, "seed": 2}
    rows = {(row["policy"], row["rho"]): row for row in drawn["table"]}
    assert rows["dpo", 0.5]["seeds"] == 0 and rows["dpo", 0.5]["advantage"] is None
    assert rows["e-dpo", 0.8]["seeds"] == 2
    complete = table_of(cells, resamples=200).set_index(["policy", "rho"])
    assert rows["ipo", 0.2]["low"] == complete.loc[("ipo", 0.2), "low"]


def test_broken_cells_are_refused(tmp_path: Path) -> None:
    cells = planted(PAPER_CURVES)
    for broken, message in (
        (
            cells.assign(advantage=cells["advantage"].where(cells.index != 3)),
            "a number is missing at policy dpo, rho 0.2",
        ),
        (
            pd.concat([cells, cells.iloc[:1]]),
            "the prompt occurs twice at policy dpo, rho 0.2, seed 0, prompt_id p0",
        ),
        (cells.drop(columns="tokens"), "no column tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            save(broken, tmp_path / "results")


def test_seeds_with_prompts_of_their_own_and_a_single_seed_can_be_drawn() -> None:
    cells = planted(PAPER_CURVES)
    apart = cells.assign(prompt_id=cells["prompt_id"] + "-" + cells["seed"].astype(str))
    assert table_of(apart, resamples=100)["low"].notna().all()
    single = table_of(cells, [0], 100)
    assert (single["low"] == single["prompt_low"]).all() and set(single["seeds"]) == {1}


def test_failed_publish_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = results.publish(tmp_path / "x.json", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        results.publish(path, b"new")
    assert contents(tmp_path) == {"x.json": b"old"}


@pytest.mark.parametrize("width", [80, 120, 250])
def test_no_verdict_and_no_number_of_an_ordering_is_folded_or_cut(width: int) -> None:
    from rich.console import Console

    rows = paper_rows(planted(PAPER_CURVES), [*PAPER_CURVES, "p-dpo"], RHOS, 50)
    console = Console(width=width, force_terminal=True, color_system=None, file=(out := io.StringIO()))
    console.print(claims_table(rows, console))
    said = out.getvalue()
    assert max(map(len, said.splitlines())) <= width and "…" not in said
    for status in ("passed", "not measured"):
        shown = [
            line for line in said.splitlines() if line.endswith("│") and line.split("│")[-2].strip() == status
        ]
        assert len(shown) == sum(row["status"] == status for row in rows) > 0
    assert all(f"{row['low']:+.3f} .. {row['high']:+.3f}" in said for row in rows if row["low"] is not None)
    assert ("by seed" in said) == (width == 250)


def test_orderings_that_no_terminal_shows_are_lines_to_search(capsys: pytest.CaptureFixture[str]) -> None:
    from rpo_cli.runs.session import stdout

    rows = paper_rows(planted(PAPER_CURVES), [*PAPER_CURVES, "p-dpo"], RHOS, 50)
    console = stdout()
    console.print(claims_table(rows, console))
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[-3:] == ["by", "seed", "verdict"]
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(row["claim"]) and row["detail"] in line and line.endswith("  " + row["status"])


def test_importing_figures_does_not_import_matplotlib() -> None:
    code = "import sys, rpo_cli.figures; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "told",
    [
        ("--seeds", "nonsense"),
        ("--rho", "0.5"),
        ("--set", "bootstrap_samples=10"),
        ("--tune",),
        ("--dry-run",),
    ],
)
def test_what_would_choose_other_cells_is_refused_beside_kept_results(
    told: tuple[str, ...], tmp_path: Path
) -> None:
    for command in (("figure", "figure2", "--from", "results/miniature"), ("report", "--from", "said.json")):
        if told[0] not in ("--tune", "--dry-run") or command[0] == "figure":
            said = rpo(*command, *told, "--out", tmp_path / "out", code=2).stderr
            assert said == f"{told[0]}: has no effect with --from, which shows what is kept, as it is\n"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("named", [("--recipe", "figure2.yaml"), ("figure2.yaml",), ("-r", "nothing.yaml")])
def test_a_recipe_is_refused_beside_kept_results(named: tuple[str, ...], tmp_path: Path) -> None:
    said = rpo("figure", "figure2", *named, "--from", "results/miniature", "--out", tmp_path, code=2).stderr
    assert said == f"{named[-1]}: has no effect with --from, which shows what is kept, as it is\n"
    assert not any(tmp_path.iterdir())


def test_a_cell_that_was_evaluated_otherwise_is_not_drawn(empty: Tiny) -> None:
    maker, workspace = Cells(load(str(empty.suite / "dpo.yaml"))), Workspace(empty.root, "tiny")
    workspace.open()
    cells = [maker.cell("dpo", 0.5, 0, "test", {"beta": beta}) for beta in (0.1, 0.2)]
    for cell, key in zip(cells, (cells[0].evaluation.key, "another"), strict=True):
        (empty.root / cell.evaluation.path).mkdir(parents=True)
        known: Any = {**cell.evaluation.identity, "metrics": {}, "key": key}
        workspace.publish(cell.evaluation.path, known)
    assert [cell for cell, _ in made(cells, workspace)] == cells[:1]


# ── One world ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_papers_claims_are_those_of_every_recipe_of_figure_2_and_of_one_that_says_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "short.yaml").write_text("stage: figure\npolicies: [dpo.yaml, e-dpo.yaml]\n")
    suites = [ROOT / "recipes" / f"{name}.yaml" for name in ("tldr/figure2", "miniature/figure2")]
    suites += [ROOT / f"recipes/miniature/{name}.yaml" for name in ("protocol", "tuning", "rivals")]
    for path in (*suites, tmp_path / "short.yaml"):
        recipe = load(str(path)).recipe
        assert isinstance(recipe, FigureRecipe) and recipe.claimed == list(PAPER), path
        assert path.stem == "short" or recipe.claims == list(PAPER)
    short = load(str(tmp_path / "short.yaml")).recipe
    assert isinstance(short, FigureRecipe)
    assert [(v.name, v.recipe, v.set) for v in short.compared] == [
        ("dpo", "dpo.yaml", {}), ("e-dpo", "e-dpo.yaml", {})
    ]  # fmt: skip


def test_a_figure_may_claim_nothing_and_redraws_that(tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("stage: figure\npolicies: [dpo.yaml]\nclaims: []\n")
    recipe = load(str(tmp_path / "none.yaml")).recipe
    assert isinstance(recipe, FigureRecipe) and recipe.claimed == []
    for meta, claimed in (({"claims": []}, []), ({}, list(PAPER))):
        kept = results.Results(pd.DataFrame(), pd.DataFrame(), {"kind": "figure2", **meta}, {})
        assert kept.claims == claimed


def test_policies_take_the_place_of_the_variants_of_an_extended_figure_and_the_other_way_round(
    tmp_path: Path,
) -> None:
    """Recipes that extend a shipped figure2.yaml may say either."""
    for name, text in {
        "a": "policies: [dpo.yaml]", "b": "variants: [{name: x, recipe: ipo.yaml}]\nextends: a.yaml",
        "c": "policies: [e-dpo.yaml]\nextends: b.yaml",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(f"stage: figure\n{text}\n")
    found = {}
    for name in "abc":
        recipe = load(str(tmp_path / f"{name}.yaml")).recipe
        assert isinstance(recipe, FigureRecipe)
        found[name] = [variant.name for variant in recipe.compared]
    assert found == {"a": ["dpo"], "b": ["x"], "c": ["e-dpo"]}
    changed = load(str(tmp_path / "b.yaml"), overrides=["policies=[d-dpo.yaml]"]).recipe
    assert isinstance(changed, FigureRecipe) and [v.name for v in changed.compared] == ["d-dpo"]


def test_a_policy_has_one_look_in_every_panel_and_none_shares_it() -> None:
    names = ["mine", "dpo", "yours", "e-dpo", "theirs"]
    looks = looks_of(names)
    assert list(looks) == names and len(set(looks.values())) == 5
    many = [f"variant {number}" for number in range(40)]
    assert len(set(looks_of(many).values())) == 40
    assert looks["dpo"] == looks_of(["dpo"])["dpo"] and looks["theirs"] != looks_of(["theirs"])["theirs"]


def test_no_resampling_has_no_rho_in_what_users_see_and_old_results_load(tmp_path: Path) -> None:
    folder = ROOT / "results/miniature/unbiased"
    kept = results.load_results(folder)
    assert kept.axes.rhos == [None] and kept.cells["rho"].isna().all() and kept.choices["rho"].isna().all()
    results.save_results(kept, tmp_path)
    names = ("cells.parquet", "choices.csv", "provenance.json")
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)
    old = json.loads((folder / "provenance.json").read_text()) | {"rhos": [0.0]}
    (tmp_path / "provenance.json").write_text(json.dumps(old))
    choices = (folder / "choices.csv").read_text().replace("e-dpo,,", "e-dpo,0.0,")
    (tmp_path / "choices.csv").write_text(choices)
    redraw(tmp_path, tmp_path / "out", "unbiased")
    for name in ("unbiased.csv", "unbiased.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert set(pd.read_csv(folder / "unbiased.csv")["rho"].isna()) == {True}


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder",
    [
        ".",
        "rivals",
        "confirmation",
        "confirmation-as-planned",
        "gamma",
        "kl",
        "degeneracy",
        "confirmation-teachers",
        "curves",
        "teachers",
    ],
)
def test_committed_results_draw_the_committed_tables_and_claims(folder: str, tmp_path: Path) -> None:
    kept = ROOT / "results/miniature" / folder
    paths, _ = redraw(kept, tmp_path, results.load_results(kept).kind)
    files = [path for path in paths if path.suffix in (".csv", ".json")]
    assert len(files) == 2
    assert all(path.read_bytes() == (kept / path.name).read_bytes() for path in files)


def test_results_of_another_kind_are_refused(tmp_path: Path) -> None:
    folder = save(planted(PAPER_CURVES), tmp_path)
    with pytest.raises(BadInput, match="holds results of figure2; use rpo figure figure2"):
        redraw(folder, tmp_path, "gamma")


def test_names_with_commas_are_selected_whole() -> None:
    whole = (["a, b", "a", "c"], [0.2], [0])
    assert select(whole, None, Study(objectives="a, b,c")).policies == ["a, b", "c"]
    assert select(whole, None, Study(objectives="a")).policies == ["a"]
