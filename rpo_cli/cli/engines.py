"""Commands by which a plan leaves this machine: on paper, stage by stage, or with what carries it out."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option, Typer

from rpo_cli.runs.command import add_command
from rpo_cli.runs.options import Costs, Planning

if TYPE_CHECKING:
    from rpo_cli.runs.session import Session

app = Typer()
command = partial(add_command, app)
workflow_app = Typer(
    name="workflow", no_args_is_help=True, help="Write a plan for an engine that runs it on other machines."
)
TAKES = {"recipe", "rho", "seed", "overrides", "workspace", "device"}
JSON_TO = "Write the plan as JSON to this file. Default: stdout, with --json."
EVALUATED = "Of a policy: plan its evaluation on these prompts."


@command(
    "plan", "miniature/figure2.yaml --out plan.json", "e-dpo.yaml --rho 0.2 --json", takes=TAKES | {"as_json"}
)
def plan(
    session: "Session",
    planning: Planning,
    costs: Costs,
    split: Annotated[Literal["validation", "test"] | None, Option(help=EVALUATED)] = None,
    out: Annotated[Path | None, Option(help=JSON_TO)] = None,
) -> None:
    """Every stage that a recipe rests on, for an engine to run: path, key, inputs, command, resources.

    Builds nothing. As JSON it is a plan that `rpo stage` carries out, on this machine or on others that see
    the workspace. With --tune it has the validation cells; when those are there, plan again for the test
    cells.
    """
    from rpo_cli.figures import PlanOptions, run_plan

    options = PlanOptions(**vars(planning), split=split, out=out, costs=costs)
    run_plan(session, options)


STAGE = "seed-0/data seed-0/pretrain --plan plan.json"


PLANNED = "Folder of all that is made. Default: the plan's."


@command("stage", STAGE, takes={"workspace", "wandb", "accelerate"}, helps={"workspace": PLANNED})
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


Engine = Literal["snakemake", "hf-jobs"]
OVER = "Folder to write. What is there is replaced"
FOLDERS: dict[Engine, str] = {
    "snakemake": f"{OVER}, but for profiles that you changed.", "hf-jobs": f"{OVER}."
}  # fmt: skip
TEXTS: dict[Engine, str] = {
    "snakemake": "A workflow for Snakemake: plan.json, a Snakefile, and profiles for this machine, for "
    "several GPUs of it, and for Slurm.\n\nThen: snakemake --profile FOLDER/slurm. Snakemake comes with "
    "pip install 'rpo-cli\\[snakemake]', or from any other environment.",
    "hf-jobs": "A script that runs the stages on Hugging Face Jobs, in a bucket of the hub.\n\n"
    "Then, after `hf auth login`: python FOLDER/hf_jobs.py upload USER/BUCKET, and the same with run.",
}


def _workflow(engine: Engine, text: str) -> None:
    """Add `rpo workflow ENGINE`."""

    folder = FOLDERS[engine]

    @add_command(workflow_app, engine, "miniature/figure2.yaml --out flow", takes=TAKES, text=text)
    def run(session: "Session", planning: Planning, out: Annotated[Path, Option(help=folder)]) -> None:
        from rpo_cli.figures import PlanOptions, run_plan
        from rpo_cli.runs.workflow import write

        run_plan(session, PlanOptions(**vars(planning), out=out / "plan.json"))
        write(engine, out)


for _engine, _text in TEXTS.items():
    _workflow(_engine, _text)
