"""A recipe's files merged, not yet validated, with the place where each value stands."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpo_cli.recipes.complaints import got
from rpo_cli.recipes.files import RecipeError, document_of, file_of, find, places_of, shown
from rpo_cli.recipes.yaml_lines import Keys

Place = tuple[Path, int] | str  # recipe and line (0: where it begins), or the option of the command line
MERGED = ("files", "rows", "by_rho", "grid", "model_config_kwargs", "judge")
REFERENCES = (
    "data", "dataset", "sft_dataset", "model_name_or_path", "tokenizer", "reward_model", "ensemble", "oracle",
    "baseline", "evaluate", "policies",
)  # fmt: skip
LONGEST = 50  # files that extend each other
# A file that has one takes the place of the other.
INSTEAD = {
    "policies": "variants", "variants": "policies",
    "max_steps": "num_train_epochs", "num_train_epochs": "max_steps",
}  # fmt: skip
DURATIONS = ("max_steps", "num_train_epochs")


@dataclass
class Draft:
    """What files and options say so far. `broken`: a file could not be read: what is missing may be there."""

    files: list[Path]
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, Place] = field(default_factory=dict)
    problems: list[tuple[Place, str]] = field(default_factory=list)
    broken: bool = False

    def complain(self, keys: Keys, message: str) -> None:
        """Note a mistake at the nearest place known for these keys."""
        at = nearest(self.places, keys)
        place = self.places[at] if at else (self.files[0], 0)
        option_names_it = isinstance(place, str) and at == keys
        self.problems.append((place, message if option_names_it else _say(keys, message)))

    def put(self, keys: Keys, value: object, place: Place) -> None:
        """Set one value, inside a mapping if there are several keys; what stood below it is gone."""
        self.make_way([keys[0]])
        inside = self.values
        for key in keys[:-1]:
            below = inside.get(str(key))
            inside[str(key)] = inside = dict(below) if isinstance(below, dict) else {}
        inside[str(keys[-1])] = value
        self.forget(keys)
        self.places[keys] = place

    def forget(self, keys: Keys) -> None:
        self.places = {at: place for at, place in self.places.items() if at[: len(keys)] != keys}

    def make_way(self, keys: Iterable[str | int]) -> None:
        """Forget what these keys stand instead of."""
        for key in keys:
            if (other := INSTEAD.get(str(key))) in self.values:
                del self.values[other]
                self.forget((other,))

    def merge(self, over: Draft) -> None:
        """Lay another draft over this one: key by key, and inside the mappings of MERGED again key by key."""
        self.make_way(over.values)
        for key, value in over.values.items():
            mine = self.values.get(key)
            if key in MERGED and isinstance(mine, dict) and isinstance(value, dict):
                merged = dict(mine)
                for name, item in value.items():
                    for old in [old for old in merged if same(old, name)]:
                        del merged[old]
                        self.forget((key, str(old)))
                    merged[name] = item
                self.values[key] = merged
            else:
                self.values[key] = value
                self.forget((key,))
        self.places |= over.places
        self.problems += [problem for problem in over.problems if problem not in self.problems]
        self.files += [file for file in over.files if file not in self.files]
        self.broken |= over.broken

    def errors(self) -> list[str]:
        """The problems as lines, each once, in the order of files and lines; the command line last."""

        def order(problem: tuple[Place, str]) -> tuple[int, int]:
            place, _ = problem
            return (len(self.files), 0) if isinstance(place, str) else (self.files.index(place[0]), place[1])

        problems = sorted(self.problems, key=order)
        return list(dict.fromkeys(f"{where(place)}: {message}" for place, message in problems))


def gather(path: Path, text: str | None = None) -> Draft:
    """A file merged over those it extends, each read once. `text`: in place of its own."""
    return _gather(path, {}, {}, text)


def _gather(
    path: Path, below: Mapping[Path, str], gathered: dict[Path, Draft], text: str | None = None
) -> Draft:
    """`below`: the files that lead here, each with its line that does; `gathered`: those that are merged."""
    draft, own = Draft([path]), Draft([path])
    document = document_of(path, text)
    own.values = document.values
    own.places = {keys: (path, line) for keys, line in document.lines.items()}
    own.problems = [((path, line), _say(keys, message)) for line, keys, message in document.problems]
    own.broken = any(not keys for _, keys, _ in document.problems)
    extends = own.values.pop("extends", [])
    names = [extends] if isinstance(extends, str) else extends
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        own.complain(("extends",), f"expected the name of a recipe or a list of names, got {got(extends)}")
        own.broken, names = True, []
    for index, name in enumerate(names):
        at: Keys = ("extends",) if isinstance(extends, str) else ("extends", index)
        chain = {**below, path: where(own.places.get(nearest(own.places, at), (path, 0)))}
        try:
            base = find(name, places_of(path))
        except RecipeError as error:
            own.complain(at, error.problems[0])
            own.broken = True
            continue
        if base in chain:
            places = list(chain.values())[list(chain).index(base) :]
            own.complain(at, f"goes in a circle: {' -> '.join([*places, places[0]])}")
            own.broken = True
        elif len(chain) > LONGEST:
            own.complain(at, f"more than {LONGEST} files, each of which extends the next")
            own.broken = True
        else:
            if base not in gathered:
                gathered[base] = _gather(base, chain, gathered)
            draft.merge(gathered[base])
    own.forget(("extends",))
    anchor(own.values, file_of(path).parent)
    draft.merge(own)
    return draft


def anchor(values: dict[str, object], folder: Path) -> None:
    """Make paths absolute: all files, and references that begin with ./ ../ or ~ (others are hub names)."""

    def absolute(value: object) -> object:
        if isinstance(value, list):
            return [absolute(item) for item in value]
        if isinstance(value, dict) and "members" in value:
            return {**value, "members": absolute(value["members"])}
        if isinstance(value, str) and value.startswith(("./", "../", "~")):
            return _absolute(value, folder)
        return value

    for key in REFERENCES:
        if key in values:
            values[key] = absolute(values[key])
    if isinstance(files := values.get("files"), dict):
        values["files"] = {
            table: _absolute(f, folder) if isinstance(f, str) else f for table, f in files.items()
        }
    if isinstance(by_rho := values.get("by_rho"), dict):
        for chosen in by_rho.values():
            if isinstance(chosen, dict):
                anchor(chosen, folder)


def _absolute(value: str, folder: Path) -> str:
    return os.path.abspath(folder / os.path.expanduser(value))


def same(one: object, other: object) -> bool:
    """Whether two keys are the same, numbers up to rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=1e-9)
    return bool(one == other)


def _say(keys: Keys, message: str) -> str:
    return f"{dotted(keys)}: {message}" if keys else message


def nearest(places: Mapping[Keys, Place], keys: Keys) -> Keys:
    """The most of these keys, from the first on, whose place is known; none where no place is."""
    return next((keys[:length] for length in range(len(keys), 0, -1) if keys[:length] in places), ())


def stands(places: Mapping[Keys, Place], path: Path, keys: Keys) -> str:
    """Where a recipe's key stands, and its name, as a mistake begins; else the option that set it."""
    place = places.get(nearest(places, keys), (path, 0))
    return place if isinstance(place, str) else f"{where(place)}: {dotted(keys)}"


def where(place: Place) -> str:
    """A place in words."""
    if isinstance(place, str):
        return place
    path, line = place
    return f"{shown(file_of(path))}:{line or document_of(path).first}"


def dotted(keys: Keys) -> str:
    """`by_rho.0.2.beta`, `policies[1]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
