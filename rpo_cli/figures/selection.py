"""A smaller figure that says what it leaves out: fewer objectives, values of rho, seeds and grid values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpo_cli.errors import BadInput

SMALL_OBJECTIVES = ("dpo", "e-dpo")
SMALL_GRID = 3


@dataclass(frozen=True)
class Budget:
    """What the command line asks to leave out. `small`: dpo and e-dpo, three rhos, three grid values, one seed."""

    small: bool = False
    objectives: str | None = None
    grid_size: int | None = None

    @property
    def grid(self) -> int | None:
        """Values tried of each grid; None: all."""
        return self.grid_size if self.grid_size is not None else SMALL_GRID if self.small else None


@dataclass
class Selection:
    """The cells that are run, and what the recipe has beyond them."""

    policies: list[str]
    rhos: list[float | None]
    seeds: list[int]
    grid_size: int | None = None
    left_out: dict[str, Any] = field(default_factory=dict)
    of: dict[str, int] = field(default_factory=dict)

    def note(self) -> str:
        """`2 of 6 objectives, 3 of 7 ρ`; empty where nothing is left out."""
        names = {"policies": "objectives", "rhos": "ρ", "seeds": "seeds", "grid": "grid values"}
        have = {
            "policies": len(self.policies),
            "rhos": len(self.rhos),
            "seeds": len(self.seeds),
            "grid": self.grid_size,
        }
        return ", ".join(
            f"{have[name]} of {self.of[name]} {names[name]}" for name in names if name in self.left_out
        )


def spread(values: Sequence[Any], count: int | None) -> list[Any]:
    """`count` of the values, both ends among them, evenly spread by place; the middle one for 1; all for None."""
    if count is None or count >= len(values):
        return list(values)
    if count == 1:
        return [values[len(values) // 2]]
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def select(
    whole: tuple[Sequence[str], Sequence[float | None], Sequence[int]],
    rhos: Sequence[float | None] | None,
    seeds: Sequence[int] | None,
    budget: Budget,
) -> Selection:
    """What to run of a figure's policies, rhos and seeds; --rho and --seeds go before the budget.

    Raises:
        BadInput: an objective that the figure does not have.
    """
    policies, all_rhos, all_seeds = whole
    stems = {Path(policy).stem: policy for policy in policies}
    if budget.objectives is not None:
        wanted = [name.strip().removesuffix(".yaml") for name in budget.objectives.split(",")]
        unknown = [name for name in wanted if name not in stems]
        if unknown:
            raise BadInput(
                f"--objectives {budget.objectives}: {', '.join(unknown)}: not among {', '.join(stems)}"
            )
        chosen = [policy for stem, policy in stems.items() if stem in wanted]
    elif budget.small:
        chosen = [stems[name] for name in SMALL_OBJECTIVES if name in stems] or list(policies)
    else:
        chosen = list(policies)
    some_rhos = list(rhos) if rhos is not None else spread(all_rhos, 3) if budget.small else list(all_rhos)
    some_seeds = (
        list(seeds) if seeds is not None else list(all_seeds)[:1] if budget.small else list(all_seeds)
    )
    made = Selection(chosen, some_rhos, some_seeds, budget.grid)
    for name, everything, some in (
        ("policies", list(stems), [Path(policy).stem for policy in chosen]),
        ("rhos", list(all_rhos), some_rhos),
        ("seeds", list(all_seeds), some_seeds),
    ):
        absent = [value for value in everything if value not in some]
        if absent:
            made.left_out[name], made.of[name] = absent, len(everything)
    return made


def leave_out_of_grids(selection: Selection, grids: dict[str, list[float]]) -> None:
    """Note which values of the grids (of the policies that are run) are not tried."""
    absent = {
        stem: [v for v in values if v not in spread(values, selection.grid_size)]
        for stem, values in grids.items()
    }
    if any(absent.values()):
        selection.left_out["grid"] = absent
        selection.of["grid"] = max(len(values) for values in grids.values())
