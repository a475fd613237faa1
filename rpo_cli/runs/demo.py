"""`rpo demo`: DPO beside a distilled policy under length bias, in the embedded world."""

from __future__ import annotations

import pandas as pd

from rpo_cli.artifacts import Stage
from rpo_cli.recipes import load
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.session import Session
from rpo_cli.text import aligned

SUITE, BASELINE = "demo.yaml", "the model before"
ABOUT = """\
A small model summarises posts. In {share} of its training pairs the shorter summary is preferred.
dpo learns from these pairs. e-dpo distils two reward models, each trained on pairs of another bias, and
takes for each pair the one that it can follow best. The reward model that labelled all pairs judges both on
{prompts} new posts.
"""
NEXT = """\
One seed of a toy, trained for seconds: it shows what is measured, not which method is better. What ten seeds
say: docs/results.md.

  rpo init mine --pairs pairs.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct    your own pairs and model
  rpo recipe show {suite}:e-dpo    what was trained, value by value
"""


def demo(session: Session) -> None:
    """Build both policies and their evaluations, then print what came out, whatever it is."""
    policies = {name: load(f"{SUITE}:{name}") for name in ("dpo", "e-dpo")}
    planner = Planner(0)
    stages = {name: planner.evaluation(loaded, "test") for name, loaded in policies.items()}
    workspace = session.make(list(stages.values()), "demo")
    if session.dry_run:
        return
    baseline = stages["dpo"].inputs["baseline"]
    assert isinstance(baseline, Stage)
    samples = {
        name: pd.read_parquet(workspace.root / stage.path / "samples.parquet").set_index("prompt_id")
        for name, stage in {BASELINE: baseline, **stages}.items()
    }
    metrics = {name: workspace.finished(stage.path)["metrics"] for name, stage in stages.items()}
    rho, prompts = getattr(policies["dpo"].recipe, "rho", 0.0), len(samples["dpo"])
    print(ABOUT.format(share=f"{1 - rho:.0%}", prompts=prompts))
    print(
        aligned([("", "reward", "against the model before", "tokens"), *_rows(samples, metrics)], (1, 2, 3))
    )
    for prompt in _telling(samples):
        print(" ".join(samples["dpo"].loc[prompt, "prompt"].split()))
        rows = {name: table.loc[prompt] for name, table in samples.items()}
        shown = [
            (f"  {name}", f"reward {row['reward']:+.1f}", f"{row['tokens']} tokens", row["response"].strip())
            for name, row in rows.items()
        ]
        print(aligned(shown, (1, 2)))
    print(NEXT.format(suite=SUITE), end="")


def _rows(samples: dict[str, pd.DataFrame], metrics: dict[str, dict[str, float]]) -> list[list[str]]:
    rows = []
    for name, table in samples.items():
        found = metrics.get(name)
        gain = (
            ""
            if found is None
            else "{advantage:+.2f} [{advantage_low:+.2f}, {advantage_high:+.2f}]".format(**found)
        )
        rows.append([name, f"{table['reward'].mean():.2f}", gain, f"{table['tokens'].mean():.1f}"])
    return rows


def _telling(samples: dict[str, pd.DataFrame]) -> list[str]:
    """The first two prompts to which the policies answer differently."""
    differ = samples["dpo"]["response"] != samples["e-dpo"]["response"].loc[samples["dpo"].index]
    return list(samples["dpo"].index[differ][:2])
