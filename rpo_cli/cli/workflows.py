"""Commands that write a plan together with what carries it out on other machines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Option

from rpo_cli.cli.shared import BudgetOption, Ensemble, GridSize, KeepWeights, Objectives, Seeds, Tune, numbers
from rpo_cli.runs.command import add_command

if TYPE_CHECKING:
    from rpo_cli.runs.session import Session

workflow_app = typer.Typer(
    name="workflow", no_args_is_help=True, help="Write a plan for an engine that runs it on other machines."
)
FOLDER = "Folder to write. What is there is replaced, but for profiles that you changed."
TAKES = {"recipe", "rho", "seed", "overrides", "workspace", "device"}
Engine = Literal["snakemake", "hf-jobs"]
TEXTS: dict[Engine, str] = {
    "snakemake": "A workflow for Snakemake: plan.json, a Snakefile, and profiles for this machine, for "
    "several GPUs of it, and for Slurm.\n\nThen: snakemake --profile FOLDER/slurm. Snakemake comes with "
    "pip install 'rpo-cli\\[snakemake]', or from any other environment.",
    "hf-jobs": "A script that runs the stages on Hugging Face Jobs, in a bucket of the hub.\n\n"
    "Then, after `hf auth login`: python FOLDER/hf_jobs.py upload USER/BUCKET, and the same with run.",
}


def _workflow(engine: Engine, text: str) -> None:
    """Add `rpo workflow ENGINE`."""

    @add_command(workflow_app, engine, "miniature/figure2.yaml --out flow", takes=TAKES, text=text)
    def run(
        session: "Session",
        out: Annotated[Path, Option(help=FOLDER)],
        seeds: Seeds = None,
        tune: Tune = False,
        keep_weights: KeepWeights = "best",
        budget: BudgetOption = None,
        objectives: Objectives = None,
        grid_size: GridSize = None,
        ensemble: Ensemble = False,
    ) -> None:
        from rpo_cli.figures import PlanOptions, run_plan
        from rpo_cli.runs.workflow import write

        given = (seeds, tune, keep_weights, budget, objectives, grid_size, ensemble, None, out / "plan.json")
        run_plan(session, PlanOptions(*given), numbers(seeds))
        write(engine, out)


for _engine, _text in TEXTS.items():
    _workflow(_engine, _text)
