"""Policies beside each other: what is measured, what is compared with what, and the page that shows it."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from conftest import RHO, SEED, Tiny, manifest, once, rpo
from fake_judge import FakeJudge
from test_teachers import write as conversations
from worlds import Plain, logp

from rpo_cli.artifacts import read_json
from rpo_cli.figures.frames import Frame, _pairs, _verdicts
from rpo_cli.figures.numbers import Row, _rows, cut_short
from rpo_cli.figures.report import curves, page_of
from rpo_cli.figures.selection import Selection
from rpo_cli.figures.table import Bootstrap
from rpo_cli.stages.held_out import HALVES, half_of, measured
from rpo_cli.stages.training.doubts import kept_doubts
from rpo_cli.statistics import wilson

NAMES = ("e-dpo.yaml", "dp-dpo.yaml")
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'so'"


def compare(tiny: Tiny, *arguments: object, recipes: tuple[str, ...] = NAMES, code: int = 0) -> Any:
    paths = [tiny.suite / name for name in recipes]
    return rpo("compare", *paths, "--workspace", tiny.root, *arguments, code=code)


@pytest.fixture(scope="module")
def beside(built: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The chain with two policies compared, built once; and what was printed, beside it."""

    def build(home: Path) -> None:
        shutil.copytree(built.suite, home / "tiny")
        shutil.copytree(built.root, home / "runs")
        (home / "said.json").write_text(compare(Tiny(home / "tiny", home / "runs"), "--json").stdout)

    home = once(tmp_path_factory, "beside", build)
    return Tiny(home / "tiny", home / "runs")


@pytest.fixture
def found(beside: Tiny) -> dict[str, Any]:
    """What `compare --json` printed."""
    said = read_json(beside.root.parent / "said.json")
    assert said is not None
    return said


@pytest.fixture(scope="module")
def drawn(beside: Tiny) -> str:
    """The page that `report --from` makes of it."""
    page = beside.root.parent / "[/b]page.html"
    shown = rpo("report", "--from", beside.root.parent / "said.json", "--out", page)
    assert shown.stdout == f"{page}\n"
    return page.read_text()


def row(found: dict[str, Any], policy: str, measure: str) -> dict[str, Any]:
    (one,) = [r for r in found["rows"] if (r["policy"], r["measure"]) == (policy, measure)]
    return dict(one)


# ── What is measured ────────────────────────────────────────────────────────────────────────────────────────


def test_held_out_log_ratios_are_those_of_the_models_read_plainly(beside: Tiny) -> None:
    plain = Plain(beside.root)
    table = plain.table(f"{RHO}/held-out/dp-dpo/beta-0.2/pairs.parquet").set_index("id")
    policy, reference = plain.policy(f"{RHO}/policies/dp-dpo/beta-0.2"), plain.policy(f"{SEED}/sft")
    pairs = plain.pairs("held_out")
    assert list(table.index) == [pair.id for pair in pairs]
    for pair in pairs[:4]:
        for side in ("chosen", "rejected"):
            response = getattr(pair, side)
            expected = logp(policy, pair.prompt, response) - logp(reference, pair.prompt, response)
            assert table.loc[pair.id, f"h_{side}"] == pytest.approx(expected, abs=2e-4)
    delta_h = table["h_chosen"] - table["h_rejected"]
    metrics = manifest(beside.root, f"{RHO}/held-out/dp-dpo/beta-0.2")["metrics"]
    assert metrics["accuracy"] == pytest.approx((delta_h > 0).mean())
    assert metrics["margin"] == pytest.approx(delta_h.mean())


def test_a_prompt_is_in_one_half_of_the_held_out_pairs_and_the_halves_are_measured_apart(
    beside: Tiny,
) -> None:
    table = pd.read_parquet(beside.root / RHO / "held-out/e-dpo/beta-0.2/pairs.parquet")
    assert (table.groupby("prompt_id")["half"].nunique() == 1).all()
    metrics = manifest(beside.root, f"{RHO}/held-out/e-dpo/beta-0.2")["metrics"]
    for half in HALVES:
        own = table[table["half"] == half]
        assert metrics[f"{half}/margin"] == pytest.approx((own["h_chosen"] - own["h_rejected"]).mean())
    halves = [half_of(f"prompt {number}") for number in range(2000)]
    assert 900 < halves.count("test") < 1100


def test_numbers_are_means_over_prompts_and_differences_are_paired(
    beside: Tiny, found: dict[str, Any]
) -> None:
    assert found["against"] == "e-dpo" and row(found, "e-dpo", "tokens")["difference"] is None
    samples = {
        name: pd.read_parquet(beside.root / RHO / f"evaluations/{name}/beta-0.2/test/samples.parquet")
        for name in ("e-dpo", "dp-dpo")
    }
    samples["baseline"] = pd.read_parquet(beside.root / SEED / "evaluations/sft/test/samples.parquet")
    by_prompt = {name: table.groupby("prompt_id")["reward"].mean() for name, table in samples.items()}
    gain = {name: values - by_prompt["baseline"] for name, values in by_prompt.items()}
    ours = row(found, "dp-dpo", "advantage")
    assert ours["mean"] == pytest.approx(gain["dp-dpo"].mean(), abs=1e-4)
    apart = gain["dp-dpo"] - gain["e-dpo"]
    assert ours["difference"]["mean"] == pytest.approx(apart.mean(), abs=1e-4)
    width = ours["difference"]["high"] - ours["difference"]["low"]
    assert width == pytest.approx(2 * 1.96 * apart.std() / np.sqrt(len(apart)), rel=0.4)
    cut = 100 * (1 - samples["dp-dpo"]["finished"].mean())
    assert row(found, "dp-dpo", "unfinished")["mean"] == pytest.approx(cut, abs=0.01)


def test_a_pair_that_a_policy_does_not_rank_counts_half() -> None:
    assert measured(np.array([2.0, 0.0, -1.0, 0.0, 0.0])) == pytest.approx({"accuracy": 0.5, "margin": 0.2})


def test_of_a_prompts_pairs_those_that_are_not_ranked_count_half_and_those_that_chose_not_at_all(
    tmp_path: Path,
) -> None:
    pairs = {"prompt_id": ["a", "a", "b", "c"], "half": ["test", "test", "test", "validation"],
             "h_chosen": [1.0, 0.5, 0.0, 3.0], "h_rejected": [0.0, 0.5, 2.0, 1.0]}  # fmt: skip
    pd.DataFrame(pairs).to_parquet(tmp_path / "pairs.parquet")
    cell = cast(Any, SimpleNamespace(held_out=SimpleNamespace(path=""), keys={"policy": "dpo"}))
    workspace = cast(Any, SimpleNamespace(root=tmp_path))
    every, reported = (_pairs(cell, workspace, half).set_index("prompt_id") for half in (False, True))
    assert every["accuracy"].to_dict() == {"a": 150, "b": 0, "c": 100}
    assert every["margin"].to_dict() == {"a": 1, "b": -2, "c": 2}
    assert reported.equals(every.loc[["a", "b"]]) and reported["pairs"].to_list() == [2, 1]


def test_a_policys_wins_are_those_over_the_baseline_whomever_else_it_met(tmp_path: Path) -> None:
    verdicts = {"prompt_id": ["a", "a", "b"], "against": ["baseline", "reference", "baseline"],
                "identical": False, "first": ["A", "B", "tie"], "second": ["B", "A", "B"]}  # fmt: skip
    pd.DataFrame(verdicts).to_parquet(tmp_path / "verdicts.parquet")
    cell = cast(Any, SimpleNamespace(judged=SimpleNamespace(path=""), keys={"policy": "dpo"}))
    table = _verdicts(cell, cast(Any, SimpleNamespace(root=tmp_path)))
    assert table.set_index("prompt_id")["judge"].to_dict() == {"a": 100, "b": 75}


def test_cut_samples_are_counted_where_they_are_dropped(tiny: Tiny) -> None:
    tiny.edit("evaluate.yaml", "truncated: drop\nnum_prompts: 12")
    said = json.loads(compare(tiny, "--json").stdout)
    file = tiny.root / RHO / "evaluations/dp-dpo/beta-0.2/test/samples.parquet"
    cut = 100 * (1 - pd.read_parquet(file)["finished"].mean())
    assert cut > 0 and row(said, "dp-dpo", "unfinished")["mean"] == pytest.approx(cut, abs=0.01)


def test_held_out_means_are_over_pairs_though_prompts_are_drawn() -> None:
    """Three pairs of one prompt weigh three times as much as the pair of another."""
    cells = pd.DataFrame({"prompt_id": ["a", "b"], "accuracy": [300.0, 0.0], "margin": [3.0, -1.0],
                          "pairs": [3.0, 1.0], "policy": "dpo", "rho": float("nan"), "seed": 0})  # fmt: skip
    selection = Selection(["dpo"], [None], [0])
    frame = Frame("held_out", ("accuracy", "margin"), cells, pairs=True)
    accuracy, margin = _rows(frame, ["dpo", "baseline"], selection, "dpo", Bootstrap(200))
    assert accuracy["mean"] == pytest.approx(75) and margin["mean"] == pytest.approx(0.5)
    # Of two prompts little is known.
    assert (accuracy["low"], accuracy["high"]) == pytest.approx([100 * end for end in wilson(1.5, 2)[1:]])


def test_over_seeds_differences_are_those_of_each_seed_and_their_mean() -> None:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame({"prompt_id": [f"p{i}" for i in range(40)], "tokens": shift + rng.normal(size=40),
                      "policy": policy, "rho": 0.2, "seed": seed})
        for seed, shifts in enumerate(({"dpo": 5, "e-dpo": 7}, {"dpo": 5, "e-dpo": 4}))
        for policy, shift in shifts.items()
    ]  # fmt: skip
    cells, selection = pd.concat(parts), Selection(["dpo", "e-dpo"], [0.2], [1, 0])
    frame = Frame("evaluation", ("tokens",), cells)
    _, ours = _rows(frame, ["dpo", "e-dpo", "baseline"], selection, "dpo", Bootstrap(400))
    apart = ours["difference"]
    assert apart["by_seed"] == pytest.approx([2, -1], abs=0.6)
    assert apart["mean"] == pytest.approx(np.mean(apart["by_seed"]))
    assert apart["low"] < -0.5 and apart["high"] > 1.5  # the seeds disagree, whatever their prompts say


@pytest.mark.slow
def test_policies_of_two_models_on_the_same_pairs_are_compared_each_with_its_own_reference(
    built: Tiny, tmp_path: Path
) -> None:
    shutil.copytree(built.suite, tmp_path / "tiny")
    shutil.copytree(built.root, tmp_path / "runs")
    both = Tiny(tmp_path / "tiny", tmp_path / "runs")
    (both.suite / "larger.yaml").write_text("extends: sft.yaml\nstage: sft\nmax_steps: 3\n")
    more = "extends: d-dpo.yaml\nstage: policy\nmodel_name_or_path: larger.yaml\n"
    (both.suite / "d-dpo-larger.yaml").write_text(more)
    names = ("d-dpo.yaml", "d-dpo-larger.yaml")
    found = json.loads(compare(both, "--json", recipes=names).stdout)
    assert {row["policy"] for row in found["rows"]} >= {"d-dpo", "d-dpo-larger"}
    places = [f"{SEED}/reference-logps{start}/relabel" for start in ("", "-from-larger")]
    first, second = (pd.read_parquet(both.root / place / "logps.parquet") for place in places)
    assert list(first["id"]) == list(second["id"]) and not first.equals(second)
    for name, place in zip(names, places, strict=True):
        assert "0 stages to build" in both.run("train-policy", name, "--dry-run").stderr
        (trained,) = (both.root / RHO / "policies" / Path(name).stem).glob("*/manifest.json")
        assert json.loads(trained.read_text())["inputs"]["reference"] == manifest(both.root, place)["key"]


@pytest.mark.slow
def test_a_judges_wins_stand_beside_the_rest_once_it_was_asked_about_all(
    beside: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shutil.copytree(beside.suite, tmp_path / "tiny")
    shutil.copytree(beside.root, tmp_path / "runs")
    tiny = Tiny(tmp_path / "tiny", tmp_path / "runs")
    with FakeJudge(lambda number, body: "Verdict: A" if number % 3 else "Verdict: B") as fake:
        tiny.edit("evaluate.yaml", f"judge: {{model: fake, base_url: '{fake.url}', api_key_env: null}}")
        tiny.run("judge", "e-dpo.yaml")
        assert "no verdicts on all of these" in compare(tiny).stdout
        tiny.run("judge", "dp-dpo.yaml")
    said = json.loads(compare(tiny, "--json").stdout)
    for name in ("e-dpo", "dp-dpo"):
        wins = manifest(tiny.root, f"{RHO}/judged/{name}/beta-0.2/test/fake")["metrics"]["baseline/win_rate"]
        assert row(said, name, "judge")["mean"] == pytest.approx(100 * wins, abs=0.01)
    assert all("judged" in each["paths"] for each in said["manifests"] if each["policy"] != "baseline")


def test_every_number_names_a_manifest_that_is_there(beside: Tiny, found: dict[str, Any]) -> None:
    sources = {measure["source"] for measure in found["measures"]}
    assert sources == {"evaluation", "held_out"}
    for each in found["manifests"]:
        assert all((beside.root / path).is_file() for path in each["paths"].values())
        assert each["policy"] == "baseline" or sources <= each["paths"].keys()
    assert {each["policy"] for each in found["manifests"]} == {"e-dpo", "dp-dpo", "baseline"}
    for artifact in (*found["data"], *found["reward_models"]):
        assert (beside.root / artifact["manifest"]).is_file()


def test_the_table_has_units_and_says_what_one_seed_cannot(beside: Tiny) -> None:
    said = compare(beside)
    for text in ("held-out accuracy, % of pairs", "length, tokens", "KL to reference, nats", "one seed"):
        assert text in said.stdout
    assert f"- baseline: the samples of {SEED}/sft\n" in said.stdout
    assert "0 stages to build" in said.stderr
    against = json.loads(compare(beside, "--against", "baseline", "--json").stdout)
    assert row(against, "e-dpo", "tokens")["difference"] is not None
    assert row(against, "e-dpo", "accuracy")["difference"] is None


def test_the_table_is_written_as_a_file_by_what_its_name_ends_in(
    beside: Tiny, found: dict[str, Any], tmp_path: Path
) -> None:
    said = compare(beside, "--out", tmp_path / "t.csv")
    assert said.stderr.endswith(f"table: {tmp_path / 't.csv'}\n") and "dp-dpo" in said.stdout
    table = pd.read_csv(tmp_path / "t.csv").set_index(["measure", "policy"])
    assert len(table) == len(found["rows"])
    for measure in found["measures"]:
        ours = table.loc[measure["title"], "dp-dpo"]
        wanted = row(found, "dp-dpo", measure["name"])
        names = ("mean", "low", "high")
        assert list(ours[["mean", "low", "high", "difference", "difference_low", "difference_high"]]) == (
            pytest.approx([part[name] for part in (wanted, wanted["difference"]) for name in names])
        )
    kept = ("report", "--from", beside.root.parent / "said.json", "--out", tmp_path / "again.csv")
    assert rpo(*kept).stdout == f"{tmp_path / 'again.csv'}\n"
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()
    assert ".csv, .md, .tex" in compare(beside, "--out", tmp_path / "t.xlsx", code=2).stderr


def test_a_comparison_repeats_what_training_said_against_a_teacher(
    beside: Tiny, found: dict[str, Any]
) -> None:
    said = {
        each["policy"]: kept_doubts(json.loads((beside.root / file).read_text()).get("warnings", []))
        for each in found["manifests"]
        if (file := each["paths"].get("policy")) is not None
    }
    assert any(said.values())  # the tiny reward models have learnt next to nothing
    for policy, lines in said.items():
        told = [note for note in found["notes"] if note.startswith(f"{policy}: its teacher: ")]
        assert told == [f"{policy}: its teacher: {line}" for line in lines]


def test_a_comparison_warns_where_more_than_a_fifth_of_the_samples_has_no_end() -> None:
    rows: list[Row] = [
        {"policy": name, "measure": "unfinished", "mean": mean, "low": None, "high": None, "by_seed": [],
         "difference": None} for name, mean in (("a", 19.0), ("b", 45.0))
    ]  # fmt: skip
    assert cut_short(rows[:1], 32) == []
    assert cut_short(rows, 32)[0].startswith("cut at max_new_tokens, 32: 45 % of b; lengths")


# ── What is refused ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("recipes", "arguments", "message"),
    [
        (NAMES, ("--against", "dpo"), "--against dpo: compared are e-dpo, dp-dpo, baseline"),
        (NAMES, ("--rho", "0.2,0.5"), "compared at one rho"),
        (("dpo.yaml", "dpo.yaml"), (), "dpo: stands twice"),
        (("dpo.yaml", "rm.yaml"), (), "is a reward recipe"),
        (("dpo.yaml", "other.yaml"), (), "other.yaml:3: data: trained on other pairs than"),
        (NAMES, ("--seeds", "0,0"), "one of them twice"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_built(
    empty: Tiny, recipes: tuple[str, ...], arguments: tuple[str, ...], message: str
) -> None:
    (empty.suite / "few.yaml").write_text((empty.suite / "splits.yaml").read_text())
    (empty.suite / "other.yaml").write_text(
        "extends: dpo.yaml\nobjective: dpo\ndata: few.yaml\nstage: policy\n"
    )
    assert message in compare(empty, *arguments, recipes=recipes, code=2).stderr
    assert not empty.root.exists()


@pytest.mark.parametrize("command", ["compare", "train-policy"])
def test_a_dry_run_reads_the_file_of_accelerate(command: str, empty: Tiny, tmp_path: Path) -> None:
    what = empty.suite / "dpo.yaml"
    asked = (command, what, "--workspace", empty.root, "--dry-run", "--accelerate")
    assert "nope.yaml: no such file" in rpo(*asked, tmp_path / "nope.yaml", code=2).stderr
    assert rpo(*asked, "recipes/accelerate/cpu-2.yaml").stdout


def test_a_folder_stands_for_the_policies_in_it(empty: Tiny) -> None:
    said = rpo("compare", empty.suite, "--workspace", empty.root, "--seeds", "0,1", "--dry-run", "--json")
    plan = json.loads(said.stdout)
    assert set(plan["cells"]["policies"]) == {
        "dpo", "ipo", "ipo-norm", "d-dpo", "p-dpo", "dp-dpo", "e-dpo"
    }  # fmt: skip
    kinds = {group["kind"]: group["build"] for group in plan["stages"]}
    assert kinds["policy"] == kinds["held_out"] == 14 and kinds["evaluate"] == 16
    (empty.suite.parent / "none").mkdir()
    refused = rpo("compare", empty.suite.parent / "none", code=2)
    assert "holds no policy recipe" in refused.stderr


# ── The page ────────────────────────────────────────────────────────────────────────────────────────────────


class Page(HTMLParser):
    """What a page holds: its elements with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.mark.slow
def test_a_report_from_kept_numbers_is_the_report_of_the_workspace(
    beside: Tiny, drawn: str, tmp_path: Path
) -> None:
    paths = [beside.suite / name for name in NAMES]
    rpo("report", *paths, "--workspace", beside.root, "--out", tmp_path / "made.html")
    made = (tmp_path / "made.html").read_text()
    assert made == drawn and len(made) < 5_000_000
    for arguments, message in (((), "name the recipes"), (("--from", paths[0]), "cannot be read as JSON")):
        assert message in rpo("report", *arguments, "--out", tmp_path / "none.html", code=2).stderr
    assert "is a folder" in rpo("report", *paths, "--out", tmp_path, code=2).stderr
    (tmp_path / "other.json").write_text("{}")
    assert "holds no comparison" in rpo("report", "--from", tmp_path / "other.json", code=2).stderr


def test_a_report_names_every_policy_number_and_manifest_and_loads_nothing(
    found: dict[str, Any], drawn: str
) -> None:
    page = Page(drawn)
    assert not page.all("script", "link", "iframe", "img", "object")
    links = [a[name] or "" for _, a in page.elements for name in ("href", "src", "xlink:href") if name in a]
    assert links and all(link.startswith("#") for link in links)
    assert not any("url(http" in (style or "") for _, a in page.elements for style in a.values())
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy
    texts = " ".join(" ".join(page.texts).split())
    for each in found["manifests"]:
        assert all(path in texts for path in each["paths"].values())
    for each in found["rows"]:
        digits = next(m["digits"] for m in found["measures"] if m["name"] == each["measure"])
        ends = (each["low"], each["high"]) if each["low"] is not None else ()
        shown = [f"{round(number, digits) + 0.0:,.{digits}f}" for number in (each["mean"], *ends)]
        assert shown[0] in texts and (not ends or f"[{', '.join(shown[1:])}]" in texts)
    for sample in found["samples"]:
        ours, theirs = (next(r for r in sample["responses"] if r["policy"] == n) for n in ("dp-dpo", "e-dpo"))
        assert all(" ".join(r["response"].split()) in texts for r in sample["responses"])
        assert f"{ours['tokens']} tokens ({ours['tokens'] - theirs['tokens']:+})" in texts


def test_a_report_can_be_read_by_everybody(drawn: str) -> None:
    page = Page(drawn)
    (html,) = page.all("html")
    assert html["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(head.get("scope") in ("col", "row") for head in page.all("th")) and page.all("th")
    pictures = page.all("svg")
    assert len(pictures) > 6
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(names)) == len(names)


def test_a_report_calls_the_kl_that_training_logs_the_forward_one() -> None:
    lines = [{"policy": "dpo", "seed": 0, "step": [1, 2], "value": [0.1, 0.2]}]
    drawn = list(curves([{"name": name, "lines": lines} for name in ("kl_to_reference", "loss")]))
    assert "forward KL, KL(π_ref ‖ π_θ)" in drawn[0] and "kl_to_reference" not in drawn[0]
    assert "forward" not in drawn[1]


def test_texts_of_a_report_are_texts_whatever_they_hold(found: dict[str, Any]) -> None:
    said = {**found, "measures": found["measures"][:1], "curves": found["curves"][:1]}
    said["samples"][0]["prompt"] = said["samples"][0]["responses"][0]["response"] = HOSTILE
    said["curves"][0]["name"] = said["policies"][0]["recipe"] = said["notes"][0] = HOSTILE
    page = Page(page_of(said))
    assert not page.all("script", "img")
    assert " ".join(page.texts).count("onerror=alert(2)") >= 5


@pytest.mark.slow
def test_conversations_foreign_teachers_and_columns_of_scores_are_compared_in_one_suite(
    tmp_path: Path,
) -> None:
    world = conversations(tmp_path)
    world.edit("evaluate.yaml", "num_prompts: 4")
    columns = "teacher: columns\nmargin_columns: [[score_chosen, score_rejected]]\n"
    (world.suite / "columns.yaml").write_text(f"extends: policy.yaml\n{columns}")
    rpo("compare", world.suite, "--workspace", world.root)
    said = json.loads(rpo("compare", world.suite, "--workspace", world.root, "--json").stdout)
    teachers = {each["name"]: each["teachers"] for each in said["policies"]}
    assert teachers["columns"] == ["columns score_chosen and score_rejected"]
    assert teachers["policy"] == [str(world.suite / "judge")]
    assert len(said["diagnosis"]["reward_models"]) >= 2
    assert "advantage" in {measure["name"] for measure in said["measures"]}
    page = " ".join(Page(page_of(said)).texts)
    assert all(sample["prompt"].split()[-1] in page for sample in said["samples"])
