"""One command's run: plan, say what will be built and why, build, report. A dry run imports nothing heavy."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from rpo_cli.artifacts import Launch, Stage, Workspace, snapshots, told_where, walk
from rpo_cli.errors import BadInput
from rpo_cli.recipes import Loaded, RecipeError, article, load, same, schema, source
from rpo_cli.runs import preflight, processes, results, room
from rpo_cli.runs.answerable import before_training
from rpo_cli.runs.options import Options
from rpo_cli.runs.planning.data import suite_rhos
from rpo_cli.runs.pool import execute
from rpo_cli.runs.question import Question
from rpo_cli.runs.todo import Todo, as_json, built_on, what_to_run
from rpo_cli.text import WIDEST, clock, counted

MANY = 25


def stdout() -> Console:
    """The console of results: as wide as the terminal, or without one so wide that nothing is folded."""
    console = Console(emoji=False)
    return console if console.is_terminal else Console(width=WIDEST, emoji=False)


@dataclass(frozen=True)
class Session(Options):
    """The options every command shares, and the consoles: stdout is data, stderr is talk.

    named: whether the command line names the recipe, where a command has one of its own.
    """

    named: bool = False
    err: Console = field(default_factory=lambda: Console(stderr=True, emoji=False))
    out: Console = field(default_factory=stdout)

    @property
    def at(self) -> str:
        """The --rho of this command, to type behind another."""
        return "" if self.rho is None else f" --rho {self.rho}"

    @property
    def changes(self) -> str:
        """What --set changed, to type behind another command."""
        return "".join(f" --set {shlex.quote(change)}" for change in self.overrides)

    @property
    def given(self) -> str:
        """Where and under which seed this command works, to type behind another."""
        options = {"--workspace": self.workspace, "--seed": self.seed, "--device": self.device}
        return "".join(
            f" {name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None
        )

    def load(
        self,
        expect: str | None,
        *,
        rho: float | Literal["none"] | None = None,
        among: Sequence[str] = (),
        **flags: object,
    ) -> Loaded:
        """The recipe that was asked for, under this session's seed and overrides and these flags."""
        flags["device"] = self.device
        return load(
            self.recipe,
            rho=rho,
            seed=self.seed,
            overrides=self.overrides,
            flags=flags,
            expect=expect,
            among=among,
        )

    def kind_among(self, kinds: Sequence[str], takes: str) -> str:
        """The kind of this command's recipe; BadInput, with what it `takes`: none of these."""
        stage = self.load(None, among=kinds).recipe.stage
        if stage not in kinds:
            raise BadInput(f"{self.recipe}: is {article(stage)} recipe; {takes}")
        return stage

    def rhos(self, default: Sequence[float | None]) -> list[float | None] | None:
        """Values of --rho: numbers, `none`, or `all` (the recipe's or the suite's); None: its own."""
        if self.rho is None:
            return None
        if self.rho == "all":
            return list(default)
        values: list[float | None] = []
        for part in self.rho.split(","):
            try:
                values.append(None if part.strip() == "none" else float(part))
            except ValueError:
                raise BadInput(
                    f"--rho {self.rho}: expected a number between 0 and 1, several with commas, all, or none"
                ) from None
            last = values[-1]
            if last is not None and not 0 < last < 1:
                raise BadInput(f"--rho {self.rho}: {last:g} is not between 0 and 1")
        if len(set(values)) < len(values):
            raise BadInput(f"--rho {self.rho}: one of them twice")
        return values

    def one_rho(self, what: str) -> float | Literal["none"] | None:
        """The --rho of what is done at one, as `load` takes it."""
        rhos = self.rhos([])
        if rhos is not None and len(rhos) != 1:
            raise BadInput(f"--rho {self.rho}: {what} at one rho: a number, or none")
        return None if rhos is None else rhos[0] or "none"

    def at_rhos(self, expect: str) -> list[Loaded]:
        """The recipe once for each --rho."""
        first = self.load(expect)
        if "rho" not in type(first.recipe).model_fields:
            if self.rho is not None:
                raise BadInput(f"--rho: {first.path.name} is a {expect} recipe and knows no rho")
            return [first]
        rhos = self.rhos(suite_rhos(first))
        loads = [first] if rhos is None else [self.load(expect, rho=rho or "none") for rho in rhos]
        for loaded in loads:
            self.note_unchosen(loaded)
        return loads

    def note_unchosen(self, loaded: Loaded) -> None:
        """Say what a policy is trained with at a rho for which nothing was chosen, unlike for others."""
        recipe = loaded.recipe
        if (
            not isinstance(recipe, schema.PolicyRecipe)
            or recipe.rho is None
            or any(same(recipe.rho, rho) for rho in recipe.by_rho)
        ):
            return
        names = sorted({name for chosen in recipe.by_rho.values() for name in chosen} - set(loaded.overrides))
        values = [f"{name} {getattr(recipe, name)} from {source(loaded, (name,))}" for name in names]
        if values:
            self.say(f"note: {loaded.path.name} chose nothing for rho {recipe.rho:g}; {', '.join(values)}")

    def open(self, suite: str) -> Workspace:
        """The workspace of a suite: --workspace, or runs/<suite>; BadInput without the name of one."""
        if not suite:
            raise BadInput(
                f"{self.recipe}: the name of its folder can be no suite's; set `suite:` to one that can"
            )
        return Workspace(self.workspace or Path("runs") / suite, suite)

    def make(self, targets: Sequence[Stage], suite: str, **kwargs: Any) -> Workspace:
        """Build what the targets lack; on --dry-run only say it."""
        self.try_all(targets, suite, **kwargs)
        return self.open(suite)

    def try_all(
        self, targets: Sequence[Stage], suite: str, question: Question | None = None, **kwargs: Any
    ) -> set[str]:
        """Build what the targets lack; the stages that diverged, of those of which that is no failure.

        question: what a dry run says of the costs besides.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise BadInput(
                "WORLD_SIZE is above 1: start rpo once, without accelerate launch or torchrun, and with "
                "--accelerate FILE"
            )
        launch = self.launch()
        workspace = self.open(suite)
        if (note := workspace.check()) is not None:
            self.say(f"note: {note}")
        forced = [target.path for target in targets] if self.force else []
        if not self.dry_run:
            snapshots.record(targets, workspace, self.say)
        todo = what_to_run(targets, workspace, forced)
        self.announce(todo, walk(targets), workspace)
        processes.check((item.stage for item in todo), launch)
        if targets and isinstance(recipe := targets[0].recipe, schema.TrainingRecipe):
            self.say(f"effective batch: {processes.cut_of(recipe, launch)}, {recipe.duration}")
        if self.dry_run:
            self.show_plan(todo, workspace, question, processes.are_several(launch))
            return set()
        if todo:
            snapshots.require([item.stage for item in todo], workspace, self.recipe)
            from rpo_cli import devices

            preflight.check(todo, workspace, self.jobs)
            device = devices.choose(targets[0].recipe)
            jobs = max(1, min(self.jobs, len(todo)))
            sharing = jobs if device.name == "cuda" else 1
            threads = targets[0].recipe.threads or devices.threads_of_a_worker(sharing)
            self.say(f"device: {device}; threads: {threads}")
            built = {item.stage.path for item in todo}
            reused = [stage for stage in walk(targets) if stage.path not in built]
            self.note_devices(reused, workspace, device.name)
            fitting = before_training([item.stage for item in todo], workspace)
            return self.carry_out(todo, workspace, launch, jobs=jobs, before=fitting, **kwargs)
        return set()

    def carry_out(
        self, todo: Sequence[Todo], workspace: Workspace, launch: Launch | None, **kwargs: Any
    ) -> set[str]:
        """Run a plan; see `pool.execute`, to which `kwargs` go."""
        with told_where(workspace.root, self.tracks(item.stage for item in todo), self.say):
            return execute(
                todo,
                workspace,
                self.err,
                inherited={"report_to": "wandb"} if self.wandb else {},
                launch=launch,
                check=lambda: preflight.check_models(todo),
                **kwargs,
            )

    def launch(self) -> Launch | None:
        """What --accelerate asks for; None: it was not given.

        Raises:
            BadInput: its file cannot be read.
        """
        return None if self.accelerate is None else processes.read_launch(self.accelerate)

    def tracks(self, stages: Iterable[Stage]) -> bool:
        """Whether runs of Weights & Biases are asked for, by --wandb or by one of these stages."""
        return self.wandb or any(stage.recipe.report_to == "wandb" for stage in stages)

    def show_plan(
        self, todo: Sequence[Todo], workspace: Workspace, question: Question | None, several: bool
    ) -> None:
        """Print the plan's stages as JSON where --json asks for it, and its costs where a question does."""
        found: dict[str, Any] = {}
        if question is not None:
            from rpo_cli.runs.estimate import estimate, lines

            found["estimate"] = estimate(todo, workspace, question, several=several)
        if self.as_json:
            self.print_json({"todo": as_json(todo), **found} if found else as_json(todo))
        elif found:
            print("\n" + "\n".join(lines(found["estimate"])))

    def announce(self, todo: Sequence[Todo], stages: Sequence[Stage], workspace: Workspace) -> None:
        """First lines: where, what is built and why, what is reused, how long it should take.

        Raises:
            RecipeError: what is built cannot be.
        """
        planned = [item.stage for item in todo]
        if found := preflight.problems(planned):
            raise RecipeError(found)
        notes = preflight.notes(stages) + preflight.tracking(self.tracks(stages)) + preflight.absent(planned)
        for line in notes + room.tight(planned, workspace.root, self.jobs):
            self.say(f"note: {line}")
        for line in preflight.unready(planned, workspace) if self.dry_run else ():
            self.say(f"warning: {line}")
        reused = len(stages) - len(todo)
        self.say(
            f"workspace {workspace.root}: {counted(len(todo), 'stage')} to build, {reused} up to date or not "
            "needed"
        )
        lines = [f"{item.stage.kind:9} {item.stage.path}  ({item.reason})" for item in todo]
        if self.dry_run and not self.as_json:
            # What was asked for, hence whole and on stdout; flushed, to stand where it belongs between lines
            # of stderr.
            print("".join(f"{line}\n" for line in lines), end="", flush=True)
        else:
            for line in lines[:MANY]:
                self.say(f"  {line}")
            if len(todo) > MANY:
                self.say(f"  ... and {len(todo) - MANY} more")
        if stale := built_on(todo, workspace):
            self.say(
                f"note: replaces finished artifacts on which {stale} others in {workspace.root} were built, "
                "which become stale; --workspace keeps trials apart"
            )
        trainings = [item.stage.recipe for item in todo if schema.KINDS[item.stage.kind].trains]
        if unmeasured := sum(recipe.expected_seconds is None for recipe in trainings):
            have = counted(unmeasured, "training has", "trainings have")
            why = f"{have} no expected_seconds; the ETA follows their steps"
            self.say(f"expected: unknown, {why}")
        elif todo:
            total = sum(item.seconds for item in todo)
            expected = clock(total / max(1, min(self.jobs, len(todo))))
            self.say(
                f"expected: {expected} with --jobs {self.jobs} (first estimate, corrected as stages finish)"
            )

    def note_devices(self, reused: Sequence[Stage], workspace: Workspace, device: str) -> None:
        """Say which reused artifacts were made on another device: of the same key, with other roundings."""
        recorded = [
            workspace.manifest(stage.path) for stage in reused if schema.KINDS[stage.kind].needs_model
        ]
        made_on = Counter(
            str(found["device"]).split(",")[0]
            for found in recorded
            if found is not None and "device" in found
        )
        for other, count in sorted(made_on.items()):
            if other != device:
                made = f"{counted(count, 'artifact')} made on {other}, in the dtype asked for"
                self.say(f"note: reuses {made}; this is {device}")

    def say(self, line: str) -> None:
        self.err.print(line, highlight=False, markup=False, soft_wrap=True)

    def print_json(self, value: object) -> None:
        """As JSON, where what is no number, as a correlation of constants, is null."""
        plain = json.loads(json.dumps(value), parse_constant=lambda name: None)
        print(json.dumps(plain, indent=2, sort_keys=True))

    def result(self, workspace: Workspace, targets: Sequence[Stage], next_command: str | None = None) -> None:
        """Last lines: metrics, paths, the next command."""
        if self.dry_run:
            return
        found = {target.path: workspace.finished(target.path) for target in targets}
        if self.as_json:
            self.print_json(
                {path: {"path": str(workspace.root / path), **manifest} for path, manifest in found.items()}
            )
            return
        for path, manifest in found.items():
            print(workspace.root / path)
            if lines := results.in_words(manifest["kind"], manifest["metrics"], manifest.get("recipe")):
                print("".join(f"  {line}\n" for line in lines), end="")
            else:
                grid = Table(box=None, show_header=False, padding=(0, 2))
                for name, value in manifest["metrics"].items():
                    grid.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
                self.out.print(grid, markup=False)
            for line in results.warnings_of(manifest["metrics"]):
                self.say(f"warning: {path}: {line}")
        if next_command:
            self.say(f"next: {next_command}{self.given}")
