"""Training starts at the reference: every first loss has its closed form, or the run stops."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Tiny

from rpo_cli.errors import RunFailed
from rpo_cli.objectives import OBJECTIVES, Pair
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.stages.training.start import NOISE, beside_reference

CHOSEN, REJECTED = torch.tensor([-20.0, -30.0, -9.0]), torch.tensor([-25.0, -12.0, -9.5])
LENGTHS = torch.tensor([10, 16, 4, 5, 12, 4])
MARGINS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
LN2 = math.log(2)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def simpo() -> float:
    per_token = CHOSEN / LENGTHS[:3] - REJECTED / LENGTHS[3:]
    return mean([softplus(0.5 - 0.7 * value) for value in per_token.tolist()])


# With beta .7 and tau .05, and the other keys' defaults.
CLOSED = {
    "dpo": [LN2],
    "p-dpo": [LN2],
    "ipo": [(1 / (2 * 0.05)) ** 2],
    "ipo-norm": [(1 / (2 * 0.05)) ** 2],
    "d-dpo": [mean([1.0, 4.0, 0.25])],
    "dp-dpo": [mean([1.0, 4.0, 0.25])],
    "e-dpo": [mean([1.0, 4.0, 0.25]), mean([0.0, 9.0, 1.0])],
    "r-dpo": [mean([softplus(-0.01 * longer) for longer in (10 - 5, 16 - 12, 4 - 4)])],
    "dpo-sft": [LN2 + mean([20 / 10, 30 / 16, 9 / 4])],
    "robust-dpo": [LN2],
    "simpo": [simpo()],
    "cdpo": [LN2],
    "chi-po": [LN2],
    "rm-dpo": [LN2],
}


def pair_read(name: str, apart: torch.Tensor | float) -> tuple[Pair, PolicyRecipe]:
    teacher = OBJECTIVES[name].teacher
    margins = MARGINS.T if teacher == "ensemble" else MARGINS[:1].T
    columns = {"ref_chosen_logps": CHOSEN, "ref_rejected_logps": REJECTED, "margins": margins}
    pair = Pair(torch.cat([CHOSEN, REJECTED]) + apart, columns, lambda: LENGTHS)
    strength = {"beta": 0.7} if OBJECTIVES[name].strength == "beta" else {"tau": 0.05}
    asked = {"stage": "policy", "objective": name, "max_steps": 1, **strength}
    return pair, PolicyRecipe.model_construct(**(PolicyRecipe(**asked).model_dump()))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_at_the_reference_has_its_closed_form(name: str) -> None:
    pair, recipe = pair_read(name, 0.0)
    found, there, allowed = beside_reference(pair, lambda p: recipe.declared.losses(p, recipe), None, 1e-3)
    torch.testing.assert_close(there, torch.tensor(CLOSED[name]))
    assert (found == there).all() and (allowed > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("noise", NOISE.values())
def test_rounding_stays_within_what_is_allowed_and_another_model_does_not(name: str, noise: float) -> None:
    worst = noise * LENGTHS.sqrt()
    for signs in torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6):
        pair, recipe = pair_read(name, signs * worst)
        found, there, allowed = beside_reference(
            pair, lambda p, recipe=recipe: recipe.declared.losses(p, recipe), None, noise
        )
        assert ((found - there).abs() <= allowed).all()
    apart = 30 * torch.tensor([1, 1, 1, -1, -1, -1]) * worst
    seen = []
    for other in (apart, -apart):  # a loss that is hardly above 0 can only rise
        pair, recipe = pair_read(name, other)
        losses_of = lambda p, recipe=recipe: recipe.declared.losses(p, recipe)  # noqa: E731
        found, there, allowed = beside_reference(pair, losses_of, None, noise)
        seen.append(((found - there).abs() > allowed).any())
    assert any(seen)


def test_a_kl_is_none_at_the_reference() -> None:
    pair, recipe = pair_read("p-dpo", 0.0)
    columns = beside_reference(pair, lambda p: recipe.declared.losses(p, recipe), torch.tensor(0.25), 1e-3)
    assert columns[:, 1].tolist() == pytest.approx([0.25, 0.0, 1e-3 * 4])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dpo.yaml", "e-dpo.yaml"])
def test_a_run_that_does_not_start_at_its_reference_stops_after_its_first_step(
    tiny: Tiny, recipe: str
) -> None:
    tiny.make(recipe, "logging_steps=1")
    file = tiny.root / "seed-0/reference-logps/relabel/logps.parquet"
    table = pq.read_table(file)
    moved = pa.array(table["ref_chosen_logps"].to_numpy() + 0.5, pa.float32())
    position = table.column_names.index("ref_chosen_logps")
    pq.write_table(table.set_column(position, "ref_chosen_logps", moved), file)
    with pytest.raises(RunFailed, match="at the reference, where training starts"):
        tiny.make(recipe, "logging_steps=1")
