"""What d-dpo and dp-dpo may distil: one reward model, what an ensemble makes of its margins or weights, or
scores that the data has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rpo_cli.objectives.base import Key, Tensor


@dataclass(frozen=True)
class Teacher:
    """How the margins of one teacher come about.

    description: its part of the help of `teacher:`. scored: what reads the pairs, `reward_model`, each member
    of `ensemble`, one model with the mean of their weights, or none, where the data has scores. combine:
    (margins [k, n], keys by name) to [n]. unseen: of pairs that members were trained on the member says it
    that was not trained on the pair's prompt; `combine` is for pairs that none has seen.
    """

    name: str
    description: str
    scored: Literal["one", "members", "weights", "columns"]
    combine: Callable[..., Tensor] | None = None
    keys: tuple[Key, ...] = ()
    unseen: bool = False

    def of(self, margins: Tensor, recipe: object) -> Tensor:
        """The margins [1, n] to distil, by the values of a recipe, from those [k, n] of what was scored."""
        if self.combine is None:
            return margins
        values = {key.name: getattr(recipe, key.name) for key in self.keys}
        return self.combine(margins, **values).unsqueeze(0)


def mean_margins(delta_r: Tensor) -> Tensor:
    """Mean of the members' margins: `delta_r` [k, B] → [B], reward units.

    Source: Coste et al. 2024, mean optimisation.
    """
    return delta_r.mean(0)


def lcb_margins(delta_r: Tensor, lcb_lambda: float) -> Tensor:
    """Mean margin drawn towards 0 by λ standard deviations over the members: sign(m) · max(|m| − λ s, 0).

    `delta_r` [k, B] → [B], reward units; s is the deviation of a population, 0 for one member. The
    literature's bound mean − λ·std is on the reward of one response, which Bradley–Terry leaves open up to a
    shift for each member and prompt, and the deviation with it. Here each response is measured against the
    other one of its pair, so such shifts cancel: the bound of y_w against y_l is m − λs, that of y_l against
    y_w is −m − λs. If one is positive it is the margin; if none is, the members do not say who wins and the
    margin is 0. (Centred on the pair's mean both responses would have the same deviation and nothing would
    change.) Source: Eisenstein et al. 2024, mean − std, for single rewards (Coste et al. 2024 subtract the
    variance); on pairs ours.
    """
    mean, deviation = delta_r.mean(0), delta_r.std(0, correction=0)
    return mean.sign() * (mean.abs() - lcb_lambda * deviation).clamp(min=0)


LCB_LAMBDA = Key("lcb_lambda", float, 1.0, "lambda of teacher: lcb", {"ge": 0})
ROWS = (
    Teacher("one", "one: reward_model", "one"),
    Teacher("mean", "of the ensemble: mean, the members' mean margin", "members", mean_margins),
    Teacher(
        name="lcb",
        description="lcb: that drawn towards 0 by lcb_lambda standard deviations",
        scored="members",
        combine=lcb_margins,
        keys=(LCB_LAMBDA,),
    ),
    Teacher(
        name="cross-fitted",
        description="cross-fitted: of each pair the margin of the member that was not trained on its prompt "
        "(a recipe with `ensemble_of: folds`)",
        scored="members",
        combine=mean_margins,
        unseen=True,
    ),
    Teacher("warm", "warm: one reward model with the mean of the members' weights", "weights"),
    Teacher("columns", "columns: scores that the data has, see margin_columns", "columns"),
)
TEACHERS = {row.name: row for row in ROWS}
