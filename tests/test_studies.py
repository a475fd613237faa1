"""Properties of the figures of variants: what is measured, claimed, redrawn, refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import RHO, Tiny, pairs_of, rpo
from test_figures import contents
from transformers import AutoModelForCausalLM

from rpo_cli.artifacts import Workspace
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import Cells, bias_of, read_by
from rpo_cli.figures.claims import judge
from rpo_cli.figures.gather import evaluations
from rpo_cli.figures.kinds import kl
from rpo_cli.figures.kinds.degeneracy import curve
from rpo_cli.figures.table import Axes, Bootstrap, summary
from rpo_cli.models import make_batch, response_logits
from rpo_cli.recipes import RecipeError, check_suite, load
from rpo_cli.recipes.files import known
from rpo_cli.recipes.schema import MEASURES, Claim, FigureRecipe
from rpo_cli.recipes.schema.figure import FURTHER
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.todo import what_to_run
from rpo_cli.stages.data.rows import row_id
from rpo_cli.stages.measure import ESTIMATORS, exact, step_seconds

SEEDS = [0, 1, 2]
KINDS = ("degeneracy", "gamma", "ensemble", "kl", "unbiased")
FIGURES = {
    "degeneracy": "rhos: [0.5]\nvariants:\n"
    "  - {name: dpo, recipe: dpo.yaml, set: {data: splits-few.yaml, max_steps: 4, beta: 0.3}}\n"
    "  - {name: ipo, recipe: ipo.yaml, set: {data: splits-few.yaml, max_steps: 4}}\n"
    "  - {name: d-dpo, recipe: d-dpo.yaml, set: {data: splits-few.yaml, max_steps: 4}}\n"
    "claims:\n  - {claim: more, more: dpo, than: d-dpo, measure: margin}\n"
    "  - {claim: down, than: dpo, measure: h_rejected}\n",
    "gamma": "rhos: [0.5]\nvariants:\n"
    "  - {name: annealed, recipe: p-dpo.yaml, panel: p-dpo}\n"
    "  - {name: none, recipe: p-dpo.yaml, panel: p-dpo, set: {gamma: 0, gamma_end: null}}\n"
    "claims:\n  - {claim: as well, more: annealed, than: none, within: 0.1}\n",
    "ensemble": "rhos: [0.5]\nvariants:\n"
    "  - {name: example, recipe: e-dpo.yaml}\n"
    "  - {name: dataset, recipe: e-dpo.yaml, set: {ensemble_min: dataset}}\n"
    "claims:\n  - {claim: follows, more: dataset, than: example, measure: same_bias}\n",
    "kl": "rhos: [0.5]\nvariants:\n  - {name: dpo, recipe: dpo.yaml}\n"
    "claims:\n  - {claim: unbiased, more: sample, measure: error, within: 0.1}\n"
    "  - {claim: noisy, more: sample, than: full, measure: square}\n",
    "unbiased": "rhos: [null]\nvariants:\n  - {name: dpo, recipe: dpo.yaml}\n"
    "  - {name: ipo, recipe: ipo.yaml}\n"
    "claims:\n  - {claim: beats, more: dpo}\n  - {claim: beats, more: dpo, than: ipo}\n",
}


def write_figure(tiny: Tiny, kind: str) -> None:
    (tiny.suite / f"{kind}.yaml").write_text(
        f"stage: figure\nkind: {kind}\nbootstrap_samples: 100\ntitle: A title\n{FIGURES[kind]}"
    )
    few = (tiny.suite / "splits.yaml").read_text().replace("num_pairs: 64", "num_pairs: 16")
    (tiny.suite / "splits-few.yaml").write_text(few)


# ── From one command to the files ───────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_command_makes_the_figure_and_its_results_draw_it_again_to_the_byte(
    tiny: Tiny, tmp_path: Path, kind: str
) -> None:
    write_figure(tiny, kind)
    seeds = ("--seeds", "0,1") if kind == "degeneracy" else ()
    plan = tiny.run(f"figure {kind}", f"{kind}.yaml", *seeds, "--dry-run")
    assert "to build" in plan.stderr and not (tiny.root / "figures").exists()
    said = tiny.run(f"figure {kind}", f"{kind}.yaml", *seeds, "--json")
    folder = tiny.root / "figures" / kind
    made = {f"{kind}.{suffix}" for suffix in ("png", "svg", "pdf", "csv", "json")}
    own = {"degeneracy": {"curves.csv"}, "ensemble": {"members.csv"}}
    kept = {"cells.parquet", "choices.csv", "provenance.json"} | own.get(kind, set())
    assert set(contents(folder)) == made | kept
    result = json.loads((folder / f"{kind}.json").read_text())
    assert result["claims"] == json.loads(said.stdout)["claims"] and len(result["claims"]) == FIGURES[
        kind
    ].count("claim:")
    assert {row["status"] for row in result["claims"]} <= {"passed", "not significant", "contradicted"}
    assert (
        result["provenance"]["versions"]
        and result["provenance"]["cells"]
        and result["provenance"]["kind"] == kind
    )
    for row in result["table"]:
        assert all(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for name in MEASURES[kind])
    again = rpo("figure", kind, "--from", folder, "--out", tmp_path / "again")
    assert all(contents(tmp_path / "again")[name] == contents(folder)[name] for name in made)
    assert all(claim["claim"] in again.stdout for claim in result["claims"])
    assert "0 stages to build" in tiny.run(f"figure {kind}", f"{kind}.yaml", *seeds, "--dry-run").stderr
    other = "gamma" if kind != "gamma" else "kl"
    assert f"rpo figure {kind}" in tiny.run(f"figure {other}", f"{kind}.yaml", code=2).stderr
    assert f"rpo figure {kind}" in rpo("figure", other, "--from", folder, code=2).stderr
    assert (
        "up to date, nothing to build"
        in tiny.run("status", f"{kind}.yaml", *(() if kind != "degeneracy" else ("--seed", 1))).stdout
    )
    if kind in ("degeneracy", "kl"):
        assert f"rpo figure {kind}" in tiny.run("sweep", f"{kind}.yaml", code=2).stderr


@pytest.mark.slow
def test_unbiased_strengths_are_chosen_on_validation_for_the_figure_alone(tiny: Tiny) -> None:
    write_figure(tiny, "unbiased")
    tiny.edit("dpo.yaml", "grid: {beta: [0.05, 0.4, 2]}")
    tiny.edit("ipo.yaml", "grid: {tau: [0.05, 0.4, 2]}")
    before = contents(tiny.suite)
    plan = json.loads(tiny.run("figure unbiased", "unbiased.yaml", "--tune", "--dry-run", "--json").stdout)
    assert (plan["cells"]["validation"], plan["cells"]["test"]) == (6, 2) and not (
        tiny.root / "figures"
    ).exists()
    said = tiny.run("figure unbiased", "unbiased.yaml", "--tune")
    assert "chosen on validation" in said.stdout and contents(tiny.suite) == before
    rows = pd.read_csv(tiny.root / "figures/unbiased/validation.csv")
    assert len(rows) == 6 and rows["rho"].isna().all()
    best = {str(p): float(r.loc[r["advantage"].idxmax(), "value"]) for p, r in rows.groupby("policy")}
    result = json.loads((tiny.root / "figures/unbiased/unbiased.json").read_text())["provenance"]
    assert {
        p: next(iter(result["cells"][p].values()))[s] for p, s in (("dpo", "beta"), ("ipo", "tau"))
    } == best
    kept = {path.parent.name for path in (tiny.root / "seed-0/unbiased/policies").rglob("model.safetensors")}
    assert kept == {f"beta-{best['dpo']:g}", f"tau-{best['ipo']:g}"}
    # The same again has nothing to do; a reduced grid says so; without --tune the recipes' strengths count.
    plan = json.loads(
        tiny.run(
            "figure unbiased", "unbiased.yaml", "--tune", "--grid-size", "2", "--dry-run", "--json"
        ).stdout
    )
    assert plan["left_out"] == {"grid": {"dpo": [{"beta": 0.4}], "ipo": [{"tau": 0.4}]}}
    assert (
        "only with --tune" in tiny.run("figure unbiased", "unbiased.yaml", "--grid-size", "2", code=2).stderr
    )
    tiny.run("figure unbiased", "unbiased.yaml", "--tune", "--grid-size", "2")
    reduced = json.loads((tiny.root / "figures/unbiased/unbiased.json").read_text())["provenance"]
    assert (
        reduced["left_out"]["grid"]["dpo"] == [{"beta": 0.4}]
        and "reduced: 2 of 3 grid values" in reduced["title"]
    )
    own = tiny.run("figure unbiased", "unbiased.yaml", "--dry-run").stdout
    assert "unbiased/policies/dpo/beta-0.2  (missing)" in own


@pytest.mark.slow
def test_the_measure_of_a_policy_is_its_log_ratios_on_its_own_pairs(tiny: Tiny) -> None:
    write_figure(tiny, "kl")
    tiny.run("figure kl", "kl.yaml")
    folder = tiny.root / RHO / "measures/dpo/beta-0.2"
    rows = pd.read_parquet(folder / "pairs.parquet")
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    line = json.loads((tiny.root / RHO / "policies/dpo/beta-0.2/metrics.jsonl").read_text().splitlines()[-1])
    reference = pq.read_table(tiny.root / "seed-0/reference-logps/relabel/logps.parquet").to_pydict()
    assert len(rows) == metrics["rows"] == 64 and set(rows["prompt_id"]) <= {row_id(p) for p in samples(tiny)}
    assert (rows["kl_full"] > -1e-6).all() and (
        rows["kl_data"] + (rows["h_chosen"] + rows["h_rejected"]) / 2
    ).abs().max() < 1e-6
    assert rows["kl_sample"].std() > 0 and (rows["kl_sample"] - rows["kl_full"]).abs().max() > 1e-3
    assert all(metrics[f"milliseconds/{name}"] > 0 for name in ESTIMATORS)
    # The last step's batch was measured one step earlier, on 8 of the 64 pairs: the same sign of the margin.
    assert np.sign((rows["h_chosen"] - rows["h_rejected"]).mean()) == np.sign(line["rewards/margins"])
    assert len(reference["id"]) >= 64


def samples(tiny: Tiny) -> list[str]:
    prompt_of = {row["id"]: row["prompt"] for row in pairs_of(tiny.root, "seed-0/relabel")}
    drawn = pq.read_table(tiny.root / "seed-0/reference-samples/relabel/samples.parquet")
    return [prompt_of[name] for name in drawn["id"].to_pylist()]


def test_the_exact_kl_is_zero_at_the_reference_and_the_sum_over_the_vocabulary_elsewhere(built: Tiny) -> None:
    reference = AutoModelForCausalLM.from_pretrained(built.root / "seed-0/sft", dtype=torch.float32).eval()
    policy = AutoModelForCausalLM.from_pretrained(
        built.root / RHO / "policies/e-dpo/beta-0.2", dtype=torch.float32
    ).eval()
    prompts, answers, pad = (
        [[5, 6, 7], [8, 9], [10]],
        [[4, 5], [6, 7, 8], [9]],
        int(policy.config.pad_token_id),
    )
    assert np.abs(exact(reference, reference, prompts, answers, 2)).max() == 0
    one_by_one = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            batch = make_batch([prompt], [[answer]], pad, "plain")
            p, q = (response_logits(model, batch)[0, :-1].log_softmax(-1) for model in (reference, policy))
        one_by_one.append(float((p.exp() * (p - q)).sum()))
    assert exact(policy, reference, prompts, answers, 2) == pytest.approx(one_by_one, rel=1e-4, abs=1e-7)
    assert min(one_by_one) > 0
    groups = {name: answers for name in ("chosen", "rejected", "sample")}
    assert step_seconds(policy, reference, prompts, groups).keys() == set(ESTIMATORS)
    assert all(weights.grad is None for weights in policy.parameters())


@pytest.mark.slow
def test_ensemble_measures_are_those_of_the_members_that_taught(tiny: Tiny) -> None:
    write_figure(tiny, "ensemble")
    tiny.run("figure ensemble", "ensemble.yaml")
    folder = tiny.root / "figures/ensemble"
    choices, table = (
        pd.read_csv(folder / "choices.csv"),
        pd.read_csv(folder / "ensemble.csv").set_index("policy"),
    )
    for policy, rows in choices.groupby("policy"):
        assert rows["share"].sum() == pytest.approx(1, abs=1e-5)
        assert table.loc[policy, "member"] == pytest.approx((rows["member"] * rows["share"]).sum(), abs=1e-3)
        assert table.loc[policy, "same_bias"] == pytest.approx(
            rows.loc[rows["member"] == 0.5, "share"].sum(), abs=1e-3
        )
    members = pd.read_csv(folder / "members.csv").merge(
        choices, on=["policy", "rho", "seed", "member"], suffixes=("", "_too")
    )
    assert len(members) == len(choices) and np.allclose(members["share"], members["share_too"])
    scores = pq.read_table(tiny.root / RHO / "scores/rm/b-0.2/train.parquet").to_pandas()
    rms = float(np.sqrt(((scores["chosen"] - scores["rejected"]) ** 2).mean()))
    assert members.loc[members["member"] == 0.2, "margin_rms"].to_numpy() == pytest.approx(rms, abs=1e-5)


def test_a_figure_does_not_take_another_baseline_for_its_own(tiny: Tiny) -> None:
    cells = [Cells(load(str(tiny.suite / "e-dpo.yaml"))).cell("e-dpo", 0.5, 0, "test")]
    workspace = Workspace(tiny.root, "tiny")
    first = evaluations(cells, workspace).cells
    tiny.run(
        "evaluate", "evaluate.yaml", "--set", "temperature=0.5"
    )  # at the place of the baseline, under another key
    assert what_to_run([cells[0].evaluation], workspace) == []  # the cell itself is up to date
    with pytest.raises(
        BadInput, match=r"evaluations/sft/test: not what .*e-dpo/beta-0.2/test was compared with"
    ):
        evaluations(cells, workspace)
    assert [item.stage.path for item in what_to_run(read_by(cells), workspace)] == [
        "seed-0/evaluations/sft/test"
    ]
    tiny.run("evaluate", "evaluate.yaml")
    pd.testing.assert_frame_equal(evaluations(cells, workspace).cells, first)


def test_members_of_a_listed_ensemble_have_no_b() -> None:
    assert [bias_of(name) for name in ("0.2", "1", "m0", "m1")] == [0.2, 1.0, None, None]


def test_too_few_steps_for_a_curve_are_told_in_a_line(tiny: Tiny) -> None:
    maker = Cells(load(str(tiny.suite / "dpo.yaml")), ["logging_steps=50"])
    cell = maker.cell("dpo", 0.5, 0, "test")
    tiny.make("dpo.yaml", "logging_steps=50")
    with pytest.raises(
        BadInput, match=r"dpo/beta-0.2: 6 steps with logging_steps: 50 leave no curve of log-ratios to draw"
    ):
        curve(cell, Workspace(tiny.root, "tiny"))


@pytest.mark.slow
def test_a_policy_without_an_ensemble_stands_beside_ensembles_and_has_no_members(tiny: Tiny) -> None:
    write_figure(tiny, "ensemble")
    file = tiny.suite / "ensemble.yaml"
    file.write_text(
        file.read_text().replace("claims:", "  - {name: dpo, recipe: dpo.yaml, panel: beside}\nclaims:")
    )
    tiny.run("figure ensemble", "ensemble.yaml")
    table = pd.read_csv(tiny.root / "figures/ensemble/ensemble.csv").set_index("policy")
    assert table["member"].isna().tolist() == [False, False, True] and table["advantage"].notna().all()


@pytest.mark.slow
def test_tuning_chooses_each_variants_strength_on_validation_for_this_figure_alone(tiny: Tiny) -> None:
    write_figure(tiny, "gamma")
    policy = tiny.suite / "p-dpo.yaml"
    policy.write_text(policy.read_text() + "grid: {beta: [0.05, 5]}\n")
    before = policy.read_bytes()
    plan = json.loads(tiny.run("figure gamma", "gamma.yaml", "--tune", "--dry-run", "--json").stdout)
    assert (
        sum(stage["path"].endswith("/validation") and "/p-dpo/" in stage["path"] for stage in plan["todo"])
        == 4
    )
    tiny.run("figure gamma", "gamma.yaml", "--tune")
    folder = tiny.root / "figures/gamma"
    tried = pd.read_csv(folder / "validation.csv")
    assert sorted(tried["value"]) == [0.05, 0.05, 5, 5] and set(tried["policy"]) == {"annealed", "none"}
    cells = json.loads((folder / "provenance.json").read_text())["cells"]
    for name, rows in tried.groupby("policy"):
        best = rows.loc[rows["advantage"].idxmax(), "value"]
        assert cells[name]["rho-0.5/seed-0"]["beta"] == best
    assert policy.read_bytes() == before
    assert tiny.run("figure gamma", "gamma.yaml", "--tune").stderr.count(" 0 stages to build") == 2


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "gamma",
            ("set: {gamma: 0,", "set: {beta: 0.3, gamma: 0,"),
            "none: sets beta, which --tune is to choose",
        ),
        ("unbiased", ("{name: dpo,", "{name: dpo, set: {grid: {beta: [1, 2]}},"), "different sizes"),
        ("kl", ("", ""), "has none"),
    ],
)
def test_what_cannot_be_tuned_alike_is_refused(
    empty: Tiny, kind: str, change: tuple[str, str], message: str
) -> None:
    write_figure(empty, kind)
    file = empty.suite / f"{kind}.yaml"
    file.write_text(file.read_text().replace(*change, 1))
    for name in ("p-dpo", "dpo", "ipo"):
        policy = empty.suite / f"{name}.yaml"
        policy.write_text(policy.read_text() + f"grid: {{{'tau' if name == 'ipo' else 'beta'}: [1, 2, 3]}}\n")
    assert message in " ".join(
        empty.run(f"figure {kind}", f"{kind}.yaml", "--tune", "--dry-run", code=2).stderr.split()
    )


def test_a_teacher_that_scores_other_pairs_than_its_own_keeps_both_scores(tiny: Tiny) -> None:
    write_figure(tiny, "degeneracy")
    own, other = tiny.stage("d-dpo.yaml"), tiny.stage("d-dpo.yaml", "data=splits-few.yaml")
    assert own.inputs["scores/rm"].path == f"{RHO}/scores/rm/all"
    assert other.inputs["scores/rm"].path == f"{RHO}/scores/rm/all/splits-few"
    assert own.inputs["scores/rm"].inputs["model"].key == other.inputs["scores/rm"].inputs["model"].key
    loaded = [load(str(tiny.suite / "d-dpo.yaml"), overrides=o) for o in ([], ["data=splits-few.yaml"])]
    planner = Planner(0)
    assert (
        len({planner.build(each).inputs["scores/rm"].path for each in loaded}) == 2
    )  # one planner, no clash


# ── Claims ──────────────────────────────────────────────────────────────────────────────────────────────────


def planted(means: dict[str, float], *, between: float = 0.0, rho: float = 0.5) -> pd.DataFrame:
    """Rows of 60 prompts and three seeds whose noise the policies share but for a little."""
    rng, parts = np.random.default_rng(0), []
    for seed in SEEDS:
        common = rng.normal(size=60)
        for policy, mean in means.items():
            value = (
                mean
                + common
                - common.mean()
                + 0.05 * rng.normal(size=60)
                + between * (seed - 1) * (policy == "a")
            )
            parts.append(
                pd.DataFrame(
                    {
                        "policy": policy,
                        "rho": rho,
                        "seed": seed,
                        "prompt_id": [f"p{i}" for i in range(60)],
                        "x": value,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def judged(cells: pd.DataFrame, **claim: Any) -> dict[str, Any]:
    axes = Axes(["a", "b"], [float(cells["rho"].iloc[0])], SEEDS, ("x",))
    (row,) = judge(cells, axes, [Claim(claim="so it is", measure="x", **claim)], Bootstrap(300))
    assert row["passed"] == (row["status"] == "passed")
    return row


def test_claims_pass_where_they_are_planted_and_are_contradicted_where_the_opposite_is() -> None:
    cells = planted({"a": 1.0, "b": 0.6})
    assert judged(cells, more="a", than="b")["status"] == "passed"
    assert judged(cells, more="b", than="a")["status"] == "contradicted"
    assert judged(cells, more="a", than="b")["difference"] == pytest.approx(0.4, abs=0.03)
    assert (
        judged(cells, more="a")["status"] == "passed" and judged(cells, than="a")["status"] == "contradicted"
    )
    assert judged(cells, more="a", than="b", within=0.5)["status"] == "passed"
    assert judged(cells, more="b", than="a", within=0.5)["status"] == "passed"
    assert judged(cells, more="b", than="a", within=0.3)["status"] == "contradicted"
    assert judged(cells, more="b", than="a", beyond=0.3)["status"] == "passed"
    assert judged(cells, more="a", than="b", beyond=0.5)["status"] == "contradicted"


def test_two_policies_that_are_only_not_told_apart_are_not_claimed_to_be_equal() -> None:
    noisy = planted({"a": 1.0, "b": 1.0}, between=0.3)
    assert judged(noisy, more="a", than="b")["status"] == "not significant"
    assert judged(noisy, more="a", than="b", within=0.1)["status"] == "not significant"
    assert judged(planted({"a": 1.0, "b": 1.0}), more="a", than="b", within=0.1)["status"] == "passed"


def test_a_claim_says_what_it_compares_and_where() -> None:
    cells = planted({"a": 1.0, "b": 0.6})
    assert judged(cells, more="a", than="b")["detail"] == "x: a - b"
    assert judged(cells, than="b")["detail"] == "x: 0 - b"
    assert judged(cells, more="a")["detail"] == "x: a"
    assert judged(cells, more="a", than="b", within=0.1)["detail"] == "x: 0.1 - |a - b|"
    assert judged(cells, more="a", beyond=0.1)["detail"] == "x: |a| - 0.1"
    both = pd.concat([cells, planted({"a": 0.1, "b": 0.6}, rho=float("nan"))])
    axes, how = Axes(["a", "b"], [0.5, None], SEEDS, ("x",)), Bootstrap(50)
    rows = judge(both, axes, [Claim(claim="c", more="a", than="b", measure="x")], how)
    assert [row["detail"] for row in rows] == ["x: a - b at rho 0.5", "x: a - b without resampling"]
    assert [row["status"] for row in rows] == ["passed", "contradicted"]
    only = judge(both, axes, [Claim(claim="c", more="a", measure="x", rhos=[0.5])], how)
    assert len(only) == 1
    table = summary(both, axes, how)
    assert (
        table.loc[(table["policy"] == "a") & table["rho"].isna(), "x"].item() == pytest.approx(0.1, abs=0.02)
        and set(table["prompts"]) == {60}
        and set(table["seeds"]) == {3}
    )


def test_a_claim_about_the_mean_over_rho_is_one_row_of_the_mean(tmp_path: Path) -> None:
    both = pd.concat([planted({"a": 1.0, "b": 0.4}), planted({"a": 0.5, "b": 0.7}, rho=0.2)])
    claim = Claim(claim="c", more="a", than="b", measure="x", mean_over_rho=True)
    (row,) = judge(both, Axes(["a", "b"], [0.2, 0.5], SEEDS, ("x",)), [claim], Bootstrap(50))
    assert row["detail"] == "x: a - b, mean over rho 0.2, 0.5" and row["status"] == "passed"
    assert row["difference"] == pytest.approx((0.6 - 0.2) / 2, abs=0.03)


# ── Recipes ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_kind_has_a_recipe_with_three_seeds_and_claims() -> None:
    found = {
        load(str(path)).recipe.kind: load(str(path)).recipe
        for path in known()
        if path.parent.name == "miniature" and path.stem.startswith("figure-")
    }
    assert found.keys() == MEASURES.keys() - {"figure2"}
    for recipe in found.values():
        assert len(recipe.seeds) >= 3 and recipe.claims and recipe.title and recipe.description
        assert {claim.measure for claim in recipe.claims} <= {*MEASURES[recipe.kind], *FURTHER}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "variants: missing"),
        ("policies: [dpo.yaml]\nvariants: [{name: a, recipe: dpo.yaml}]", "give one of them, not both"),
        ("policies: [dpo.yaml]\nrhos: [null]", "has an axis of rho"),
        ("kind: gamma\npolicies: [dpo.yaml]", "needs variants instead of policies"),
        ("kind: gamme\npolicies: [dpo.yaml]", "kind: expected"),
        (
            "kind: gamma\nvariants: [{name: a, recipe: dpo.yaml}, {name: a, recipe: ipo.yaml}]",
            "two are called a",
        ),
        ("kind: gamma\nvariants: [{name: a, recipe: dpo.yaml, sets: {}}]", "sets"),
        (
            "kind: kl\nvariants: [{name: a, recipe: dpo.yaml}, {name: b, recipe: ipo.yaml}]",
            "one variant and one rho",
        ),
        (
            "kind: gamma\nvariants: [{name: a, recipe: dpo.yaml}]\nclaims: [{claim: x, more: b}]",
            "b is no variant (a)",
        ),
        ("kind: gamma\nvariants: [{name: a, recipe: dpo.yaml}]\nclaims: [{claim: x}]", "compares nothing"),
        ("kind: gamma\nvariants: [{name: _a, recipe: dpo.yaml}]", "_a: matplotlib leaves names that begin"),
        (
            "kind: gamma\nvariants: [{name: a, recipe: dpo.yaml}]\n"
            "claims: [{claim: x, more: a, within: 1, beyond: 1}]",
            "not both",
        ),
        (
            "kind: gamma\nrhos: [0.5]\nvariants: [{name: a, recipe: dpo.yaml}]\n"
            "claims: [{claim: x, more: a, rhos: [0.2]}]",
            "rho 0.2 is none",
        ),
        (
            "kind: gamma\nvariants: [{name: a, recipe: dpo.yaml}]\n"
            "claims: [{claim: x, more: a, measure: reward}]",
            "no measure of gamma",
        ),
    ],
)
def test_a_wrong_figure_recipe_is_refused_with_its_reason(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(f"stage: figure\n{text}\n")
    with pytest.raises(RecipeError) as error:
        load(str(tmp_path / "x.yaml"))
    assert any(message in problem for problem in error.value.problems), error.value.problems
    assert len(error.value.problems) == 1


def test_a_variants_mistake_is_found_by_the_check_with_its_name(empty: Tiny) -> None:
    write_figure(empty, "gamma")
    file = empty.suite / "gamma.yaml"
    file.write_text(file.read_text().replace("{gamma: 0,", "{gama: 0,"))
    assert ["gama: unknown key" in problem and "none" in problem for problem in check_suite(empty.suite)] == [
        True
    ]
    assert "gama" in empty.run("figure gamma", "gamma.yaml", "--dry-run", code=2).stderr
    assert isinstance(load(str(file)).recipe, FigureRecipe)


@pytest.mark.parametrize(
    ("key", "text", "line"),
    [
        ("title", "title: $x_$\nrhos: [0.5]\nvariants: [{name: a, recipe: dpo.yaml}]", 3),
        ("variants[0].name", "rhos: [0.5]\nvariants:\n  - {name: '$x_$', recipe: dpo.yaml}", 5),
    ],
)
def test_a_formula_that_cannot_be_drawn_is_refused_before_any_stage(
    empty: Tiny, key: str, text: str, line: int
) -> None:
    (empty.suite / "figure.yaml").write_text(f"stage: figure\nkind: gamma\n{text}\n")
    said = empty.run("figure gamma", "figure.yaml", code=2).stderr.splitlines()
    assert len(said) == 1 and f"figure.yaml:{line}: {key}: no formula that can be drawn" in said[0]
    assert len(said[0].split(key)[1]) < 120 and "Exception" not in said[0] and " at character " in said[0]
    assert not empty.root.exists()
    for good in ("$x_1$", "5 $", r"\$x_\$", "π$_{SFT}$"):
        assert load(str(empty.suite / "figure.yaml"), overrides=[f"title='{good}'", GOOD]).recipe


GOOD = "variants=[{name: a, recipe: dpo.yaml}]"


@pytest.mark.parametrize("kind", ["gamma", "kl", "figure2"])
def test_every_kind_has_the_same_options(kind: str) -> None:
    said = rpo("figure", kind, "--help").output
    options = (
        "--seeds --rho --from --out --allow-missing --tune --keep-weights --budget --objectives --grid-size "
        "--dry-run --estimate --device-name --jobs --json --set --workspace"
    )
    assert [option for option in options.split() if option not in said] == []


@pytest.mark.slow
def test_a_figure_of_variants_draws_its_gaps_when_told_to(tiny: Tiny) -> None:
    write_figure(tiny, "unbiased")
    tiny.edit("unbiased.yaml", "rhos: [0.5, null]\nkind: gamma")
    out = tiny.root / "out"
    tiny.run("evaluate", "dpo.yaml", "--rho", "0.5")
    tiny.run("figure gamma", "unbiased.yaml", "--allow-missing", "--out", out)
    drawn = json.loads((out / "gamma.json").read_text())
    assert {"policy": "dpo", "rho": None, "seed": 0} in drawn["missing"] and len(drawn["missing"]) == 3
    assert {row["status"] for row in drawn["claims"] if "dpo at rho 0.5" in row["detail"]} != {"not measured"}
    refused = rpo("figure", "gamma", "--from", out, code=2).stderr
    assert "3 cells are missing: dpo without resampling, seed 0" in refused


def test_more_beats_each_of_several_only_if_it_beats_the_strongest() -> None:
    cells = planted({"a": 1.0, "b": 0.6, "c": 1.2})
    axes = Axes(["a", "b", "c"], [0.5], SEEDS, ("x",))
    each = Claim(claim="best", measure="x", more="a", each=["b", "c"])
    rows = judge(cells, axes, [each], Bootstrap(100))
    assert [row["detail"] for row in rows] == [
        "x: a - each of b, c, least lead over c",
        "x: a - b",
        "x: a - c",
    ]
    assert [row["status"] for row in rows] == ["contradicted", "passed", "contradicted"]
    assert rows[0]["low"] == rows[2]["low"]
    every = Claim(claim="best", measure="x", more="c", each="*")
    assert [row["passed"] for row in judge(cells, axes, [every], Bootstrap(100))] == [True] * 3


def test_a_range_is_that_of_the_curve_over_rho() -> None:
    cells = pd.concat([planted({"a": 1.0, "b": 0.5}), planted({"a": 0.2, "b": 0.6}, rho=0.2)])
    claim = Claim(claim="flat", measure="x", more="*", than="b", range=True)
    (row,) = judge(cells, Axes(["a", "b"], [0.2, 0.5], SEEDS, ("x",)), [claim], Bootstrap(100))
    assert row["detail"] == "x: range of a - range of b" and row["passed"]
    assert row["difference"] == pytest.approx(0.8 - 0.1, abs=0.05)


@pytest.mark.parametrize("kind", ["degeneracy", "kl"])
def test_what_is_measured_on_training_pairs_has_no_unit_of_an_oracle(tmp_path: Path, kind: str) -> None:
    (tmp_path / "figure.yaml").write_text(
        f"stage: figure\nkind: {kind}\nunit: sd\nrhos: [0.5]\nvariants: [{{name: a, recipe: dpo.yaml}}]\n"
    )
    with pytest.raises(RecipeError, match=f"unit: sd: no oracle scores the training pairs that kind: {kind}"):
        load(str(tmp_path / "figure.yaml"))


def test_the_square_of_an_estimator_is_its_distance_from_its_own_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values far from zero, so that the mean counts; `full` has another mean than `sample`."""
    values = {"kl_full": [5.0, 7.0], "kl_sample": [2.0, 10.0], "kl_data": [4.0, 4.0]}
    pd.DataFrame({"prompt_id": ["a", "b"], **values}).to_parquet(tmp_path / "pairs.parquet")
    cell: Any = SimpleNamespace(evaluation=SimpleNamespace(path=""), keys={"rho": 0.5, "seed": 0})
    manifest = {"metrics": {f"milliseconds/{name}": 1.0 for name in ESTIMATORS}}
    monkeypatch.setattr(kl, "made", lambda cells, workspace: [(cell, manifest)])
    monkeypatch.setattr(kl, "measures", lambda there, frames, workspace: pd.concat(frames))
    rows: Any = kl.gather([cell], cast(Any, SimpleNamespace(root=tmp_path)))
    found = {name: own["square"].tolist() for name, own in rows.groupby("policy")}
    assert found == {"full": [1.0, 1.0], "sample": [16.0, 16.0], "data": [0.0, 0.0]}
    assert rows[rows["policy"] == "sample"]["error"].tolist() == [-3.0, 3.0]


def test_curves_of_both_responses_and_of_their_margin_are_in_nats(tmp_path: Path) -> None:
    """Training logs rewards: log-ratios times beta, here 0.25."""
    lines = [
        {"step": step, "rewards/chosen": -0.5 * step, "rewards/rejected": -1.5 * step,
         "rewards/margins": 1.0 * step, "logps/chosen": -8.0, "logps/rejected": -9.0}
        for step in (1, 2)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = SimpleNamespace(reward_scale=0.25)
    cell: Any = SimpleNamespace(policy_path="", loaded=SimpleNamespace(recipe=recipe))
    cell.keys = {"policy": "dpo", "rho": 0.5, "seed": 0}
    rows = curve(cell, cast(Any, SimpleNamespace(root=tmp_path)))
    found = {name: own["value"].tolist() for name, own in rows.groupby("measure")}
    assert (found["h_chosen"], found["h_rejected"], found["margin"]) == ([-2, -4], [-6, -12], [4, 8])
    assert found["logps_rejected"] == [-9, -9]
