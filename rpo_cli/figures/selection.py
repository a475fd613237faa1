"""A smaller figure that says what it leaves out: fewer objectives, values of rho, seeds and grid values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import product
from typing import TypeVar

from rpo_cli.errors import BadInput
from rpo_cli.runs.options import Study
from rpo_cli.text import counted

SMALL_OBJECTIVES = ("dpo", "e-dpo")
SMALL_GRID = 3
WORDS = {"policies": "objectives", "rhos": "ρ", "seeds": "seeds", "grid": "grid values"}
T = TypeVar("T")
Grids = dict[str, dict[str, list[float]]]  # of each policy what it sweeps, its strength first, and the values


@dataclass
class Selection:
    """The cells that are run, policies by their variants' names, and what the recipe has beyond them."""

    policies: list[str]
    rhos: list[float | None]
    seeds: list[int]
    grid_size: int | None = None
    left_out: dict[str, object] = field(default_factory=dict)
    of: dict[str, int] = field(default_factory=dict)
    tried: int | None = None

    def note(self) -> str:
        """`2 of 6 objectives, 3 of 7 ρ`; empty where nothing is left out."""
        have = {name: len(getattr(self, name)) for name in ("policies", "rhos", "seeds")}
        counts: dict[str, int | None] = {**have, "grid": self.tried}
        left_out = [name for name in WORDS if name in self.left_out]
        return ", ".join(f"{counts[name]} of {self.of[name]} {WORDS[name]}" for name in left_out)

    def leave_out_of_grids(self, grids: Grids) -> None:
        """Note which settings of the grids (of the policies that are run) are not tried."""
        tried = {name: settings(grid, self.grid_size) for name, grid in grids.items()}
        all_of = {name: settings(grid) for name, grid in grids.items()}
        absent = {name: [s for s in all_of[name] if s not in tried[name]] for name in grids}
        if any(absent.values()):
            self.left_out["grid"], self.of["grid"] = absent, max(map(len, all_of.values()))
            self.tried = max(map(len, tried.values()))


def axes_of(policies: Sized, rhos: Sized, seeds: Sized) -> str:
    """`2 policies x 1 rho x 3 seeds`."""
    return f"{counted(len(policies), 'policy', 'policies')} x {len(rhos)} rho x {counted(len(seeds), 'seed')}"


def at(rho: float | None) -> str:
    """` at rho 0.2`, ` without resampling`."""
    return " without resampling" if rho is None else f" at rho {rho:g}"


def spread(values: Sequence[T], count: int | None) -> list[T]:
    """`count` of the values, evenly spread, both ends among them; the middle one for 1; all for None."""
    if count is None or count >= len(values):
        return list(values)
    if count == 1:
        return [values[len(values) // 2]]
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def settings(grid: Mapping[str, Sequence[float]], size: int | None = None) -> list[dict[str, float]]:
    """Every value of a grid with every value of its other keys; `size`: with so many of each key."""
    values = product(*(spread(tried, size) for tried in grid.values()))
    return [dict(zip(grid, each, strict=True)) for each in values]


def select(
    whole: tuple[Sequence[str], Sequence[float | None], Sequence[int]],
    rhos: Sequence[float | None] | None,
    study: Study,
) -> Selection:
    """What to run of a figure's policies, rhos and seeds; --rho and --seeds go before the budget.

    Raises:
        BadInput: an objective that the figure does not have, or seeds that are none.
    """
    names, all_rhos, all_seeds = list(whole[0]), list(whole[1]), list(whole[2])
    chosen, small = names, study.budget == "small"
    if study.objectives is not None:
        wanted = set(_named(study.objectives, names))
        chosen = [name for name in names if name in wanted]
    elif small:
        chosen = [name for name in SMALL_OBJECTIVES if name in names] or names
    some_rhos = list(rhos) if rhos is not None else spread(all_rhos, 3 if small else None)
    some_seeds = all_seeds[: 1 if small else None] if study.seeds is None else _numbers(study.seeds)
    grid_size = SMALL_GRID if small and study.grid_size is None else study.grid_size
    made = Selection(chosen, some_rhos, some_seeds, grid_size)
    for what, everything in (("policies", names), ("rhos", all_rhos), ("seeds", all_seeds)):
        absent = [value for value in everything if value not in getattr(made, what)]
        if absent:
            made.left_out[what], made.of[what] = absent, len(everything)
    return made


def _numbers(text: str) -> list[int]:
    """The whole numbers of --seeds."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"--seeds {text}: expected whole numbers with commas, such as 0,1,2") from None
    if len(set(found)) < len(found):
        raise BadInput(f"--seeds {text}: one of them twice")
    return found


def _named(text: str, names: Sequence[str]) -> Iterator[str]:
    """The names that stand in a text, with commas between them and perhaps inside them."""
    parts = [part.strip().removesuffix(".yaml") for part in text.split(",")]
    while parts:
        for count in range(len(parts), 0, -1):
            if (name := ", ".join(parts[:count])) in names:
                yield name
                parts = parts[count:]
                break
        else:
            raise BadInput(f"--objectives {text}: {parts[0]}: not among {', '.join(names)}")
