"""The options that commands share: what each is called, what it says in `--help`, and its value in a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

RECIPE = (
    "Recipe: a path, or a name looked up in ./recipes, ./recipes/miniature and among the packed ones; "
    "[bold]mine.yaml:dpo[/bold]: the recipe dpo of a suite in one file."
)
RHO = "Length bias: a number, several with commas, [bold]all[/bold], or [bold]none[/bold] (no resampling)."
DEVICE = (
    "Where to compute, whatever the recipes say; [bold]xla[/bold]: a TPU. Default: the recipes' `device:`."
)
LAUNCH = (
    "Train in the processes of this accelerate configuration: a file, or a packed preset such as "
    "recipes/accelerate/multi-gpu.yaml."
)
SEED = "Seed of all that is drawn: data, training, samples. Default: the recipe's `seed:`, else 0."
WORKSPACE = "Folder of all that is made. Default: runs/SUITE, by the name of the recipe's suite."
WANDB = (
    "Log to Weights & Biases, offline without a login. The project is the recipe's `wandb_project:` (rpo); "
    "WANDB_PROJECT is not read."
)
ESTIMATE = "With --dry-run: tokens, parameters, FLOPs, memory, disk; imports torch."
MFU = "Share of the peak that is reached. Default: as measured on the device, else 0.35."
Devices = Literal["auto", "cpu", "cuda", "xla"]


def like(incomplete: str) -> list[str]:
    """Names of recipes that begin so, for the shell to complete."""
    from rpo_cli.recipes.listing import names_like

    return names_like(incomplete)


def recipe_argument(default: str | None) -> object:
    """The type of the argument that names a command's recipe."""
    told = RECIPE if default is None else f"{RECIPE} Default: {default}."
    return Annotated[
        str | None, Argument(metavar="RECIPE", help=told, autocompletion=like, show_default=False)
    ]


@dataclass(frozen=True)
class Options:
    """What a command was told. Each command takes some of these; the others stay at their defaults."""

    recipe: Annotated[str, Option("--recipe", "-r", help="The same, as an option.")]
    rho: Annotated[str | None, Option(help=RHO)] = None
    seed: Annotated[int | None, Option(min=0, help=SEED)] = None
    overrides: Annotated[
        list[str], Option("--set", help="Override a key of the recipe: key=value. May be repeated.")
    ] = field(default_factory=list)
    workspace: Annotated[Path | None, Option("--workspace", "-w", help=WORKSPACE)] = None
    device: Annotated[Devices | None, Option(help=DEVICE)] = None
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what would be built and why; build nothing.")
    ] = False
    force: Annotated[bool, Option("--force", help="Build the target again even if it is up to date.")] = False
    as_json: Annotated[bool, Option("--json", help="Print the result as JSON on stdout.")] = False
    jobs: Annotated[int, Option("--jobs", "-j", min=1, help="Worker processes for independent stages.")] = 1
    wandb: Annotated[bool, Option("--wandb", help=WANDB)] = False
    accelerate: Annotated[Path | None, Option(help=LAUNCH)] = None


@dataclass(frozen=True)
class Costs:
    """What an estimate of a plan is asked for on the command line."""

    estimate: Annotated[bool, Option("--estimate", help=ESTIMATE)] = False
    device_name: Annotated[
        str | None, Option(help="Estimate hours on this device: a100-80g, h100-80g, ...")
    ] = None
    tflops: Annotated[
        float | None, Option(min=0.001, help="Peak TFLOP/s of one device, instead of its name's.")
    ] = None
    mfu: Annotated[float | None, Option(min=0.001, max=1, help=MFU)] = None
    price_per_hour: Annotated[
        float | None, Option(min=0, help="Dollars per device and hour; none is assumed.")
    ] = None
    params: Annotated[
        float | None, Option(min=1, help="Parameters of every model whose config cannot be read.")
    ] = None


KEEP = (
    "Policies that stay on disk: the best of each objective, rho and seed; "
    "none after the last evaluation; all."
)
SMALL = "small: dpo and e-dpo, three rho, three values of each grid, one seed."
Seeds = Annotated[str | None, Option(help="Seeds, with commas. Default: the recipe's.")]
GridSize = Annotated[int | None, Option(min=1, help="Try this many values of each grid, evenly spread.")]
TUNE = "First choose from each recipe's grid on validation (the full protocol)."
Tune = Annotated[bool, Option("--tune", help=TUNE)]
MEMBERS = "The members of a reward recipe's ensemble, one on each subset D_rho,b, in place of its one model."
Ensemble = Annotated[bool, Option("--ensemble", help=MEMBERS)]
FROM = "Redraw kept results; train nothing."
PICTURES = "Folder for pictures and results. Default: figures/ in the workspace."
GAPS = "Train nothing; draw what there is and mark the gaps."
AGAINST = "What the others are compared with: one of them, or baseline. Default: the first."
SWEEP = "First choose from each grid on validation prompts; without an oracle on half of the held-out pairs."


@dataclass(frozen=True)
class Study:
    """How much of an experiment is run, and whose weights stay."""

    seeds: Seeds = None
    keep_weights: Annotated[Literal["best", "none", "all"], Option(help=KEEP)] = "best"
    budget: Annotated[Literal["small"] | None, Option(help=SMALL)] = None
    objectives: Annotated[str | None, Option(help="Only these of the figure's policies, with commas.")] = None
    grid_size: GridSize = None


@dataclass(frozen=True)
class Figure(Study):
    """What a figure of any kind can be asked for."""

    from_results: Annotated[Path | None, Option("--from", help=FROM)] = None
    out: Annotated[Path | None, Option(help=PICTURES)] = None
    allow_missing: Annotated[bool, Option("--allow-missing", help=GAPS)] = False
    tune: Tune = False


@dataclass(frozen=True)
class Planning(Study):
    """What a plan is asked for, besides what every command can be: as figures and train-rm are."""

    tune: Tune = False
    ensemble: Ensemble = False


@dataclass(frozen=True)
class Comparing:
    """How policies are compared."""

    against: Annotated[str | None, Option(help=AGAINST)] = None
    seeds: Seeds = None
    sweep: Annotated[bool, Option("--sweep", help=SWEEP)] = False
    grid_size: GridSize = None


PAIRS = "Your pairs: a JSONL or Parquet file, or a data set of the hub, in any of TRL's formats."
COLUMNS = "What the pairs call a column: prompt=question,chosen=better. Default: as TRL calls it."
TEACHER = "A reward model to distil; several make the ensemble of e-dpo. Default: trained on the pairs."
LABEL = "Of a reward model with several labels, the one that is the reward."
SCORES = "Columns of the pairs with scores, CHOSEN,REJECTED, to distil; several make an ensemble."
SUSPECT = (
    "What may be biased in the pairs: length, bold, lists, headings, links, emojis, exclamations, "
    "affirmative, or NAME=EXPRESSION to count; several may be named."
)
WISHES = "Objectives, with commas. Default: dpo and what the teachers are for: d-dpo, or e-dpo of several."
JUDGES = "A reward model that judges, no teacher. Default: none."
LORA = "Train an adapter, or all weights. Default: all weights where they fit into memory."
FORM = "Plain text as it stands, or in the model's chat template. Default: chat where the model has one."


@dataclass(frozen=True)
class OwnSuite:
    """What a suite for somebody's own pairs is to be; models and data as paths or hub names."""

    name: Annotated[str, Argument(help="What to call it: writes NAME.yaml, works in runs/NAME.")]
    pairs: Annotated[str, Option(help=PAIRS)]
    model: Annotated[str, Option(help="The model to start from: hub name or directory.")]
    columns: Annotated[str | None, Option(help=COLUMNS)] = None
    prompt_format: Annotated[Literal["raw", "chat"] | None, Option(help=FORM)] = None
    reward_model: Annotated[list[str], Option(help=TEACHER, show_default=False)] = field(default_factory=list)
    reward_label: Annotated[str | None, Option(help=LABEL)] = None
    scores: Annotated[list[str], Option(help=SCORES, show_default=False)] = field(default_factory=list)
    suspect: Annotated[list[str], Option(help=SUSPECT, show_default=False)] = field(default_factory=list)
    objective: Annotated[str | None, Option(help=WISHES)] = None
    oracle: Annotated[str | None, Option(help=JUDGES)] = None
    sft: Annotated[str | None, Option(help="Written responses to fine-tune on first. Default: none.")] = None
    prompts: Annotated[str | None, Option(help="Prompts to evaluate on, a file. Default: of the pairs.")] = (
        None
    )
    epochs: Annotated[float, Option(min=0.001, help="Passes over the pairs.")] = 1.0
    lora: Annotated[bool | None, Option("--lora/--full", help=LORA)] = None
    overwrite: Annotated[bool, Option("--force", help="Write over a file that is there.")] = False


PUSH = "Upload it as well, to this name of the hub: USER/NAME. The token: `hf auth login`, or HF_TOKEN."
MEMBER = "Of an ensemble one member, by its b: 0.2; or warm, the mean of all members' weights."
OUT_OF = "Replace a model that was exported there before."
ROUNDED = "Round the weights. Default: float32."
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Export:
    """What is to leave the workspace: where to, and in which form."""

    to: Annotated[Path, Option(help="Folder to write: new, or empty.")]
    push: Annotated[str | None, Option(help=PUSH)] = None
    adapter: Annotated[
        bool, Option("--adapter/--merged", help="The LoRA adapter alone, or the whole model.")
    ] = False
    dtype: Annotated[Dtype | None, Option(help=ROUNDED)] = None
    private: Annotated[bool, Option("--private", help="With --push: only you can see it.")] = False
    replace: Annotated[bool, Option("--force", help=OUT_OF)] = False
    member: Annotated[str | None, Option(help=MEMBER)] = None


FILE = "Rows: JSON lines (packed or not), Parquet, a folder of either, or a data set of the hub."
NEW = "File to write. Default: beside the rows, here for a set of the hub."
AUTO = "auto: bfloat16 where the device has it."
STANDS = "Plain text as it stands, or in the model's chat template. Default: as a recipe says; raw."


@dataclass(frozen=True)
class OnRows:
    """Rows that a model is put to work on, how, and where they go with what it makes of them."""

    file: Annotated[str, Argument(metavar="FILE", help=FILE)]
    out: Annotated[Path | None, Option("--out", help=NEW)] = None
    split: Annotated[str | None, Option("--split", help="Of a data set, this split only.")] = None
    batch_size: Annotated[int, Option(min=1, help="Responses at a time.")] = 32
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Option(help=AUTO)] = "auto"
    prompt_format: Annotated[Literal["raw", "chat"] | None, Option(help=STANDS)] = None
