"""Recipes of figures: the policies that a figure compares, and what is claimed of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from rpo_cli.recipes.schema.base import EachOnce, Recipe, Seed, Share, added, cosmetic

Kind = Literal[
    "figure2", "degeneracy", "gamma", "ensemble", "kl", "unbiased", "curves", "teachers", "reward-kl"
]  # fmt: skip
# What each kind keeps and draws, and so what may be claimed of it; figures/kinds says what the numbers are.
MEASURES: dict[str, tuple[str, ...]] = {
    "figure2": ("advantage", "tokens", "baseline_tokens"),
    "degeneracy": ("h_chosen", "h_rejected", "margin"),
    "gamma": ("advantage", "tokens"),
    "ensemble": ("advantage", "tokens", "member", "same_bias"),
    "kl": ("kl", "error", "square", "milliseconds"),
    "unbiased": ("advantage", "tokens"),
    "curves": ("advantage", "tokens", "kl", "slope"),
    "teachers": ("advantage", "tokens", "lead"),
    "reward-kl": ("advantage", "kl"),
}
# Of evaluated samples besides, where cells have them: those of results from before do not.
FURTHER = ("utility", "kl", "win", "unfinished", "polite")
# These measure policies on their training pairs; the others evaluate samples with the oracle.
MEASURED = ("degeneracy", "kl")
ESTIMATORS = ("full", "sample", "data")  # what a figure of kind kl compares, on one policy
LONGEST_REASON = 60  # signs; a longer one is a grammar
EVERY = "*"  # in a claim: every variant of the figure


def drawable(text: str) -> str:
    """The text; ValueError where matplotlib takes it for a formula that it cannot read."""
    for line in text.splitlines():
        dollars = line.count("$") - line.count(r"\$")
        if dollars and dollars % 2 == 0:
            from matplotlib.mathtext import MathTextParser  # slow to import, and hardly ever needed

            try:
                MathTextParser("path").parse(line)
            except (ValueError, RecursionError) as error:
                reason = _plainly(str(error).strip().splitlines()[-1])
                raise ValueError(rf"no formula that can be drawn ({reason}); a dollar is \$") from None
    return text


def _plainly(reason: str) -> str:
    """What a parser says of a formula without its grammar: what is wrong, and at which character."""
    found = re.match(r"(?:\w+: )?(.*?)(?:, found (.*?))?\s*\(at char (\d+)\)", reason)
    if found is None:
        return reason[:LONGEST_REASON]
    wanted, got, place = found.groups()
    if len(wanted) > LONGEST_REASON:
        wanted = f"not understood: {got}" if got else "not understood"
    return f"{wanted[0].lower()}{wanted[1:]} at character {int(place) + 1}"


Drawn = Annotated[str, AfterValidator(drawable)]


class Variant(BaseModel):
    """One curve of a figure: a policy recipe, with some of its keys changed or none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Drawn = Field(min_length=1, description="in the legend")
    recipe: str = Field(description="the policy recipe")
    set: dict[str, object] = Field({}, description="keys of that recipe and their values here, as --set")
    panel: Drawn = Field("", description="title of the panel it is drawn in; default: all in one")
    line: Drawn = Field(
        "", description="in reward-kl, teachers: variants of one line have one colour; reward-kl joins them"
    )


def as_it_is(recipe: str) -> Variant:
    """A policy recipe without changes, called like its file."""
    return Variant.model_validate({"name": Path(recipe).stem, "recipe": recipe})


class Claim(BaseModel):
    """What a figure is to show: a difference, `more` minus `than`, that is positive, or small, or large."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    claim: str = Field(min_length=1, description="in words")
    more: str | list[str] | None = Field(
        None, description='a variant; null: zero; several or "*" (every one): a comparison of each'
    )
    than: str | list[str] | None = Field(
        None, description='another variant; null: zero; several or "*" (every other): a comparison with each'
    )
    each: list[str] | Literal["*"] | None = added(
        None, "instead of than: more beats each of these, of which the weakest is shown; then one by one"
    )
    measure: str = Field("advantage", description="of which number")
    rhos: list[Share] | None = Field(None, description="at which rho; default: every one of the figure")
    up_to: Share | None = added(None, "at every rho of the figure that is not above this one")
    above: Share | None = added(None, "at every rho of the figure above this one")
    mean_over_rho: bool = Field(
        False, description="of the mean over those rho, instead of one comparison at each"
    )
    every_rho: bool = added(
        False, "at each of those rho, of which the weakest is shown; after several variants: all of them"
    )
    range: bool = added(False, "of the ranges (max - min over those rho), instead of the values")
    within: PositiveFloat | None = Field(
        None, description="passes if the difference is smaller than this, whatever its sign"
    )
    beyond: PositiveFloat | None = Field(
        None, description="passes if the difference is larger than this, whatever its sign"
    )
    primary: bool = added(
        False,
        "with intervals: t, the question set down beforehand: not corrected for the number of the others",
    )

    @model_validator(mode="after")
    def compares(self) -> Claim:
        if self.more is None and self.than is None:
            raise ValueError("compares nothing: give more, than, or both")
        for names in (
            ("within", "beyond"), ("than", "each"), ("rhos", "up_to"), ("rhos", "above"),
            ("mean_over_rho", "every_rho"), ("each", "every_rho"), ("range", "each"), ("range", "every_rho"),
            ("range", "mean_over_rho"), ("range", "within"), ("range", "beyond"),
        ):  # fmt: skip
            if all(getattr(self, name) not in (None, False) for name in names):
                raise ValueError(f"give {names[0]} or {names[1]}, not both")
        if (self.each is not None and self.more is None) or (self.range and None in (self.more, self.than)):
            raise ValueError(f"{'range' if self.range else 'each'} compares variants: name both sides")
        return self

    @property
    def names(self) -> list[str]:
        """The variants that it names, those of "*" left out."""
        sides = [
            [side] if isinstance(side, str) else side or [] for side in (self.more, self.than, self.each)
        ]
        return [name for side in sides for name in side if name != EVERY]

    @property
    def bounded(self) -> bool:
        """Whether it says how large a difference is, whatever its sign."""
        return self.within is not None or self.beyond is not None

    def kept(self) -> dict[str, object]:
        """As results keep it: keys that came after the first results only where they say something."""
        later = {name for name, field in type(self).model_fields.items() if field.json_schema_extra}
        unsaid = {name for name in later if getattr(self, name) in (None, False)}
        return self.model_dump(mode="json", exclude=unsaid)


# What the paper claims of its Figure 2.
PAPER = tuple(
    Claim.model_validate(claim)
    for claim in (
        {"claim": "every policy beats pi_SFT at every rho", "more": EVERY, "every_rho": True},
        {"claim": "e-dpo beats dpo and ipo at rho <= 0.5", "more": "e-dpo",
         "than": ["dpo", "ipo"], "up_to": 0.5},
        {"claim": "d-dpo is best at rho > 0.6", "more": "d-dpo", "each": EVERY, "above": 0.6},
        {"claim": "e-dpo is flattest: smallest max - min over rho", "more": EVERY,
         "than": "e-dpo", "range": True},
    )
)  # fmt: skip


def claims_by_default(kind: str) -> list[Claim]:
    """What a figure of a kind claims that says nothing of it."""
    return list(PAPER) if kind == "figure2" else []


class FigureRecipe(Recipe):
    """Cells to gather and draw: variants of policies at some rho and seeds."""

    stage: Literal["figure"]
    kind: Kind = Field("figure2", description="which picture; `rpo figure KIND` draws it")
    policies: Annotated[list[str], EachOnce] = Field(
        [], description="figure2: policy recipes as they are, in the order of the legend; short for variants"
    )
    variants: list[Variant] = Field(
        [], description="policy recipes, with changes or without, in the order of the legend"
    )
    claims: list[Claim] | None = Field(
        None,
        description="what the figure is to show, reported as passed or not; default in figure2: the paper's, "
        "[]: nothing",
    )
    rhos: Annotated[list[Share | None], EachOnce] = Field(
        [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        min_length=1,
        description="biases of the pairs; null (not in figure2): without resampling",
    )
    seeds: Annotated[list[Seed], EachOnce] = Field([0], min_length=1)
    bootstrap_samples: PositiveInt = 2000
    intervals: Literal["bootstrap", "t"] = added(
        "t",
        "over several seeds. t: Student's t over the seeds' means, paired, with verdicts corrected for their "
        "number; bootstrap: seeds and prompts drawn again, too narrow where seeds are few",
    )
    unit: Literal["oracle", "sd"] = added(
        "oracle",
        "of the advantage. oracle: the oracle's reward, on a scale of its own in every seed; sd: its "
        "standard deviation over pi_SFT's samples in that seed",
    )
    title: Annotated[str, AfterValidator(drawable)] = cosmetic("", "over the picture")

    @property
    def compared(self) -> list[Variant]:
        """The variants; those of `policies` have no changes and are called like their recipes."""
        return self.variants or [as_it_is(name) for name in self.policies]

    @property
    def claimed(self) -> list[Claim]:
        """The claims; those of the paper where a Figure 2 says nothing of them."""
        return claims_by_default(self.kind) if self.claims is None else self.claims

    @property
    def measured(self) -> bool:
        """Whether policies are measured on their training pairs, instead of evaluated."""
        return self.kind in MEASURED

    @model_validator(mode="after")
    def fits_its_kind(self) -> FigureRecipe:
        if self.policies and self.variants:
            raise ValueError("policies are short for variants: give one of them, not both")
        if self.policies and self.kind != "figure2":
            raise ValueError(f"kind: {self.kind} needs variants instead of policies")
        if not self.compared:
            raise ValueError("variants: missing")
        if problem := self.unfit(self.rhos):
            raise ValueError(f"rhos: {problem}")
        if self.unit == "sd" and self.measured:
            raise ValueError(f"unit: sd: no oracle scores the training pairs that kind: {self.kind} measures")
        if self.kind == "kl" and len(self.variants) > 1:
            raise ValueError("kind: kl compares estimators on one policy: give one variant and one rho")
        names = [variant.name for variant in self.compared]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"variants: two are called {min(twice)}")
        if hidden := [name for name in names if name.startswith("_")]:
            why = "matplotlib leaves names that begin with _ out of the legend; give the variant another"
            raise ValueError(f"variants: {hidden[0]}: {why}")
        if EVERY in names:
            raise ValueError(f"variants: {EVERY} is no name: in a claim it is every variant")
        known = ESTIMATORS if self.kind == "kl" else names
        papers = {name for claim in PAPER for name in claim.names} if self.kind == "figure2" else set()
        measures = [*MEASURES[self.kind], *(() if self.measured else FURTHER)]
        for claim in self.claims or []:
            if unknown := [name for name in claim.names if name not in (*known, *papers)]:
                problem = f"{unknown[0]} is no variant ({', '.join(known)})"
            elif claim.measure not in measures:
                problem = f"{claim.measure} is no measure of {self.kind} ({', '.join(measures)})"
            elif absent := [rho for rho in claim.rhos or [] if rho not in self.rhos]:
                problem = f"rho {absent[0]:g} is none of the figure's"
            elif None in self.rhos and (claim.range or claim.up_to or claim.above):
                problem = "range, up_to and above need values of rho, not null"
            else:
                continue
            raise ValueError(f"claims: {claim.claim}: {problem}")
        return self

    def unfit(self, rhos: list[float | None]) -> str | None:
        """Why this kind cannot be drawn at these rho; None if it can."""
        if self.kind == "figure2" and None in rhos:
            return "Figure 2 has an axis of rho; give values between 0 and 1"
        if self.kind == "kl" and len(rhos) > 1:
            return "kl compares estimators on one policy: give one variant and one rho"
        return None
