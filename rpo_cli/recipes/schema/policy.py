"""Recipes of policies, and of the work that a policy implies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveInt, create_model, model_validator

from rpo_cli.objectives import OBJECTIVES, TEACHERS, Key, Objective
from rpo_cli.recipes.schema.base import (
    LARGEST,
    EachOnce,
    FourBits,
    Idle,
    Labelled,
    ModelSource,
    NotNegative,
    Positive,
    Share,
    SharedPrompts,
    TwoColumns,
    added,
    at_most,
    cosmetic,
)
from rpo_cli.recipes.schema.listed import Columns, Listed, Members
from rpo_cli.recipes.schema.training import TrainingRecipe

RATE = "learning_rate"
Swept = Literal["beta", "tau", "learning_rate"]
NOT_BY_RHO = ("stage", "objective", "rho", "by_rho", "grid")
OF_ONE = " and ".join(name for name, each in OBJECTIVES.items() if each.teacher == "one")
OF_ENSEMBLE = " and ".join(name for name, each in OBJECTIVES.items() if each.teacher == "ensemble")
PESSIMISTIC = ", ".join(name for name, each in OBJECTIVES.items() if each.pessimistic)


def _keys(name: str, keys: Iterable[Key]) -> type[BaseModel]:
    """A model of these keys alone; what belongs to objectives says to which."""
    fields: dict[str, Any] = {}
    for key in keys:
        owners = " and ".join(f"{each.name}'s" for each in OBJECTIVES.values() if key in each.keys)
        description = f"{owners} {key.description}".strip()
        kind = Annotated[float, at_most(LARGEST)] if key.type is float else key.type
        fields[key.name] = kind, Field(key.default, description=description, **key.bounds)
    return create_model(name, **fields)


OBJECTIVE_KEYS = {key.name: key for each in OBJECTIVES.values() for key in each.keys}
TEACHER_KEYS = {key.name: key for each in TEACHERS.values() for key in each.keys}
if TYPE_CHECKING:  # what the tables say is known when the program runs
    ObjectiveName = str
    TeacherName = str

    class TeacherKeys(BaseModel):
        """Keys that a teacher reads."""

    class ObjectiveKeys(BaseModel):
        """Keys that some objectives read."""
else:
    ObjectiveName, TeacherName = Literal[tuple(OBJECTIVES)], Literal[tuple(TEACHERS)]
    TeacherKeys = _keys("TeacherKeys", TEACHER_KEYS.values())
    ObjectiveKeys = _keys("ObjectiveKeys", OBJECTIVE_KEYS.values())


class Taught(TrainingRecipe, SharedPrompts, Labelled):
    """What a policy learns, and whom from."""

    stage: Literal["policy"]
    objective: ObjectiveName
    data: str = Field("splits.yaml", description="recipe of the pairs: splits")
    rho: Share | None = Field(None, description="which D_rho; null: the unbiased pairs")
    subset: Share | None = added(
        None, "train on the pairs of the subset D_rho,b of this bias b, instead of all of D_rho"
    )
    reward_model: str = Field(
        "rm.yaml",
        description=f"teacher of {OF_ONE}: recipe, or any sequence classifier (hub name, directory)",
    )
    reward_member: Share | None = added(
        None, "the member of this bias b of the ensemble that reward_model describes, not its one model"
    )
    ensemble: str | Annotated[list[Listed], EachOnce] = Field(
        "rm.yaml",
        description=f"teachers of {OF_ENSEMBLE}: a recipe with `ensemble:`, or a list of models, of "
        "`{columns: [a, b]}` and of `{members: rm.yaml}`, which stands for all members of that recipe",
    )
    margin_columns: Annotated[list[TwoColumns], EachOnce] = added(
        [],
        "scores of chosen and rejected in the data, such as [[score_chosen, score_rejected]], in place of "
        "reward models: one pair for teacher: columns, members for mean, lcb and objectives with an "
        "ensemble; the data recipe names them in keep_columns",
    )
    teacher: TeacherName = Field(
        "one",
        description=f"what {OF_ONE} distil. {'; '.join(each.description for each in TEACHERS.values())}",
    )


class Strengths(BaseModel):
    """How strongly a policy is held to the reference: each objective has one of them."""

    beta: Positive = Field(
        0.1,
        description="reward units for a nat of log-ratio: larger stays nearer the reference; of simpo, which "
        "has no reference, for a nat of mean log-prob of a token, and 2 or more; all objectives but ipo",
    )
    tau: Positive = Field(
        0.1,
        description="of ipo and ipo-norm: log-ratios are to differ by 1 / (2 tau) nats, ipo-norm's by so "
        "many a token; larger stays nearer the reference",
    )


class PolicyRecipe(ObjectiveKeys, Strengths, TeacherKeys, Taught):
    """Offline preference optimisation from pi_SFT."""

    gamma: NotNegative = Field(
        1e-4, description=f"weight of KL(pi_ref || pi_theta) at the first step; {PESSIMISTIC}"
    )
    gamma_end: NotNegative | None = Field(
        1e-2, description="weight at the last step (linear); null: constant"
    )
    kl_estimator: Literal["full", "sample", "data"] = Field(
        "sample",
        description="full: whole vocabulary along reference samples (reference model in memory); sample: "
        "-log pi_theta on reference samples; data: on the data set's own responses, so the likelihood of "
        "both of a pair is raised, the rejected one's too; no KL unless they came from the reference",
    )
    kl_coefficient: Literal["gamma", "gamma_beta"] = Field(
        "gamma",
        description="weight of the KL: gamma itself, the paper's alpha / beta, or gamma * beta, its alpha",
    )
    ensemble_min: Literal["dataset", "batch", "example"] = Field(
        "example",
        description=f"which member {OF_ENSEMBLE} follows. example: of each pair the one of the least loss; "
        "batch: of each optimiser batch; dataset: of all pairs, by a moving average (ema_decay), as in the "
        "paper's formula",
    )
    ema_decay: Share = Field(
        0.9, description="decay of the data-set losses that ensemble_min: dataset compares"
    )
    calibration: Literal["none", "temperature"] = Field(
        "temperature", description="temperature: divide each member's rewards by a T fitted on held-out pairs"
    )
    calibrate_one: bool = added(
        False, f"whether calibration holds for the one reward model, or pair of columns, of {OF_ONE}, too"
    )
    calibration_mix: Literal["own", "data"] = Field(
        "own", description="held-out pairs reweighted to the member's own b, or as they are"
    )
    by_rho: dict[Share, dict[str, object]] = cosmetic({}, "values that model selection chose for each rho")
    grid: dict[Swept, Annotated[list[Positive], Field(min_length=1), EachOnce]] = cosmetic(
        {}, "what `rpo sweep` tries: the objective's strength and, if given, every `learning_rate` with it"
    )
    evaluate: str = cosmetic("evaluate.yaml", "the evaluation recipe of its samples")
    reference_samples: PositiveInt = Field(
        1,
        description="samples of pi_ref per training prompt, drawn once, for the KL; passes over the pairs "
        "take turns with them",
    )
    max_new_tokens: PositiveInt = Field(64, description="longest reference sample")
    select: Literal["last", "validation"] = added(
        "last",
        "which checkpoint of the run is the policy: the last, or of `checkpoints` of them the one that is "
        "best on validation prompts, by the recipe that `evaluate` names (without an oracle: on one half of "
        "the held-out pairs)",
    )
    checkpoints: int = added(
        5, "select: validation: how many are compared, evenly spaced, the last step among them", ge=2
    )
    monitor_steps: PositiveInt | None = cosmetic(
        None,
        "steps between looks at held-out pairs and samples while it trains (docs/diagnose.md); default: none",
    )
    monitor_prompts: PositiveInt = cosmetic(64, "held-out pairs of a look, whose prompts are sampled for")

    @model_validator(mode="after")
    def has_steps_to_choose_from(self) -> PolicyRecipe:
        if self.num_train_epochs is None and self.selects and self.checkpoints > self.max_steps:
            raise ValueError(f"checkpoints: {self.checkpoints} is more than all steps ({self.max_steps})")
        return self

    @model_validator(mode="after")
    def has_teachers(self) -> PolicyRecipe:
        if self.asks_columns and len(self.margin_columns) != 1:
            several = "teacher: mean or lcb makes one of several"
            raise ValueError(
                f"margin_columns: teacher: columns distils one pair of columns, not "
                f"{len(self.margin_columns)}; {several}"
            )
        if self.margin_columns and (self.asks_one or self.asks_weights):
            raise ValueError(f"margin_columns: no effect with teacher: {self.teacher}; set teacher: columns")
        if self.asks_ensemble and not self.members:
            who = self.objective if self.declared.teacher == "ensemble" else f"teacher: {self.teacher}"
            raise ValueError(f"ensemble: {who} needs at least one reward model")
        return self

    @property
    def declared(self) -> Objective:
        """What its objective says of itself."""
        return OBJECTIVES[self.objective]

    @property
    def strength(self) -> tuple[str, float]:
        """Name and value of the hyperparameter that is swept."""
        name = self.declared.strength
        return name, float(getattr(self, name))

    @property
    def setting(self) -> dict[str, float]:
        """What is swept, by name: the strength, and the learning rate where the grid has one."""
        name, value = self.strength
        return {name: value} | ({RATE: self.learning_rate} if RATE in self.grid else {})

    @property
    def selects(self) -> bool:
        """Whether validation chooses among several checkpoints of the run."""
        return self.select == "validation"

    def kept_at(self, steps: int) -> list[int]:
        """The steps of a run of so many after which a checkpoint is kept to choose from; none: no choice."""
        count = self.checkpoints if self.selects else 0
        return [-(-steps * number // count) for number in range(1, count + 1)]

    @property
    def reward_scale(self) -> float:
        """Reward units for a nat of log-ratio; 1 where the strength is no factor of the reward."""
        return self.beta if self.declared.strength == "beta" else 1.0

    @property
    def asks_one(self) -> bool:
        """Whether the teacher is `reward_model`."""
        return self.declared.teacher == "one" and TEACHERS[self.teacher].scored == "one"

    @property
    def asks_columns(self) -> bool:
        """Whether the teacher is one pair of `margin_columns`."""
        return self.declared.teacher == "one" and TEACHERS[self.teacher].scored == "columns"

    @property
    def reads_one(self) -> bool:
        """Whether the margins are those of one reward model or of one pair of columns, as they are."""
        return self.asks_one or self.asks_columns

    @property
    def asks_weights(self) -> bool:
        """Whether the teacher is one model with the mean of the members' weights."""
        return self.declared.teacher == "one" and TEACHERS[self.teacher].scored == "weights"

    @property
    def asks_ensemble(self) -> bool:
        """Whether there are teachers and they are the members."""
        return self.declared.teacher != "none" and not (self.asks_one or self.asks_columns)

    @property
    def distils_unseen(self) -> bool:
        """Whether each pair's margin is of the member that was not trained on its prompt."""
        return self.asks_ensemble and not self.takes_min and TEACHERS[self.teacher].unseen

    @property
    def members(self) -> str | Sequence[str | Columns | Members]:
        """The ensemble: `margin_columns` where there are some, else `ensemble`."""
        return [Columns(columns=pair) for pair in self.margin_columns] or self.ensemble

    @property
    def takes_min(self) -> bool:
        """Whether each pair, batch or data set chooses among the ensemble's members."""
        return self.declared.teacher == "ensemble"

    @property
    def compares_members(self) -> bool:
        """Whether members' margins meet, and so must be on one scale: a min, a mean or a deviation."""
        return self.takes_min or (self.asks_ensemble and TEACHERS[self.teacher].scored == "members")

    @property
    def calibrates(self) -> bool:
        """Whether the rewards of its teachers are divided by a temperature."""
        return self.calibration == "temperature" and self.may_calibrate

    @property
    def may_calibrate(self) -> bool:
        """Whether `calibration` has a say: where margins meet, or where one teacher's is asked for."""
        return self.compares_members or (self.reads_one and self.calibrate_one)

    @property
    def samples_reference(self) -> bool:
        """Whether the KL is estimated on samples of pi_ref."""
        return self.declared.pessimistic and self.kl_estimator != "data"

    @property
    def needs_reference(self) -> bool:
        """Whether the reference model is in memory while the policy trains."""
        return self.declared.pessimistic and self.kl_estimator == "full"

    def unused(self) -> set[str]:
        """Fields that have no effect under this objective, and so are no part of the policy's key."""
        objective = self.declared
        distils_other = objective.teacher == "one" and self.teacher != "one"
        teacher_keys = TEACHERS[self.teacher].keys if distils_other else ()
        used = {
            **{name: key in objective.keys for name, key in OBJECTIVE_KEYS.items()},
            **{name: key in teacher_keys for name, key in TEACHER_KEYS.items()},
            **{name: name == objective.strength for name in Strengths.model_fields},
            **dict.fromkeys(("gamma", "gamma_end", "kl_estimator", "kl_coefficient"), objective.pessimistic),
            **dict.fromkeys(("reference_samples", "max_new_tokens", "sampling_seed"), self.samples_reference),
            "checkpoints": self.selects,
            "reward_model": self.asks_one,
            "reward_member": self.asks_one,
            "calibrate_one": self.reads_one and self.calibration != "none",
            "teacher": distils_other,
            "ensemble": self.asks_ensemble and not self.margin_columns,
            "margin_columns": self.asks_ensemble or self.asks_columns,
            "reward_label": self.asks_one or self.asks_ensemble,
            "ensemble_min": self.takes_min,
            "ema_decay": self.takes_min and self.ensemble_min == "dataset",
            "calibration": self.may_calibrate,
            "calibration_mix": self.calibrates,
        }
        return {name for name, has_effect in used.items() if not has_effect}

    def idle(self) -> Idle:
        decides = {  # beside the objective
            **dict.fromkeys(("reward_model", "reward_member", "ensemble"), "teacher"),
            **dict.fromkeys(("margin_columns", "reward_label", *TEACHER_KEYS), "teacher"),
            "ema_decay": "ensemble_min", "calibration_mix": "calibration", "checkpoints": "select",
            **dict.fromkeys(("reference_samples", "max_new_tokens", "sampling_seed"), "kl_estimator"),
        }  # fmt: skip
        found = super().idle()
        for name in (unused := self.unused()):
            key = decides.get(name, "objective")
            if key in unused and not (key == "teacher" and self.declared.teacher == "one"):
                key = "objective"
            at_rho = [("by_rho", str(rho), name) for rho, chosen in self.by_rho.items() if name in chosen]
            found |= dict.fromkeys([(name,), *at_rho, *([("grid", name)] if name in self.grid else [])], key)
        return found


class ScoringRecipe(ModelSource, SharedPrompts, FourBits, Labelled):
    """Work that a policy recipe implies and nobody writes down: reference log-probs and samples, rewards."""

    stage: Literal["reference", "samples", "scores", "measure", "held_out", "taught"]
    per_device_eval_batch_size: PositiveInt = cosmetic(256, "sequences at a time")
    reference_samples: PositiveInt = 1
    max_new_tokens: PositiveInt = 64
