"""What a report shows beside the numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from rpo_cli.figures import evidence


def cell_of(root: Path, policy: str, seed: int) -> Any:
    """A cell whose samples and baseline name their seed; prompts are of their own in each seed."""
    stages = []
    for name in (policy, "baseline"):
        folder = root / f"{name}-{seed}"
        folder.mkdir(exist_ok=True)
        prompts = [f"prompt {number} of seed {seed}" for number in range(3)]
        columns = {"prompt_id": prompts, "prompt": prompts, "response": f"{name} {seed}", "tokens": 3}
        pd.DataFrame(columns | {"finished": True}).to_parquet(folder / "samples.parquet")
        stages.append(SimpleNamespace(path=folder.name, inputs={}))
    evaluated, baseline = stages
    evaluated.inputs["baseline"] = baseline
    return SimpleNamespace(policy=policy, seed=seed, evaluation=evaluated, policy_path="untrained")


def test_samples_of_a_report_are_all_of_the_seed_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell_of(tmp_path, policy, seed) for seed in (0, 1, 2) for policy in ("dpo", "d-dpo")]
    monkeypatch.setattr(evidence, "read_by", lambda cells: [])
    monkeypatch.setattr(evidence, "_diagnosis", lambda cells, workspace: {"of": [c.seed for c in cells]})
    workspace = cast(Any, SimpleNamespace(root=tmp_path, manifest=lambda path: None))
    found = cast(Any, evidence.evidence(cells, workspace, 1))
    assert len(found["samples"]) == 3 and found["diagnosis"] == {"of": [1, 1]}
    for shown in found["samples"]:
        assert shown["prompt"].endswith("of seed 1")
        said = {each["policy"]: each["response"] for each in shown["responses"]}
        assert said == {"dpo": "dpo 1", "d-dpo": "d-dpo 1", "baseline": "baseline 1"}
