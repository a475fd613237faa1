"""Which member e-DPO's min chose: over a pair, over the whole optimiser batch, or over the data set.

A min inside each micro-batch would change with the micro-batch size, the accumulation and the number of processes; here the
choice is made once for an optimiser step, over all of it. Averages, choice and counts stay on the device of the batches; the
host reads them where metrics are logged and checkpoints written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from rpo_cli.objectives import MemberEma, ensemble_losses, select_member


class MemberChoice:
    """State of the min over k members during training.

    Args:
        names: [k], the members' biases, for the histogram.
        margins: [k, n] calibrated reward margins of the whole training set: the exact data-set losses at theta = ref.
    """

    def __init__(self, scope: Literal["dataset", "batch", "example"], names: Sequence[str], margins: torch.Tensor, decay: float) -> None:
        self.scope = scope
        self.names = list(names)
        self.ema = MemberEma.from_rewards(margins, decay)
        self.counts = torch.zeros(len(names), dtype=torch.float64)
        self.choice: torch.Tensor | None = None
        self._since_log = torch.zeros(len(names))
        self._sums = torch.zeros(len(names))
        self._taught = torch.zeros(len(names))
        self._batches = 0

    def begin_step(self, choice: torch.Tensor | None) -> None:
        """Fix the member for a step: the EMA's, or the one decided over the batch; None: micro-batch = batch."""
        self.choice = self.ema.choice() if self.scope == "dataset" else choice
        self._sums = torch.zeros_like(self._sums)
        self._batches = 0

    def reduce(self, losses: torch.Tensor, batch_mean: Any) -> torch.Tensor:
        """[k, B] member losses of a micro-batch to the [B] losses that count.

        `batch_mean` averages a [k] tensor over processes; needed when the micro-batch is a process's whole batch.
        """
        means = losses.detach().mean(1)
        self._sums = self._sums.to(means.device) + means
        self._batches += 1
        choice = self.choice
        if self.scope == "batch" and choice is None:
            choice = select_member(batch_mean(means))
        kept, chosen = ensemble_losses(losses, self.scope, choice=None if self.scope == "example" else choice)
        # Not bincount, which asks the device for the largest entry.
        members = torch.arange(len(self.names), device=chosen.device)
        self._taught = self._taught.to(chosen.device) + (chosen == members[:, None]).sum(1)
        return kept

    def end_step(self, batch_mean: Any, batch_sum: Any) -> None:
        """Tell the EMA the whole batch's member losses, and count whom each of its pairs learnt from, in all processes."""
        taught = batch_sum(self._taught)
        self._since_log = self._since_log.to(taught.device) + taught
        self._taught = torch.zeros_like(taught)
        if self.scope == "dataset" and self._batches:
            self.ema.update(batch_mean(self._sums / self._batches))

    def shares(self) -> dict[str, float]:
        """Share of pairs that each member taught since the last call."""
        recent = self._since_log.cpu().double()
        self._since_log = torch.zeros_like(self._since_log)
        self.counts += recent
        total = max(1.0, float(recent.sum()))
        return {f"members/{name}": share / total for name, share in zip(self.names, recent.tolist(), strict=True)}

    def all_shares(self) -> dict[str, float]:
        """Share of pairs that each member taught over the whole run."""
        self.shares()
        total = max(1.0, float(self.counts.sum()))
        return {f"members/{name}": share / total for name, share in zip(self.names, self.counts.tolist(), strict=True)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"ema": self.ema.state_dict(), "counts": self.counts.tolist(), "since_log": self._since_log.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state["ema"])
        self.counts = torch.tensor(state["counts"], dtype=torch.float64)
        self._since_log = torch.tensor(state["since_log"])
