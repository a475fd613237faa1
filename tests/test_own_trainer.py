"""The script of docs/own-trainer.md, as it stands there."""

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SEED, Tiny, pairs_of, rpo
from repository import ROOT

# What TRL reads of transformers under its older name.
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
Script = Callable[..., Any]
OWN = '[row["reward_chosen"] - row["reward_rejected"]]'  # the margins of one reward model
SCRIPT = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "own-trainer.md").read_text(), flags=re.S)


@pytest.fixture
def script(learnt: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs it beside the files that it names, with keys of its configuration added; the trainer."""
    monkeypatch.chdir(tmp_path)
    pairs = [
        {name: row[name] for name in ("prompt", "chosen", "rejected")}
        for row in pairs_of(learnt.root, f"{SEED}/relabel")[:24]
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    Path("my-sft").symlink_to(learnt.root / SEED / "sft")
    Path("my-reward-model").symlink_to(learnt.root / SEED / "oracle")
    rpo("score", "pairs.jsonl", "--model", "./my-reward-model", "--out", "scored.jsonl")

    def run(steps: int, margins: str = "") -> Any:
        """Train on all pairs at once; `margins`: an expression of the script's own, in its place."""
        assert SCRIPT is not None
        more = f'save_strategy="no", use_cpu=True, max_steps={steps}, learning_rate=1e-3'
        more += ", per_device_train_batch_size=24"
        text = SCRIPT[1].replace('report_to="none"', f'report_to="none", {more}')
        assert OWN in text
        Path("script.py").write_text(text.replace(OWN, margins or OWN))
        return runpy.run_path("script.py")["trainer"]

    return run


def logged(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def scored() -> torch.Tensor:
    """The margins of the file, [n]."""
    rows = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    return torch.tensor([row["reward_chosen"] - row["reward_rejected"] for row in rows])


def test_the_first_loss_is_the_mean_square_of_the_margins_and_training_lessens_it(script: Script) -> None:
    losses = logged(script(8))
    assert losses[0] == pytest.approx(float(scored().square().mean()), rel=1e-3)
    assert losses[-1] < losses[0]


def test_of_several_reward_models_each_pair_has_the_least_loss(script: Script) -> None:
    twice = 2 * float(scored().median())
    losses = logged(script(1, f"[{OWN[1:-1]}, {twice} - ({OWN[1:-1]})]"))
    other = twice - scored()
    assert 8 < int((other.square() < scored().square()).sum()) < 16  # each teaches some pairs
    least = torch.minimum(scored().square(), other.square())
    assert losses[0] == pytest.approx(float(least.mean()), rel=1e-3)
