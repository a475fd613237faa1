"""Commands by which a plan leaves this machine: the plan on paper, and single stages of it."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option, Typer

from rpo_cli.cli.shared import BudgetOption, Ensemble, GridSize, KeepWeights, Objectives, Seeds, Tune, numbers
from rpo_cli.runs.command import add_command

if TYPE_CHECKING:
    from rpo_cli.runs.session import Session

app = Typer()
command = partial(add_command, app)
PLANNED = {"recipe", "rho", "seed", "overrides", "workspace", "device", "as_json"}
JSON_TO = "Write the plan as JSON to this file. Default: stdout, with --json."
EVALUATED = "Of a policy: plan its evaluation on these prompts."


@command("plan", "miniature/figure2.yaml --out plan.json", "e-dpo.yaml --rho 0.2 --json", takes=PLANNED)
def plan(
    session: "Session",
    seeds: Seeds = None,
    tune: Tune = False,
    keep_weights: KeepWeights = "best",
    budget: BudgetOption = None,
    objectives: Objectives = None,
    grid_size: GridSize = None,
    ensemble: Ensemble = False,
    split: Annotated[Literal["validation", "test"] | None, Option(help=EVALUATED)] = None,
    out: Annotated[Path | None, Option(help=JSON_TO)] = None,
) -> None:
    """Every stage that a recipe rests on, for an engine to run: path, key, inputs, command, resources.

    Builds nothing. As JSON it is a plan that `rpo stage` carries out, on this machine or on others that see
    the workspace. With --tune it has the validation cells; when those are there, plan again for the test
    cells.
    """
    from rpo_cli.figures import PlanOptions, run_plan

    chosen = (seeds, tune, keep_weights, budget, objectives, grid_size, ensemble, split, out)
    run_plan(session, PlanOptions(*chosen), numbers(seeds))
