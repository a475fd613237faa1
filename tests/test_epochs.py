"""Every epoch shows every row once, and no two epochs in one order.

At a learning rate that moves no weight, the metrics of a step say which rows its batch held.
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Tiny, column, journal, weights
from test_policy_training import Stop

STILL = "learning_rate=1e-30"
# Recipe, settings, member, the metric that tells rows apart, steps of an epoch.
STAGES: dict[str, tuple[str, tuple[str, ...], float | None, str, int]] = {
    "policy": ("dpo.yaml", ("per_device_train_batch_size=16",), None, "logps/chosen", 4),
    "policy, accumulated": (
        "dpo.yaml",
        ("per_device_train_batch_size=4", "gradient_accumulation_steps=4"),
        None,
        "logps/chosen",
        4,
    ),
    "member": ("rm.yaml", ("per_device_train_batch_size=8",), 0.2, "margin", 5),
    "sft": ("sft.yaml", ("per_device_train_batch_size=20",), None, "loss", 10),
}


def epochs(tiny: Tiny, name: str, *more: str) -> list[list[float]]:
    """The metric of each step, by epoch; three epochs."""
    recipe, settings, member, metric, steps = STAGES[name]
    arguments: dict[str, Any] = {} if member is None else {"member": member}
    directory, _ = tiny.make(recipe, *settings, STILL, f"max_steps={3 * steps}", *more, **arguments)
    values = column(directory, metric)[: 3 * steps]
    assert len(values) == 3 * steps
    return [values[start : start + steps] for start in range(0, 3 * steps, steps)]


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_epochs_have_the_same_rows_in_other_orders(pupil: Tiny, name: str) -> None:
    found = epochs(pupil, name)
    means = [sum(values) / len(values) for values in found]
    # TRL's loss of SFT is a mean over tokens, which batches do not have in equal number.
    assert means == pytest.approx([means[0]] * 3, rel=1e-2 if name == "sft" else 1e-4, abs=2e-6)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert sorted(found[one]) != pytest.approx(sorted(found[other]), rel=1e-5, abs=1e-7), (one, other)
    assert len({round(value, 7) for values in found for value in values}) > len(found[0])


def test_the_order_is_the_seeds(pupil: Tiny) -> None:
    one, other = (epochs(pupil, "policy", f"policy_seed={seed}") for seed in (0, 7))
    assert sorted(one[0]) != pytest.approx(sorted(other[0]), rel=1e-5)
    assert sum(one[0]) == pytest.approx(sum(other[0]), rel=1e-5)


@pytest.mark.slow
def test_a_run_interrupted_in_its_second_epoch_ends_as_if_it_had_not_been(pupil: Tiny) -> None:
    """From the checkpoint of step 6, two steps into the second epoch; the line of step 7 is there already."""
    settings = ("per_device_train_batch_size=16", "max_steps=10", "save_steps=6")
    directory, _ = pupil.make("dpo.yaml", *settings)
    final, lines = weights(directory), journal(directory)
    with pytest.raises(KeyboardInterrupt):
        pupil.make("dpo.yaml", *settings, progress=Stop(at=8))
    assert [line["step"] for line in journal(directory)] == list(range(1, 8))
    watch = Stop()
    pupil.make("dpo.yaml", *settings, progress=watch)
    assert watch.steps == [7, 8, 9, 10]
    assert journal(directory) == lines and weights(directory) == final
