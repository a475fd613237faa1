"""Which member e-DPO's min takes: over a pair, over the whole optimiser batch, or over the data set.

A min inside each micro-batch would change with the micro-batch size, the accumulation and the number of
processes; here the choice is made once for an optimiser step, over all of it. Averages, choice and counts
stay on the device of the batches; the host reads them where metrics are logged and checkpoints written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

EnsembleScope = Literal["example", "batch", "dataset"]
OverProcesses = Callable[[Tensor], Tensor]  # the mean or the sum of a [k] tensor over all processes


def ensemble_losses(
    losses: Tensor, scope: EnsembleScope, *, choice: Tensor | int | None = None
) -> tuple[Tensor, Tensor]:
    """The losses that e-DPO's min_i keeps, and the member it chose for every pair.

    `losses` [k, B] → (losses [B], chosen [B] int64). `example`: each pair takes its own least member.
    `batch`, `dataset`: every pair takes member `choice`, decided by `MemberChoice`. Without `choice`, `batch`
    decides over `losses`, which is right only when they *are* the whole optimiser batch. Raises ValueError
    when `dataset` has no choice or `example` has one. Source: e-DPO; the paper's min is outside the
    expectation (`dataset`).
    """
    if scope == "example":
        if choice is not None:
            raise ValueError("scope 'example' lets every pair choose its member: pass no choice")
        chosen = losses.argmin(0)
    else:
        if choice is None:
            if scope == "dataset":
                raise ValueError("scope 'dataset' needs the member chosen over the data set: pass choice")
            # A min per micro-batch would change with micro-batch size, accumulation and world size.
            choice = losses.mean(1).argmin()
        chosen = torch.as_tensor(choice, device=losses.device).expand(losses.shape[1])
    # gather, because losses[choice] with a 0-dimensional tensor reads the index back to the host.
    return losses.gather(0, chosen.unsqueeze(0)).squeeze(0), chosen


class MemberChoice:
    """State of the min over k members during training.

    `averages` [k] float64, squared reward units, follow the members' losses over the data set and decide the
    `dataset` scope: per optimiser step decay·old + (1 − decay)·batch. Source: ours; the paper does not say
    how the min over the data set is followed during training.

    Args:
        names: [k], the members' biases, for the histogram.
        margins: [k, n] calibrated reward margins of the whole training set, which are finite: their mean
        squares are the exact data-set losses at theta = ref, with which the averages begin.
    """

    def __init__(self, scope: EnsembleScope, names: Sequence[str], margins: Tensor, decay: float) -> None:
        self.scope = scope
        self.names = list(names)
        self.averages = margins.double().square().mean(1)
        self.decay = decay
        self.counts = torch.zeros(len(names), dtype=torch.float64)
        self.choice: Tensor | None = None
        self._since_log = torch.zeros(len(names))
        self._sums = torch.zeros(len(names))
        self._taught = torch.zeros(len(names))
        self._batches = 0

    def begin_step(self, choice: Tensor | None) -> None:
        """Fix the member for a step.

        choice: the member decided over the whole optimiser batch; None if the batch is one micro-batch, or
        the scope decides otherwise.
        """
        self.choice = self.averages.argmin() if self.scope == "dataset" else choice
        self._sums = torch.zeros_like(self._sums)
        self._batches = 0

    def reduce(self, losses: Tensor, batch_mean: OverProcesses) -> Tensor:
        """[k, B] member losses of a micro-batch to the [B] losses that count.

        `batch_mean` averages a [k] tensor over processes; needed when the micro-batch is a process's whole
        batch.
        """
        means = losses.detach().mean(1)
        self._sums = self._sums.to(means.device) + means
        self._batches += 1
        choice = self.choice
        if self.scope == "batch" and choice is None:
            choice = batch_mean(means).argmin()
        kept, chosen = ensemble_losses(losses, self.scope, choice=None if self.scope == "example" else choice)
        # Not bincount, which asks the device for the largest entry.
        members = torch.arange(len(self.names), device=chosen.device)
        self._taught = self._taught.to(chosen.device) + (chosen == members[:, None]).sum(1)
        return kept

    def end_step(self, batch_mean: OverProcesses, batch_sum: OverProcesses) -> None:
        """Average in the whole batch's losses, and count whom its pairs learnt from in all processes."""
        taught = batch_sum(self._taught)
        self._since_log = self._since_log.to(taught.device) + taught
        self._taught = torch.zeros_like(taught)
        if self.scope == "dataset" and self._batches:
            batch_losses = batch_mean(self._sums / self._batches)
            old = self.averages.to(batch_losses.device)
            self.averages = self.decay * old + (1 - self.decay) * batch_losses.double()

    def shares(self) -> dict[str, float]:
        """Share of pairs that each member taught since the last call."""
        recent = self._since_log.cpu().double()
        self._since_log = torch.zeros_like(self._since_log)
        self.counts += recent
        return self._shares(recent)

    def all_shares(self) -> dict[str, float]:
        """Share of pairs that each member taught over the whole run."""
        self.shares()
        return self._shares(self.counts)

    def _shares(self, taught: Tensor) -> dict[str, float]:
        total = max(1.0, float(taught.sum()))
        counts = zip(self.names, taught.tolist(), strict=True)
        return {f"members/{name}": count / total for name, count in counts}

    def state(self) -> dict[str, object]:
        """What a checkpoint must hold."""
        return {
            "ema": {"losses": self.averages.tolist()},
            "counts": self.counts.tolist(),
            "since_log": self._since_log.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.averages = torch.tensor(state["ema"]["losses"], dtype=torch.float64)
        self.counts = torch.tensor(state["counts"], dtype=torch.float64)
        self._since_log = torch.tensor(state["since_log"])
