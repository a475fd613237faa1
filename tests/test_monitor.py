"""Looks at a policy while it trains change nothing of it, say what is so, and flag what the rules say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SEED, Tiny, journal, weights
from worlds import Plain, logp

from rpo_cli.stages.training.monitor import MOVED, over_optimised

ROOT = Path(__file__).resolve().parent.parent
LOOKS = ("monitor_steps=2", "monitor_prompts=8")
DROPOUT = ("use_peft=true", "lora_dropout=0.5", "lora_r=2")


def looks(folder: Path) -> list[dict[str, float]]:
    return [line for line in journal(folder) if "monitor/tokens" in line]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's
@pytest.mark.parametrize("more", [(), DROPOUT])
def test_looking_changes_no_bit_of_the_policy_and_no_key(tiny: Tiny, more: tuple[str, ...]) -> None:
    if more:
        pytest.importorskip("peft")
    folder, plain = tiny.make("e-dpo.yaml", *more)
    before, lines = weights(folder), journal(folder)
    looked_at, manifest = tiny.make("e-dpo.yaml", *more, *LOOKS)
    assert looked_at == folder and manifest["key"] == plain["key"] and weights(folder) == before
    assert [line for line in journal(folder) if "loss" in line] == lines
    assert [look["step"] for look in looks(folder)] == [0, 2, 4, 6]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_looks(tiny: Tiny) -> None:
    folder, _ = tiny.make("dpo.yaml", *LOOKS)
    before, found = weights(folder), looks(folder)

    def stop(step: int, of: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.make("dpo.yaml", *LOOKS, "save_steps=3", progress=stop)
    job = tiny.run(
        "train-policy", "dpo.yaml", *(part for key in (*LOOKS, "save_steps=3") for part in ("--set", key))
    )
    assert "held-out accuracy" in job.stdout and "on 8 pairs, margin" in job.stdout
    assert weights(folder) == before and looks(folder) == found


def test_a_look_says_what_the_saved_policy_says(tiny: Tiny) -> None:
    folder, manifest = tiny.make("e-dpo.yaml", *LOOKS)
    plain = Plain(tiny.root)
    policy, reference = plain.policy(folder), plain.policy(f"{SEED}/sft")
    held_out = plain.pairs("held_out")[:8]
    moved = []
    for pair in held_out:
        of = [
            logp(policy, pair.prompt, side) - logp(reference, pair.prompt, side)
            for side in (pair.chosen, pair.rejected)
        ]
        moved.append(of[0] - of[1])
    last = looks(folder)[-1]
    assert last["monitor/accuracy"] == np.mean(np.array(moved) > 0)
    assert last["monitor/margin"] == pytest.approx(0.2 * np.mean(moved), abs=1e-5)
    alike = []
    for member in (0.2, 0.5, 0.8):
        margins = (
            plain.scores(member, "held_out").set_index("id")["margin"].loc[[pair.id for pair in held_out]]
        )
        alike.append(float(np.mean(np.sign(moved) == np.sign(margins.to_numpy()))))
    assert (last["monitor/teachers_lowest"], last["monitor/teachers_highest"]) == (min(alike), max(alike))
    drawn = pd.read_parquet(folder / "monitor.parquet")["sample_ids"]
    kl = [
        logp(reference, pair.prompt, list(map(int, ids))) - logp(policy, pair.prompt, list(map(int, ids)))
        for pair, ids in zip(held_out, drawn, strict=True)
    ]
    assert last["monitor/kl_to_reference"] == pytest.approx(np.mean(kl), abs=1e-5)
    first = looks(folder)[0]
    assert first["monitor/tokens"] == np.mean([len(ids) for ids in drawn])
    assert first["monitor/kl_to_reference"] == pytest.approx(0, abs=1e-6)
    metrics = manifest["metrics"]
    assert metrics["monitor/tokens"] == last["monitor/tokens"]
    assert metrics["monitor/tokens_before"] == first["monitor/tokens"]


def look(step: int, tokens: float) -> dict[str, float]:
    return {"step": step, "monitor/tokens": tokens}


def test_samples_that_get_a_fifth_longer_or_shorter_are_flagged() -> None:
    for after, said in ((12.0, "20 % longer"), (8.0, "20 % shorter"), (11.5, ""), (8.5, "")):
        lines = over_optimised([look(0, 10), look(5, after)])
        assert (said in lines[0]) if said else lines == []


def share(right: pd.Series, seeds: pd.Series) -> tuple[float, float, float]:
    """A share of cells, with its interval over seeds drawn with replacement."""
    rng = np.random.default_rng(0)
    counts = right.groupby(seeds).agg(["sum", "count"]).to_numpy(float)
    drawn = counts[rng.integers(len(counts), size=(4000, len(counts)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(right.mean()), float(low), float(high)


def test_the_rule_of_length_is_right_as_often_as_the_docs_say() -> None:
    """On every policy that was tried on validation and kept in results/miniature."""
    results = ROOT / "results/miniature"
    before = pd.read_parquet(results / "cells.parquet").groupby("seed")["baseline_tokens"].mean()
    studies = ("ensemble", "gamma", "members", "unbiased")
    cells = pd.concat(
        [pd.read_csv(results / f"{name}/validation.csv").assign(study=name) for name in studies]
    )
    cells = cells.reset_index(drop=True).assign(rho=cells["rho"].fillna(0).to_numpy())
    flagged = (cells["tokens_mean"] / cells["seed"].map(before) - 1).abs() >= MOVED
    group = ["study", "policy", "rho", "seed"]
    both = cells.reset_index().merge(cells, on=group, suffixes=("", "_near"))
    nearer = both[both["kl_to_reference_near"] < both["kl_to_reference"]]
    better = set(nearer.loc[nearer["advantage_near"] > nearer["advantage"], "index"])
    surely = set(nearer.loc[nearer["low_near"] > nearer["high"], "index"])
    page = " ".join((ROOT / "docs/diagnose.md").read_text().split())
    said = f"{flagged.sum()} of {len(cells)} policies"
    for over in (better, surely):
        right = cells.index.to_series().isin(over)
        for some in (flagged, ~flagged):
            mean, low, high = share(right[some], cells.loc[some, "seed"])
            said += f"; {100 * mean:.1f} % ({100 * low:.1f} … {100 * high:.1f})"
        said += f"; {(right & flagged).sum()} of {right.sum()}"
    print(said)
    for part in said.split("; "):
        assert part in page, said


def test_the_last_step_is_looked_at_though_it_is_no_multiple(tiny: Tiny) -> None:
    folder, manifest = tiny.make("dpo.yaml", "monitor_steps=4", "monitor_prompts=8", "max_new_tokens=3")
    found = looks(folder)
    assert [look["step"] for look in found] == [0, 4, 6]
    assert manifest["metrics"]["monitor/tokens"] == found[-1]["monitor/tokens"]
    # Of at most three tokens hardly a sample ends.
    assert all(look["monitor/unfinished_share"] > 0.5 for look in found)
    assert all(look["monitor/tokens"] <= 3 for look in found)
