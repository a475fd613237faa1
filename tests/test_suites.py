"""A suite in one file: `mine.yaml` with `recipes:`, read as if it were a folder of them."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import pytest
from conftest import RECIPES, Tiny, rpo

from rpo_cli.artifacts import walk
from rpo_cli.recipes import RecipeError, load, write_by_rho
from rpo_cli.runs.options import like
from rpo_cli.runs.planner import Planner


@pytest.fixture
def one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny suite as one file, in the current directory."""
    monkeypatch.chdir(tmp_path)
    sections = (f"  {name.removesuffix('.yaml')}:\n{indent(text, '    ')}" for name, text in RECIPES.items())
    file = tmp_path / "mine.yaml"
    file.write_text("# all of it\nrecipes:\n" + "".join(sections))
    return file


def test_a_suite_has_the_same_keys_in_one_file_as_in_a_folder(one_file: Path, empty: Tiny) -> None:
    keys = []
    for name in (f"{empty.suite}/e-dpo.yaml", "mine.yaml:e-dpo"):
        planner = Planner(0)
        policy = load(name)
        stages = walk(
            [planner.evaluation(policy, "test"), *planner.members(load(str(policy.sibling("rm.yaml"))))]
        )
        keys.append({stage.path: stage.key for stage in stages})
    assert keys[0] == keys[1] and len(keys[0]) > 10
    assert (policy.recipe.suite, load(f"{empty.suite}/e-dpo.yaml").recipe.suite) == ("mine", "tiny")


@pytest.mark.parametrize("name", ["mine.yaml:dpo", "mine:dpo", "mine.yaml/dpo.yaml", "./mine.yaml:dpo"])
def test_a_recipe_of_a_suite_is_named_behind_a_colon(one_file: Path, name: str) -> None:
    loaded = load(name, overrides=["beta=0.3"])
    assert loaded.path == one_file / "dpo.yaml" and loaded.overrides == {"beta": 0.3}
    line = 1 + one_file.read_text().splitlines().index("    objective: dpo")
    assert loaded.place("objective") == f"mine.yaml:{line}: objective"


def test_a_suite_is_the_recipe_where_only_one_of_it_fits(one_file: Path) -> None:
    assert load("mine.yaml", expect="relabel").path == one_file / "relabel.yaml"
    rpo("relabel", "mine.yaml", "--dry-run")
    said = rpo("train-policy", "mine.yaml", "--dry-run", code=2).stderr
    assert said.startswith("mine.yaml: which policy recipe? mine.yaml:dpo, mine.yaml:ipo, ")
    assert "mine.yaml: has no figure recipe; it has mine.yaml:data, " in rpo(
        "figure", "figure2", "mine.yaml", "--dry-run", code=2
    ).stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("    beta: 0.2\n", "    beta: -1\n"), "mine.yaml:{at}: beta: must be greater than 0, got -1"),
        (
            ("    objective: ipo\n", "    bta: 1\n"),
            "mine.yaml:{before}: objective: missing; a policy recipe needs it",
        ),
        (
            ("recipes:\n", "suite: x\nrecipes:\n"),
            "mine.yaml:2: suite: a suite in one file has nothing beside",
        ),
        (("  ipo:\n", "  dpo:\n"), "mine.yaml:{at}: dpo: given twice, first in line "),
        (
            ("  ipo:\n", "  ipo: 3\n  other:\n"),
            "mine.yaml:{at}: expected lines of `key: value`, got a single value",
        ),
        (("  ipo:\n", "  ipo: [\n"), "mine.yaml:"),
    ],
)
def test_a_mistake_in_a_suite_has_the_line_of_the_file(
    one_file: Path, change: tuple[str, str], line: str
) -> None:
    before, after = change
    text = one_file.read_text()
    at = text[: text.index(before)].count("\n") + 1
    one_file.write_text(text.replace(before, after, 1))
    with pytest.raises(RecipeError) as caught:
        for name in ("mine.yaml:ipo", "mine.yaml:dpo"):
            load(name)
    assert any(problem.startswith(line.format(at=at, before=at - 3)) for problem in caught.value.problems)


def test_a_name_that_a_suite_lacks_is_answered_with_those_it_has(one_file: Path) -> None:
    assert "mine.yaml:dop: mine.yaml has no such recipe; it has base, data, sft, " in rpo(
        "recipe", "show", "mine.yaml:dop", code=2
    ).stderr.replace("\n", " ")


def test_chosen_values_are_written_into_the_recipe_of_a_suite_and_nowhere_else(one_file: Path) -> None:
    before = one_file.read_text().splitlines()
    write_by_rho(one_file / "dpo.yaml", {0.5: {"beta": 0.4}})
    after = one_file.read_text().splitlines()
    added = [line for line in after if line not in before]
    assert added == ["    by_rho:", "      0.5: {beta: 0.4}"]
    assert [line for line in after if line not in added] == before
    assert load("mine.yaml:dpo", rho=0.5).recipe.beta == 0.4  # type: ignore[attr-defined]
    assert load("mine.yaml:ipo").recipe.by_rho == {}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_recipes_of_a_suite_are_listed_and_checked(one_file: Path) -> None:
    assert "mine.yaml:e-dpo" in rpo("recipe", "list").stdout
    assert rpo("recipe", "check", "mine.yaml").stdout == "14 recipes, no problems\n"
    assert rpo("recipe", "check", "mine.yaml:dpo").stdout == "1 recipe, no problems\n"


def test_a_recipe_is_named_behind_the_command_or_as_an_option_but_once(one_file: Path) -> None:
    by_name, by_option = (
        rpo("train-rm", *named, "--dry-run").stdout
        for named in (["mine.yaml:oracle"], ["--recipe", "mine.yaml:oracle"])
    )
    assert by_name == by_option and "seed-0/oracle" in by_name
    both = rpo("train-rm", "mine.yaml:oracle", "-r", "mine.yaml:rm", code=2).stderr
    assert both == "two recipes: mine.yaml:oracle and --recipe mine.yaml:rm; name one of them\n"
    assert rpo("train-policy", code=2).stderr.startswith("which recipe? Name it behind the command")


@pytest.mark.parametrize("command", ["", "train-policy", "recipe check", "figure figure2", "init"])
def test_h_is_help_everywhere(command: str) -> None:
    assert rpo(*command.split(), "-h").stdout == rpo(*command.split(), "--help").stdout


def test_a_shell_completes_names_of_recipes_and_files(one_file: Path) -> None:
    (one_file.parent / "minor").mkdir()
    found = like("min")
    assert {"mine.yaml", "mine.yaml/e-dpo", "mine.yaml/data", "minor"} <= set(found)
    assert load("mine.yaml/e-dpo").path == one_file / "e-dpo.yaml"
    assert "e-dpo.yaml" in like("e-") and like("no-such") == []


def test_a_suite_in_one_file_is_compared_as_a_folder_is(one_file: Path, empty: Tiny) -> None:
    plans = [rpo("compare", suite, "--dry-run").stdout for suite in ("mine.yaml", empty.suite)]
    for plan in plans:
        assert "policies/dpo/" in plan and "policies/e-dpo/" in plan
    assert sorted(plans[0].splitlines()) == sorted(plans[1].splitlines())


@pytest.mark.parametrize("command", ["compare --dry-run", "report --dry-run", "status"])
def test_no_policy_of_a_suite_is_left_out_because_of_a_mistake_in_it(one_file: Path, command: str) -> None:
    text = one_file.read_text().replace("    objective: ipo-norm\n", "    objective: ipo-nrm\n")
    text = text.replace("    objective: dpo\n", "    objective: dpo\n    bta: 0.1\n")
    one_file.write_text(text)
    name, *options = command.split()
    first, second = rpo(name, "mine.yaml", *options, code=2).stderr.splitlines()
    lines = text.splitlines()
    assert first == f"mine.yaml:{lines.index('    bta: 0.1') + 1}: bta: unknown key, did you mean beta?"
    line = lines.index("    objective: ipo-nrm") + 1
    assert second.startswith(f"mine.yaml:{line}: objective: expected dpo, ")


def test_of_a_suite_only_recipes_are_offered_that_a_command_takes(one_file: Path) -> None:
    def offered(*command: str) -> set[str]:
        head, _, names = rpo(*command, code=2).stderr.strip().partition("? ")
        assert head.startswith("mine.yaml: which ")
        return {name.removeprefix("mine.yaml:") for name in names.split(", ")}

    policies = {"dpo", "ipo", "ipo-norm", "d-dpo", "p-dpo", "dp-dpo", "e-dpo"}
    assert offered("export", "mine.yaml", "--to", "x") == policies | {"sft", "oracle", "rm"}
    assert offered("evaluate", "mine.yaml") == policies | {"evaluate"}
    assert offered("diagnose", "mine.yaml") == policies | {"data", "relabel", "splits", "oracle", "rm"}
    assert offered("data", "inspect", "mine.yaml") == {"data", "relabel", "splits"}


def test_what_is_no_policy_does_not_stop_the_comparison_of_a_suite(empty: Tiny) -> None:
    def compared(code: int = 0) -> tuple[str, str]:
        said = rpo("compare", empty.suite, "--workspace", empty.root, "--dry-run", code=code)
        return said.stdout, said.stderr

    plan, heard = compared()
    (empty.suite / "compose.yaml").write_text("services:\n  web: {image: nginx}\n")
    (empty.suite / "lengths.yaml").write_text("max_length: 48\n")
    assert compared() == (plan, heard)
    parts = {"cautious": "extends: base.yaml\nstage: policy\nbeta: 0.5\n", "some": "objective: dpo\n"}
    for name, text in parts.items():
        (empty.suite / f"{name}.yaml").write_text(text)
    again, notes = compared()
    assert again == plan
    for name in parts:
        assert f"{name}.yaml lacks a stage or an objective; it is not compared\n" in notes
    for text, line in (
        ("stage: policy\nobjectiv: dpo\n", "objectiv: unknown key, did you mean objective?"),
        ("stage: polcy\nobjective: dpo\n", "expected one of "),
        ("stage: [\n", "cautious.yaml:"),
    ):
        (empty.suite / "cautious.yaml").write_text(text)
        assert line in compared(code=2)[1]
