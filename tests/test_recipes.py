"""Recipes: what they mean, and that every mistake is named with its file and line."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rpo_cli.objectives import OBJECTIVES
from rpo_cli.recipes import (
    Loaded,
    RecipeError,
    check_suite,
    files,
    find,
    load,
    resolved_yaml,
    write_by_rho,
    write_setting,
)
from rpo_cli.recipes.editor import NOT_BY_RHO, json_schema
from rpo_cli.recipes.files import known
from rpo_cli.recipes.hints import NO_SUCH
from rpo_cli.recipes.schema import MODELS, PolicyRecipe
from rpo_cli.recipes.yaml_lines import one_line, parse, parse_value

POLICY = "stage: policy\nobjective: e-dpo\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in an empty directory and knows no packed recipes but its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "packed", lambda: tmp_path / "packed")
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def get(loaded: Loaded, name: str) -> Any:
    return getattr(loaded.recipe, name)


def problems(name: str, **kwargs: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(name, **kwargs)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def test_importing_recipes_imports_nothing_heavy() -> None:
    code = "import sys, rpo_cli.recipes; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    root = Path(files.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pydantic" in loaded
    assert not loaded & {"torch", "trl", "transformers", "datasets", "accelerate", "numpy"}


def test_all_mistakes_are_reported_at_once_with_their_lines() -> None:
    write("recipes/s/base.yaml", "# base\nmax_step: 3\nadam_beta1: 2\n")
    text = "extends: base.yaml\nbta: 1\nlearning_rate: [1, 2]\nrho: 0.2\nby_rho:\n  0.3: {tau: x}\n"
    write("recipes/s/a.yaml", POLICY + text)
    found = problems("s/a", overrides=["gama=1", "beta=no"], seed=-1)
    assert found == [
        "recipes/s/a.yaml:4: bta: unknown key, did you mean beta?",
        "recipes/s/a.yaml:5: learning_rate: expected a number, got a list ([1, 2])",
        "recipes/s/a.yaml:8: by_rho.0.3.tau: expected a number, got text ('x')",
        "recipes/s/base.yaml:2: max_step: unknown key, did you mean max_steps?",
        "recipes/s/base.yaml:3: adam_beta1: must be less than 1, got 2",
        "--set gama: unknown key, did you mean gamma?",
        "--seed: must be at least 0, got -1",
        "--set beta: expected a number, got text ('no')",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "objective: edpo",
            f"objective: expected {', '.join(list(OBJECTIVES)[:-1])} or {list(OBJECTIVES)[-1]}, "
            "got text ('edpo'), did you mean e-dpo?",
        ),
        ("beta: 0", "beta: must be greater than 0, got 0"),
        ("beta: .inf", "beta: must be finite, got inf"),
        ("beta: null", "beta: expected a number, got nothing (null)"),
        ("beta: true", "beta: expected a number, got true"),
        ("beta: 1_0", "beta: expected a number, got text ('1_0'); write 10 if that is meant"),
        (
            "max_steps: 1:30",
            "max_steps: expected a whole number, got text ('1:30'); write 90 if that is meant",
        ),
        ("use_peft: Yes", "use_peft: expected true or false, got text ('Yes'); write true if that is meant"),
        ("beta: '0.1'", "beta: expected a number, got text ('0.1')"),
        ("max_steps: 1.5", "max_steps: expected a whole number, got a number (1.5)"),
        ("use_peft: 1", "use_peft: expected true or false, got a number (1)"),
        ("description: false", "description: expected text, got false; put it in quotes if it is text"),
        ("ensemble: {a: 1}", "ensemble: expected text or a list, got a mapping ({'a': 1})"),
        ("ensemble: [a, 1]", "ensemble[1]: expected text, got a number (1)"),
        ("grid: {bets: [1]}", "grid.bets: unknown key, did you mean beta?"),
        ("grid: {beta: [-1]}", "grid.beta[0]: must be greater than 0, got -1"),
        ("by_rho: 3", "by_rho: expected a mapping, got a number (3)"),
        ("by_rho: {2: {}}", "by_rho.2: expected a rho between 0 and 1, got a number (2)"),
        ("by_rho: {0.2: 3}", "by_rho.0.2: expected a mapping, got a number (3)"),
        ("by_rho: {0.2: {bta: 3}}", "by_rho.0.2.bta: unknown key, did you mean beta?"),
        ("by_rho: {0.2: {objective: dpo}}", "by_rho.0.2.objective: cannot depend on rho"),
        ("zzz: 3", "zzz: unknown key in a policy recipe"),
        ("extend: b.yaml", "extend: unknown key, did you mean extends?"),
    ],
)
def test_a_wrong_value_is_named_in_plain_words(line: str, message: str) -> None:
    write(
        "a.yaml",
        "stage: policy\n\n" + line + ("" if line.startswith("objective") else "\nobjective: dpo") + "\n",
    )
    found = problems("a.yaml")
    assert len(found) == 1
    assert found[0].startswith(f"a.yaml:3: {message}")


def test_nested_mistakes_name_their_own_line() -> None:
    write("a.yaml", "stage: data\nrows:\n  pairs: 3\n  pears: 4\n  warmup: 0\nfiles:\n  pairs: 3\n")
    assert problems("a.yaml") == [
        "a.yaml:4: rows.pears: unknown key, did you mean pairs?",
        "a.yaml:5: rows.warmup: must be greater than 0, got 0",
        "a.yaml:7: files.pairs: expected text, got a number (3); put it in quotes if it is text",
    ]


def test_a_union_complains_once() -> None:
    write("a.yaml", "stage: splits\nsubset_size: -5\n")
    assert problems("a.yaml") == ["a.yaml:2: subset_size: must be greater than 0, got -5"]
    write("a.yaml", "stage: splits\nsubset_size: eqal\n")
    assert problems("a.yaml") == [
        "a.yaml:2: subset_size: expected equal, largest or a whole number, got text ('eqal'), did you mean "
        "equal?"
    ]


def test_rules_between_keys_are_checked_beside_unknown_keys_and_for_every_rho() -> None:
    write("a.yaml", "stage: splits\nrho: 0.2\nnumpairs: 3\n")
    assert problems("a.yaml") == [
        "a.yaml:1: rho needs num_pairs",
        "a.yaml:3: numpairs: unknown key, did you mean num_pairs?",
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.yaml:1: empty"),
        (b"# nothing\n", "a.yaml:1: empty"),
        (b"\n- a\n", "a.yaml:2: expected lines of `key: value`, got a list"),
        (b"word\n", "a.yaml:1: expected lines of `key: value`, got a single value"),
        (b"stage: policy\nobjective:\n\tdpo\n", "a.yaml:3: a tab: indent with spaces"),
        (b"stage: policy\nobjective: [dpo\nbeta: 1\n", "a.yaml:3: not YAML: "),
        (
            b"stage: policy\ntitle: 'never closed\nbeta: 1\n",
            "a.yaml:2: not YAML: while scanning a quoted scalar",
        ),
        (b"stage: policy\nbeta 0.1\ntau: 1\n", "a.yaml:2: not YAML: expected `key: value`"),
        (b"stage: policy\ndescription: a: b\n", "a.yaml:2: not YAML: a second `: ` in the line"),
        (
            b"grid:\n    beta: 1\n     tau: 1\n",
            "a.yaml:3: not YAML: indented deeper than the keys above; what",
        ),
        (b"grid:\n    beta: 1\n   tau: 1\n", "a.yaml:3: not YAML: indented otherwise than the lines above"),
        (b"files:\n    - a\n   - b\n", "a.yaml:3: not YAML: indented otherwise than the lines above"),
        (b"stage: policy\n# caf\xe9\n", "a.yaml:2: not UTF-8 text (byte 0xe9)"),
        (b"stage: policy\n# \x07\n", "a.yaml:2: not YAML: character"),
        (b"stage: &x policy\nobjective: *x\n", "a.yaml:2: an alias (*name)"),
        (b"stage: policy\n--- \nstage: sft\n", "a.yaml:2: not YAML: expected a single document in the"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_one_clear_line(data: bytes, message: str) -> None:
    Path("a.yaml").write_bytes(data)
    found = problems("a.yaml")
    assert len(found) == 1
    assert found[0].startswith(message)


def test_duplicate_keys_are_reported_at_the_top_and_inside() -> None:
    write("a.yaml", POLICY + "beta: 1\nbeta: 2\nby_rho:\n  0.2: {tau: 1}\n  0.20: {tau: 2}\n")
    assert problems("a.yaml") == [
        "a.yaml:4: beta: given twice, first in line 3",
        "a.yaml:7: by_rho.0.2: given twice, first in line 6",
    ]


def test_python_tags_are_refused_and_not_run() -> None:
    write("a.yaml", POLICY + "description: !!python/object/apply:os.mkdir [made]\nmax_steps: !!int x\n")
    found = problems("a.yaml")
    assert found[0].startswith("a.yaml:3: description: !!python/object/apply:os.mkdir is not understood")
    assert "a.yaml:4: max_steps: 'x' cannot be read as int" in found
    assert not Path("made").exists()


@pytest.mark.parametrize("text", ["1e-6", "4e-3", "1E5", "+2e+1", "1.5e-3", "-3e0", ".5", "1.", "1e3"])
def test_numbers_in_exponent_notation_are_numbers(text: str) -> None:
    value = parse(f"x: {text}").values["x"]
    assert isinstance(value, float)
    assert value == float(text)


def test_words_and_numbers_are_those_of_yaml_1_2_in_a_file_and_behind_set() -> None:
    for text, value in {
        "010": 10, "08": 8, "+012": 12, "0o10": 8, "0x1F": 31, "true": True, "False": False, "~": None,
        "yes": "yes", "No": "No", "on": "on", "OFF": "OFF", "1:30": "1:30", "1_000": "1_000", "0b11": "0b11",
        "1:30.5": "1:30.5", "1_0.5": "1_0.5", "0o9": "0o9", "<<": None, "=": "=",
    }.items():  # fmt: skip
        if text != "<<":
            assert parse(f"x: {text}").values["x"] == parse_value(text) == value, text
            assert type(parse_value(text)) is type(value), text
        # What is written is read again as what it was, and not as what it looks like.
        assert parse_value(one_line(text)) == text


@pytest.mark.parametrize(
    ("line", "meant"),
    [("model_config_kwargs: {model_type: llama, tie_word_embeddings: yes}", "true"),
     ("model_config_kwargs: {model_type: llama, hidden_size: 1_024}", "1024"),
     ("model_config_kwargs: {model_type: llama, rope_scaling: {factor: 1:30}}", "90")],
)  # fmt: skip
def test_a_word_that_was_a_number_is_refused_where_nothing_else_would_notice(line: str, meant: str) -> None:
    write("a.yaml", f"stage: sft\n{line}\n")
    (found,) = problems("a.yaml")
    assert found.startswith("a.yaml:2: model_config_kwargs.") and f"write {meant} if that is meant" in found
    write("a.yaml", "stage: sft\nmodel_config_kwargs: {model_type: llama, x: 'yes'}\n")
    (found,) = problems("a.yaml", overrides=["model_config_kwargs.y=off"])
    assert found.startswith("--set model_config_kwargs.y: off is text: write false")


def test_a_file_may_nest_no_deeper_than_a_person_would() -> None:
    for text in ("[" * 400, "[" * 60 + "]" * 60, "{a: " * 50 + "1" + "}" * 50):
        write("a.yaml", f"stage: data\nfiles: {text}\n")
        assert any("lists or mappings inside each other" in problem for problem in problems("a.yaml"))


@pytest.mark.parametrize("text", ["e-dpo", "2024-01-01", "1e", "e5", "1.2.3", "d-dpo", "none"])
def test_words_dates_and_versions_stay_text(text: str) -> None:
    assert parse(f"x: {text}").values["x"] == text


def test_whole_floats_count_as_integers_but_stay_floats_in_a_model_config() -> None:
    write(
        "a.yaml",
        "stage: sft\nmax_steps: 1e3\nlearning_rate: 4e-3\n"
        "model_config_kwargs: {model_type: llama, rope_theta: 1e4}\n",
    )
    loaded = load("a.yaml")
    assert get(loaded, "max_steps") == 1000
    assert get(loaded, "learning_rate") == 0.004
    assert isinstance(get(loaded, "model_config_kwargs")["rope_theta"], float)


def test_precedence_from_default_to_named_flag() -> None:
    write("base.yaml", "beta: 2\n")
    write("a.yaml", "extends: base.yaml\n" + POLICY)
    default = PolicyRecipe.model_fields["beta"].default
    assert get(load("a.yaml", overrides=["beta=5"], flags={"beta": 6}), "beta") == 6
    for expected, text in ((2, ""), (3, "beta: 3\n"), (4, "beta: 3\nby_rho: {0.2: {beta: 4}}\n")):
        write("a.yaml", "extends: base.yaml\n" + POLICY + text)
        assert get(load("a.yaml", rho=0.2), "beta") == expected
        assert get(load("a.yaml", rho=0.2, overrides=["beta=5"]), "beta") == 5
        assert get(load("a.yaml", rho=0.2, overrides=["beta=5"], flags={"beta": None}), "beta") == 5
    write("base.yaml", "tau: 2\n")
    write("a.yaml", "extends: base.yaml\n" + POLICY)
    assert get(load("a.yaml"), "beta") == default


def test_by_rho_follows_the_rho_in_force_up_to_rounding() -> None:
    write("a.yaml", POLICY + "beta: 1\nrho: 0.5\nby_rho:\n  0.3: {beta: 3}\n  0.5: {beta: 5}\n")
    assert get(load("a.yaml"), "beta") == 5
    assert get(load("a.yaml", rho=0.1 + 0.2), "beta") == 3
    assert get(load("a.yaml", overrides=["rho=0.3"]), "beta") == 3
    assert get(load("a.yaml", rho=0.4), "beta") == 1
    assert get(load("a.yaml", overrides=["by_rho={}"]), "beta") == 1
    assert load("a.yaml", rho=0.3).places["beta",][1] == 6


def test_a_mistake_in_by_rho_is_reported_once_whichever_rho_is_loaded() -> None:
    write("a.yaml", POLICY + "by_rho:\n  0.3: {beta: x}\n")
    mistake = "a.yaml:4: by_rho.0.3.beta: expected a number, got text ('x')"
    assert problems("a.yaml") == problems("a.yaml", rho=0.5) == problems("a.yaml", rho=0.3) == [mistake]
    assert problems("a.yaml", rho=0.3, overrides=["beta=y"]) == [
        mistake,
        "--set beta: expected a number, got text ('y')",
    ]


def test_mappings_merge_by_key_and_the_rest_is_replaced() -> None:
    by_rho = "by_rho: {0.2: {beta: 1, tau: 1}, 0.3: {beta: 2}}\n"
    write("base.yaml", "grid: {beta: [1], tau: [2]}\nensemble: [x, y]\n" + by_rho)
    write(
        "a.yaml",
        "extends: base.yaml\n" + POLICY + "grid: {tau: [3]}\nensemble: [z]\nby_rho: {0.2: {beta: 7}}\n",
    )
    loaded = load("a.yaml")
    assert get(loaded, "grid") == {"beta": [1], "tau": [3]}
    assert get(loaded, "ensemble") == ["z"]
    assert get(loaded, "by_rho") == {0.2: {"beta": 7}, 0.3: {"beta": 2}}


def test_later_bases_win_and_bases_may_extend_bases() -> None:
    write("sub/root.yaml", "beta: 1\ntau: 1\ngamma: 1\n")
    write("sub/one.yaml", "extends: root.yaml\ntau: 2\ngamma: 2\n")
    write("two.yaml", "gamma: 3\n")
    path = write("a.yaml", "extends: [sub/one.yaml, two.yaml]\n" + POLICY)
    loaded = load("a.yaml")
    assert (get(loaded, "beta"), get(loaded, "tau"), get(loaded, "gamma")) == (1, 2, 3)
    assert loaded.places["tau",] == (Path("sub/one.yaml").absolute(), 2)
    assert loaded.places["objective",] == (path, 3)
    assert ("beta",) in loaded.places
    assert ("max_steps",) not in loaded.places


def test_circles_and_missing_bases_are_reported_without_consequential_errors() -> None:
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "beta: 1\nextends: [a.yaml, nowhere.yaml]\n")
    assert problems("a.yaml") == [
        "b.yaml:2: extends[0]: goes in a circle: a.yaml:1 -> b.yaml:2 -> a.yaml:1",
        "b.yaml:2: extends[1]: nowhere.yaml: no such recipe; `rpo recipe list` shows what there is",
    ]
    # The missing file may hold the objective, and num_pairs.
    nowhere = "extends: nowhere.yaml: no such recipe; `rpo recipe list` shows what there is"
    write("a.yaml", "extends: nowhere.yaml\nstage: policy\nbta: 1\n")
    assert problems("a.yaml") == [f"a.yaml:1: {nowhere}", "a.yaml:3: bta: unknown key, did you mean beta?"]
    write("a.yaml", "extends: nowhere.yaml\nstage: splits\nrho: 0.2\n")
    assert problems("a.yaml") == [f"a.yaml:1: {nowhere}"]
    write("a.yaml", "extends: 3\n")
    expected = "expected the name of a recipe or a list of names, got a number (3)"
    assert problems("a.yaml") == [f"a.yaml:1: extends: {expected}"]


def test_the_stage_must_be_known_and_the_one_expected() -> None:
    write("a.yaml", "beta: 1\n")
    assert problems("a.yaml") == [f"a.yaml:1: stage: missing, one of {', '.join(MODELS)}"]
    write("a.yaml", "\nstage: polcy\n")
    assert problems("a.yaml")[0].startswith("a.yaml:2: stage: expected one of ")
    assert problems("a.yaml")[0].endswith("got text ('polcy'), did you mean policy?")
    write("a.yaml", POLICY)
    assert problems("a.yaml", expect="sft") == ["a.yaml:1: is a policy recipe; use rpo train-policy"]
    assert load("a.yaml", expect="policy").recipe.seed == 0
    write("a.yaml", "stage: policy\n")
    assert problems("a.yaml") == ["a.yaml:1: objective: missing; a policy recipe needs it"]


def test_rho_for_a_recipe_without_rho_is_an_error() -> None:
    write("a.yaml", "stage: data\n")
    assert problems("a.yaml", rho=0.2) == ["--rho: a data recipe has no rho"]
    assert problems("a.yaml", flags={"learning_rate": 1}) == [
        "--learning-rate: a data recipe has no learning_rate"
    ]
    assert get(load("a.yaml", seed=3), "seed") == 3


def test_the_suite_is_the_recipes_own_folder_unless_set() -> None:
    write("recipes/common/base.yaml", POLICY)
    write("recipes/mine/a.yaml", "extends: ../common/base.yaml\n")
    assert get(load("mine/a"), "suite") == "mine"
    assert get(load("mine/a", overrides=["suite=other"]), "suite") == "other"


def test_set_reaches_into_mappings_and_is_remembered() -> None:
    write("a.yaml", "stage: data\nrows: {pairs: 5, warmup: 6}\n")
    loaded = load("a.yaml", overrides=["rows.pairs=100", "files.pairs=x.jsonl", "data_seed=4"], seed=2)
    assert get(loaded, "rows") == {"pairs": 100, "warmup": 6}
    assert get(loaded, "files") == {"pairs": str(Path("x.jsonl").absolute())}
    assert loaded.overrides == {
        "rows.pairs": 100,
        "files.pairs": str(Path("x.jsonl").absolute()),
        "data_seed": 4,
        "seed": 2,
    }
    assert loaded.places["seed",] == "--seed"


def test_expected_seconds_follow_the_steps_that_are_asked_for() -> None:
    write("a.yaml", POLICY + "max_steps: 100\nexpected_seconds: 4\n")
    write("b.yaml", POLICY + "expected_seconds: 4\n")
    assert get(load("a.yaml"), "expected_seconds") == 4
    assert get(load("a.yaml", overrides=["max_steps=1000"]), "expected_seconds") == 40
    assert get(load("a.yaml", overrides=["max_steps=1000", "expected_seconds=7"]), "expected_seconds") == 7
    assert get(load("b.yaml", overrides=["max_steps=1000"]), "expected_seconds") is None
    assert problems("a.yaml", overrides=["max_steps=many"]) == [
        "--set max_steps: expected a whole number, got text ('many')"
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected key=value"),
        ("seed=[1", "--set seed: not YAML"),
        ("seed=1\nrows: 3", "--set seed: expected a single value"),
        ("stage=sft", "--set stage: cannot be changed from the command line"),
        ("seed.x=1", "--set seed.x: seed cannot be set in part"),
        ("rows.pairs=x", "--set rows.pairs: expected a whole number, got text ('x')"),
        ("rows={pears: 1}", "--set rows: rows.pears: unknown key, did you mean pairs?"),
    ],
)
def test_mistakes_in_set_name_the_option(override: str, message: str) -> None:
    write("a.yaml", "stage: data\n")
    found = problems("a.yaml", overrides=[override])
    assert len(found) == 1
    assert found[0].startswith(message)


def test_set_into_something_that_is_no_mapping_is_one_more_mistake() -> None:
    write("a.yaml", "stage: data\nrows: 3\n")
    assert "--set rows.pairs: rows is not a mapping" in problems("a.yaml", overrides=["rows.pairs=3"])


def test_relative_paths_belong_to_the_file_that_sets_them(here: Path) -> None:
    write("recipes/common/base.yaml", "reward_model: ./rm\nensemble: [../e, org/model, rm.yaml]\n")
    write("recipes/s/a.yaml", "extends: ../common/base.yaml\n" + POLICY + "model_name_or_path: org/model\n")
    loaded = load("s/a", overrides=["model_name_or_path=./here"])
    assert get(loaded, "reward_model") == str(here / "recipes/common/rm")
    assert get(loaded, "ensemble") == [str(here / "recipes/e"), "org/model", "rm.yaml"]
    assert get(loaded, "model_name_or_path") == str(here / "here")
    assert get(load("s/a"), "model_name_or_path") == "org/model"
    write("recipes/s/d.yaml", "stage: data\nfiles: {pairs: data/x.jsonl, warmup: /abs.jsonl}\n")
    assert get(load("s/d"), "files") == {
        "pairs": str(here / "recipes/s/data/x.jsonl"),
        "warmup": "/abs.jsonl",
    }


def test_names_are_looked_up_from_path_to_packed(here: Path) -> None:
    order = [
        "e.yaml",
        "recipes/e.yaml",
        "recipes/miniature/e.yaml",
        "packed/e.yaml",
        "packed/miniature/e.yaml",
    ]
    for name in reversed(order):
        write(name, POLICY)
        assert find("e") == find("e.yaml") == here / name
    write("packed/tldr/e.yaml", POLICY)
    write("packed/tldr/sft.yaml", POLICY)
    assert find("tldr/e") == here / "packed/tldr/e.yaml"
    assert find("e", [here / "packed/tldr"]) == here / "packed/tldr/e.yaml"
    assert find(str(here / "recipes/e")) == here / "recipes/e.yaml"


def test_a_name_that_is_a_path_is_not_looked_up_elsewhere() -> None:
    write("recipes/e.yaml", POLICY)
    assert find("e")
    with pytest.raises(RecipeError):
        find("./e.yaml")


def test_a_recipe_of_a_suite_in_one_file_has_no_way_out_of_it(here: Path) -> None:
    Path("mine.yaml").write_text("recipes:\n  data: {stage: data, source: miniature}\n")
    assert find("mine.yaml:data") == here / "mine.yaml/data.yaml"
    for name in ("mine.yaml:../data", "mine.yaml:x/../data", "mine:../dpo"):
        with pytest.raises(RecipeError, match=f"^{re.escape(name)}: no such file"):
            find(name)


@pytest.mark.parametrize("name", ["pairs.jsonl", "Pairs.CSV", "lines.jsonl.gz"])
def test_a_file_of_data_is_no_recipe(name: str, here: Path) -> None:
    Path(name).write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(RecipeError, match="is data, not a recipe; `rpo init` writes one for pairs"):
        find(name)


def test_an_unknown_name_gets_close_matches() -> None:
    write("recipes/miniature/e-dpo.yaml", POLICY)
    write("packed/tldr/dp-dpo.yaml", POLICY)
    none = "no such file here, and no packed recipe of this name"
    assert problems("e-dop.yaml") == [f"e-dop.yaml: {none}, did you mean e-dpo.yaml?"]
    assert problems("tldr/dp-dop") == [f"tldr/dp-dop: {none}, did you mean tldr/dp-dpo.yaml?"]
    # In a folder that is misspelt, a file of that very name is meant.
    write("recipes/miniature/p-dpo.yaml", POLICY)
    assert problems("nope/e-dpo.yaml") == [f"nope/e-dpo.yaml: {none}, did you mean e-dpo.yaml?"]
    assert problems("tldp/dp-dpo.yaml") == [f"tldp/dp-dpo.yaml: {none}, did you mean tldr/dp-dpo.yaml?"]
    assert problems("/nope/dp-dpo.yaml") == [
        "/nope/dp-dpo.yaml: no such file, did you mean tldr/dp-dpo.yaml?"
    ]


def test_a_suite_that_is_not_here_is_said_to_be_and_no_recipe_of_another_is_offered() -> None:
    """What is offered can be typed as it stands: FILE:NAME of a suite in one file, SUITE/NAME of a folder."""
    suite = "recipes:\n  dpo: {stage: policy, objective: dpo}\n"
    write("packed/entangled.yaml", suite)
    write("packed/miniature/dpo.yaml", POLICY)
    write("packed/tldr/dpo.yaml", POLICY)
    none, listed = "here, and no packed recipe of this name", "; `rpo recipe list` shows what there is"
    assert problems("nofile.yaml:dpo") == [f"nofile.yaml:dpo: no file nofile.yaml {none}{listed}"]
    assert problems("nofile.yaml") == [f"nofile.yaml: no such file {none}{listed}"]
    for wrong, right in (
        ("entagled.yaml:dpo", "entangled.yaml:dpo"),
        ("entangeld:dop", "entangled.yaml:dpo"),
        ("entagled", "entangled.yaml"),
        ("tldr:dpo", "tldr/dpo.yaml"),
    ):
        (said,) = problems(wrong)
        assert said.startswith(f"{wrong}: no ") and said.endswith(f"{none}, did you mean {right}?")
        assert find(right) or ":" not in right
    write("mine.yaml", suite)
    assert problems("mien.yaml:dpo")[0].endswith(", did you mean mine.yaml:dpo?")
    assert problems("mien.yaml")[0].endswith(", did you mean mine.yaml?")
    assert problems("./mien.yaml:dpo") == ["./mien.yaml:dpo: no file mien.yaml, did you mean mine.yaml:dpo?"]
    assert problems("dop.yaml")[0].endswith(", did you mean mine.yaml:dpo?")


def test_references_are_found_beside_the_recipe_then_beside_what_it_extends(here: Path) -> None:
    write("packed/tldr/e.yaml", POLICY)
    write("packed/tldr/rm.yaml", "stage: reward\n")
    write("packed/miniature/rm.yaml", "stage: reward\n")
    write("mine.yaml", "extends: tldr/e.yaml\nmodel_name_or_path: org/model\n")
    loaded = load("mine.yaml")
    assert loaded.reference("reward_model") == here / "packed/tldr/rm.yaml"
    assert loaded.reference("model_name_or_path") is None
    write("rm.yaml", "stage: reward\n")
    assert loaded.reference("reward_model") == loaded.sibling("rm.yaml") == here / "rm.yaml"
    write("mine.yaml", "extends: tldr/e.yaml\n\nreward_model: zzz.yaml\n")
    with pytest.raises(RecipeError, match=r"^mine.yaml:3: reward_model: zzz.yaml: no such recipe"):
        load("mine.yaml").reference("reward_model")


def test_known_lists_each_reachable_recipe_once(here: Path) -> None:
    for name in ("recipes/s/a.yaml", "packed/s/a.yaml", "packed/s/b.yaml", "packed/accelerate/ddp.yaml"):
        write(name, POLICY)
    assert known() == [here / "recipes/s/a.yaml", here / "packed/s/b.yaml"]


def test_a_suite_is_checked_with_its_references() -> None:
    write("s/base.yaml", "max_steps: 3\n")
    write("s/policy.yaml", "extends: base.yaml\nstage: policy\n")
    write("s/e.yaml", "extends: policy.yaml\n" + POLICY + "model_name_or_path: sft.yaml\n")
    write("s/lonely.yaml", "max_steps: 3\n")
    assert check_suite(Path("s")) == [
        "s/e.yaml:1: data: splits.yaml: no such recipe in s",
        "s/e.yaml:4: model_name_or_path: sft.yaml: no such recipe in s",
        "s/e.yaml:1: ensemble: rm.yaml: no such recipe in s",
        "s/e.yaml:1: evaluate: evaluate.yaml: no such recipe in s",
        f"s/lonely.yaml:1: stage: missing, one of {', '.join(MODELS)}",
    ]
    Path("s/lonely.yaml").unlink()
    write("s/e.yaml", "stage: data\n")
    write("s/f.yaml", "stage: relabel\ndata: e.yaml\nreward_model: org/model\nbse: 1\n")
    Path("s/base.yaml").unlink()
    Path("s/policy.yaml").unlink()
    assert [problem.split(": ")[:2] for problem in check_suite(Path("s"))] == [["s/f.yaml:4", "bse"]]
    write("s/f.yaml", "stage: relabel\ndata: e.yaml\nreward_model: org/model\n")
    assert check_suite(Path("s")) == []
    assert check_suite(Path("nowhere")) == ["nowhere: no recipes"]


BEFORE = "# top\nstage: policy   # why\nobjective: e-dpo\n"
AFTER = "\n# below\nbeta:   0.10  # odd  spacing\n"
BLOCK = "by_rho:  # chosen\n  0.2: {beta: 0.05, learning_rate: 1.0e-06}\n  0.3: {tau: 1}\n"
CHOSEN: dict[float, dict[str, Any]] = {0.3: {"tau": 1}, 0.1 + 0.1: {"beta": 0.05, "learning_rate": 1e-6}}


@pytest.mark.parametrize(
    "old",
    [
        "by_rho: {}  # chosen\n",
        "by_rho:  # chosen\n",
        "by_rho:  # chosen\n  0.2:\n    beta: 1  # old\n    # older\n    tau: 2\n",
        "by_rho:  # chosen\n  0.7: {beta: 1,\n        tau: 2}\n",
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_writing_by_rho_changes_no_other_byte(old: str, newline: str) -> None:
    path = Path("a.yaml")
    path.write_bytes((BEFORE + old + AFTER).replace("\n", newline).encode())
    path.chmod(0o640)
    write_by_rho(path, CHOSEN)
    assert path.read_bytes() == (BEFORE + BLOCK + AFTER).replace("\n", newline).encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert get(load("a.yaml"), "by_rho") == {0.2: CHOSEN[0.2], 0.3: CHOSEN[0.3]}
    assert [file.name for file in Path(".").iterdir()] == ["a.yaml"]


def test_by_rho_is_added_at_the_end_of_a_recipe_without_it() -> None:
    path = write("a.yaml", BEFORE + AFTER.rstrip("\n"))
    write_by_rho(path, CHOSEN)
    assert path.read_text() == BEFORE + AFTER + BLOCK.replace("  # chosen", "")


@pytest.mark.parametrize(
    ("text", "chosen", "message"),
    [
        (POLICY, {0.2: {"bta": 1}}, "unknown key"),
        (POLICY, {2.0: {"beta": 1}}, "between 0 and 1"),
        ("stage: data\n", {0.2: {"seed": 1}}, "by_rho: unknown key"),
        ("{stage: policy, objective: dpo}\n", {0.2: {"beta": 1}}, "needs a file of `key: value` lines"),
        (POLICY + "bta: 1\n", {0.2: {"beta": 1}}, "a.yaml:3: bta"),
    ],
)
def test_writing_by_rho_refuses_what_would_not_load_and_leaves_the_file(
    text: str, chosen: dict[float, dict[str, Any]], message: str
) -> None:
    path = write("a.yaml", text)
    with pytest.raises(RecipeError, match=message):
        write_by_rho(path, chosen)
    assert path.read_text() == text
    assert list(Path(".").iterdir()) == [Path("a.yaml")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("beta:   0.10  # odd  spacing\n", "beta: 0.0312  # odd  spacing\n"),
        ("beta: 1                # wide\n", "beta: 0.0312           # wide\n"),
        ("beta: 1\n", "beta: 0.0312\n"),
        ("beta:\n  1\n", "beta: 0.0312\n"),
    ],
)
def test_a_strength_is_written_in_its_place_and_changes_no_other_byte(old: str, new: str) -> None:
    path = write("a.yaml", BEFORE + old + "# below\ntau: 2\n")
    write_setting(path, {"beta": 0.0312})
    assert path.read_text() == BEFORE + new + "# below\ntau: 2\n"


def test_a_strength_that_a_recipe_takes_from_another_is_added_to_its_own_keys() -> None:
    write("base.yaml", "beta: 1\n")
    path = write("a.yaml", "extends: base.yaml\n" + BEFORE)
    write_setting(path, {"beta": 0.3})
    assert path.read_text() == "extends: base.yaml\n" + BEFORE + "beta: 0.3\n"
    assert get(load("a.yaml"), "beta") == 0.3


def test_writing_by_rho_refuses_an_installed_recipe() -> None:
    path = write("lib/site-packages/rpo_cli/_recipes/a.yaml", POLICY)
    with pytest.raises(RecipeError, match="copy the recipe"):
        write_by_rho(path, CHOSEN)
    assert path.read_text() == POLICY


def test_the_resolved_recipe_names_its_sources_and_loads_to_itself() -> None:
    write("recipes/s/base.yaml", "tau: 2\nmodel_revision: '1e5'\n")
    by_rho = "by_rho: {0.2: {gamma: 0.5, beta: 9}, 0.3: {beta: 4}}\n"
    path = write(
        "recipes/s/a.yaml", "extends: base.yaml\n" + POLICY + 'description: "a: b\\nc # d"\n' + by_rho
    )
    loaded = load("s/a", rho=0.2, overrides=["beta=3"])
    text = resolved_yaml(loaded)
    lines = text.splitlines()
    assert lines[0] == "stage: policy  # recipes/s/a.yaml:2"
    assert "tau: 2.0  # recipes/s/base.yaml:1" in lines
    assert "gamma: 0.5  # recipes/s/a.yaml:5" in lines
    assert "beta: 3.0  # --set" in lines
    assert "rho: 0.2  # --rho" in lines
    assert "max_steps: 1000  # default" in lines
    assert {line.split(":")[0] for line in lines if not line.startswith(" ")} == set(
        PolicyRecipe.model_fields
    )
    path.write_text(text)
    again = load("s/a").recipe
    assert again.model_dump(exclude={"by_rho"}) == loaded.recipe.model_dump(exclude={"by_rho"})


def test_the_json_schema_knows_every_stage_and_key() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["stage"]["enum"] == list(MODELS)
    base = schema["$defs"]["Base"]["properties"]
    for model in MODELS.values():
        definition = schema["$defs"][model.__name__]
        assert set(definition["properties"]) == {*model.model_fields, "extends"}
        assert definition["additionalProperties"] is False
        assert set(base) >= set(definition["properties"]) - {"stage"}
    assert "stage" not in base
    policy = schema["$defs"]["PolicyRecipe"]["properties"]
    assert policy["beta"]["description"] == PolicyRecipe.model_fields["beta"].description
    by_rho = policy["by_rho"]["additionalProperties"]["properties"]
    assert set(by_rho) == set(PolicyRecipe.model_fields) - set(NOT_BY_RHO)


def test_a_key_of_another_library_is_answered_with_what_to_write() -> None:
    lines = "".join(f"{key}: 1\n" for key in NO_SUCH)
    write("dpo.yaml", f"{lines}stage: policy\nobjective: dpo\nmodel_name_or_path: x\n")
    with pytest.raises(RecipeError) as caught:
        load("dpo.yaml")
    said = [f"dpo.yaml:{at}: {key}: unknown key; {NO_SUCH[key]}" for at, key in enumerate(NO_SUCH, 1)]
    assert caught.value.problems == said
    keys = {name for model in MODELS.values() for name in model.model_fields}
    for told in NO_SUCH.values():
        assert (written := re.match(r"write `?(\w+)", told)) is None or written[1] in keys, told
    with pytest.raises(RecipeError, match="--set bf16: unknown key; write `dtype: bfloat16`"):
        load(str(write("ipo.yaml", "stage: policy\nobjective: ipo\n")), overrides=["bf16=true"])
