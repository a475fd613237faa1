"""Of a policy's checkpoints validation chooses one: which, from what, and the same after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import RHO, Tiny, journal, manifest, weights

AT = f"{RHO}/policies/dpo/beta-0.2"
SELECT = "select: validation\ncheckpoints: 3\n"


@pytest.fixture
def chosen(tiny: Tiny) -> Tiny:
    """A workspace in which validation has chosen among three checkpoints of DPO's run."""
    tiny.edit("dpo.yaml", SELECT)
    tiny.run("train-policy", "dpo.yaml")
    return tiny


def test_the_best_of_evenly_spaced_checkpoints_is_the_policy_and_its_manifest_has_all_values(
    chosen: Tiny,
) -> None:
    found = manifest(chosen.root, AT)
    metrics = found["metrics"]
    values = []
    for number, step in enumerate((2, 4, 6), 1):
        assert metrics[f"kept/{number}"] == step
        path = f"{RHO}/evaluations/dpo/beta-0.2-checkpoints/{number}/validation"
        values.append(manifest(chosen.root, path)["metrics"]["advantage"])
        assert metrics[f"validation/{number}"] == values[-1]
    best = values.index(max(values)) + 1
    assert metrics["selected/checkpoint"] == best and metrics["selected/step"] == 2 * best
    kept = chosen.root / f"{AT}-checkpoints"
    assert weights(chosen.root / AT) == weights(kept / f"checkpoint-{best}")
    assert len({weights(kept / f"checkpoint-{n}") for n in (1, 2, 3)}) == 3
    assert (chosen.root / AT / "README.md").is_file() and not (kept / "README.md").exists()


def test_keeping_checkpoints_changes_nothing_of_the_training(chosen: Tiny, tmp_path: Path) -> None:
    kept = chosen.root / f"{AT}-checkpoints"
    plain, _ = chosen.make("dpo.yaml", "select=last")
    assert weights(plain) == weights(kept / "checkpoint-3") and journal(plain) == journal(kept)
