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


def select_member(member_losses: Tensor) -> Tensor:
    """Index of the member with the least loss; the first of equals.

    `member_losses` [k] → index, a 0-dimensional int64 tensor that carries no gradient. Source: e-DPO, the
    min.
    """
    return member_losses.argmin()


def ensemble_losses(
    losses: Tensor, scope: EnsembleScope, *, choice: Tensor | int | None = None
) -> tuple[Tensor, Tensor]:
    """The losses that e-DPO's min_i keeps, and the member it chose for every pair.

    `losses` [k, B] → (losses [B], chosen [B] int64). `example`: each pair takes its own least member.
    `batch`, `dataset`: every pair takes member `choice`, decided over the whole optimiser batch or by
    `MemberEma`. Without `choice`, `batch` decides over `losses`, which is right only when they *are* the
    whole optimiser batch. Raises ValueError when `dataset` has no choice or `example` has one. Source: e-DPO;
    the paper's min is outside the expectation (`dataset`).
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
            choice = select_member(losses.mean(1))
        chosen = torch.as_tensor(choice, device=losses.device).expand(losses.shape[1])
    # gather, because losses[choice] with a 0-dimensional tensor reads the index back to the host.
    return losses.gather(0, chosen.unsqueeze(0)).squeeze(0), chosen


class MemberEma:
    """Exponential moving average of every member's data-set loss, which decides the `dataset` scope.

    `losses` [k] float64, squared reward units, per optimiser step decay·old + (1 − decay)·batch. They stay on
    the device of the batches: neither an update nor a choice is read back to the host. Source: ours; the
    paper does not say how the min over the data set is followed during training.
    """

    def __init__(self, losses: Tensor, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        self.losses = losses.double()
        self.decay = decay

    @classmethod
    def from_rewards(cls, delta_r: Tensor, decay: float) -> MemberEma:
        """The average at step 0: exact losses over the data set, since Δh = 0 makes them E[Δr²].

        `delta_r` [k, N] over the whole training set. Raises ValueError for another shape, a margin that is
        not finite (the average would never forget it) or a decay outside [0, 1).
        """
        if delta_r.dim() != 2 or delta_r.shape[1] == 0:
            shape = tuple(delta_r.shape)
            raise ValueError(f"delta_r must be [members, pairs] with at least one pair, not {shape}")
        if not bool(delta_r.isfinite().all()):
            raise ValueError("delta_r must be finite")
        return cls(delta_r.double().square().mean(1), decay)

    def update(self, batch_losses: Tensor) -> None:
        """Moves the average towards `batch_losses` [k], the members' means over one whole optimiser batch.

        Raises ValueError when their number is not k. That they are finite cannot be asked without waiting for
        the device:
        with finite margins they are whenever the policy's log-probs are, and so the loss that is logged.
        """
        if batch_losses.shape != self.losses.shape:
            raise ValueError(f"expected {len(self.losses)} member losses, got {tuple(batch_losses.shape)}")
        old = self.losses.to(batch_losses.device)
        self.losses = self.decay * old + (1 - self.decay) * batch_losses.double()

    def choice(self) -> Tensor:
        """Index of the member with the least average, as `select_member` gives it."""
        return select_member(self.losses)

    def state_dict(self) -> dict[str, list[float]]:
        """What a checkpoint must hold; the decay belongs to the recipe."""
        return {"losses": self.losses.tolist()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restores `state_dict`. Raises ValueError when it was made by another number of members."""
        if len(state["losses"]) != len(self.losses):
            found, mine = len(state["losses"]), len(self.losses)
            raise ValueError(f"the checkpoint has {found} members, this run {mine}")
        self.losses = torch.tensor(state["losses"], dtype=torch.float64)


class MemberChoice:
    """State of the min over k members during training.

    Args:
        names: [k], the members' biases, for the histogram.
        margins: [k, n] calibrated reward margins of the whole training set: the exact data-set losses at
        theta = ref.
    """

    def __init__(self, scope: EnsembleScope, names: Sequence[str], margins: Tensor, decay: float) -> None:
        self.scope = scope
        self.names = list(names)
        self.ema = MemberEma.from_rewards(margins, decay)
        self.counts = torch.zeros(len(names), dtype=torch.float64)
        self.choice: Tensor | None = None
        self._since_log = torch.zeros(len(names))
        self._sums = torch.zeros(len(names))
        self._taught = torch.zeros(len(names))
        self._batches = 0

    def begin_step(self, choice: Tensor | None) -> None:
        """Fix the member for a step: the EMA's, or the one decided over the batch; None: it is one piece."""
        self.choice = self.ema.choice() if self.scope == "dataset" else choice
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
            choice = select_member(batch_mean(means))
        kept, chosen = ensemble_losses(losses, self.scope, choice=None if self.scope == "example" else choice)
        # Not bincount, which asks the device for the largest entry.
        members = torch.arange(len(self.names), device=chosen.device)
        self._taught = self._taught.to(chosen.device) + (chosen == members[:, None]).sum(1)
        return kept

    def end_step(self, batch_mean: OverProcesses, batch_sum: OverProcesses) -> None:
        """Tell the EMA the whole batch's losses, and count whom its pairs learnt from in all processes."""
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
            "ema": self.ema.state_dict(),
            "counts": self.counts.tolist(),
            "since_log": self._since_log.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state["ema"])
        self.counts = torch.tensor(state["counts"], dtype=torch.float64)
        self._since_log = torch.tensor(state["since_log"])
