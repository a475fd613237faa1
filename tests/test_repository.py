"""What the tests look at, and what a wheel of it holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from repository import ROOT, copy_tracked, tracked

from rpo_cli import __version__

OWN = "recipes/own-data"


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The tracked files in a repository of their own, and a user's recipes beside them."""
    folder = tmp_path / "clone"
    copy_tracked(".", folder)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    return folder


def test_only_tracked_files_that_are_there_are_looked_at(clone: Path) -> None:
    before = tracked("recipes", root=clone)
    assert clone / OWN / "base.yaml" in before and clone / "README.md" not in before
    shutil.copytree(clone / OWN, clone / "recipes/mine")
    (clone / OWN / "dpo.yaml").unlink()
    tracked.cache_clear()
    assert set(before) - set(tracked("recipes", root=clone)) == {clone / OWN / "dpo.yaml"}
    assert len(before) > len(tracked("recipes/accelerate", "recipes/hardware", root=clone)) >= 15


def test_without_git_all_files_are_looked_at(clone: Path) -> None:
    before = tracked("recipes", "README.md", root=clone)
    shutil.rmtree(clone / ".git")
    tracked.cache_clear()
    assert tracked("recipes", "README.md", root=clone) == before


# Collects, copies recipes, collects: in one process, which imports the libraries once and the clone twice.
TWICE = """
import shutil, sys
from pathlib import Path
import pytest
root = Path.cwd()
own, mine, between = sys.argv[1:]
for copy in (False, True):
    if copy:
        print(between)
        shutil.copytree(own, mine)
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if name != "__main__" and file and Path(file).is_relative_to(root):
                del sys.modules[name]
    how = ["--collect-only", "--assert=plain", "-p", "no:cacheprovider", "tests"]
    if code := pytest.main(how):
        sys.exit(code)
"""


@pytest.mark.slow
def test_a_users_own_recipes_change_nothing_about_which_tests_there_are(clone: Path) -> None:
    between = "── with recipes of the user's own ──"
    command = [sys.executable, "-c", TWICE, OWN, "recipes/mine", between]
    environment = os.environ | {"PYTHONPATH": str(clone)}
    done = subprocess.run(command, cwd=clone, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "recipes/mine/base.yaml").is_file()
    before, after = (
        [line for line in said.splitlines() if "::" in line] for said in done.stdout.split(between)
    )
    assert len(before) > 100 and after == before


def test_the_citation_is_that_of_the_package_and_of_the_paper_as_the_readme_has_it() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["cff-version"] == "1.2.0" and cited["authors"] and cited["message"]
    assert cited["version"] == __version__ and cited["license"] == project["license"]
    assert cited["keywords"] == project["keywords"] and "authors" not in project
    (paper,) = cited["references"]
    names = " and ".join(f"{each['family-names']}, {each['given-names']}" for each in paper["authors"])
    bibtex = " ".join((ROOT / "README.md").read_text().partition("```bibtex")[2].split())
    for value in (names, paper["title"], paper["journal"], paper["year"], paper["identifiers"][0]["value"]):
        assert str(value) in bibtex


@pytest.mark.slow
def test_a_wheel_alone_has_the_commands_and_the_recipes(clone: Path, tmp_path: Path) -> None:
    """Installed beside the libraries, without the repository, in an empty folder: what is missing shows."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(clone)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)

    def rpo(*arguments: str) -> str:
        """Standard output of the installed command."""
        program = f"import rpo_cli, sys; assert rpo_cli.__file__.startswith({str(site)!r}); "
        program += "from rpo_cli.cli import entry; sys.argv[0] = 'rpo'; entry()"
        environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(
            command, cwd=empty, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "train-policy" in rpo("--help")
    assert "tldr/e-dpo.yaml" in rpo("recipe", "list")
    assert "no problems" in rpo("recipe", "check", str(site / "rpo_cli/_recipes/tldr"))
    assert "policy" in rpo("train-policy", "--recipe", "e-dpo.yaml", "--dry-run")
    assert "policies/e-dpo" in rpo("demo", "--dry-run")
    assert list(empty.iterdir()) == []
    held = set(zipfile.ZipFile(wheel).namelist())
    packed = {f"rpo_cli/_{path.relative_to(ROOT)}" for path in tracked("recipes")}
    assert packed | {str(path.relative_to(ROOT)) for path in tracked("rpo_cli")} <= held
    assert not [name for name in held if name.startswith(("tests", "benchmarks", "results"))]
