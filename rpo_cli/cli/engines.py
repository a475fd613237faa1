"""Commands by which a plan leaves this machine: the plan on paper, and single stages of it."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option, Typer

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


STAGE = "seed-0/data seed-0/sft --plan plan.json"


@command("stage", STAGE, takes={"workspace", "wandb", "accelerate"})
def stage(
    session: "Session",
    paths: Annotated[list[str], Argument(metavar="PATH...", help="Stages of the plan, inputs first.")],
    plan: Annotated[Path, Option(help="The plan: what `rpo plan --out` wrote.")],
) -> None:
    """Make single stages of a plan, in its workspace.

    A stage that is there is left as it is. Refused where the plan no longer holds: a recipe, a file or a
    model has changed. Several machines may be told to make the same stage: one does, the others wait. A stage
    that fails stops only those that need it.
    """
    from rpo_cli.runs.stage import run_stages

    run_stages(session, paths, plan)
