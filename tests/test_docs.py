"""Every command line that README, docs, recipes and --help name is one that works; every link leads on.

Only files that git tracks are looked at: a copy of recipes/own-data beside it is its owner's business.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT, copy_tracked, tracked
from typer.testing import CliRunner

from rpo_cli.cli import app
from rpo_cli.recipes import RECIPES, check_suite, load
from rpo_cli.recipes.editor import json_schema

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAPER_SCALE = DOCS / "paper-scale.md"
LONGEST_README = 1_500  # words
ONE_SCREEN = 800  # words of the page of decisions, its table included
# These read and print; everything else is only planned.
NO_DRY_RUN = (("recipe",), ("data",), ("status",), ("doctor",), ("plan",), ("workflow",))


def documents() -> list[Path]:
    """Every page for people: README, CONTRIBUTING, docs, and what stands beside recipes and benchmarks."""
    return [
        path
        for path in tracked("README.md", "CONTRIBUTING.md", "docs", "recipes", "benchmarks")
        if path.suffix == ".md"
    ]


def command_lines() -> list[tuple[str, str]]:
    """(places, command line) of every `rpo ...` in console blocks and recipes' comments, each once.

    The examples of --help stand in docs/reference/commands.md, which is written from them.
    """
    found: dict[str, list[str]] = {}
    for document in documents():
        for block in re.findall(r"```(?:console|bash)\n(.*?)```", document.read_text(), flags=re.S):
            for line in re.findall(r"^(?:\$ )?((?:\.venv/bin/)?rpo .*)$", block, flags=re.M):
                found.setdefault(said(line), []).append(str(document.relative_to(ROOT)))
    for recipe in tracked("recipes"):
        if recipe.suffix == ".yaml":
            for line in re.findall(r"^#\s+(rpo .*)$", recipe.read_text(), flags=re.M):
                found.setdefault(said(line), []).append(recipe.name)
    return [(", ".join(dict.fromkeys(places)), line) for line, places in found.items()]


def said(line: str) -> str:
    """What a line says to `rpo`, wherever that is, without a comment behind it."""
    return shlex.join(["rpo", *shlex.split(line, comments=True)[1:]])


def test_there_are_documents_and_command_lines_to_check() -> None:
    assert len(documents()) >= 15
    assert len(command_lines()) >= 60


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes, and those that a reader of the pages has made of them."""
    home = tmp_path_factory.mktemp("checkout")
    copy_tracked("recipes", home)
    shutil.copytree(home / "recipes/own-data", home / "recipes/mine")  # as its README tells to
    example = (home / "recipes/example.yaml").read_text()  # as `rpo init mine` writes it
    (home / "mine.yaml").write_text(example.replace("./own-data", "./recipes/own-data"))
    (home / "results").symlink_to(ROOT / "results")
    return home


@pytest.mark.slow
@pytest.mark.parametrize(("places", "line"), command_lines())
def test_documented_command_line_is_understood(
    checkout: Path, places: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever is written takes the place of a file, and changes none.
    shutil.copytree(checkout, tmp_path, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    words, drawn = shlex.split(line)[1:], tmp_path / "drawn"
    if words[:2] == ["recipe", "schema"]:
        words = [word.replace("recipes/", "") for word in words]  # not over the real one
    if words[:2] == ["data", "inspect"] or words[0] in ("init", "score", "sample", "stage"):
        words.append("--help")  # builds the data, reads files; its own tests run it
    elif words[0] == "rebuild":
        words.append("--help")  # of a card that a reader has; tests/test_export.py runs it
    elif words == ["recipe", "check", "recipes"]:
        words.append("--help")  # tests/test_recipe_commands.py runs it
    elif words[:2] == ["report", "--from"]:
        words.append("--help")  # of numbers that a reader has kept; tests/test_compare.py runs it
    elif "--from" in words:
        words += [] if "--out" in words else ["--out", str(drawn)]
        words = [str(drawn) if word.startswith("/tmp/") else word for word in words]
    elif (words[0],) not in NO_DRY_RUN or words[:2] == ["data", "fetch"]:
        words.append("--dry-run")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"{places}: {line}\n{result.output}"
    assert not (tmp_path / "runs").exists()
    if "--from" in words and "--help" not in words:
        kept = Path(words[words.index("--from") + 1], f"{words[1]}.json")
        assert (drawn / kept.name).read_bytes() == kept.read_bytes(), f"{places}: {line}"


def sed(line: str, folder: Path) -> None:
    """Run one of the documentation's sed lines on a copy of the recipes."""
    subprocess.run(["bash", "-c", line.replace("sed -i ", "sed -i.bak ")], cwd=folder, check=True)


@pytest.mark.parametrize("suite", ["tldr", "helpfulness"])
@pytest.mark.parametrize("preset", ["gpu-80gb", "gpu-24gb", "gpus-8", "tpu-8"])
def test_every_machine_makes_the_same_batches(suite: str, preset: str, tmp_path: Path) -> None:
    copy_tracked("recipes", tmp_path)
    line = next(
        line
        for line in PAPER_SCALE.read_text().splitlines()
        if line.startswith("sed -i 's/gpu-80gb/gpu-24gb/'")
    )
    sed(line.replace("/gpu-24gb/", f"/{preset}/").replace("recipes/tldr", f"recipes/{suite}"), tmp_path)
    assert check_suite(tmp_path / "recipes" / suite) == []
    for recipe, batch in (("sft", 128), ("oracle", 64), ("rm", 64), ("e-dpo", 16)):
        made: Any = load(str(tmp_path / "recipes" / suite / f"{recipe}.yaml")).recipe
        assert made.per_device_train_batch_size * made.gradient_accumulation_steps == batch, recipe
        assert not preset.endswith("-8") or made.gradient_accumulation_steps == 8, (
            recipe
        )  # one part for each process


def test_ready_made_models_take_the_place_of_sft_and_oracle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_tracked("recipes", tmp_path)
    lines = [
        line for line in PAPER_SCALE.read_text().splitlines() if line.startswith("sed") and "trl-lib" in line
    ]
    assert len(lines) == 2
    for line in lines:
        sed(line, tmp_path)
    said = CliRunner().invoke(
        app, ["figure", "figure2", "--recipe", "tldr/figure2.yaml", "--rho", "0.2", "--dry-run"]
    )
    assert said.exit_code == 0, said.output
    assert (
        "seed-0/sft " not in said.output
        and "seed-0/oracle" not in said.output
        and "seed-0/relabel" in said.output
    )
    said = CliRunner().invoke(app, ["data", "fetch", "--recipe", "tldr/figure2.yaml", "--dry-run"])
    for name in ("trl-lib/pythia-1b-deduped-tldr-sft@main", "trl-lib/pythia-1b-deduped-tldr-rm@refs/pr/1"):
        assert name in said.output


def test_another_base_model_is_one_line(tmp_path: Path) -> None:
    copy_tracked("recipes", tmp_path)
    (line,) = (
        line for line in PAPER_SCALE.read_text().splitlines() if "Qwen" in line and line.startswith("sed")
    )
    for suite in ("tldr", "helpfulness"):
        sed(line.replace("recipes/tldr", f"recipes/{suite}"), tmp_path)
        assert check_suite(tmp_path / "recipes" / suite) == []
        data, sft, oracle = (
            load(str(tmp_path / "recipes" / suite / f"{name}.yaml")).recipe
            for name in ("data", "sft", "oracle")
        )
        assert data.tokenizer == sft.model_name_or_path == "Qwen/Qwen3-0.6B-Base"  # type: ignore[attr-defined]
        assert sft.pad_token == oracle.pad_token == "<|fim_pad|>"  # type: ignore[attr-defined]


@pytest.mark.slow
def test_relabelled_pairs_need_neither_relabel_nor_oracle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_tracked("recipes", tmp_path)
    lines = re.findall(
        r"^#\s+(sed .*)$", (ROOT / "recipes/tldr/data-relabelled.yaml").read_text(), flags=re.M
    )
    assert len(lines) == 2
    for line in lines:
        sed(line, tmp_path)
    assert check_suite(tmp_path / "recipes/tldr") == []
    plan = json.loads(
        CliRunner()
        .invoke(app, ["figure", "figure2", "--recipe", "tldr/figure2.yaml", "--tune", "--dry-run", "--json"])
        .stdout
    )
    paths = [stage["path"] for stage in plan["todo"]]
    assert not [path for path in paths if "oracle" in path or path.endswith("/relabel")]
    assert [path for path in paths if path.startswith("seed-0/data")] == ["seed-0/data-relabelled"]


@pytest.mark.parametrize(
    ("command", "rewards", "cells"),
    [
        (
            "sweep --recipe tldr/figure2.yaml",
            43,
            (294, 0),
        ),  # the oracle; one and five for each rho; six grids of seven
        ("figure figure2 --recipe tldr/figure2.yaml --tune", 43, (294, 42)),
        ("figure unbiased --recipe tldr/figure-unbiased.yaml --tune", 7, (42, 6)),
        ("figure unbiased --recipe helpfulness/figure-unbiased.yaml --tune", 7, (42, 6)),
    ],
)
def test_the_papers_experiments_are_planned_whole(
    command: str, rewards: int, cells: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(
        app,
        [
            *command.split(),
            "--dry-run",
            "--json",
            "--estimate",
            "--params",
            "1e9",
            "--device-name",
            "a100-80g",
        ],
    )
    assert said.exit_code == 0, said.output
    plan = json.loads(said.stdout)
    counts = {group["kind"]: group["build"] for group in plan["stages"]}
    assert (counts["reward"], counts["policy"], counts["evaluate"]) == (
        rewards,
        cells[0],
        sum(cells) + (2 if cells[1] else 1),
    )
    assert (plan["cells"]["validation"], plan["cells"]["test"]) == cells and plan["build"] == sum(
        counts.values()
    )
    policies = next(group for group in plan["estimate"]["by_kind"] if group["kind"] == "policy")
    assert policies["train"] == pytest.approx(6 * 1e9 * policies["train_tokens"], rel=1e-9)
    pairs = cells[0] * 10_000 * 16
    length, sampled = (704, 128) if "tldr/" in command else (1024, 256)
    assert (
        policies["train_tokens"] == pairs * 2 * length + pairs / 2 * sampled
    )  # half of the objectives have the KL term


def test_every_command_is_shown_on_a_page_that_somebody_wrote() -> None:
    reference = (DOCS / "reference" / "commands.md").read_text()
    commands = re.findall(r"^## rpo (.+)$", reference, flags=re.M)
    assert len(commands) >= 22
    written = "\n".join(path.read_text() for path in documents() if path.parent != DOCS / "reference")
    assert [name for name in commands if f"rpo {name}" not in written] == []


def test_readme_is_short_filled_in_and_its_picture_is_there() -> None:
    text = README.read_text()
    assert len(text.split()) <= LONGEST_README
    assert re.findall(r"@[A-Z]+@", text) == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def test_the_page_of_decisions_is_one_screen() -> None:
    assert len((DOCS / "when-to-use-what.md").read_text().split()) <= ONE_SCREEN


def links(document: Path) -> list[tuple[str, str]]:
    """(path, anchor) of every relative link of a page, either of them empty where it is not given."""
    prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.S)
    found = [target.partition("#") for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
    return [(path, anchor) for path, _, anchor in found if not re.match(r"[a-z]+:", path)]


@functools.cache
def anchors(document: Path) -> frozenset[str]:
    """The anchors that GitHub gives a page's headings."""
    prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.M)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


def test_every_relative_link_leads_somewhere() -> None:
    broken, count = [], 0
    for document in documents():
        for path, anchor in links(document):
            target = (document.parent / path).resolve() if path else document
            there = target.exists() and (not anchor or (target.suffix == ".md" and anchor in anchors(target)))
            broken += [] if there else [f"{document.relative_to(ROOT)}: {path}{'#' * bool(anchor)}{anchor}"]
            count += 1
    assert count >= 60
    assert broken == []


def test_the_index_of_the_docs_lists_every_page() -> None:
    index = DOCS / "README.md"
    listed = {(DOCS / path).resolve() for path, _ in links(index) if path}
    pages = {path for path in documents() if path.is_relative_to(DOCS)} - {index}
    assert len(pages) >= 12
    assert sorted(str(page.relative_to(ROOT)) for page in pages - listed) == []


def test_committed_schema_is_the_schema() -> None:
    assert json.loads((ROOT / "recipes" / "schema.json").read_text()) == json_schema()


def test_every_recipe_points_its_editor_at_the_schema() -> None:
    others = ("accelerate", "hardware")  # settings of another program, and parts that recipes extend
    recipes = [
        path
        for path in tracked("recipes")
        if path.suffix == ".yaml" and path.parent.name not in others and path.name != RECIPES
    ]
    assert len(recipes) >= 20
    for recipe in recipes:
        first = recipe.read_text().splitlines()[0]
        schema = os.path.relpath(ROOT / "recipes" / "schema.json", recipe.parent)
        assert first == f"# yaml-language-server: $schema={schema}", recipe
