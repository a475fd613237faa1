"""Writing into recipes: what model selection chose, and a recipe resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from rpo_cli.recipes import yaml_lines
from rpo_cli.recipes.draft import nearest, same, where
from rpo_cli.recipes.files import RecipeError, document_of, file_of, shown, suite_of
from rpo_cli.recipes.load import Loaded, load_file
from rpo_cli.recipes.whole import write_whole
from rpo_cli.recipes.yaml_lines import Keys


def require_writable(path: Path) -> Path:
    """The recipe's real path; RecipeError if it is an installed package's, whose files nobody may change."""
    path = Path(path).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        cure = "copy the recipe and change the copy (or --no-write)"
        raise RecipeError([f"{shown(path)}: belongs to the installed package; {cure}"])
    return path


def write_by_rho(path: Path, chosen: Mapping[float, Mapping[str, object]]) -> None:
    """Replace the whole `by_rho` block of a recipe, or add one; no other line changes, none sees half a file.

    Raises:
        RecipeError: the result would be no valid recipe, or the file is an installed package's or read-only.
    """
    one_line = yaml_lines.one_line
    asked = {round(rho, 9): dict(values) for rho, values in chosen.items()}
    _write_key(path, "by_rho", asked, [f"{one_line(rho)}: {one_line(asked[rho])}" for rho in sorted(asked)])


def write_setting(path: Path, setting: Mapping[str, float]) -> None:
    """Replace a recipe's own values of these keys, or add them; for the rest like `write_by_rho`."""
    for key, value in setting.items():
        _write_key(path, key, value, yaml_lines.one_line(value))


def _write_key(path: Path, key: str, asked: object, written: str | Sequence[str]) -> None:
    path = require_writable(path)
    try:
        before = file_of(path).read_bytes().decode("utf-8")
        inside = () if suite_of(path) is None else (yaml_lines.SUITE, path.stem)
        text = yaml_lines.replace_key(before, key, written, inside)
    except (OSError, ValueError, yaml.YAMLError):
        # The loader says it better, and with the line.
        load_file(path)
        raise RecipeError([f"{shown(path)}: {key} needs a file of `key: value` lines, not {{…}}"]) from None
    load_file(path, text=text)
    if document_of(path, text).values[key] != asked:
        raise RecipeError([f"{shown(path)}: {key} would not be read back as written"])
    try:
        write_whole(file_of(path), text)
    except OSError as error:
        raise RecipeError([f"{shown(path)}: cannot be written: {error.strerror}"]) from None


def resolved_yaml(loaded: Loaded) -> str:
    """The recipe with every default written out and each value's source behind it; it loads again."""
    one_line = yaml_lines.one_line
    values = loaded.recipe.model_dump(mode="python")
    rho = values.get("rho")
    if rho is not None and "by_rho" in values:
        # Already in force; left in, it would undo what the command line changed.
        values["by_rho"] = {key: chosen for key, chosen in values["by_rho"].items() if not same(key, rho)}
    lines = []
    for key in ["stage", *(key for key in values if key != "stage")]:
        value, place = values[key], source(loaded, (key,))
        if isinstance(value, dict) and value:
            lines.append(f"{key}:  # {place}")
            for name, item in value.items():
                lines.append(f"  {one_line(name)}: {one_line(item)}  # {source(loaded, (key, str(name)))}")
        else:
            lines.append(f"{key}: {one_line(value)}  # {place}")
    return "\n".join(lines) + "\n"


def source(loaded: Loaded, keys: Keys) -> str:
    """Where a value comes from: file and line, the option of the command line, or `default`."""
    if at := nearest(loaded.places, keys):
        place = loaded.places[at]
        return place.split()[0] if isinstance(place, str) else where(place)
    # A mapping of which only parts were set, each of them on the command line.
    below = (place for at, place in loaded.places.items() if at[: len(keys)] == keys)
    return next((place.split()[0] for place in below if isinstance(place, str)), "default")
