"""The first step: training starts at the reference, where the value of every loss is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rpo_cli.errors import RunFailed
from rpo_cli.objectives import Pair

# By how many nats, times the root of its tokens, a response may be read otherwise in another batch. Measured
# on a language model of 135M parameters and real text: at most 1.5e-5 in float32, .09 in bfloat16.
NOISE = {"float32": 1e-3, "bfloat16": 0.2}


def beside_reference(
    pair: Pair, losses_of: Callable[[Pair], Tensor], kl: Tensor | None, noise: float
) -> Tensor:
    """Each loss's mean, its value at θ = ref, and the deviation that rounding allows: the rows of [3, k].

    Columns: the members of an ensemble, else the one loss; then the KL, which is 0 there, if there is one.
    Every loss is convex in a pair's log-probs, or monotone in each of them, so it moves at most as far as at
    a corner of their ranges.
    """
    found, there = losses_of(pair), losses_of(pair.read_as_reference())
    apart = [noise * lengths.sqrt() for lengths in (pair.chosen_lengths, pair.rejected_lengths)]
    corners = [pair.read_as_reference(x * apart[0], y * apart[1]) for x in (1, -1) for y in (1, -1)]
    moved = torch.stack([losses_of(corner) - there for corner in corners]).abs().amax(0)
    allowed = moved + 1e-5 * there.abs()
    columns = torch.stack([values.mean(-1).reshape(-1) for values in (found, there, allowed)])
    if kl is None:
        return columns
    drawn = noise * pair.lengths.max().sqrt()
    return torch.cat([columns, torch.stack([kl, torch.zeros_like(kl), drawn])[:, None]], 1)


class FirstStep(TrainerCallback):
    """Stops a run whose first losses are not those of the reference; `read`: `beside_reference`'s, once."""

    def __init__(self, what: str, read: Callable[[], Tensor | None]) -> None:
        self.what, self.read = what, read

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raise RunFailed with both values after the first step; all processes see the same."""
        start = self.read() if state.global_step == 1 else None
        for found, there, allowed in () if start is None else start.T.tolist():
            if abs(found - there) > allowed:  # never so for a nan, which has a message of its own
                raise RunFailed(
                    f"{self.what}: the first loss is {found:.6g}, but at the reference, where training "
                    f"starts, it is {there:.6g} (± {allowed:.2g} for rounding): the model is not the one of "
                    "the reference log-probs, or reads the pairs otherwise; if those are of an older "
                    "version, delete reference-logps in the workspace, and the same command makes them again"
                )
