"""What a plan cannot be made with is said before its first stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import PLAIN, Tiny, rpo, write_suite

CIRCLES = {
    "data that names itself": ({"splits.yaml": "data: splits.yaml"}, "splits.yaml", ["splits.yaml"]),
    "a model that names itself": (
        {"dpo.yaml": "model_name_or_path: dpo.yaml"}, "dpo.yaml", ["dpo.yaml"]
    ),
    "two models that start from each other": (
        {"dpo.yaml": "model_name_or_path: ipo.yaml", "ipo.yaml": "model_name_or_path: dpo.yaml"},
        "dpo.yaml", ["dpo.yaml", "ipo.yaml"],
    ),
    "labels by a reward model that is trained on them": (
        {"relabel.yaml": "reward_model: rm.yaml"}, "relabel.yaml", ["relabel.yaml", "rm.yaml", "splits.yaml"]
    ),
    "a policy on the ensemble that starts from it": (
        {"rm.yaml": "model_name_or_path: e-dpo.yaml"}, "e-dpo.yaml", ["e-dpo.yaml", "rm.yaml"]
    ),
    "a tokenizer of what is trained on the splits": (
        {"splits.yaml": "tokenizer: rm.yaml"}, "splits.yaml", ["rm.yaml", "splits.yaml"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CIRCLES)
def test_recipes_that_need_each_other_are_named_with_the_whole_circle(empty: Tiny, name: str) -> None:
    changes, asked, circle = CIRCLES[name]
    for file, text in changes.items():
        empty.edit(file, text)
    command = {"relabel": "relabel", "splits": "make-biased-splits"}.get(Path(asked).stem, "train-policy")
    for said in (
        empty.run(command, asked, code=2).stderr,
        empty.run(command, asked, "--dry-run", code=2).stderr,
        rpo("recipe", "check", empty.suite / asked, code=2).stderr,
    ):
        (line,) = said.splitlines()
        assert ": goes in a circle: " in line
        way = [place.split(":") for place in line.split(": goes in a circle: ")[1].split(" -> ")]
        assert [Path(place[0]).name for place in way] == [*circle, circle[0]]
        assert all(place[1].isdigit() for place in way)
    (line,) = {
        line for line in rpo("recipe", "check", empty.suite, code=2).stderr.splitlines() if "circle" in line
    }  # once, whichever of its recipes the check comes to first
    assert not empty.root.exists()


@pytest.mark.parametrize(
    ("recipe", "line", "says"),
    [
        ("dpo.yaml", "model_name_or_path: figure.yaml", "sft, policy, got a figure recipe"),
        ("sft.yaml", "model_name_or_path: data.yaml", "sft, policy, got a data recipe"),
        ("dpo.yaml", "model_name_or_path: oracle.yaml", "sft, policy, got a reward recipe"),
        ("oracle.yaml", "model_name_or_path: splits.yaml", "sft, reward, policy, got a splits"),
        ("oracle.yaml", "data: evaluate.yaml", "data, relabel, splits, got an evaluate"),
        ("dpo.yaml", "data: dpo.yaml", "data, relabel, splits, got a policy recipe"),
        ("relabel.yaml", "reward_model: sft.yaml", "reward, got an sft recipe"),
        ("splits.yaml", "tokenizer: relabel.yaml", "sft, reward, policy, got a relabel"),
        ("evaluate.yaml", "oracle: figure.yaml", "reward, got a figure recipe"),
        ("evaluate.yaml", "baseline: oracle.yaml", "sft, policy, got a reward recipe"),
    ],
)  # fmt: skip
def test_a_recipe_of_another_kind_is_refused_on_its_line(
    empty: Tiny, recipe: str, line: str, says: str
) -> None:
    (empty.suite / "figure.yaml").write_text("stage: figure\npolicies: [dpo.yaml]\n")
    if recipe == "sft.yaml":
        empty.edit(recipe, "model_config_kwargs: null")
    empty.edit(recipe, line)
    said = rpo("recipe", "check", empty.suite / recipe, code=2).stderr
    number = len((empty.suite / recipe).read_text().splitlines())
    assert said.startswith(
        f"{empty.suite / recipe}:{number}: {line.split(':')[0]}: expected a recipe of {says}"
    )


def test_files_that_extend_the_next_twice_are_each_read_once(tmp_path: Path) -> None:
    """Forty in a row are two to the fortieth ways; a mistake in the last is one mistake."""
    for index in range(40):
        (tmp_path / f"x{index}.yaml").write_text(f"extends: [x{index + 1}.yaml, x{index + 1}.yaml]\n")
    (tmp_path / "x40.yaml").write_text("stage: data\nsource: miniature\nrows: {pears: 1}\n")
    (line,) = rpo("recipe", "check", tmp_path / "x0.yaml", code=2).stderr.splitlines()
    assert line.startswith(f"{tmp_path}/x40.yaml:3: rows.pears: unknown key")


def test_a_row_of_files_or_recipes_without_end_is_refused(tmp_path: Path) -> None:
    for index in range(300):
        (tmp_path / f"x{index}.yaml").write_text(f"extends: x{index + 1}.yaml\nstage: data\n")
        (tmp_path / f"y{index}.yaml").write_text(
            f"{PLAIN}stage: sft\nmodel_name_or_path: y{index + 1}.yaml\n"
        )
    (tmp_path / "data.yaml").write_text(f"{PLAIN}stage: data\nsource: miniature\n")
    said = rpo("recipe", "check", tmp_path / "x0.yaml", code=2).stderr
    assert "x50.yaml:1: extends: more than 50 files, each of which extends the next" in said
    said = rpo("train-sft", "--recipe", tmp_path / "y0.yaml", "--dry-run", code=2).stderr
    assert ": more than 40 recipes, each on the next" in said


DEFAULTS = {
    "data": ("stage: sft\nmodel_config_kwargs: {model_type: llama}\n", "train-sft", "data.yaml"),
    "evaluate": (
        "stage: policy\nobjective: dpo\nmodel_name_or_path: sft.yaml\ndata: splits.yaml\n",
        "evaluate", "evaluate.yaml",
    ),
    "reward_model": (
        "stage: policy\nobjective: d-dpo\nmodel_name_or_path: sft.yaml\ndata: splits.yaml\n",
        "train-policy", "rm.yaml",
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", DEFAULTS)
def test_a_default_name_is_looked_for_beside_the_recipe_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Else a new folder is completed from the miniature, which packed recipes end in."""
    text, command, absent = DEFAULTS[key]
    suite = write_suite(tmp_path / "mine")
    (suite / "new.yaml").write_text(PLAIN + text)
    rpo(command, "--recipe", suite / "new.yaml", "--dry-run")
    (suite / absent).unlink()
    said = rpo(command, "--recipe", suite / "new.yaml", "--dry-run", code=2).stderr.splitlines()[-1]
    at = f"{suite}/new.yaml:1: {key}: no {absent}, its default, in {suite}; write one, or say which to use"
    assert said == at
    # Named, it is found wherever names are looked up.
    for changed in (f"{key}: miniature/{absent}\nsuite: mine\n", "extends: more.yaml\n"):
        (suite / "more.yaml").write_text(f"{key}: miniature/{absent}\n")
        (suite / "new.yaml").write_text(PLAIN + text + changed)
        rpo("recipe", "show", suite / "new.yaml")


NAMES = [
    "..yaml",
    "...yaml",
    "-x.yaml",
    ".hidden.yaml",
    " x.yaml",
    "a\tb.yaml",
    "a\x1bb.yaml",
    f"{'x' * 120}.yaml",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_whose_name_is_no_plain_word_is_refused_before_anything_is_touched(
    tmp_path: Path, name: str
) -> None:
    suite = write_suite(tmp_path / "tiny")
    (suite / name).write_text((suite / "data.yaml").read_text())
    root = tmp_path / "runs"
    (root / "seed-0/kept").mkdir(parents=True)
    (root / "workspace.json").write_text('{"suite": "tiny"}')
    before = sorted(root.rglob("*"))
    for command in ("data inspect", "train-sft", "relabel", "recipe check", "recipe show", "status"):
        words = [*command.split(), *([] if command.startswith("recipe") else ["--recipe"])]
        where = [] if command.startswith("recipe") else ["--workspace", root]
        (line,) = rpo(*words, suite / name, *where, code=2).stderr.splitlines()
        assert "names its artifacts" in line
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    "suite", ["../../x", "..", ".", "/tmp/x", "a/b", "-x", ".locks", "a\nb", "a\\b", " a"]
)
def test_a_suite_is_a_plain_word(empty: Tiny, suite: str) -> None:
    said = empty.run("train-sft", "sft.yaml", "--set", f"suite={suite!r}".replace("'", '"'), code=2).stderr
    assert said.startswith("--set suite: ") and len(said.splitlines()) == 1
    assert not empty.root.exists()


@pytest.mark.parametrize("model", ["..", ".", "../..", "a\nb"])
def test_a_judges_name_cannot_lead_out_of_the_workspace(empty: Tiny, model: str) -> None:
    arguments = ("--model", model, "--base-url", "http://localhost:9/v1", "--dry-run")
    result = empty.run("judge", "dpo.yaml", *arguments, code=2 if set(model) <= set(".") else 0)
    assert not any(part in ("..", ".") for line in result.stdout.splitlines() for part in line.split("/"))


@pytest.mark.parametrize("stem", ["unbiased", "policies", "scores", "rho-0.5", "reference-logps", "judged"])
def test_a_recipe_is_not_called_like_a_folder_of_other_artifacts(empty: Tiny, stem: str) -> None:
    """Made again, its artifact would take those inside it away."""
    (empty.suite / "sft.yaml").rename(empty.suite / f"{stem}.yaml")
    said = empty.run("train-sft", f"{stem}.yaml", code=2).stderr
    assert said.endswith(f"{stem}.yaml: {stem} is a folder of other artifacts; rename the recipe\n")


def test_a_changed_value_that_no_folder_can_be_named_after_is_refused(empty: Tiny) -> None:
    for value in ('"a\\nb"', "x" * 300):
        said = empty.run("train-policy", "dpo.yaml", "--set", f"lora_target_modules={value}", code=2).stderr
        assert len(said.splitlines()) == 1 and "Traceback" not in said
