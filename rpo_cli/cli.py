"""The command line: parse, call one function, print. Nothing heavy is imported at module level."""

import os
import signal
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Option

from rpo_cli import __version__
from rpo_cli.errors import BadInput
from rpo_cli.objectives import OBJECTIVES
from rpo_cli.runs.command import add_command
from rpo_cli.runs.options import RECIPE, Costs, Options, like

TRAIN_POLICY = "\n\n".join(
    [
        "Train a policy, building every input that is missing.",
        "dh is the difference of the log-ratios log pi_theta - log pi_ref of the chosen and the rejected "
        "response, dr that of a teacher's rewards, KL the forward KL(pi_ref || pi_theta).",
        *(objective.help for objective in OBJECTIVES.values()),
    ]
)

if TYPE_CHECKING:
    from rpo_cli.runs.session import Session

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
recipe_app = typer.Typer(name="recipe", no_args_is_help=True, help="List, show and check recipes.")
data_app = typer.Typer(name="data", no_args_is_help=True, help="Look at data before training on it.")
figure_app = typer.Typer(
    name="figure", no_args_is_help=True, help="Evaluate what a figure needs, and draw it."
)
for group in (recipe_app, data_app, figure_app):
    app.add_typer(group)
command = partial(add_command, app)

# Options that commands share: all of them, those of a command for one artifact, those of one for a figure.
EVERY = frozenset(field.name for field in fields(Options))
ONE, FIGURE = EVERY - {"rho", "jobs"}, EVERY - {"seed", "force"}
COMPARING = FIGURE - {"recipe"}

Split = Literal["validation", "test"]
KEEP = (
    "Policies that stay on disk: the best of each objective, rho and seed; "
    "none after the last evaluation; all."
)
SMALL = "small: dpo and e-dpo, three rho, three grid values, one seed."
KeepWeights = Annotated[Literal["best", "none", "all"], Option(help=KEEP)]
BudgetOption = Annotated[Literal["small"] | None, Option(help=SMALL)]
Objectives = Annotated[str | None, Option(help="Only these of the figure's policies, with commas.")]
GridSize = Annotated[int | None, Option(min=1, help="Try this many values of each grid, evenly spread.")]
AVERAGED = "Seeds to average over, with commas. Default: the recipe's."
WRITE = "Write the chosen values into the recipes' by_rho."
FROM = "Redraw kept results; train nothing."
OUT = "Folder for pictures and results. Default: figures/ in the workspace."
GAPS = "Train nothing; draw what there is and mark the gaps."
TUNE = "First choose beta and tau on validation (the full protocol)."
Seeds = Annotated[str | None, Option(help="Seeds, with commas. Default: the recipe's.")]
COMPARED = "Policy recipes, or suites (a folder, one file): all their policies."
AGAINST = "What the others are compared with: one of them, or baseline. Default: the first."
SWEEP = "First choose beta and tau on validation prompts; without an oracle on half of the held-out pairs."
KEPT = "What `rpo compare --json` printed; builds nothing."


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


@command("demo", takes={"workspace", "jobs", "dry_run"}, jobs=2)
def demo(session: "Session") -> None:
    """See it work, in a few minutes on two cores: DPO beside a distilled policy under length bias.

    Trains small models of the embedded world from scratch; needs no network.
    """
    from rpo_cli.runs.demo import demo

    demo(session)


PAIRS = "Your pairs: a JSONL or Parquet file, or a data set of the hub, in any of TRL's formats."
TEACHER = "A reward model to distil; several make the ensemble of e-dpo. Default: trained on the pairs."
LABEL = "Of a reward model with several labels, the one that is the reward."
SCORES = "Columns of the pairs with scores, CHOSEN,REJECTED, to distil; several make an ensemble."
WISHES = "Objectives, with commas. Default: dpo and what the teachers are for: d-dpo, or e-dpo of several."
LORA = "Train an adapter, or all weights. Default: all weights where they fit into memory."


@command(
    "init",
    "mine --pairs pairs.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --reward-model ./my-rm",
    takes={"workspace"},
)
def init(
    session: "Session",
    name: Annotated[str, typer.Argument(help="What to call it: writes NAME.yaml, works in runs/NAME.")],
    pairs: Annotated[str, Option(help=PAIRS)],
    model: Annotated[str, Option(help="The model to start from: hub name or directory.")],
    reward_model: Annotated[list[str] | None, Option(help=TEACHER)] = None,
    reward_label: Annotated[str | None, Option(help=LABEL)] = None,
    scores: Annotated[list[str] | None, Option(help=SCORES)] = None,
    objective: Annotated[str | None, Option(help=WISHES)] = None,
    oracle: Annotated[
        str | None, Option(help="A reward model that judges, no teacher. Default: none.")
    ] = None,
    sft: Annotated[str | None, Option(help="Written responses to fine-tune on first. Default: none.")] = None,
    prompts: Annotated[
        str | None, Option(help="Prompts to evaluate on, a file. Default: of the pairs.")
    ] = None,
    epochs: Annotated[float, Option(min=0.001, help="Passes over the pairs.")] = 1.0,
    lora: Annotated[bool | None, Option("--lora/--full", help=LORA)] = None,
    overwrite: Annotated[bool, Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a recipe for your own pairs: one file for the whole pipeline, filled in from the data.

    Reads the pairs, counts what is left out, holds out prompts to evaluate on, and sets lengths, steps and
    batches. Prints the next command.
    """
    from rpo_cli.runs.init import init
    from rpo_cli.runs.own_suite import Wanted

    given = (name, pairs, model, reward_model or [], reward_label, scores or [])
    init(session, Wanted(*given, objective, oracle, sft, prompts, epochs, lora, overwrite))


@command("train-sft", "miniature/sft.yaml", takes=ONE, recipe="sft.yaml")
def train_sft(session: "Session", costs: Costs) -> None:
    """Fine-tune on written responses: makes pi_SFT, the reference policy."""
    from rpo_cli.runs.make import build

    build(session, "sft", ("rpo train-rm", "oracle.yaml", ""), costs=costs)


MEMBERS = "Train the ensemble's members, one on each subset D_rho,b."
DIAGNOSED = "Diagnose the members of a reward recipe's ensemble."
RHO_02 = "rm.yaml --rho 0.2 --ensemble --jobs 2"


@command("train-rm", "oracle.yaml", RHO_02, takes=EVERY, recipe="rm.yaml")
def train_rm(
    session: "Session",
    costs: Costs,
    ensemble: Annotated[bool, Option("--ensemble", help=MEMBERS)] = False,
) -> None:
    """Train a Bradley-Terry reward model: the oracle, the one of D_rho, or an ensemble."""
    from rpo_cli.runs.make import build

    following = ("rpo train-policy", "e-dpo.yaml", session.at)
    build(session, "reward", following, members=ensemble, costs=costs)


@command("sample-pairs", "small/pairs.yaml", takes=ONE, recipe="pairs.yaml")
def sample_pairs(session: "Session") -> None:
    """Make preference pairs of a model's own samples:
    two of a prompt, or what people wrote against one of them.
    """
    from rpo_cli.runs.make import build

    build(session, "pairs", ("rpo relabel", "relabel.yaml", ""))


@command("relabel", "relabel.yaml", takes=ONE, recipe="relabel.yaml")
def relabel(session: "Session") -> None:
    """Replace human labels by the oracle's preference, with both scores kept."""
    from rpo_cli.runs.make import build

    build(session, "relabel", ("rpo make-biased-splits", "splits.yaml", " --rho all"))


@command("make-biased-splits", "splits.yaml --rho all", takes=EVERY - {"wandb"}, recipe="splits.yaml")
def make_biased_splits(session: "Session") -> None:
    """Draw D_rho, in which the longer response is preferred in a share rho of the pairs,
    and the ensemble's subsets.
    """
    from rpo_cli.runs.make import build

    build(session, "splits", ("rpo train-rm", "rm.yaml", f"{session.at} --ensemble"))


@command("train-policy", "e-dpo.yaml --rho 0.2", takes=EVERY, text=TRAIN_POLICY)
def train_policy(session: "Session", costs: Costs) -> None:
    from rpo_cli.runs import make

    make.train_policy(session, costs)


@command("evaluate", "e-dpo.yaml --rho 0.2 --split test", takes=EVERY)
def evaluate(
    session: "Session",
    costs: Costs,
    split: Annotated[Split, Option(help="Prompts: validation chooses, test reports.")] = "test",
) -> None:
    """Sample from a policy and score with the oracle:
    advantage over pi_SFT, length, KL, length-controlled advantage.

    The recipe is a policy's; an evaluation recipe evaluates its baseline, pi_SFT.
    """
    from rpo_cli.runs import make

    make.evaluate(session, split, costs)


@command("judge", "own-data/dpo.yaml --model gpt-4.1-mini", takes=EVERY - {"accelerate"})
def judge(
    session: "Session",
    split: Annotated[Split, Option(help="Whose samples.")] = "test",
    model: Annotated[str | None, Option(help="The judge. Default: `judge:` of the evaluate recipe.")] = None,
    base_url: Annotated[str | None, Option(help="Its endpoint, such as http://localhost:8000/v1.")] = None,
) -> None:
    """Win rate of a policy by a judge model, each pair asked in both orders;
    with length control and agreement with the oracle.

    Settings stand in `judge:` of the evaluate recipe; the key comes from the environment (OPENAI_API_KEY).
    """
    from rpo_cli.runs import make

    make.judge(session, split, model, base_url)


PUSH = "Upload it as well, to this name of the hub: USER/NAME. The token: `hf auth login`, or HF_TOKEN."
OUT_OF = "Replace a model that was exported there before."
EXPORTED = {"recipe", "rho", "seed", "overrides", "workspace", "device", "dry_run"}


@command(
    "export", "e-dpo.yaml --rho 0.2 --to my-model", "own-data/dpo.yaml --to my-model "
    "--push anna/my-model --dtype bfloat16", takes=EXPORTED
)  # fmt: skip
def export(
    session: "Session",
    to: Annotated[Path, Option(help="Folder to write: new, or empty.")],
    push: Annotated[str | None, Option(help=PUSH)] = None,
    adapter: Annotated[
        bool, Option("--adapter/--merged", help="The LoRA adapter alone, or the whole model.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, Option(help="Round the weights. Default: float32.")
    ] = None,
    private: Annotated[bool, Option("--private", help="With --push: only you can see it.")] = False,
    force: Annotated[bool, Option("--force", help=OUT_OF)] = False,
) -> None:
    """Write a trained model into a folder of its own:
    weights, tokenizer, and a model card with the evaluations that there are.
    """
    from rpo_cli.runs.export import Wanted
    from rpo_cli.runs.export import export as write

    write(session, Wanted(to, push, adapter, dtype, private, force))


@command("rebuild", "my-model/README.md", takes={"workspace", "device", "dry_run", "jobs"})
def rebuild(
    session: "Session", card: Annotated[Path, typer.Argument(help="The model's README.md, or its folder.")]
) -> None:
    """Train the model of a card again, with everything behind it, and compare the weights.

    Its data and base models must be what they were. The workspace is runs/SUITE-rebuilt, unless you name one.
    """
    from rpo_cli.runs.rebuild import rebuild as again

    again(session, card)


FILE = "Rows: JSON lines (packed or not), Parquet, a folder of either, or a data set of the hub."
NEW = "File to write. Default: beside the rows, here for a set of the hub."
Rows = Annotated[str, typer.Argument(metavar="FILE", help=FILE)]
Out = Annotated[Path | None, Option("--out", help=NEW)]
PartOf = Annotated[str | None, Option("--split", help="Of a data set, this split only.")]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"], Option(help="auto: bfloat16 where the device has it.")
]


@command(
    "score",
    "pairs.jsonl --model Skywork/Skywork-Reward-V2-Qwen3-0.6B",
    takes={"device", "dry_run", "as_json"},
)
def score(
    session: "Session",
    file: Rows,
    model: Annotated[str, Option(help="Reward model: a hub name, or a directory.")],
    out: Out = None,
    label: Annotated[str | None, Option(help="Of a model with several labels, the reward's.")] = None,
    batch_size: Annotated[int, Option(min=1, help="Responses at a time.")] = 32,
    max_length: Annotated[int | None, Option(min=1, help="Longer rows get no reward.")] = None,
    dtype: Precision = "auto",
    split: PartOf = None,
) -> None:
    """Add the rewards of a reward model to the rows of a file.

    Rows have chosen and rejected, messages, or a prompt with completion, response or responses. Conversations
    go through the model's own chat template. A run that was interrupted goes on where it was.
    """
    from rpo_cli.runs import files

    size = {"per_device_eval_batch_size": batch_size, "max_length": max_length}
    files.score(session, file, model, label, out, dtype=dtype, split=split, **size)


@command("sample", "prompts.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --num-samples 4",
         takes={"device", "dry_run", "as_json"})  # fmt: skip
def sample(
    session: "Session",
    file: Rows,
    model: Annotated[str, Option(help="Language model: a hub name, or a directory.")],
    out: Out = None,
    num_samples: Annotated[int, Option(min=1, help="Responses to each prompt.")] = 1,
    temperature: Annotated[float, Option(min=0.01, help="Of the samples.")] = 1.0,
    top_p: Annotated[float, Option(min=0.01, max=1, help="Sample from this share of probability.")] = 1.0,
    max_new_tokens: Annotated[int, Option(min=1, help="Longest response.")] = 256,
    seed: Annotated[int, Option(min=0, help="Of the samples.")] = 0,
    batch_size: Annotated[int, Option(min=1, help="Responses at a time.")] = 32,
    dtype: Precision = "auto",
    split: PartOf = None,
) -> None:
    """Add a model's responses to the prompts in a file, as a column `responses`.

    The same prompt gets the same responses for a seed, whatever else is in the file. A run that was
    interrupted goes on where it was.
    """
    from rpo_cli.runs import files

    drawn = {"count": num_samples, "temperature": temperature, "top_p": top_p, "seed": seed}
    size = {"per_device_eval_batch_size": batch_size, "max_new_tokens": max_new_tokens}
    files.sample(session, file, model, out, dtype=dtype, split=split, **size, **drawn)


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"--seeds {text}: expected whole numbers with commas, such as 0,1,2") from None
    if len(set(found)) < len(found):
        raise BadInput(f"--seeds {text}: one of them twice")
    return found


@command("sweep", "figure2.yaml --rho all --seeds 0,1,2 --jobs 2", takes=FIGURE, rho="all")
def sweep(
    session: "Session",
    costs: Costs,
    seeds: Annotated[str | None, Option(help=AVERAGED)] = None,
    write: Annotated[bool, Option("--write/--no-write", help=WRITE)] = True,
    keep_weights: KeepWeights = "best",
    budget: BudgetOption = None,
    objectives: Objectives = None,
    grid_size: GridSize = None,
) -> None:
    """Try the grid over beta or tau, for one policy recipe or all of a figure's;
    choose on validation prompts.
    """
    from rpo_cli.figures import Budget, run_sweep
    from rpo_cli.runs.question import asked

    question = asked(session.dry_run, costs)
    reduced = Budget(budget == "small", objectives, grid_size)
    run_sweep(session, _numbers(seeds), write, keep_weights, reduced, question)


Compared = Annotated[list[str], typer.Argument(help=COMPARED, autocompletion=like)]
Against = Annotated[str | None, Option(help=AGAINST)]
Sweep = Annotated[bool, Option("--sweep", help=SWEEP)]
COMPARE = "miniature/dpo.yaml miniature/d-dpo.yaml miniature/e-dpo.yaml"


@command("compare", f"{COMPARE} --rho 0.2 --seeds 0,1,2 --jobs 2", takes=COMPARING)
def compare(
    session: "Session",
    costs: Costs,
    recipes: Compared,
    against: Against = None,
    seeds: Seeds = None,
    sweep: Sweep = False,
    grid_size: GridSize = None,
) -> None:
    """Train policies on the same pairs and compare them:
    held-out accuracy and margin, advantage, length, KL, wins by a judge, with paired 95 % intervals.

    Works without an oracle: `oracle: null` in the evaluate recipe.
    """
    from rpo_cli.figures import Budget, Comparing, run_compare
    from rpo_cli.runs.question import asked

    question, budget = asked(session.dry_run, costs), Budget(grid_size=grid_size)
    run_compare(session, Comparing(recipes, against, _numbers(seeds), sweep, budget, question))


@command("report", f"{COMPARE} --rho 0.2 --out report.html", takes=COMPARING - {"as_json"})
def report(
    session: "Session",
    recipes: Annotated[list[str] | None, typer.Argument(help=COMPARED, autocompletion=like)] = None,
    from_results: Annotated[Path | None, Option("--from", help=KEPT)] = None,
    out: Annotated[Path, Option(help="The page to write.")] = Path("report.html"),
    against: Against = None,
    seeds: Seeds = None,
    sweep: Sweep = False,
    grid_size: GridSize = None,
) -> None:
    """Write a comparison as one HTML page:
    numbers, figure, learning curves, samples side by side, data, reward models, costs.

    The page loads nothing from elsewhere. What is missing is built first, as `rpo compare` does.
    """
    from rpo_cli.figures import Budget, Comparing, run_report

    budget = Budget(grid_size=grid_size)
    asked = Comparing(recipes or [], against, _numbers(seeds), sweep, budget)
    run_report(session, asked, from_results, out)


def _figure(kind: str, text: str, recipe: str, *more: str) -> None:
    """Add `rpo figure KIND`, whose recipe is this one unless another is given; `more`: examples."""
    example = f"miniature/{recipe} --jobs 2"

    @add_command(figure_app, kind, example, *more, takes=FIGURE, text=text, recipe=recipe)
    def run(
        session: "Session",
        costs: Costs,
        seeds: Seeds = None,
        from_results: Annotated[Path | None, Option("--from", help=FROM)] = None,
        out: Annotated[Path | None, Option(help=OUT)] = None,
        allow_missing: Annotated[bool, Option("--allow-missing", help=GAPS)] = False,
        tune: Annotated[bool, Option("--tune", help=TUNE)] = False,
        keep_weights: KeepWeights = "best",
        budget: BudgetOption = None,
        objectives: Objectives = None,
        grid_size: GridSize = None,
    ) -> None:
        from rpo_cli.figures import Budget, FigureOptions, run_figure
        from rpo_cli.runs.question import asked

        reduced, question = Budget(budget == "small", objectives, grid_size), asked(session.dry_run, costs)
        wanted = (_numbers(seeds), from_results, out, allow_missing, tune, keep_weights, reduced, question)
        run_figure(session, kind, FigureOptions(*wanted))


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
    "unbiased": "All objectives on the pairs as they are, without resampling.",
}.items():
    _figure(_kind, _text, f"figure-{_kind}.yaml")


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

    rhos = session.rhos([])
    if rhos is not None and len(rhos) != 1:
        raise BadInput(f"--rho {session.rho}: a recipe is shown at one rho: a number, or none")
    loaded = session.load(None) if rhos is None else session.load(None, rho=rhos[0])
    print(resolved_yaml(loaded), end="")


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
    data_app,
    "fetch",
    "tldr/figure2.yaml",
    takes={"recipe", "overrides", "workspace", "dry_run", "as_json"},
)
def data_fetch(session: "Session") -> None:
    """Download the models and data sets that a recipe rests on, and record their commits:
    for machines without a network.
    """
    from rpo_cli.runs.fetch import fetch_data

    fetch_data(session)


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
    """What is in the workspace, what a recipe would rebuild, and why."""
    from rpo_cli.figures import show_status

    show_status(session)


@command("doctor", takes={"as_json"})
def doctor(session: "Session") -> None:
    """Versions, device, dtype and why, threads, disk, W&B and hub state."""
    from rpo_cli.runs.doctor import show_doctor

    show_doctor(session.as_json)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """End a run as Ctrl-C ends it."""
    raise KeyboardInterrupt


def entry() -> None:
    """Console script `rpo`."""
    signal.signal(signal.SIGTERM, interrupt)  # what a cluster sends before it takes its machine back
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    entry()
