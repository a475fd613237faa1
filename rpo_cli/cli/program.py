"""The program `rpo`: its commands together, and how it begins and ends."""

import atexit
import os
import sys
from typing import Annotated

import typer

from rpo_cli import __version__
from rpo_cli.cli import engines, looking, models, steps, studies
from rpo_cli.runs.interrupt import end_undisturbed, heed_interrupts

app = typer.Typer(
    name="rpo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Robust preference optimisation: distil reward models into policies, pessimistically.",
    epilog="Start: [bold]rpo demo[/bold], then [bold]rpo init[/bold] with your own pairs; "
    "[bold]--dry-run[/bold] says what a command would build.",
)
for part in (steps, models, studies, engines, looking):
    app.add_typer(part.app)
for group in (looking.recipe_app, looking.data_app, studies.figure_app, engines.workflow_app):
    app.add_typer(group)


def _version(value: bool) -> None:
    if value:
        print(f"rpo {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Robust preference optimisation: distil reward models into policies, pessimistically."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # accelerate and transformers take torch-xla where it is installed; torch-tpu loads itself with torch.
    os.environ.update({"USE_TORCH_XLA": "0", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})


def entry() -> None:
    """Console script `rpo`."""
    heed_interrupts()
    atexit.register(end_undisturbed)  # the first to be registered runs last, where handlers are about to go
    try:
        app()
    except KeyboardInterrupt:  # before a command began
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
