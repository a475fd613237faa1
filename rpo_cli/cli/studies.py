"""Commands over many policies: sweep, compare, report, figures."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option, Typer

from rpo_cli.cli.shared import COMPARED, COMPARING, FIGURE
from rpo_cli.runs.command import add_command
from rpo_cli.runs.options import Comparing, Costs, Figure, Study, like

if TYPE_CHECKING:
    from rpo_cli.runs.session import Session

app = Typer()
command = partial(add_command, app)
figure_app = typer.Typer(
    name="figure", no_args_is_help=True, help="Evaluate what a figure needs, and draw it."
)
AVERAGED = "Seeds to average over, with commas. Default: the recipe's."
WRITE = "Write the chosen values into the recipes: changes these files unless --no-write is given."
KEPT = "A file with what `rpo compare --json` printed; builds nothing."
TABLE = "Write the table to this file as well: FILE.csv, .md or .tex."
PAGE = "The page to write; FILE.csv, .md or .tex: the table alone."
ALL = "figure2.yaml --rho all --seeds 0,1,2 --jobs 2"


@command("sweep", ALL, takes=FIGURE, helps={"seeds": AVERAGED}, rho="all")
def sweep(
    session: "Session",
    study: Study,
    costs: Costs,
    write: Annotated[bool, Option("--write/--no-write", help=WRITE)] = True,
) -> None:
    """Try the grid over beta or tau, and learning rates if it has any, for one policy recipe or all of a
    figure's; choose on validation prompts, and write the choice into the recipes.

    It changes recipes unless --no-write is given: by_rho, or the keys themselves where a suite does not
    resample. Without --rho it does so at every rho of the suite.
    """
    from rpo_cli.figures import run_sweep

    run_sweep(session, study, write, costs)


COMPARE = "miniature/dpo.yaml miniature/d-dpo.yaml miniature/e-dpo.yaml"


@command("compare", f"{COMPARE} --rho 0.2 --seeds 0,1,2 --jobs 2", takes=COMPARING)
def compare(
    session: "Session",
    recipes: Annotated[list[str], typer.Argument(help=COMPARED, autocompletion=like)],
    how: Comparing,
    costs: Costs,
    out: Annotated[Path | None, Option(help=TABLE)] = None,
) -> None:
    """Train policies on the same pairs and compare them:
    held-out accuracy and margin, advantage, length, KL, wins by a judge, with paired 95 % intervals.

    Works without an oracle: `oracle: null` in the evaluate recipe.
    """
    from rpo_cli.figures import run_compare

    run_compare(session, recipes, how, costs, out)


@command("report", f"{COMPARE} --rho 0.2 --out report.html", takes=COMPARING - {"as_json"})
def report(
    session: "Session",
    how: Comparing,
    recipes: Annotated[list[str] | None, typer.Argument(help=COMPARED, autocompletion=like)] = None,
    from_results: Annotated[Path | None, Option("--from", help=KEPT)] = None,
    out: Annotated[Path, Option(help=PAGE)] = Path("report.html"),
) -> None:
    """Write a comparison as one HTML page:
    numbers, figure, learning curves, samples side by side, data, reward models, costs.

    The page loads nothing from elsewhere. What is missing is built first, as `rpo compare` does.
    """
    from rpo_cli.figures import run_report

    run_report(session, recipes or [], how, from_results, out)


def _figure(kind: str, text: str, recipe: str, *more: str) -> None:
    """Add `rpo figure KIND`, whose recipe is this one unless another is given; `more`: examples."""
    example = f"miniature/{recipe} --jobs 2"

    @add_command(figure_app, kind, example, *more, takes=FIGURE, text=text, recipe=recipe)
    def run(session: "Session", options: Figure, costs: Costs) -> None:
        from rpo_cli.figures import run_figure

        run_figure(session, kind, options, costs)


_figure(
    "figure2",
    "Figure 2: advantage over pi_SFT and response length against the length bias rho, "
    "with the paper's claims.",
    "figure2.yaml",
    "--from results/miniature",
)
for _kind, _text in {
    "degeneracy": "Few pairs, many epochs: how far each objective moves chosen and rejected responses.",
    "gamma": "The weight of the forward KL: annealed, constant, none.",
    "ensemble": "e-DPO's min: its scope, the members' calibration, the size of their subsets.",
    "kl": "Estimators of the forward KL: bias, variance, cost.",
    "curves": "Learning curves, reward against KL, and whether each policy is at its plateau.",
    "teachers": "What each teacher knows of held-out pairs, and what policies trained on it reach.",
    "reward-kl": "Advantage against the KL to the reference that it costs.",
    "unbiased": "All objectives on the pairs as they are, without resampling.",
}.items():
    _figure(_kind, _text, f"figure-{_kind}.yaml")
