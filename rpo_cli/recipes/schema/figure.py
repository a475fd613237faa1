"""Recipes of figures: variants of policies, and what is claimed of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from rpo_cli.recipes.schema.base import Recipe, Share, cosmetic


class Variant(BaseModel):
    """One curve of a figure of the theory: a policy recipe with some of its keys changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="in the legend")
    recipe: str = Field(description="the policy recipe")
    set: dict[str, Any] = Field({}, description="keys of that recipe and their values here, as --set")
    panel: str = Field("", description="title of the panel it is drawn in; default: all in one")


class Claim(BaseModel):
    """What a figure is to show: a difference, `more` minus `than`, that is positive, or small, or large."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    claim: str = Field(min_length=1, description="in words")
    more: str | None = Field(None, description="a variant; null: zero")
    than: str | None = Field(None, description="another variant; null: zero")
    measure: str = Field("advantage", description="of which number")
    rhos: list[Share] | None = Field(None, description="at which rho; default: every one of the figure")
    mean_over_rho: bool = Field(
        False, description="of the mean over those rho, instead of one comparison at each"
    )
    within: PositiveFloat | None = Field(
        None, description="passes if the difference is smaller than this, whatever its sign"
    )
    beyond: PositiveFloat | None = Field(
        None, description="passes if the difference is larger than this, whatever its sign"
    )

    @model_validator(mode="after")
    def compares(self) -> Claim:
        if self.more is None and self.than is None:
            raise ValueError("compares nothing: give more, than, or both")
        if self.within is not None and self.beyond is not None:
            raise ValueError("give within or beyond, not both")
        return self


Kind = Literal["figure2", "degeneracy", "gamma", "ensemble", "kl", "unbiased"]
# A study of these measures policies on their training pairs; the others evaluate samples with the oracle.
MEASURED = ("degeneracy", "kl")
# What each study draws, and so keeps; `studies.gather_study` says what they are.
MEASURES: dict[str, tuple[str, ...]] = {
    "degeneracy": ("h_chosen", "h_rejected", "margin"),
    "gamma": ("advantage", "tokens"),
    "ensemble": ("advantage", "tokens", "member", "same_bias"),
    "kl": ("kl", "error", "square", "milliseconds"),
    "unbiased": ("advantage", "tokens"),
}


class FigureRecipe(Recipe):
    """Cells to gather and draw: Figure 2 of policies, or a figure of the theory of variants."""

    stage: Literal["figure"]
    kind: Kind = Field("figure2", description="which picture; `rpo figure KIND` draws it")
    policies: list[str] = Field([], description="figure2: policy recipes, in the order of the legend")
    variants: list[Variant] = Field(
        [], description="other kinds: policy recipes with changes, in the order of the legend"
    )
    claims: list[Claim] = Field(
        [], description="other kinds: what the figure is to show, reported as passed or not"
    )
    rhos: list[Share | None] = Field(
        [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        min_length=1,
        description="biases of the pairs; null (not in figure2): without resampling",
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    bootstrap_samples: PositiveInt = 2000
    title: str = cosmetic("", "over the picture")

    @model_validator(mode="after")
    def fits_its_kind(self) -> FigureRecipe:
        if self.kind == "figure2":
            if not self.policies:
                raise ValueError("policies: missing")
            if self.variants or self.claims:
                raise ValueError("kind: figure2 has policies and claims of its own: no variants, no claims")
            if None in self.rhos:
                raise ValueError("rhos: figure2 has an axis of rho; give values between 0 and 1")
            return self
        if self.policies or not self.variants:
            raise ValueError(f"kind: {self.kind} needs variants instead of policies")
        if self.kind == "kl" and (len(self.variants) > 1 or len(self.rhos) > 1):
            raise ValueError("kind: kl compares estimators on one policy: give one variant and one rho")
        names = [variant.name for variant in self.variants]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"variants: two are called {min(twice)}")
        known = ("full", "sample", "data") if self.kind == "kl" else names
        for claim in self.claims:
            for name in (claim.more, claim.than):
                if name is not None and name not in known:
                    raise ValueError(f"claims: {claim.claim}: {name} is no variant ({', '.join(known)})")
            if claim.measure not in MEASURES[self.kind]:
                measures = ", ".join(MEASURES[self.kind])
                raise ValueError(
                    f"claims: {claim.claim}: {claim.measure} is no measure of {self.kind} ({measures})"
                )
            if unknown := [rho for rho in claim.rhos or [] if rho not in self.rhos]:
                raise ValueError(f"claims: {claim.claim}: rho {unknown[0]:g} is none of the figure's")
        return self
