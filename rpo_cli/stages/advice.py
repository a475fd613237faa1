"""What follows for the choice of an objective from what reward models know of held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rpo_cli.stages.diagnosis import Agreement, Diagnosis
from rpo_cli.statistics import FEW_PAIRS, Interval, too_few, wilson

ALIKE, APART = 0.95, 0.75  # members' agreement: above they are one model, below they contradict each other
MISFIT = 1.5  # times 1 that a temperature must be, or a part of 1, to be worth a word
DEAR = 0.1  # deviations of reward for 10 tokens that are worth a word
LENGTH_SIDES = ("longer", "shorter")
SEVERAL = "compare e-dpo and d-dpo with teacher: mean, over members of several biases of length"
ALL_THREE = "compare e-dpo's min with d-dpo by their mean (teacher: mean) and their bound (teacher: lcb)"


class Scores(NamedTuple):
    """Columns of scores in the data against its labels: so many pairs, of which so many are not preferred."""

    columns: Sequence[str]
    pairs: int
    against: int
    equal: int


def advice(
    bias: Interval | None,
    teachers: Sequence[Diagnosis],
    agreed: Agreement | None = None,
    scores: Scores | None = None,
) -> list[str]:
    """What follows for the choice of an objective, most important first; docs/diagnose.md has every rule.

    bias: share of training pairs whose longer response was chosen; teachers: one reward model, or members;
    scores: the one teacher is no model but these.
    """
    lines = []
    if len(teachers) == 1:
        of_it = _of_one(teachers[0]) if scores is None else _of_scores(scores)
        lines = [of_it, *_of_its_margins(teachers[0])]
    elif teachers:
        lines = [_of_members(teachers, agreed)]
    if bias is not None and not bias.low <= 0.5 <= bias.high:
        which = "longer" if bias.mean > 0.5 else "shorter"
        lines.append(
            f"The training pairs prefer the {which} response in {100 * bias.mean:.0f} %: dpo and ipo learn "
            "that too; watch the length of samples."
        )
    if teachers and (few := too_few(min(model.groups["all"].pairs for model in teachers))) is not None:
        lines.append(f"{few}; hold out more before you decide by this.")
    return lines


def _of_one(model: Diagnosis) -> str:
    """What a reward model's accuracy says of distilling it."""
    every, side = model.groups["all"], model.blind_side
    sides = {name: model.groups[name] for name in LENGTH_SIDES if name in model.groups}
    counts = [group.pairs for group in sides.values()]
    ties = every.pairs - sum(counts)  # where length decides nothing, and a coin is right in half
    by_length = (max(counts, default=0) + ties / 2) / every.pairs
    if side is not None:
        return (
            f"The reward model has learnt length: where the {side} response won it is more often wrong than "
            f"right. d-dpo would distil that; {SEVERAL}."
        )
    if model.contradicts:
        return (
            "The reward model contradicts these labels more often than it agrees: d-dpo would teach the "
            "contrary. Are the labels the wrong way round, or is it read the wrong way (its label, its "
            "template)? One that is hardly trained is wrong by accident: its margins are near zero."
        )
    if not model.knows:
        return (
            "The reward model is not shown to know these labels (its accuracy is not shown to be above a "
            "half), so nothing here says that to distil it beats dpo. Train it longer, or on more pairs."
        )
    if every.accuracy.low <= by_length:
        return (
            "The reward model is not shown to know more than length does, by which alone "
            f"{100 * by_length:.0f} % of these pairs come out right, half of the ties among them: nothing "
            f"here says that d-dpo beats dpo; {SEVERAL}."
        )
    known = {name: group.accuracy for name, group in sides.items()}
    if len(known) == 2 and (
        known["longer"].low > known["shorter"].high or known["shorter"].low > known["longer"].high
    ):
        which = max(known, key=lambda name: known[name].mean)
        return (
            f"The reward model leans on length: it is right more often where the {which} response won. "
            f"d-dpo would distil that; {SEVERAL}."
        )
    unknown = [name for name in LENGTH_SIDES if name not in known or known[name].low <= 0.5]
    if unknown:
        return (
            "The reward model knows these labels, which is not shown where the "
            f"{' or the '.join(unknown)} response won: compare d-dpo with dpo, and watch the length of "
            "samples."
        )
    return "The reward model knows these labels, whichever response is longer: compare d-dpo with dpo."


def _of_scores(scores: Scores) -> str:
    """What scores that contradict labels mean for distilling them; no training mends either."""
    share = wilson(scores.against, scores.pairs)
    agreed = wilson(scores.pairs - scores.equal - scores.against, scores.pairs - scores.equal)
    equal = f", and are equal in {scores.equal}" if scores.equal else ""
    ends = f"{100 * share.mean:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]{equal}"
    who = f"The scores ({', '.join(scores.columns)})"
    first = f"{who} contradict the label in {scores.against} of {scores.pairs} pairs, {ends}"
    if agreed.high < 0.5:
        return f"{first}: are the columns the wrong way round? The chosen response's stands first."
    if not agreed.low > 0.5:
        first = f"{first}, and are not shown to go with the labels"
    if not scores.against:
        return f"{first}: d-dpo adds how large the difference is; compare it with dpo."
    return (
        f"{first}. There d-dpo follows the scores and dpo the labels: read some of these pairs, see which of "
        "the two you trust, and compare d-dpo with dpo."
    )


def _of_its_margins(model: Diagnosis) -> list[str]:
    """What the scale of a reward model's margins, and their price of length, mean for d-dpo."""
    lines, price = [], model.price
    every = model.groups["all"]
    # Too few pairs fit no temperature, and of what does not know the labels any scale is as good as another.
    known = every.pairs >= FEW_PAIRS and model.knows
    if known and model.temperature is not None and not 1 / MISFIT < model.temperature < MISFIT:
        how = "large" if model.temperature > 1 else "small"
        lines.append(
            f"Its margins are too {how} for its accuracy: d-dpo with {model.temperature:.2g} times the beta "
            "is d-dpo on calibrated margins."
        )
    if price is not None and abs(price.mean) >= DEAR and not price.low <= 0 <= price.high:
        which = "longer" if price.mean > 0 else "shorter"
        lines.append(
            f"Its rewards go with length on these pairs: the {which} response gets more, for its length or "
            "for what comes with it. How long a policy's samples become does not follow; watch them."
        )
    return lines


def _of_members(members: Sequence[Diagnosis], agreed: Agreement | None) -> str:
    """What the members' accuracies, and their agreement, say of an ensemble."""
    learnt = {model.blind_side for model in members} - {None}
    knowing = sum(model.knows for model in members)
    if knowing == 0:
        return (
            "No member is shown to know these labels (no accuracy is shown to be above a half), so nothing "
            "here says that to distil them beats dpo."
        )
    if len(learnt) == 1 and all(model.blind_side is not None for model in members):
        return (
            f"All members have learnt length: where the {learnt.pop()} response won they are more often "
            "wrong than right. No min over them holds that back; train members on pairs of other biases."
        )
    if agreed is not None and agreed.signs >= ALIKE:
        return (
            "The members agree on nearly every pair, so that e-dpo's min is nearly one model: d-dpo with "
            "teacher: mean does the same for less."
        )
    if learnt:
        how = (
            "Members have learnt length in opposite directions"
            if len(learnt) == 2
            else "Some members have learnt length, and of others that is not shown"
        )
        return f"{how}: d-dpo from one of the former would hand on its error; {ALL_THREE}."
    if knowing < len(members):
        are = "is" if knowing == 1 else "are"
        return (
            f"Only {knowing} of {len(members)} members {are} shown to know these labels: a min or a mean "
            "takes in what the others make up. Train those longer, or on more pairs, or leave them out."
        )
    if agreed is not None and agreed.signs <= APART:
        return f"The members contradict each other on many pairs: {ALL_THREE}."
    return "The members know these labels and differ on some: compare e-dpo and d-dpo with teacher: mean."
