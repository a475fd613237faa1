"""What somebody suspects to be biased in their pairs: `rpo init --suspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rpo_cli.errors import BadInput
from rpo_cli.recipes import suggest
from rpo_cli.recipes.schema.data import uncountable
from rpo_cli.stages.data.attributes import PATTERNS, Balance
from rpo_cli.statistics import FEW_PAIRS
from rpo_cli.text import percent

LENGTH = "length"
POLICY = "d-dpo-suspects"


@dataclass(frozen=True)
class Suspect:
    """An attribute of responses; pattern: what is counted in them, none of length."""

    name: str
    pattern: str | None

    @property
    def columns(self) -> list[str]:
        """Of chosen and of rejected responses."""
        return [f"chosen_{self.name}", f"rejected_{self.name}"]

    @property
    def recipe(self) -> str:
        """The recipe of its reward models."""
        return "rm.yaml" if self.pattern is None else f"rm-{self.name}.yaml"


def suspects_of(asked: Sequence[str]) -> list[Suspect]:
    """What is asked for by name, or as NAME=EXPRESSION.

    Raises:
        BadInput: a name means nothing, an expression is none, or a name stands twice.
    """
    found: dict[str, Suspect] = {}
    for text in asked:
        name, equals, pattern = text.partition("=")
        known = [LENGTH, *PATTERNS]
        if not equals and name not in known:
            listed = suggest(name, known) or f"; there are {', '.join(known)}, and NAME=EXPRESSION"
            raise BadInput(f"--suspect {name}: no such attribute{listed}")
        if name in found:
            raise BadInput(f"--suspect {name}: named twice")
        if equals and name == LENGTH:
            raise BadInput(f"--suspect {text}: length is counted in tokens; give what you count another name")
        if equals and (why := uncountable(name, pattern)) is not None:
            raise BadInput(f"--suspect {text}: {why}")
        found[name] = Suspect(name, pattern if equals else PATTERNS.get(name))
    return list(found.values())


def biased_in(balances: Mapping[str, Balance]) -> str | None:
    """In words what chosen responses have more or less of, where an interval, each alone, is off a half."""
    shown = {
        name: each for name, each in balances.items() if each.interval.low > 0.5 or each.interval.high < 0.5
    }
    if not shown:
        return None
    each = (f"more {name} in {percent(found.more)} of {found.pairs}" for name, found in shown.items())
    return f"of the pairs that differ in it the chosen response has {', '.join(each)}"


def said_of(
    suspects: Sequence[Suspect], balances: Mapping[str, Balance], smallest: float, share: float, batch: int
) -> list[str]:
    """How the pairs are biased in what is suspected, and how many of them its members have.

    smallest: the least share b of the members' subsets; share: of the pairs that are trained on; batch: pairs
    of a step.

    Raises:
        BadInput: no subsets can be made, as one side of the pairs lacks, or none that fills a batch.
    """
    lines = []
    for suspect in suspects:
        found = balances.get("tokens" if suspect.pattern is None else suspect.name)
        more = 0 if found is None else round(found.more * found.pairs)
        less = 0 if found is None else found.pairs - more
        if found is None or not (more and less):
            counts = f"the chosen response has more in {more} pairs, less in {less}"
            raise BadInput(f"--suspect {suspect.name}: {counts}: no subsets of other bias can be drawn")
        low, high = (percent(end) for end in found.interval[1:])
        many = int(share * min(more, less) / (1 - smallest))
        if many < batch:
            few = f"{found.pairs} pairs differ in it, which is about {many} for each of its reward models"
            raise BadInput(f"--suspect {suspect.name}: {few}, too few for a batch of {batch}")
        balance = f"the chosen response has more in {percent(found.more)} ({low} .. {high})"
        few = ", which is few" if many < FEW_PAIRS else ""
        lines.append(
            f"{suspect.name}: {balance} of {found.pairs} pairs that differ; its reward models are trained on "
            f"about {many} pairs each{few}"
        )
    return lines
