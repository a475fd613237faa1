"""What the commands do that make a stage's artifact: plan it at every --rho, make it, say what comes next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from rpo_cli.artifacts import Stage
from rpo_cli.errors import BadInput
from rpo_cli.recipes import Loaded, article, either, short_name, there
from rpo_cli.recipes.yaml_lines import one_line
from rpo_cli.runs.check import would_run
from rpo_cli.runs.options import Costs
from rpo_cli.runs.planner import planner_for
from rpo_cli.runs.question import Question, asked
from rpo_cli.runs.session import Session
from rpo_cli.runs.work import QUIET_ENVIRONMENT

TABLES = ("data", "pairs", "relabel", "splits")  # the kinds that make tables of texts
NO_COSTS = Costs()
Next = tuple[
    str, str, str
]  # a command, a recipe's name, further options: what one would type after this command


def build(
    session: Session, stage: str, following: Next, *, members: bool = False, costs: Costs = NO_COSTS
) -> None:
    """Make what the recipe, one of this stage, describes at every --rho; `members`: its ensemble instead."""
    question = asked(session.dry_run, costs)
    _make(session, *wanted(session, stage, members=members), following, question)


def wanted(session: Session, stage: str, *, members: bool = False) -> tuple[Loaded, list[Stage]]:
    """The recipe, one of this stage, and what it makes at every --rho; `members`: its ensemble instead."""
    loads = session.at_rhos(stage)
    planner = planner_for(loads[0])
    made = [planner.members(loaded) if members else [planner.build(loaded)] for loaded in loads]
    return loads[0], [target for targets in made for target in targets]


def train_policy(session: Session, costs: Costs) -> None:
    """Train the policy of a recipe; the command after it evaluates the same, what --set changed included."""
    following = ("rpo evaluate", session.load("policy").path.name, session.at + session.changes)
    build(session, "policy", following, costs=costs)


def evaluate(session: Session, split: str, costs: Costs) -> None:
    """Evaluate the policy of a recipe at every --rho, or the baseline of an evaluation recipe.

    Without an oracle a policy's held-out pairs are measured too.
    """
    question = asked(session.dry_run, costs)
    _make(session, *evaluated(session, split), ("rpo figure figure2", "figure2.yaml", ""), question)


def evaluated(session: Session, split: str) -> tuple[Loaded, list[Stage]]:
    """A recipe, and the evaluations of its policy at every --rho, or of an evaluation recipe's baseline."""
    first = session.load(None, among=("evaluate", "policy"))
    planner = planner_for(first)
    if first.recipe.stage == "evaluate":
        return first, [planner.build(session.load("evaluate", split=split))]
    loads = session.at_rhos("policy")
    evaluations = [planner.evaluation(loaded, split) for loaded in loads]
    if "oracle" in evaluations[0].inputs:
        return first, evaluations
    taught = [stage for each in zip(loads, evaluations, strict=True) for stage in planner.taught(*each)]
    return first, [*evaluations, *map(planner.held_out, loads), *taught]


def judge(session: Session, split: str, model: str | None, base_url: str | None) -> None:
    """Have a judge compare the samples of the policy of a recipe at every --rho."""
    loads = session.at_rhos("policy")
    planner = planner_for(loads[0])
    asked = {"judge.model": model, "judge.base_url": base_url}
    overrides = [f"{key}={one_line(value)}" for key, value in asked.items() if value is not None]
    _make(session, loads[0], [planner.judgement(loaded, split, overrides) for loaded in loads])


def inspect_data(session: Session, rows: int, max_length: int | None) -> None:
    """Print what a recipe of TABLES makes, and `rows` rows of each of its kinds of table.

    Raises:
        BadInput: another recipe, or no tokenizer to count with.
    """
    loads = session.at_rhos(session.kind_among(TABLES, f"data inspect takes a {either(TABLES)} recipe"))
    planner = planner_for(loads[0])
    targets = [planner.build(loaded) for loaded in loads]  # wrong ones fail before a heavy import
    os.environ.update(QUIET_ENVIRONMENT)
    from rpo_cli.runs.inspect import inspect

    inspect(session, planner, loads, targets, rows, max_length)


def diagnose(session: Session, *, members: bool) -> None:
    """Say what the pairs of a recipe prefer and what its reward models know of them.

    Raises:
        BadInput: a recipe without pairs.
    """
    kinds = (*TABLES, "reward", "policy")
    stage = session.kind_among(kinds, f"diagnose takes a {either(kinds)} recipe")
    if members and stage != "reward":
        raise BadInput(
            f"--ensemble: {session.recipe} is {article(stage)} recipe; the members are a reward recipe's"
        )
    loads = session.at_rhos(stage)
    planner = planner_for(loads[0])
    for loaded in loads:
        planner.diagnosis(loaded, members=members)  # says what is wrong before anything heavy is imported
    os.environ.update(QUIET_ENVIRONMENT)
    from rpo_cli.runs.diagnose import diagnose

    diagnose(session, planner, loads, members=members)


def _make(
    session: Session,
    loaded: Loaded,
    targets: Sequence[Stage],
    following: Next | None = None,
    question: Question | None = None,
) -> None:
    workspace = session.make(targets, loaded.recipe.suite, question=question)
    session.result(workspace, targets, None if following is None else _as_typed(loaded, *following))


def _as_typed(loaded: Loaded, command: str, name: str, rest: str) -> str | None:
    """A command on the recipe of this name in the suite of another; None where it would not run."""
    beside = loaded.path.with_name(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if not there(beside) or not would_run(command, beside):
        return None
    return f"{command} {shlex.quote(short_name(beside))}{rest}"
