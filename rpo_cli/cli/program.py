"""The program `rpo`: its commands together, and how it begins and ends."""

import math
import os
import signal
import sys
import time
from types import FrameType
from typing import Annotated

import typer

from rpo_cli import __version__
from rpo_cli.cli import engines, looking, models, steps, studies

END_SECONDS = 10.0  # that an interrupted run may take to its end

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


class Interrupt:
    """A signal that ends a run as Ctrl-C ends it; the same right behind it does not disturb that end.

    Later it does: where Python was cleaning up an object, it has dropped the first.
    """

    def __init__(self) -> None:
        self.came = -math.inf

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self.came > END_SECONDS:
            self.came = now
            raise KeyboardInterrupt


def entry() -> None:
    """Console script `rpo`."""
    signal.signal(signal.SIGTERM, Interrupt())  # what a cluster sends before it takes its machine back
    try:
        app()
    except KeyboardInterrupt:  # before a command began
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
