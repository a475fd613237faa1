"""What an objective declares, once and for all who ask, and what its loss may read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor as Tensor
else:  # a mistake in a recipe is reported before torch is imported
    Tensor = Any


@dataclass(frozen=True)
class Key:
    """A recipe's key that only some objectives or teachers read; those that share it name the same Key.

    description: what stands behind the names of the objectives, `r-dpo's …`; of a teacher's key the whole.
    bounds: pydantic's ge, gt, le, lt. start: what `rpo init` writes, where that is not the default.
    """

    name: str
    type: Any
    default: Any
    description: str
    bounds: Mapping[str, Any] = field(default_factory=dict)
    start: float | None = None


@dataclass(frozen=True)
class Objective:
    """All that recipes, plans, training and figures ask about an objective.

    loss: (pair, strength, keys; by name) to losses [B]; [k, B], one row for each member, where the teacher is
    an ensemble. strength: the key that is swept; only beta is a factor of the reward. teacher: whose margins
    it distils. grid, weight: values of the strength that `rpo init` writes, the middle one to start with, and
    what it says of them. pessimistic: whether γ·KL(π_ref ‖ π_θ) is added. reference_free: the loss reads no
    log-prob of the reference.
    """

    name: str
    summary: str
    equation: str
    source: str
    loss: Callable[..., Tensor]
    strength: Literal["beta", "tau"] = "beta"
    grid: tuple[float, float, float] = (0.03, 0.1, 0.3)
    weight: str = "smaller strays further from the reference"
    teacher: Literal["none", "one", "ensemble"] = "none"
    pessimistic: bool = False
    reference_free: bool = False
    keys: tuple[Key, ...] = ()

    def losses(self, pair: Pair, recipe: object) -> Tensor:
        """`loss` with the values of a recipe."""
        names = (self.strength, *(key.name for key in self.keys))
        return self.loss(pair, **{name: getattr(recipe, name) for name in names})

    @property
    def help(self) -> str:
        """One line: `dpo: direct preference optimisation, -log sigmoid(beta dh) (Rafailov et al. 2023)`."""
        return f"{self.name}: {self.summary}, {self.equation} ({self.source})"


@dataclass(frozen=True)
class Pair:
    """What a loss may read of B pairs: log-probabilities in nats, summed over a response's tokens; all [B].

    logps: [2B or more] of π_θ, the chosen responses first, then the rejected ones. columns: of the batch,
    ref_chosen_logps and ref_rejected_logps [B], and margins [B, k] where there are teachers. count_tokens:
    the responses' lengths in the order of `logps`; called only where a loss asks for them.
    """

    logps: Tensor
    columns: Mapping[str, Tensor]
    count_tokens: Callable[[], Tensor]

    def __len__(self) -> int:
        return len(self.columns["ref_chosen_logps"])

    @property
    def chosen_logps(self) -> Tensor:
        return self.logps[: len(self)]

    @property
    def rejected_logps(self) -> Tensor:
        return self.logps[len(self) : 2 * len(self)]

    @cached_property
    def h_chosen(self) -> Tensor:
        """h(y) = log π_θ(y|x) − log π_ref(y|x) of the chosen responses."""
        return self.chosen_logps - self.columns["ref_chosen_logps"]

    @cached_property
    def h_rejected(self) -> Tensor:
        return self.rejected_logps - self.columns["ref_rejected_logps"]

    @cached_property
    def delta_h(self) -> Tensor:
        """h(y_w) − h(y_l)."""
        return self.h_chosen - self.h_rejected

    def read_as_reference(self, chosen: Tensor | float = 0.0, rejected: Tensor | float = 0.0) -> Pair:
        """The same pairs where θ = ref, with these nats [B] added to the responses' log-probs."""
        import torch

        reference = self.columns["ref_chosen_logps"] + chosen, self.columns["ref_rejected_logps"] + rejected
        return replace(self, logps=torch.cat(reference))

    @property
    def margins(self) -> Tensor:
        """Each teacher's r(x, y_w) − r(x, y_l): [k, B], reward units."""
        return self.columns["margins"].T

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each response, in the order of `logps`."""
        return self.count_tokens()

    @property
    def chosen_lengths(self) -> Tensor:
        return self.lengths[: len(self)]

    @property
    def rejected_lengths(self) -> Tensor:
        return self.lengths[len(self) : 2 * len(self)]
