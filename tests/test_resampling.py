"""Tables of cells and the choice of a sweep: which draws are shared, what is averaged, and who wins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rpo_cli.figures.kinds.figure2 import numbers
from rpo_cli.figures.table import UNIT, Axes, Bootstrap, over_seeds, resample
from rpo_cli.figures.tuning import choose
from rpo_cli.statistics import resample_means

SEEDS = [0, 1, 2]
AXES = Axes(["dpo", "e-dpo"], [0.5], SEEDS, ("advantage", "tokens", "baseline_tokens"))


def cells(prompts: int = 40, *, own_prompts: bool = False, alike: bool = False) -> pd.DataFrame:
    """Two policies at one rho under three seeds; `alike`: every seed has the same numbers."""
    parts = []
    for seed in SEEDS:
        rng = np.random.default_rng(0 if alike else seed)
        ids = [f"{seed if own_prompts else 0}-{i:02d}" for i in range(prompts)]
        for shift, policy in enumerate(("dpo", "e-dpo")):
            values = np.round(rng.normal(shift, 1, size=prompts), 4)
            keys: dict[str, Any] = {"policy": policy, "rho": 0.5, "seed": seed, "prompt_id": ids}
            parts.append(
                pd.DataFrame(keys | {"advantage": values, "tokens": 5.0 + shift, "baseline_tokens": 6.0})
            )
    return pd.concat(parts, ignore_index=True)


def drawn(frame: pd.DataFrame, **options: Any) -> np.ndarray:
    """[resamples, seeds, policies] of the advantage."""
    return np.asarray(resample(frame, AXES, Bootstrap(50, 3), **options).drawn[:, :, :, 0, 0])


def values_of(frame: pd.DataFrame) -> list[np.ndarray]:
    wide = frame.pivot(index=["seed", "prompt_id"], columns="policy", values="advantage")
    return [wide.loc[seed].to_numpy() for seed in SEEDS]


@pytest.mark.parametrize("resample_seeds", [True, False])
def test_seeds_with_the_same_prompts_share_a_draw_and_others_do_not(resample_seeds: bool) -> None:
    for own_prompts in (False, True):
        frame = cells(own_prompts=own_prompts)
        shared, apart = (
            resample_means(values_of(frame), 50, 3, same_prompts=same, resample_seeds=resample_seeds)
            for same in (True, False)
        )
        found = drawn(frame, resample_seeds=resample_seeds)
        right, wrong = (apart, shared) if own_prompts else (shared, apart)
        assert found == pytest.approx(right, abs=UNIT / 100)
        assert np.abs(found - wrong).max() > 0.01


def test_seeds_that_agree_on_every_prompt_leave_the_interval_of_one_of_them() -> None:
    frame = cells(60, alike=True)  # of fewer one seed has Student's t
    many = numbers(frame, AXES, Bootstrap(400))
    one = numbers(frame[frame["seed"] == 0], AXES._replace(seeds=[0]), Bootstrap(400))
    for name in ("advantage", "prompt_low", "prompt_high"):
        assert many[name].tolist() == one[name].tolist()
    apart = numbers(cells(60, alike=True, own_prompts=True), AXES, Bootstrap(400))
    assert (
        (apart["advantage_high"] - apart["advantage_low"])
        < 0.75 * (one["advantage_high"] - one["advantage_low"])
    ).all()


def test_the_table_holds_means_and_percentiles_of_the_draws() -> None:
    frame = cells()
    rows = numbers(frame, AXES, Bootstrap(200, 3)).set_index("policy")
    draws = resample(frame, AXES, Bootstrap(200, 3)).drawn
    for place, policy in enumerate(("dpo", "e-dpo")):
        own = frame[frame["policy"] == policy]
        assert rows.loc[policy, "advantage"] == pytest.approx(own["advantage"].mean(), abs=1e-6)
        assert rows.loc[policy, "tokens"] == own["tokens"].mean() and rows.loc[policy, "baseline_tokens"] == 6
        low, high = np.percentile(over_seeds(draws[:, :, place, 0, 0], 1), [2.5, 97.5])
        assert (rows.loc[policy, "advantage_low"], rows.loc[policy, "advantage_high"]) == pytest.approx(
            (low, high), abs=1e-6
        )
        assert rows.loc[policy, ["seeds", "prompts"]].tolist() == [3, 40]


def test_a_seed_that_lacks_a_cell_is_left_out_of_its_mean() -> None:
    frame = cells()
    frame = frame[~((frame["policy"] == "dpo") & (frame["seed"] == 1))]
    row = numbers(frame, AXES, Bootstrap(50)).set_index("policy").loc["dpo"]
    own = frame[frame["policy"] == "dpo"].groupby("seed")["advantage"].mean()
    assert row["seeds"] == 2 and row["advantage"] == pytest.approx(own.mean(), abs=1e-6)


def sweep(*rows: tuple[str, float, int, float, float]) -> list[dict[str, Any]]:
    names = ("policy", "rho", "seed", "value", "advantage")
    return [
        {**dict(zip(names, row, strict=True)), "parameter": "tau" if row[0] == "ipo" else "beta"}
        for row in rows
    ]


def test_the_choice_is_the_best_mean_over_seeds_the_smaller_of_equals() -> None:
    rows = sweep(
        ("dpo", 0.2, 0, 0.1, 1.0), ("dpo", 0.2, 1, 0.1, 0.0), ("dpo", 0.2, 0, 0.3, 0.4),
        ("dpo", 0.2, 1, 0.3, 0.8), ("dpo", 0.8, 0, 0.3, 0.5), ("dpo", 0.8, 0, 0.1, 0.5),
        ("dpo", 0.8, 0, 1.0, -2.0), ("ipo", 0.2, 0, 0.1, -3.0), ("ipo", 0.2, 0, 0.5, -1.0),
    )  # fmt: skip
    expected = {"dpo": {0.2: {"beta": 0.3}, 0.8: {"beta": 0.1}}, "ipo": {0.2: {"tau": 0.5}}}
    assert choose(rows) == expected == choose(rows[::-1])
