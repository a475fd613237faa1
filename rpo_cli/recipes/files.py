"""From the name of a recipe to its file.

A suite is a folder of recipes, or one file with `recipes:` in which they stand by name. There the recipe
`dpo` of `mine.yaml` has the path `mine.yaml/dpo.yaml`, as if the file were a folder, and is written
`mine.yaml:dpo`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from rpo_cli.recipes import yaml_lines
from rpo_cli.recipes.yaml_lines import Document

# Folders without recipes: settings of another program, and batch sizes for a machine that recipes extend.
SETTINGS = ("accelerate", "hardware")
ENDINGS = (".yaml", ".yml")
# Beside a model: what it was made of, which is no suite among others.
RECIPES = "rpo_recipe.yaml"

DATA = (".jsonl", ".parquet", ".csv", ".tsv", ".gz", ".xz", ".zst", ".bz2", ".lz4")  # endings of no recipe


class RecipeError(Exception):
    """A recipe is wrong or missing. `problems`: every mistake, one line each, most with file and line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def find(name: str, folders: Sequence[Path] = ()) -> Path:
    """The file a recipe's name means, as an absolute path; `.yaml` may be left out.

    Looked up in these folders (that of a file in which a reference is written), as a path, in ./recipes,
    ./recipes/miniature, and in the same two places among the packed recipes. A name that begins with / ~ ./
    or ../ is a path and nothing else.

    Raises:
        RecipeError: there is none; names recipes that are spelt alike.
    """
    written = os.path.expanduser(name)
    suite, colon, recipe = written.rpartition(":")
    if colon and "/" not in recipe:
        suite = suite if suite.endswith(ENDINGS) else f"{suite}.yaml"
        written = f"{suite}/{recipe.removesuffix('.yaml')}.yaml"
    names = [written] if written.endswith(ENDINGS) else [f"{written}.yaml", written]
    others: Path | None = None
    for place in _places(folders, os.path.isabs(written) or written.startswith(("./", "../"))):
        for candidate in names:
            path = Path(os.path.abspath(os.path.join(place, candidate)))
            if there(path):
                if path.suffix.lower() in DATA:
                    raise RecipeError([f"{name}: is data, not a recipe; `rpo init` writes one for pairs"])
                return path
            others = others or suite_of(path)
    if colon and others is not None:
        document = yaml_lines.read(others)
        problems = [
            f"{shown(others)}:{line}: {': '.join([*map(str, keys[-1:]), message])}"
            for line, keys, message in document.problems
        ]
        has = f"; it has {', '.join(document.recipes)}" if document.recipes else ""
        raise RecipeError(problems or [f"{name}: {shown(others)} has no such recipe{has}"])
    hint = _alike(names[0], folders, alone=bool(colon)) or "; `rpo recipe list` shows what there is"
    raise RecipeError([f"{name}: {_absent(written, folders)}{hint}"])


def _absent(written: str, folders: Sequence[Path]) -> str:
    """That nothing of this name is there: a recipe names others, a command a file first of all."""
    if folders:
        return "no such recipe"
    suite = Path(written).parent
    file = f"file {suite}" if suite.suffix in ENDINGS else "such file"
    a_path = os.path.isabs(written) or written.startswith(("./", "../"))
    return f"no {file}" if a_path else f"no {file} here, and no packed recipe of this name"


def suite_of(path: Path) -> Path | None:
    """The one file in which a recipe's whole suite stands; None: the recipe has a file of its own."""
    return path.parent if path.parent.suffix in ENDINGS and path.parent.is_file() else None


def file_of(path: Path) -> Path:
    """The file in which a recipe stands."""
    return suite_of(path) or path


def there(path: Path) -> bool:
    """Whether there is a recipe of this path."""
    suite = suite_of(path)
    return path.is_file() if suite is None else path.stem in yaml_lines.read(suite).recipes


def document_of(path: Path, text: str | None = None) -> Document:
    """What a recipe says, with the lines of its file; `text`: in place of the file's own."""
    document = yaml_lines.read(file_of(path)) if text is None else yaml_lines.parse(text)
    if suite_of(path) is not None:
        own = document.recipes.get(path.stem, Document())
        own.problems += document.problems
        return own
    if document.recipes:
        which = f"a suite; name one of its recipes, such as {shown(path)}:{next(iter(document.recipes))}"
        document.problems.append((1, (), which))
    return document


def recipes_in(suite: Path) -> list[Path]:
    """The recipes of a suite: of a folder by name, of one file in its order."""
    if suite.is_file():
        return [suite / f"{name}.yaml" for name in yaml_lines.read(suite).recipes]
    files = [file for file in sorted(suite.glob("*.yaml")) if file.name != RECIPES]
    return [path for file in files for path in (recipes_in(file) or [file])]


def find_suite(name: str) -> Path | None:
    """The suite that a name means, a folder or one file; None: it means a recipe, or nothing."""
    if os.path.isdir(name):
        return Path(os.path.abspath(name))
    with suppress(RecipeError):
        return path if recipes_in(path := find(name)) else None
    return None


def places_of(path: Path) -> list[Path]:
    """Where the recipes that a recipe names are looked for first: its suite, and the folder of that."""
    return [path.parent] if suite_of(path) is None else [path.parent, path.parent.parent]


def _places(folders: Sequence[Path], alone: bool) -> Iterator[Path]:
    """Where a recipe is looked for, in order; `alone`: nowhere but in these folders, or here without any."""
    yield from folders
    if not (alone and folders):
        yield Path.cwd()
    if not alone:
        for root in _roots():
            yield from (root, root / "miniature")


def known() -> list[Path]:
    """Every recipe of the suites here and in ./recipes, then the packed ones that are not hidden by these."""
    suites = [path for path in recipes_in(Path.cwd()) if suite_of(path) is not None]
    found = {path.relative_to(Path.cwd()): path for path in suites}
    for root in _roots():
        for relative, path in _inside(root):
            found.setdefault(relative, path)
    return list(found.values())


def short_name(path: Path) -> str:
    """The shortest name that a command understands as this recipe."""
    suite = suite_of(path)
    names = [path.name, f"{path.parent.name}/{path.name}"] if suite is None else [f"{suite.name}:{path.stem}"]
    for name in names:
        with suppress(RecipeError):
            if find(name) == path:
                return name
    return shown(path)


def shown(path: Path) -> str:
    """A path as the user knows it: relative to the current directory when below it; `mine.yaml:dpo`."""
    if (suite := suite_of(path)) is not None:
        return f"{shown(suite)}:{path.stem}"
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
        if relative.parts[0] not in SETTINGS and path.name != RECIPES and path.is_file():
            yield from ((each.relative_to(root), each) for each in recipes_in(path) or [path])


def _alike(name: str, folders: Sequence[Path], *, alone: bool) -> str:
    """`, did you mean x.yaml?`, or nothing; alone: the suite must be spelt alike, too."""
    suite, recipe = _parts(Path(name))
    known: dict[tuple[str, str], str] = {}
    for parts, typed in _candidates(folders):
        known.setdefault(parts, typed)
    suites = difflib.get_close_matches(suite, {theirs for theirs, _ in known}, n=1) if suite else [""]
    in_them = [own for theirs, own in known if theirs in suites]
    if close := difflib.get_close_matches(recipe, in_them, n=1):
        return f", did you mean {known[suites[0], close[0]]}?"
    called_so = [typed for (_, own), typed in known.items() if own == recipe and not alone]
    return f", did you mean {min(called_so, key=len)}?" if called_so else ""


def _parts(path: Path) -> tuple[str, str]:
    """The names of a recipe's suite and its own, without endings; no suite: an empty name."""
    return path.parent.name.removesuffix(".yaml").removesuffix(".yml"), path.stem


def _candidates(folders: Sequence[Path]) -> Iterator[tuple[tuple[str, str], str]]:
    """What may be meant, the nearest first: its suite's name and its own, and what to type."""
    for folder in folders:
        yield from ((("", path.stem), path.name) for path in recipes_in(folder))
    for path in () if folders else recipes_in(Path.cwd()):
        typed = path.name if suite_of(path) is None else f"{path.parent.name}:{path.stem}"
        yield ("", path.stem), typed
        if suite_of(path) is not None:
            yield _parts(path), typed
            yield ("", path.parent.stem), path.parent.name
    for root in _roots():
        for relative, path in _inside(root):
            suite = suite_of(path)
            typed = str(relative) if suite is None else f"{relative.parent}:{path.stem}"
            yield _parts(relative), typed
            if relative.parts[0] == "miniature":
                yield ("", path.stem), path.name
            elif suite is not None:
                yield ("", suite.stem), str(relative.parent)
