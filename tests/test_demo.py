"""`rpo demo`: both policies trained and shown."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import rpo, set_aside

from rpo_cli.recipes.files import packed


def test_the_demo_is_planned_for_less_than_a_minute_and_builds_nothing_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = rpo("demo", "--dry-run")
    assert "policies/dpo" in said.stdout and "policies/e-dpo" in said.stdout
    expected = re.search(r"expected: (\d+)s with --jobs 2", said.stderr)
    assert expected is not None and int(expected[1]) <= 40 and not Path("runs").exists()


@pytest.mark.slow
def test_the_demo_shows_both_policies_beside_the_model_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped suite, but that only its oracle, of which something is required, takes all its steps."""
    recipes = yaml.safe_load((packed() / "demo.yaml").read_text())["recipes"]
    for name, steps in {"sft": 80, "rm": 40, "dpo": 40, "e-dpo": 40}.items():
        assert recipes[name]["max_steps"] > steps
        recipes[name]["max_steps"] = steps
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump({"recipes": recipes}))
    (tmp_path / "demo").symlink_to(packed() / "demo")
    monkeypatch.chdir(tmp_path)
    set_aside()
    text = rpo("demo", "--workspace", tmp_path / "runs", "--jobs", 1).stdout  # imports once
    for name in ("the model before", "dpo", "e-dpo"):
        assert re.search(rf"^{name} +-?\d+\.\d\d ", text, flags=re.M), text
        assert len(re.findall(rf"^  {name} +reward [+-]\d", text, flags=re.M)) == 2
    assert "80% of its training pairs" in text and "rpo init mine" in text


@pytest.mark.parametrize("name", ["language-model", "reader"])
def test_the_models_that_the_demo_begins_with_are_those_of_their_cards(name: str) -> None:
    folder = packed() / "demo" / name
    card = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    made = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.safetensors")}
    assert made == card["rpo"]["weights"] and card["license"] == "apache-2.0"
    assert set(yaml.safe_load((folder / "rpo_recipe.yaml").read_text())["recipes"]) >= {"data", "pretrain"}


def test_what_stands_beside_a_model_is_no_suite_of_the_folders_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = rpo("recipe", "list").stdout
    assert "demo.yaml:e-dpo" in said and "rpo_recipe" not in said
    monkeypatch.chdir(tmp_path)
    model = Path("recipes/models/mine")
    shutil.copytree(packed() / "demo" / "reader", model)
    (model.parent / "one.yaml").write_text("stage: data\nsource: miniature\n")
    assert rpo("recipe", "check", "recipes").stdout.strip() == "1 recipe, no problems"
    assert rpo("recipe", "check", model).stdout.strip() == "3 recipes, no problems", "where it is named"
