"""Commands that hand a trained model on, or put any model to work on a file."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option, Typer

from rpo_cli.runs.command import add_command
from rpo_cli.runs.options import Export, OnRows

if TYPE_CHECKING:
    from rpo_cli.runs.session import Session

app = Typer()
command = partial(add_command, app)
EXPORTED = {"recipe", "rho", "seed", "overrides", "workspace", "device", "dry_run"}


@command(
    "export", "e-dpo.yaml --rho 0.2 --to my-model", "own-data/dpo.yaml --to my-model "
    "--push anna/my-model --dtype bfloat16", takes=EXPORTED
)  # fmt: skip
def export(session: "Session", wanted: Export) -> None:
    """Write a trained model into a folder of its own:
    weights, tokenizer, and a model card with the evaluations that there are.
    """
    from rpo_cli.runs.export import export as write

    write(session, wanted)


AGAIN = "Folder of all that is made. Default: runs/SUITE-rebuilt, by the suite of the card."
RECIPES_SAY = "Where to compute, whatever the card's recipes say; [bold]xla[/bold]: a TPU."


@command(
    "rebuild",
    "my-model/README.md",
    takes={"workspace", "device", "dry_run", "jobs"},
    helps={"workspace": AGAIN, "device": RECIPES_SAY},
)
def rebuild(
    session: "Session", card: Annotated[Path, typer.Argument(help="The model's README.md, or its folder.")]
) -> None:
    """Train the model of a card again, with everything behind it, and compare the weights.

    Its data and base models must be what they were. The workspace is runs/SUITE-rebuilt, unless you name one.
    """
    from rpo_cli.runs.rebuild import rebuild as again

    again(session, card)


REWARDED = (
    "Plain text as it stands, or in the model's chat template. Default: as a recipe says; raw for a model "
    "that rpo trained, or without a template, else chat."
)
NAMED = "a hub name, a directory, or the recipe by which it was trained."
ON_ROWS = {"rho", "workspace", "device", "dry_run", "as_json"}
HELPS = {
    "device": "Where to compute; [bold]xla[/bold]: a TPU. Default: a GPU that torch sees, else the CPU.",
    "rho": "Of a --model that is a recipe: a number, or [bold]none[/bold]. Default: the recipe's.",
    "workspace": "Of a --model that is a recipe. Default: runs/SUITE, by the name of its suite.",
}


@command(
    "score",
    "pairs.jsonl --model Skywork/Skywork-Reward-V2-Qwen3-0.6B",
    takes=ON_ROWS,
    helps={**HELPS, "prompt_format": REWARDED},
)
def score(
    session: "Session",
    rows: OnRows,
    model: Annotated[str, Option(help=f"Reward model: {NAMED}")],
    label: Annotated[str | None, Option(help="Of a model with several labels, the reward's.")] = None,
    max_length: Annotated[int | None, Option(min=1, help="Longer rows get no reward.")] = None,
) -> None:
    """Add the rewards of a reward model to the rows of a file.

    Rows have chosen and rejected, messages, or a prompt with completion, response or responses. Conversations
    go through the model's own chat template, plain text as --prompt-format says. A run that was interrupted
    goes on where it was.
    """
    from rpo_cli.runs import files

    files.score(session, rows, model, label, max_length)


LONGEST = "Longest response. Default: 256, or what the model has room for behind the prompts."


@command("sample", "prompts.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --num-samples 4",
         takes=ON_ROWS, helps=HELPS)  # fmt: skip
def sample(
    session: "Session",
    rows: OnRows,
    model: Annotated[str, Option(help=f"Language model: {NAMED}")],
    num_samples: Annotated[int, Option(min=1, help="Responses to each prompt.")] = 1,
    temperature: Annotated[float, Option(min=0.01, help="Of the samples.")] = 1.0,
    top_p: Annotated[float, Option(min=0.01, max=1, help="Sample from this share of probability.")] = 1.0,
    max_new_tokens: Annotated[int | None, Option(min=1, help=LONGEST)] = None,
    seed: Annotated[int, Option(min=0, help="Of the samples.")] = 0,
) -> None:
    """Add a model's responses to the prompts in a file, as a column `responses`.

    Messages go through the model's chat template; plain text does with --prompt-format chat.
    The same prompt gets the same responses for a seed, whatever else is in the file. A run that was
    interrupted goes on where it was.
    """
    from rpo_cli.runs import files

    drawn = files.Drawn(count=num_samples, temperature=temperature, top_p=top_p, seed=seed)
    files.sample(session, rows, model, max_new_tokens, drawn)
