"""Commands that look: at recipes, data, the workspace and the machine."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option, Typer

from rpo_cli.cli.shared import EVERY
from rpo_cli.runs.command import add_command
from rpo_cli.runs.options import RECIPE, like

if TYPE_CHECKING:
    from rpo_cli.runs.session import Session

app = Typer()
command = partial(add_command, app)
recipe_app = typer.Typer(name="recipe", no_args_is_help=True, help="List, show and check recipes.")
data_app = typer.Typer(name="data", no_args_is_help=True, help="Look at data before training on it.")


@add_command(recipe_app, "list", takes={"as_json"})
def recipe_list(session: "Session") -> None:
    """All recipes that a name can mean."""
    from rpo_cli.recipes.listing import list_recipes

    list_recipes(session.as_json)


@add_command(recipe_app, "show", "e-dpo.yaml --rho 0.2", takes={"rho", "seed", "overrides"})
def recipe_show(
    session: "Session", recipe: Annotated[str, typer.Argument(help=RECIPE, autocompletion=like)]
) -> None:
    """The resolved recipe, with the file and line that each value comes from."""
    from rpo_cli.recipes import resolved_yaml

    print(resolved_yaml(session.load(None, rho=session.one_rho("a recipe is shown"))), end="")


@add_command(recipe_app, "check", "recipes/miniature")
def recipe_check(
    recipes: Annotated[list[str], typer.Argument(help="Recipes, or suites.", autocompletion=like)],
) -> None:
    """Check recipes and what they refer to; every problem is named with its file and line."""
    from rpo_cli.runs.check import check_recipes

    check_recipes(recipes)


@add_command(recipe_app, "schema", "--out recipes/schema.json")
def recipe_schema(out: Annotated[Path | None, Option(help="File to write; default: stdout.")] = None) -> None:
    """The JSON Schema of recipes, for editor completion."""
    from rpo_cli.recipes.editor import write_schema

    write_schema(out)


@add_command(
    data_app,
    "inspect",
    "splits.yaml --rho 0.2",
    takes=EVERY - {"device", "dry_run", "force", "jobs", "wandb", "accelerate"},
    recipe="data.yaml",
)
def data_inspect(
    session: "Session",
    rows: Annotated[int, Option(min=0, help="Rows to show with their token boundaries.")] = 2,
    max_length: Annotated[int | None, Option(min=1, help="Report the share of rows that are longer.")] = None,
) -> None:
    """Rows, token boundaries, length statistics, share over max_length, longer-preferred rate."""
    from rpo_cli.runs.make import inspect_data

    inspect_data(session, rows, max_length)


@add_command(
    data_app, "fetch", "tldr/figure2.yaml", takes={"recipe", "overrides", "workspace", "dry_run", "as_json"}
)
def data_fetch(session: "Session") -> None:
    """Download the models and data sets that a recipe rests on, and record their commits:
    for machines without a network.
    """
    from rpo_cli.runs.fetch import fetch_data

    fetch_data(session)


DIAGNOSED = "Diagnose the members of a reward recipe's ensemble."


@command(
    "diagnose",
    "d-dpo.yaml --rho 0.2",
    "rm.yaml --rho 0.2 --ensemble",
    takes=EVERY - {"force", "wandb", "accelerate"},
)
def diagnose(
    session: "Session", ensemble: Annotated[bool, Option("--ensemble", help=DIAGNOSED)] = False
) -> None:
    """What your pairs prefer and what your reward models know of them: length bias, accuracy by kind,
    calibration, the price of a token, agreement; and what follows for the objective.

    The recipe is one of data, of splits, of a reward model (that one is diagnosed) or of a policy (its
    teachers are, and the oracle).
    """
    from rpo_cli.runs import make

    make.diagnose(session, members=ensemble)


@command("status", "figure2.yaml", takes={"recipe", "seed", "workspace", "as_json"}, recipe="figure2.yaml")
def status(session: "Session") -> None:
    """What is in the workspace, what a recipe or a whole suite would rebuild, and why."""
    from rpo_cli.figures import show_status

    show_status(session)


@command("doctor", takes={"as_json"})
def doctor(session: "Session") -> None:
    """Versions, device, dtype and why, threads, disk, W&B and hub state."""
    from rpo_cli.runs.doctor import show_doctor

    show_doctor(session.as_json)
