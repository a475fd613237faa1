"""The command line: parse, call one function, print. Nothing heavy is imported at module level."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from rpo_cli import __version__
from rpo_cli.errors import BadInput, RunFailed

app = typer.Typer(
    name="rpo", no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Robust preference optimisation: distil reward models into policies, pessimistically.",
    epilog="Start: [bold]rpo train-policy --recipe e-dpo.yaml[/bold] builds everything it needs; [bold]--dry-run[/bold] says what that is.",
)  # fmt: skip
recipe_app = typer.Typer(no_args_is_help=True, help="List, show and check recipes.")
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
figure_app = typer.Typer(no_args_is_help=True, help="Evaluate what a figure needs, and draw it.")
app.add_typer(recipe_app, name="recipe")
app.add_typer(data_app, name="data")
app.add_typer(figure_app, name="figure")

Recipe = Annotated[
    str,
    typer.Option(
        "--recipe", "-r", help="Recipe: a path, or a name looked up in ./recipes and among the packed ones."
    ),
]
Rho = Annotated[
    str | None,
    typer.Option(
        "--rho",
        help="Length bias: a number, several with commas, [bold]all[/bold], or [bold]none[/bold] (no resampling).",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Master seed.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key of the recipe: key=value. May be repeated.")
]
WorkspaceOption = Annotated[
    Path | None, typer.Option("--workspace", "-w", help="Where artifacts live. Default: runs/SUITE.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be built and why; build nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Build the target again even if it is up to date.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Worker processes for independent stages.")]
Wandb = Annotated[bool, typer.Option("--wandb", help="Log to Weights & Biases (offline without a login).")]
Accelerate = Annotated[
    Path | None,
    typer.Option(
        "--accelerate",
        help="Train in the processes of this accelerate configuration, such as recipes/accelerate/multi-gpu.yaml.",
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "xla"] | None,
    typer.Option(
        "--device",
        help="Where to compute, whatever the recipes say; [bold]xla[/bold]: a TPU. Default: the recipes' `device:`.",
    ),
]
KeepWeights = Annotated[
    Literal["best", "none", "all"],
    typer.Option("--keep-weights", help="Policies that stay on disk: the best of each objective, rho and seed; none after the last "
                 "evaluation; all."),
]  # fmt: skip
BudgetOption = Annotated[
    Literal["small"] | None,
    typer.Option("--budget", help="small: dpo and e-dpo, three rho, three grid values, one seed."),
]
Objectives = Annotated[
    str | None, typer.Option("--objectives", help="Only these of the figure's policies, with commas.")
]
GridSize = Annotated[
    int | None, typer.Option("--grid-size", min=1, help="Try this many values of each grid, evenly spread.")
]
Seeds = Annotated[
    str | None, typer.Option("--seeds", help="Seeds to average over, with commas. Default: the recipe's.")
]
Estimate = Annotated[
    bool,
    typer.Option(
        "--estimate", help="With --dry-run: tokens, parameters, FLOPs, memory, disk; imports torch."
    ),
]
DeviceName = Annotated[
    str | None, typer.Option("--device-name", help="Estimate hours on this device: a100-80g, h100-80g, ...")
]
Tflops = Annotated[
    float | None,
    typer.Option("--tflops", min=0.001, help="Peak TFLOP/s of one device, instead of its name's."),
]
Mfu = Annotated[
    float | None,
    typer.Option("--mfu", min=0.001, max=1, help="Share of the peak that is reached. Assumed: 0.35."),
]
Price = Annotated[
    float | None,
    typer.Option("--price-per-hour", min=0, help="Dollars per device and hour; none is assumed."),
]
Params = Annotated[
    float | None,
    typer.Option("--params", min=1, help="Parameters of every model whose config cannot be read."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the known failures into one line on stderr and an exit code: 2 bad input, 1 failed run, 130 interrupted."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from rpo_cli.recipes import RecipeError

        try:
            command(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):  # whoever reads stdout has seen enough
            raise
        except (Exception, KeyboardInterrupt) as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            if isinstance(error, KeyboardInterrupt):
                lines, code = ["interrupted; the same command goes on from here"], 130
            elif isinstance(error, RecipeError):
                lines, code = error.problems, 2
            elif isinstance(error, BadInput | RunFailed):
                lines, code = [str(error)], 1 if isinstance(error, RunFailed) else 2
            elif isinstance(error, OSError):
                lines, code = [f"{error.filename or 'disk'}: {error.strerror or error}"], 1
            else:
                lines, code = (
                    [f"unexpected {type(error).__name__}: {error} (--debug shows where; please report it)"],
                    1,
                )
            console = Console(stderr=True)
            for line in lines:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            raise typer.Exit(code) from None

    return run


def _session(**options: Any) -> Any:
    """The session of a command: of its options, given as `locals()`, those that every session has."""
    from rpo_cli.runs.session import Session

    known = {field.name for field in fields(Session)} - {
        "err",
        "out",
    }  # its consoles; a command's --out is a folder
    return Session(**{name: value for name, value in options.items() if name in known and value is not None})


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
    # Where torch-xla is installed, accelerate and transformers take it unless told not to; torch-tpu loads itself with torch.
    os.environ.update({"USE_TORCH_XLA": "0", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})


@app.command("train-sft", epilog="Example: rpo train-sft --recipe miniature/sft.yaml")
@guarded
def train_sft(
    recipe: Recipe = "sft.yaml", seed: Seed = None, overrides: Set = None, workspace: WorkspaceOption = None, device: Device = None,
    dry_run: DryRun = False,
    force: Force = False, as_json: AsJson = False, wandb: Wandb = False, accelerate: Accelerate = None, debug: Debug = False,
) -> None:  # fmt: skip
    """Fine-tune on written responses: makes pi_SFT, the reference policy."""
    session = _session(**locals())
    _one(session, "sft", ("rpo train-rm", "oracle.yaml"))


@app.command(
    "train-rm",
    epilog="Examples: rpo train-rm --recipe oracle.yaml | rpo train-rm --recipe rm.yaml --rho 0.2 --ensemble --jobs 2",
)
@guarded
def train_rm(
    recipe: Recipe = "rm.yaml", rho: Rho = None,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Train the ensemble's members, one on each subset D_rho,b.")] = False,
    seed: Seed = None, overrides: Set = None, workspace: WorkspaceOption = None, device: Device = None, dry_run: DryRun = False,
    force: Force = False,
    as_json: AsJson = False, jobs: Jobs = 1, wandb: Wandb = False, accelerate: Accelerate = None, debug: Debug = False,
) -> None:  # fmt: skip
    """Train a Bradley-Terry reward model: the oracle, the one of D_rho, or an ensemble."""
    from rpo_cli.runs.session import planner_for

    session = _session(**locals())
    loads = session.at_rhos("reward")
    planner = planner_for(loads[0])
    targets = [
        stage
        for loaded in loads
        for stage in (planner.members(loaded) if ensemble else [planner.build(loaded)])
    ]
    session.result(
        session.make(targets, loads[0].recipe.suite),
        targets,
        _next(loads[0], "rpo train-policy", "e-dpo.yaml", _at(rho)),
    )


@app.command("relabel", epilog="Example: rpo relabel --recipe relabel.yaml")
@guarded
def relabel(
    recipe: Recipe = "relabel.yaml", seed: Seed = None, overrides: Set = None, workspace: WorkspaceOption = None, device: Device = None,
    dry_run: DryRun = False,
    force: Force = False, as_json: AsJson = False, wandb: Wandb = False, accelerate: Accelerate = None, debug: Debug = False,
) -> None:  # fmt: skip
    """Replace human labels by the oracle's preference, with both scores kept."""
    session = _session(**locals())
    _one(session, "relabel", ("rpo make-biased-splits", "splits.yaml", " --rho all"))


@app.command("make-biased-splits", epilog="Example: rpo make-biased-splits --recipe splits.yaml --rho all")
@guarded
def make_biased_splits(
    recipe: Recipe = "splits.yaml", rho: Rho = None, seed: Seed = None, overrides: Set = None, workspace: WorkspaceOption = None,
    device: Device = None,
    dry_run: DryRun = False, force: Force = False, as_json: AsJson = False, jobs: Jobs = 1, accelerate: Accelerate = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Draw D_rho, in which the longer response is preferred in a share rho of the pairs, and the ensemble's subsets."""
    session = _session(**locals())
    _many(session, "splits", ("rpo train-rm", "rm.yaml", f"{_at(rho)} --ensemble"))


@app.command("train-policy", epilog="Example: rpo train-policy --recipe e-dpo.yaml --rho 0.2")
@guarded
def train_policy(
    recipe: Recipe, rho: Rho = None, seed: Seed = None, overrides: Set = None, workspace: WorkspaceOption = None, device: Device = None,
    dry_run: DryRun = False,
    force: Force = False, as_json: AsJson = False, jobs: Jobs = 1, wandb: Wandb = False, accelerate: Accelerate = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Train a policy, building every input that is missing.

    Objectives: dpo, ipo, ipo-norm, p-dpo, d-dpo, dp-dpo, e-dpo; other papers': r-dpo, dpo-sft, robust-dpo, simpo.
    """
    session = _session(**locals())
    changed = "".join(f" --set {shlex.quote(change)}" for change in overrides or ())
    _many(session, "policy", ("rpo evaluate", Path(recipe).name, _at(rho) + changed))


@app.command("evaluate", epilog="Example: rpo evaluate --recipe e-dpo.yaml --rho 0.2 --split test")
@guarded
def evaluate(
    recipe: Recipe, rho: Rho = None,
    split: Annotated[Literal["validation", "test"], typer.Option("--split", help="Prompts: validation chooses, test reports.")] = "test",
    seed: Seed = None, overrides: Set = None, workspace: WorkspaceOption = None, device: Device = None, dry_run: DryRun = False,
    force: Force = False,
    as_json: AsJson = False, jobs: Jobs = 1, wandb: Wandb = False, accelerate: Accelerate = None, debug: Debug = False,
) -> None:  # fmt: skip
    """Sample from a policy and score with the oracle: advantage over pi_SFT, length, KL, length-controlled advantage.

    The recipe is a policy's; an evaluation recipe evaluates its baseline, pi_SFT.
    """
    from rpo_cli.runs.session import planner_for

    session = _session(**locals())
    first = session.load(None)
    planner = planner_for(first)
    if first.recipe.stage == "evaluate":
        targets = [planner.build(session.load("evaluate", split=split))]
    else:
        targets = [planner.evaluation(loaded, split) for loaded in session.at_rhos("policy")]
    session.result(
        session.make(targets, first.recipe.suite), targets, _next(first, "rpo figure figure2", "figure2.yaml")
    )


@app.command("judge", epilog="Example: rpo judge --recipe own-data/dpo.yaml --model gpt-4.1-mini")
@guarded
def judge(
    recipe: Recipe, rho: Rho = None,
    split: Annotated[Literal["validation", "test"], typer.Option("--split", help="Whose samples.")] = "test",
    model: Annotated[str | None, typer.Option("--model", help="The judge. Default: `judge:` of the evaluate recipe.")] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", help="Its endpoint, such as http://localhost:8000/v1.")] = None,
    seed: Seed = None, overrides: Set = None, workspace: WorkspaceOption = None, device: Device = None, dry_run: DryRun = False,
    force: Force = False,
    as_json: AsJson = False, jobs: Jobs = 1, wandb: Wandb = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Win rate of a policy by a judge model, each pair asked in both orders; with length control and agreement with the oracle.

    Settings stand in `judge:` of the evaluate recipe; the key comes from the environment (OPENAI_API_KEY).
    """
    from rpo_cli.recipes.yaml_lines import one_line
    from rpo_cli.runs.session import planner_for

    session = _session(
        recipe=recipe, rho=rho, seed=seed, overrides=overrides, workspace=workspace, dry_run=dry_run, force=force, as_json=as_json,
        jobs=jobs, wandb=wandb, device=device,
    )  # fmt: skip
    loads = session.at_rhos("policy")
    planner = planner_for(loads[0])
    asked = {"judge.model": model, "judge.base_url": base_url}
    targets = [
        planner.judgement(loaded, split, [f"{k}={one_line(v)}" for k, v in asked.items() if v is not None])
        for loaded in loads
    ]
    session.result(session.make(targets, loads[0].recipe.suite), targets)


def _at(rho: str | None) -> str:
    return "" if rho is None else f" --rho {rho}"


def _next(loaded: Any, command: str, name: str, rest: str = "") -> str | None:
    """The next command, with the recipe of this name in the same suite; None where the suite has none."""
    from rpo_cli.recipes import RecipeError, find, shown

    beside = loaded.path.with_name(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if not beside.is_file():
        return None
    for typed in (beside.name, f"{beside.parent.name}/{beside.name}"):
        with suppress(RecipeError):
            if find(typed) == beside:
                return f"{command} --recipe {typed}{rest}"
    return f"{command} --recipe {shown(beside)}{rest}"


def _one(session: Any, stage: str, following: tuple[str, ...]) -> None:
    from rpo_cli.runs.session import planner_for

    loaded = session.load(stage)
    target = planner_for(loaded).build(loaded)
    session.result(session.make([target], loaded.recipe.suite), [target], _next(loaded, *following))


def _many(session: Any, stage: str, following: tuple[str, ...]) -> None:
    from rpo_cli.runs.session import planner_for

    loads = session.at_rhos(stage)
    planner = planner_for(loads[0])
    targets = [planner.build(loaded) for loaded in loads]
    session.result(session.make(targets, loads[0].recipe.suite), targets, _next(loads[0], *following))


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"--seeds {text}: expected whole numbers with commas, such as 0,1,2") from None


def _budget(budget: str | None, objectives: str | None, grid_size: int | None) -> Any:
    from rpo_cli.figures import Budget

    return Budget(budget == "small", objectives, grid_size)


@app.command("sweep", epilog="Example: rpo sweep --recipe figure2.yaml --rho all --seeds 0,1,2 --jobs 2")
@guarded
def sweep(
    recipe: Recipe, rho: Rho = "all", seeds: Seeds = None,
    write: Annotated[bool, typer.Option("--write/--no-write", help="Write the chosen values into the recipes' by_rho.")] = True,
    keep_weights: KeepWeights = "best", budget: BudgetOption = None, objectives: Objectives = None, grid_size: GridSize = None,
    overrides: Set = None, workspace: WorkspaceOption = None, device: Device = None, dry_run: DryRun = False, estimate: Estimate = False,
    device_name: DeviceName = None, tflops: Tflops = None, mfu: Mfu = None, price_per_hour: Price = None, params: Params = None,
    as_json: AsJson = False, jobs: Jobs = 1, wandb: Wandb = False, accelerate: Accelerate = None, debug: Debug = False,
) -> None:  # fmt: skip
    """Try the grid over beta or tau, for one policy recipe or all of a figure's; choose on validation prompts."""
    from rpo_cli.figures import run_sweep
    from rpo_cli.runs.question import asked

    session = _session(**locals())
    question = asked(dry_run, estimate, device_name, tflops, mfu, price_per_hour, params)
    reduced = _budget(budget, objectives, grid_size)
    run_sweep(session, _numbers(seeds), write, keep_weights, reduced, question)


def _figure(kind: str, text: str, name: str, example: str) -> None:
    """Add `rpo figure KIND`, whose recipe is called `name` unless another is given."""

    @figure_app.command(kind, help=text, epilog=f"Example: rpo figure {kind} {example}")
    @guarded
    def run(
        recipe: Recipe = name, rho: Rho = None, seeds: Seeds = None,
        from_results: Annotated[Path | None, typer.Option("--from", help="Redraw kept results; train nothing.")] = None,
        out: Annotated[Path | None, typer.Option("--out", help="Folder for pictures and results. Default: figures/ in the workspace.")] = None,
        allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Train nothing; draw what there is and mark the gaps.")] = False,
        tune: Annotated[bool, typer.Option("--tune", help="First choose beta and tau on validation (the full protocol).")] = False,
        keep_weights: KeepWeights = "best", budget: BudgetOption = None, objectives: Objectives = None, grid_size: GridSize = None,
        overrides: Set = None, workspace: WorkspaceOption = None, device: Device = None, dry_run: DryRun = False,
        estimate: Estimate = False, device_name: DeviceName = None, tflops: Tflops = None, mfu: Mfu = None, price_per_hour: Price = None,
        params: Params = None, as_json: AsJson = False, jobs: Jobs = 1, wandb: Wandb = False, accelerate: Accelerate = None,
        debug: Debug = False,
    ) -> None:  # fmt: skip
        from rpo_cli.figures import FigureOptions, run_figure
        from rpo_cli.runs.question import asked

        session = _session(**locals())
        question = asked(dry_run, estimate, device_name, tflops, mfu, price_per_hour, params)
        reduced = _budget(budget, objectives, grid_size)
        options = FigureOptions(
            _numbers(seeds), from_results, out, allow_missing, tune, keep_weights, reduced, question
        )
        run_figure(session, kind, options)


for _kind, _text in {
    "degeneracy": "Few pairs, many epochs: how far each objective moves chosen and rejected responses.",
    "gamma": "The weight of the forward KL: annealed, constant, none.",
    "ensemble": "e-DPO's min: its scope, the members' calibration, the size of their subsets.",
    "kl": "Estimators of the forward KL: bias, variance, cost.",
    "unbiased": "All objectives on the pairs as they are, without resampling.",
}.items():
    _figure(_kind, _text, f"figure-{_kind}.yaml", f"--recipe miniature/figure-{_kind}.yaml --jobs 2")
_figure(
    "figure2",
    "Figure 2: advantage over pi_SFT and response length against the length bias rho, with the paper's claims.",
    "figure2.yaml",
    "--recipe miniature/figure2.yaml --jobs 2 | rpo figure figure2 --from results/miniature",
)


@recipe_app.command("list", epilog="Example: rpo recipe list")
@guarded
def recipe_list(as_json: AsJson = False, debug: Debug = False) -> None:
    """All recipes that a name can mean."""
    from rpo_cli.recipes.listing import list_recipes

    list_recipes(as_json)


@recipe_app.command("show", epilog="Example: rpo recipe show e-dpo.yaml --rho 0.2")
@guarded
def recipe_show(
    recipe: Annotated[str, typer.Argument(help="Recipe: a path or a name.")],
    rho: Rho = None,
    seed: Seed = None,
    overrides: Set = None,
    debug: Debug = False,
) -> None:
    """The resolved recipe, with the file and line that each value comes from."""
    from rpo_cli.recipes import resolved_yaml

    session = _session(**locals())
    rhos = session.rhos([])
    if rhos is not None and len(rhos) != 1:
        raise BadInput(f"--rho {rho}: a recipe is shown at one rho: a number, or none")
    loaded = session.load(None) if rhos is None else session.load(None, rho=rhos[0])
    print(resolved_yaml(loaded), end="")


@recipe_app.command("check", epilog="Example: rpo recipe check recipes/miniature")
@guarded
def recipe_check(
    recipes: Annotated[list[str], typer.Argument(help="Recipes, or folders of recipes.")],
    debug: Debug = False,
) -> None:
    """Check recipes and what they refer to; every problem is named with its file and line."""
    from rpo_cli.runs.check import check_recipes

    check_recipes(recipes)


@recipe_app.command("schema", epilog="Example: rpo recipe schema --out recipes/schema.json")
@guarded
def recipe_schema(
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default: stdout.")] = None,
    debug: Debug = False,
) -> None:
    """The JSON Schema of recipes, for editor completion."""
    from rpo_cli.recipes.editor import write_schema

    write_schema(out)


@data_app.command("inspect", epilog="Example: rpo data inspect --recipe splits.yaml --rho 0.2")
@guarded
def data_inspect(
    recipe: Recipe = "data.yaml", rho: Rho = None, seed: Seed = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Rows to show with their token boundaries.")] = 2,
    max_length: Annotated[int | None, typer.Option("--max-length", min=1, help="Report the share of rows that are longer.")] = None,
    overrides: Set = None, workspace: WorkspaceOption = None, as_json: AsJson = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Rows, token boundaries, length statistics, share over max_length, longer-preferred rate."""
    from rpo_cli.runs.inspect import inspect_data

    session = _session(**locals())
    inspect_data(session, rows, max_length)


@data_app.command("fetch", epilog="Example: rpo data fetch --recipe tldr/figure2.yaml")
@guarded
def data_fetch(
    recipe: Recipe, overrides: Set = None, workspace: WorkspaceOption = None, dry_run: DryRun = False, as_json: AsJson = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Download the models and data sets that a recipe rests on, and record their commits: for machines without a network."""
    from rpo_cli.runs.fetch import fetch_data

    fetch_data(
        _session(recipe=recipe, overrides=overrides, workspace=workspace, dry_run=dry_run, as_json=as_json)
    )


@app.command("status", epilog="Example: rpo status --recipe figure2.yaml")
@guarded
def status(
    recipe: Recipe = "figure2.yaml",
    seed: Seed = None,
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """What is in the workspace, what a recipe would rebuild, and why."""
    from rpo_cli.figures import show_status

    show_status(_session(**locals()))


@app.command("doctor", epilog="Example: rpo doctor")
@guarded
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Versions, device, dtype and why, threads, disk, W&B and hub state."""
    from rpo_cli.runs.doctor import show_doctor

    show_doctor(as_json)


def entry() -> None:
    """Console script `rpo`."""
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    entry()
