"""What a sweep tries, chooses, keeps and writes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from conftest import Tiny, rpo

from rpo_cli.artifacts import Workspace, snapshots, write_json
from rpo_cli.figures.cells import Cells, Chosen
from rpo_cli.figures.selection import Selection
from rpo_cli.figures.tuning import WeightKeeper, _write, at_edge, choice_table, choose, ties
from rpo_cli.recipes import load
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.runs.session import Session


class Shelf:
    """A workspace that only remembers whose weights it was told to drop, and what was evaluated before."""

    def __init__(self, evaluated: dict[str, float] | None = None) -> None:
        self.evaluated = evaluated or {}
        self.dropped: set[str] = set()

    def why_stale(self, path: str, identity: object) -> str | None:
        return None if path in self.evaluated else "missing"

    def finished(self, path: str) -> dict[str, Any]:
        return {"metrics": {"advantage": self.evaluated[path]}}

    def drop_weights(self, path: str) -> None:
        self.dropped.add(path)


def swept(value: float, seed: int) -> Any:
    name = f"{value:g}/{seed}"
    evaluation = SimpleNamespace(path=f"evaluation/{name}", identity={}, kind="evaluate")
    return SimpleNamespace(
        policy="dpo",
        rho=0.2,
        seed=seed,
        setting={"beta": value},
        evaluation=evaluation,
        policy_path=f"policy/{name}",
        weights=[f"policy/{name}"],
    )


ADVANTAGES = {
    (0.1, 0): 0.9,
    (0.1, 1): 0.1,
    (0.2, 0): 0.6,
    (0.2, 1): 0.6,
    (0.4, 0): 0.2,
    (0.4, 1): 1.0,
    (0.8, 0): 0.0,
    (0.8, 1): 0.0,
}


def test_a_sweep_says_which_one_value_does_best_over_all_rho() -> None:
    advantages = {0.2: {0.1: 1.0, 0.2: 0.8, 0.4: 0.1}, 0.5: {0.1: 0.1, 0.2: 0.8, 0.4: 1.0}}
    rows = [
        {"policy": "dpo", "rho": rho, "parameter": "beta", "value": value, "advantage": advantage}
        for rho, values in advantages.items()
        for value, advantage in values.items()
    ]
    table = choice_table(choose(rows), [0.2, 0.5], rows)
    assert [[*column.cells] for column in table.columns] == [
        ["dpo"],
        ["beta 0.1"],
        ["beta 0.4"],
        ["beta 0.2"],
    ]
    assert table.columns[-1].header == "one for all rho"
    assert table.title == "chosen on validation prompts"


def test_a_tie_of_what_chooses_is_said_and_is_no_edge_of_a_grid() -> None:
    rows = [
        {"policy": name, "rho": None, "parameter": "beta", "value": value, "accuracy": accuracy}
        for name, by_value in {"dpo": {0.3: 0.8, 0.03: 0.8, 0.1: 0.8}, "cdpo": {0.03: 0.9, 0.3: 0.7}}.items()
        for value, accuracy in by_value.items()
    ]
    chosen, equals = choose(rows), ties(rows)
    assert chosen["dpo"] == chosen["cdpo"] == {None: {"beta": 0.03}}
    assert [*equals.values()] == [
        "dpo without resampling: a tie: accuracy is the same with "
        "beta 0.03, beta 0.1, beta 0.3; the smallest is taken"
    ]
    grid = [{"beta": value} for value in (0.03, 0.1, 0.3)]
    edge = "cdpo without resampling: beta 0.03 is at the edge of its grid"
    assert [*at_edge(chosen, {"dpo": grid, "cdpo": grid}, equals)] == [edge]
    assert choice_table(chosen, [None], rows).title == "chosen on held-out pairs"


def test_a_strength_and_a_learning_rate_are_chosen_together() -> None:
    """The best pair, which the best of each alone would miss; the least pair of equals, in this order."""
    advantages = {(0.1, 1e-3): 0.9, (0.1, 3e-3): 0.9, (0.3, 1e-3): 0.1, (0.3, 3e-3): 1.0}
    rows = [
        {
            "policy": "dpo",
            "rho": 0.5,
            "parameter": "beta",
            "value": beta,
            "learning_rate": rate,
            "advantage": a,
        }
        for (beta, rate), a in advantages.items()
    ]
    assert choose(rows) == {"dpo": {0.5: {"beta": 0.3, "learning_rate": 3e-3}}}
    assert choose(rows[:3]) == {"dpo": {0.5: {"beta": 0.1, "learning_rate": 1e-3}}}
    (said,) = ties(rows[:3]).values()
    assert "is the same with beta 0.1 learning_rate 0.001, beta 0.1 learning_rate 0.003; the smallest" in said
    tried = [{"beta": beta, "learning_rate": rate} for beta in (0.03, 0.1, 0.3) for rate in (1e-3, 3e-3)]
    assert [*at_edge(choose(rows), {"dpo": tried})] == ["dpo at rho 0.5: beta 0.3 is at the edge of its grid"]


def test_equal_budgets_are_those_that_are_tried(empty: Tiny) -> None:
    empty.edit("dpo.yaml", "grid: {beta: [1, 2, 3, 4, 5, 6]}")
    empty.edit("ipo.yaml", "grid: {tau: [1, 2, 3], learning_rate: [1.0e-3, 2.0e-3]}")
    sweep = (
        "compare",
        empty.suite / "dpo.yaml",
        empty.suite / "ipo.yaml",
        "--rho",
        "0.5",
        "--sweep",
        "--dry-run",
    )
    assert "6 grid values each" in rpo(*sweep, "--workspace", empty.root).stdout
    said = rpo(*sweep, "--workspace", empty.root, "--grid-size", "2", code=2).stderr
    assert "grids of different sizes (dpo 2, ipo 4)" in said


@pytest.mark.slow
def test_a_sweep_of_strength_and_learning_rate_writes_both_and_what_it_trained_is_the_policy(
    tiny: Tiny,
) -> None:
    tiny.edit("dpo.yaml", "grid: {learning_rate: [1.0e-3, 2.0e-3], beta: [0.1, 0.4]}")
    said = tiny.run("sweep", "dpo.yaml", "--rho", "0.5", "--seeds", "0", "--json")
    rows = pd.read_csv(tiny.root / "sweeps/dpo.csv")
    assert len(rows.drop_duplicates(["value", "learning_rate"])) == len(rows) == 4
    best = rows.loc[rows["advantage"].idxmax()]
    chosen = {"beta": best["value"], "learning_rate": best["learning_rate"]}
    assert json.loads(said.stdout)["chosen"] == {"dpo": {"0.5": chosen}}
    assert load(str(tiny.suite / "dpo.yaml"), rho=0.5).recipe.by_rho == {0.5: chosen}
    again = tiny.run("train-policy", "dpo.yaml", "--rho", "0.5", "--dry-run")
    assert "0 stages to build" in again.stderr, again.output
    kept = [path.parent.name for path in (tiny.root / "seed-0/rho-0.5/policies").rglob("model.safetensors")]
    assert "beta-{beta:g}-learning_rate-{learning_rate:g}".format(**chosen) in kept


@pytest.mark.parametrize("before", [0, 3, 8])
@pytest.mark.parametrize("order", ["by seed", "by value", "backwards"])
def test_a_sweep_keeps_every_seeds_weights_of_the_value_that_will_be_chosen(order: str, before: int) -> None:
    """0.2 and 0.4 are equal in the mean over seeds; the smaller is chosen, though seeds prefer others."""
    cells = [swept(value, seed) for value, seed in ADVANTAGES]
    if order == "by seed":
        cells.sort(key=lambda cell: cell.seed)
    if order == "backwards":
        cells.reverse()
    rows = [
        {
            "policy": "dpo",
            "rho": 0.2,
            "seed": c.seed,
            "parameter": "beta",
            "value": c.setting["beta"],
            "advantage": ADVANTAGES[c.setting["beta"], c.seed],
        }
        for c in cells
    ]
    assert choose(rows) == {"dpo": {0.2: {"beta": 0.2}}}
    found = {cell.evaluation.path: ADVANTAGES[cell.setting["beta"], cell.seed] for cell in cells}
    shelf = Shelf({path: found[path] for path in list(found)[:before]})
    # A shelf has what the keeper asks of a workspace, and notes what is dropped.
    keeper = WeightKeeper(cells, shelf)  # type: ignore[arg-type]
    for cell in cells[before:]:
        keeper(cell.evaluation, {"metrics": {"advantage": found[cell.evaluation.path]}})
    assert shelf.dropped == {f"policy/{value:g}/{seed}" for value in (0.1, 0.4, 0.8) for seed in (0, 1)}


def test_a_resumed_sweep_knows_what_it_evaluated_with_a_model_of_the_hub(
    empty: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty.edit("policy.yaml", "model_name_or_path: some/model")
    empty.edit("dpo.yaml", "grid: {beta: [0.1, 0.2]}")
    workspace = Workspace(empty.root, "tiny")
    workspace.open()
    write_json(snapshots.lock_file(workspace), {"models": {"some/model@main": "c0ffee"}})
    maker = Cells(load(str(empty.suite / "dpo.yaml")))
    cell = maker.cell("dpo", 0.5, 0, "validation", {"beta": 0.1})
    before = cell.evaluation.key
    snapshots.pin([cell.evaluation], workspace)
    assert cell.evaluation.key != before
    (empty.root / cell.evaluation.path).mkdir(parents=True)
    workspace.publish(cell.evaluation.path, {**cell.evaluation.identity, "metrics": {"advantage": 1.0}})
    keepers: list[WeightKeeper] = []

    def try_all(self: Session, targets: object, suite: str, finished: WeightKeeper, **more: object) -> None:
        keepers.append(finished)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "try_all", try_all)
    empty.run("sweep", "dpo.yaml", "--rho", "0.5", "--seeds", "0", code=130)
    assert [setting for _, _, setting in keepers[0].seen] == [(0.1,)]


def test_a_choice_takes_the_place_of_an_earlier_one_and_of_nothing_else_in_by_rho(empty: Tiny) -> None:
    empty.edit("dpo.yaml", "by_rho: {0.2: {beta: 0.1, learning_rate: 1.0e-6}, 0.8: {beta: 0.3}}")
    maker = Cells(load(str(empty.suite / "dpo.yaml")))
    chosen: Chosen = {"dpo": {0.2: {"beta": 0.4}, 0.5: {"beta": 0.7}}}
    session = Session(recipe=str(empty.suite / "dpo.yaml"))
    _write(session, maker, Selection(["dpo"], [0.2, 0.5], [0]), chosen)
    assert cast(PolicyRecipe, load(str(empty.suite / "dpo.yaml")).recipe).by_rho == {
        0.2: {"beta": 0.4, "learning_rate": 1e-6},
        0.5: {"beta": 0.7},
        0.8: {"beta": 0.3},
    }
