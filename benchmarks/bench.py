"""Where and how much is measured, and a row of the table that comes of it."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.contestants import Maker
from benchmarks.race import Spent
from benchmarks.workloads import Row, Scale, Shape, causal, described, reward, token_rows
from rpo_cli.devices import Device
from rpo_cli.models import pair_logps, pair_rewards
from rpo_cli.stages.data import miniature


@dataclass
class Comparison:
    """One row of the table. `ratio`: how many times the baseline's speed (or share of memory) ours is."""

    what: str
    workload: str
    ours: str
    baseline: str
    ratios: list[float]
    bar: str = ""
    passed: bool | None = None
    raw: dict[str, list[Any]] = field(default_factory=dict)
    wall_ratio: float | None = None  # median of the same ratios on the clock
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        spread = (
            {"median": statistics.median(self.ratios), "min": min(self.ratios), "max": max(self.ratios)}
            if self.ratios
            else {}
        )
        return {**asdict(self), **spread}


@dataclass(frozen=True)
class Bench:
    """Where and how much is measured."""

    scale: Scale
    device: Device
    folder: Path

    @property
    def clock(self) -> str:
        """What is counted: a CPU's seconds with one thread, which others disturb less; else the clock's."""
        return "cpu" if self.device.name == "cpu" and torch.get_num_threads() == 1 else "wall"

    def seconds(self, spent: Spent) -> float:
        """The seconds that count."""
        return float(getattr(spent, self.clock))

    def compare(
        self,
        what: str,
        workload: str,
        spent: dict[str, list[Spent]],
        ours: str,
        baseline: str,
        at_least: float | None,
        unit: str = "steps/s",
        work: float = 1.0,
    ) -> Comparison:
        """Speed of `ours` over that of `baseline`, round by round."""
        rounds = list(zip(spent[ours], spent[baseline], strict=True))
        ratios = [self.seconds(b) / self.seconds(a) for a, b in rounds]
        speed = {
            name: f"{name}: {work / statistics.median(map(self.seconds, spent[name])):.3g} {unit}"
            for name in (ours, baseline)
        }
        result = Comparison(
            what, workload, speed[ours], speed[baseline], ratios, raw={n: spent[n] for n in (ours, baseline)}
        )
        result.wall_ratio = statistics.median(b.wall / a.wall for a, b in rounds)
        if at_least is not None:
            result.bar, result.passed = f"≥ {at_least:g}", statistics.median(ratios) >= at_least
        return result

    def maker(self, batch: int, pieces: int = 1) -> Maker:
        return Maker(
            miniature.build_tokenizer(), self.device, batch, Path(tempfile.mkdtemp(dir=self.folder)), pieces
        )

    def step_maker(self) -> tuple[Maker, int, str]:
        """For comparing steps: a maker, the pairs of an optimiser batch, and how that is said."""
        size, pieces = self.scale.step
        return self.maker(size, pieces), size * pieces, f"{size * pieces} pairs, {size} at a time"

    def reference_logps(self, settings: dict[str, Any], rows: list[Row], maker: Maker) -> PreTrainedModel:
        """A reference of other weights than the policy's, as equal ones hide mistakes; fills the rows."""
        model = causal(settings, maker.tokenizer, 1, self.device.name)
        with self.device.autocast():
            both = pair_logps(model, token_rows(rows), 2 * self.scale.batch)
        for row, (chosen, rejected) in zip(rows, both.tolist(), strict=True):
            row["ref_chosen_logps"], row["ref_rejected_logps"] = chosen, rejected
        return model

    def margins(self, settings: dict[str, Any], rows: list[Row], maker: Maker) -> list[PreTrainedModel]:
        """Reward models of random weights; fills the rows."""
        models = [
            reward(settings, maker.tokenizer, 10 + k, self.device.name) for k in range(self.scale.members)
        ]
        columns = []
        for model in models:
            with self.device.autocast():
                scores = pair_rewards(model, token_rows(rows), 2 * self.scale.batch)
            columns.append(scores[:, 0] - scores[:, 1])
        for row, values in zip(rows, np.stack(columns, 1).tolist(), strict=True):
            row["margins"] = values
        return models


def _described(
    settings: dict[str, Any], model: PreTrainedModel, shape: Shape, rows: list[Row], batch: str
) -> str:
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return (
        f"{shape.name}: {settings['model_type']} {size:.1f}M, vocabulary {settings['vocab_size']}, "
        f"{batch}, {described(rows)}"
    )
