"""Recipes of policies, and of the work that a policy implies."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rpo_cli.recipes.schema.base import FourBits, ModelSource, Share, SharedPrompts, cosmetic
from rpo_cli.recipes.schema.training import TrainingRecipe

Objective = Literal[
    "dpo", "ipo", "ipo-norm", "d-dpo", "p-dpo", "dp-dpo", "e-dpo", "r-dpo", "dpo-sft", "robust-dpo", "simpo"
]
DISTILLED = ("d-dpo", "dp-dpo", "e-dpo")
PESSIMISTIC = ("p-dpo", "dp-dpo", "e-dpo")


class PolicyRecipe(TrainingRecipe, SharedPrompts):
    """Offline preference optimisation from pi_SFT."""

    stage: Literal["policy"]
    objective: Objective
    data: str = Field("splits.yaml", description="recipe of the pairs: splits")
    rho: Share | None = Field(None, description="which D_rho; null: the unbiased pairs")
    reward_model: str = Field("rm.yaml", description="teacher of d-dpo and dp-dpo: recipe or model directory")
    ensemble: str | list[str] = Field(
        "rm.yaml", description="teachers of e-dpo: a recipe with `ensemble:`, or model directories"
    )
    teacher: Literal["one", "mean", "lcb", "warm"] = Field(
        "one",
        description="what d-dpo and dp-dpo distil. one: reward_model; of the ensemble: mean, the members' mean margin; lcb: that drawn "
        "towards 0 by lcb_lambda standard deviations; warm: one reward model with the mean of the members' weights",
    )
    lcb_lambda: float = Field(1.0, ge=0, description="lambda of teacher: lcb")
    beta: PositiveFloat = Field(
        0.1, description="strength of the reference in reward units; dpo, d-dpo and kin"
    )
    tau: PositiveFloat = Field(0.1, description="ipo's regularisation: the target margin is 1 / (2 tau)")
    length_alpha: float = Field(0.01, ge=0, description="r-dpo's charge for a token, in reward units")
    sft_weight: float = Field(1.0, ge=0, description="dpo-sft's weight of -log pi(chosen) / length")
    label_smoothing: float = Field(
        0.1, ge=0, lt=0.5, description="robust-dpo's share of labels assumed to be flipped"
    )
    simpo_gamma: float = Field(0.5, ge=0, description="simpo's margin, in reward units")
    gamma: float = Field(
        1e-4, ge=0, description="weight of KL(pi_ref || pi_theta) at the first step; p-dpo, dp-dpo, e-dpo"
    )
    gamma_end: float | None = Field(
        1e-2, ge=0, description="weight at the last step (linear); null: constant"
    )
    kl_estimator: Literal["full", "sample", "data"] = Field(
        "sample",
        description="full: whole vocabulary along reference samples (reference model in memory); sample: -log pi_theta on "
        "reference samples; data: on the data set's own responses, biased unless they came from the reference",
    )
    kl_coefficient: Literal["gamma", "gamma_beta"] = Field(
        "gamma", description="weight of the KL: gamma itself, or gamma * beta"
    )
    ensemble_min: Literal["dataset", "batch", "example"] = Field(
        "example", description="scope of e-dpo's min over members"
    )
    ema_decay: Share = Field(
        0.9, description="decay of the data-set losses that ensemble_min: dataset compares"
    )
    calibration: Literal["none", "temperature"] = Field(
        "temperature", description="temperature: divide each member's rewards by a T fitted on held-out pairs"
    )
    calibration_mix: Literal["own", "data"] = Field(
        "own", description="held-out pairs reweighted to the member's own b, or as they are"
    )
    by_rho: dict[Share, dict[str, Any]] = cosmetic({}, "values that model selection chose for each rho")
    grid: dict[Literal["beta", "tau"], list[PositiveFloat]] = cosmetic({}, "what `rpo sweep` tries")
    evaluate: str = cosmetic("evaluate.yaml", "the evaluation recipe of its samples")
    reference_samples: PositiveInt = Field(
        1, description="samples of pi_ref per training prompt, drawn once, for the KL"
    )
    max_new_tokens: PositiveInt = Field(64, description="longest reference sample")

    @model_validator(mode="after")
    def has_teachers(self) -> PolicyRecipe:
        if self.asks_ensemble and not self.ensemble:
            who = "e-dpo" if self.objective == "e-dpo" else f"teacher: {self.teacher}"
            raise ValueError(f"ensemble: {who} needs at least one reward model")
        return self

    @property
    def asks_one(self) -> bool:
        """Whether the teacher is `reward_model`."""
        return self.objective in ("d-dpo", "dp-dpo") and self.teacher == "one"

    @property
    def asks_ensemble(self) -> bool:
        """Whether there are teachers and they are `ensemble`."""
        return self.objective in DISTILLED and not self.asks_one

    @property
    def compares_members(self) -> bool:
        """Whether members' margins meet, and so must be on one scale: e-dpo's min, a mean or a deviation."""
        return self.asks_ensemble and (self.objective == "e-dpo" or self.teacher != "warm")

    def unused(self) -> set[str]:
        """Fields that have no effect under this objective, and so are no part of the policy's key."""
        without = {"beta"} if self.objective.startswith("ipo") else {"tau"}
        if self.objective not in PESSIMISTIC:
            without |= {"gamma", "gamma_end", "kl_estimator", "kl_coefficient"}
        if self.objective not in PESSIMISTIC or self.kl_estimator == "data":
            without |= {"reference_samples", "max_new_tokens", "sampling_seed"}
        if not self.asks_one:
            without |= {"reward_model"}
        if self.objective not in ("d-dpo", "dp-dpo") or self.teacher == "one":
            without |= {"teacher"}
        if "teacher" in without or self.teacher != "lcb":
            without |= {"lcb_lambda"}
        if not self.asks_ensemble:
            without |= {"ensemble"}
        if self.objective != "e-dpo":
            without |= {"ensemble_min"}
        if not self.compares_members:
            without |= {"calibration"}
        if self.objective != "e-dpo" or self.ensemble_min != "dataset":
            without |= {"ema_decay"}
        if not self.compares_members or self.calibration == "none":
            without |= {"calibration_mix"}
        rivals = {
            "r-dpo": "length_alpha",
            "dpo-sft": "sft_weight",
            "robust-dpo": "label_smoothing",
            "simpo": "simpo_gamma",
        }
        without |= {field for objective, field in rivals.items() if objective != self.objective}
        return without

    @field_validator("by_rho", mode="before")
    @classmethod
    def known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for rho, chosen in value.items():
                if not isinstance(chosen, dict):
                    raise ValueError(f"by_rho {rho}: must be a mapping of keys to values")
                for key in chosen:
                    if key not in cls.model_fields or key in ("stage", "objective", "rho", "by_rho", "grid"):
                        raise ValueError(f"by_rho {rho}: {key} is not a key that can be set for a rho")
        return value


class ScoringRecipe(ModelSource, SharedPrompts, FourBits):
    """Work that a policy recipe implies and nobody writes down: reference log-probs, reference samples, rewards."""

    stage: Literal["reference", "samples", "scores", "measure"]
    per_device_eval_batch_size: PositiveInt = cosmetic(256, "sequences at a time")
    reference_samples: PositiveInt = 1
    max_new_tokens: PositiveInt = 64
