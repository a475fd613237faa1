"""From the name of a recipe to its file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

# Folders without recipes: settings of another program, and batch sizes for a machine that recipes extend.
SETTINGS = ("accelerate", "hardware")


class RecipeError(Exception):
    """A recipe is wrong or missing. `problems`: every mistake, one line each, most with file and line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def find(name: str, beside: Path | None = None) -> Path:
    """The file a recipe's name means, as an absolute path; `.yaml` may be left out.

    Looked up in the folder `beside` (where a reference is written), as a path, in ./recipes,
    ./recipes/miniature, and in the same two places among the packed recipes. A name that begins with / ~ ./
    or ../ is a path and nothing else.

    Raises:
        RecipeError: there is none; names recipes that are spelt alike.
    """
    return near(name, [beside] if beside else [])


def near(name: str, folders: Sequence[Path]) -> Path:
    """`find`, looking into these folders first."""
    written = os.path.expanduser(name)
    names = [written] if written.endswith((".yaml", ".yml")) else [f"{written}.yaml", written]
    for place in _places(folders, os.path.isabs(written) or written.startswith(("./", "../"))):
        for candidate in names:
            file = os.path.join(place, candidate)
            if os.path.isfile(file):
                return Path(os.path.abspath(file))
    hint = _alike(names[0], folders) or "; `rpo recipe list` shows what there is"
    raise RecipeError([f"{name}: no such recipe{hint}"])


def _places(folders: Sequence[Path], alone: bool) -> Iterator[Path]:
    """Where a recipe is looked for, in order; `alone`: nowhere but in these folders, or here without any."""
    yield from folders
    if not (alone and folders):
        yield Path.cwd()
    if not alone:
        for root in _roots():
            yield from (root, root / "miniature")


def known() -> list[Path]:
    """Every recipe in ./recipes, then the packed ones that it does not hide (same folder and name)."""
    found: dict[Path, Path] = {}
    for root in _roots():
        for relative, path in _inside(root):
            found.setdefault(relative, path)
    return list(found.values())


def shown(path: Path) -> str:
    """A path as the user knows it: relative to the current directory when below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@cache
def packed() -> Path:
    """The recipes that come with the package: inside an installed one, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def _roots() -> list[Path]:
    return list(dict.fromkeys([Path.cwd() / "recipes", packed()]))


def _inside(root: Path) -> Iterator[tuple[Path, Path]]:
    """Recipes below a folder, with their paths relative to it; not the folders of SETTINGS."""
    for path in sorted(root.rglob("*.yaml")):
        relative = path.relative_to(root)
        if relative.parts[0] not in SETTINGS and path.is_file():
            yield relative, path


def _alike(name: str, folders: Sequence[Path]) -> str:
    """`, did you mean x.yaml?`, or nothing."""
    names = {path.name for folder in folders for path in folder.glob("*.yaml")}
    for root in _roots():
        for relative, _ in _inside(root):
            names |= {str(relative), relative.name} if relative.parts[0] == "miniature" else {str(relative)}
    wanted = name if len(Path(name).parts) == 2 else Path(name).name
    # A file that is called so is meant, rather than another in a folder that is spelt alike.
    namesakes = [known for known in sorted(names) if Path(known).name == Path(name).name]
    close = difflib.get_close_matches(wanted, namesakes or sorted(names), n=1, cutoff=0 if namesakes else 0.6)
    return f", did you mean {close[0]}?" if close else ""
