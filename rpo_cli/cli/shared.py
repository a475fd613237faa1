"""What several commands share: which options they take, and options of a study."""

from dataclasses import fields
from typing import Annotated, Literal

from typer import Option

from rpo_cli.errors import BadInput
from rpo_cli.runs.options import Options

# Options that commands share: all of them, those of a command for one artifact, those of one for a figure.
EVERY = frozenset(field.name for field in fields(Options))
ONE, FIGURE = EVERY - {"rho", "jobs"}, EVERY - {"seed", "force"}
COMPARING = FIGURE - {"recipe"}
KEEP = (
    "Policies that stay on disk: the best of each objective, rho and seed; "
    "none after the last evaluation; all."
)
SMALL = "small: dpo and e-dpo, three rho, three grid values, one seed."
KeepWeights = Annotated[Literal["best", "none", "all"], Option(help=KEEP)]
BudgetOption = Annotated[Literal["small"] | None, Option(help=SMALL)]
Objectives = Annotated[str | None, Option(help="Only these of the figure's policies, with commas.")]
GridSize = Annotated[int | None, Option(min=1, help="Try this many values of each grid, evenly spread.")]
Seeds = Annotated[str | None, Option(help="Seeds, with commas. Default: the recipe's.")]
TUNE = "First choose beta and tau on validation (the full protocol)."
Tune = Annotated[bool, Option("--tune", help=TUNE)]
MEMBERS = "Train the ensemble's members, one on each subset D_rho,b."
Ensemble = Annotated[bool, Option("--ensemble", help=MEMBERS)]
COMPARED = "Policy recipes, or suites (a folder, one file): all their policies."


def numbers(text: str | None) -> list[int] | None:
    """The whole numbers of --seeds; None where it is not given."""
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"--seeds {text}: expected whole numbers with commas, such as 0,1,2") from None
    if len(set(found)) < len(found):
        raise BadInput(f"--seeds {text}: one of them twice")
    return found
