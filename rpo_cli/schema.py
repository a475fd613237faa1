"""What a recipe may say: one flat pydantic model for each kind of stage, unknown keys forbidden.

Keys carry TRL's and transformers' own names where those exist. Imports neither torch nor TRL, so that a mistake in a
recipe is reported in well under a second.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

Objective = Literal["dpo", "ipo", "ipo-norm", "d-dpo", "p-dpo", "dp-dpo", "e-dpo", "r-dpo", "dpo-sft", "robust-dpo", "simpo"]
DISTILLED = ("d-dpo", "dp-dpo", "e-dpo")
PESSIMISTIC = ("p-dpo", "dp-dpo", "e-dpo")
Table = Literal["pretrain", "sft_train", "sft_validation", "warmup", "pairs", "pairs_validation", "prompts_validation", "prompts_test"]
TABLES: tuple[str, ...] = get_args(Table)
Share = Annotated[float, Field(gt=0, lt=1)]
Purpose = Literal["data", "rm", "policy", "sampling"]
# Under which seeds a stage may draw; all others have no effect on it.
SEEDS: dict[str, tuple[Purpose, ...]] = {
    "data": ("data",), "sft": ("policy",), "reward": ("rm",), "relabel": ("data",), "splits": ("data",), "policy": ("policy", "sampling"),
    "evaluate": ("sampling",), "figure": (), "reference": (), "samples": ("sampling",), "scores": (), "measure": (),
    "judge": ("sampling",),
}  # fmt: skip
WITHOUT_MODEL = ("data", "splits", "judge")


def cosmetic(default: Any, description: str, **kwargs: Any) -> Any:
    """A field that cannot change a result, and so is no part of an artifact's key."""
    return Field(default, description=description, json_schema_extra={"cosmetic": True}, **kwargs)


def added(default: Any, description: str, **kwargs: Any) -> Any:
    """A field that came after results were published: part of a key only where it is not at its default."""
    return Field(default, description=description, json_schema_extra={"added": True}, **kwargs)


class Recipe(BaseModel):
    """Keys every stage understands."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    description: str = cosmetic("", "one line shown by `rpo recipe list`")
    suite: str = cosmetic("", "name of the experiment, the first folder in the workspace; default: the recipe's own folder")
    seed: int = Field(0, ge=0, description="master seed; the four below default to it")
    data_seed: int | None = Field(None, ge=0, description="seed of data generation and of the draws of D_rho")
    rm_seed: int | None = Field(None, ge=0, description="seed of reward model training")
    policy_seed: int | None = Field(None, ge=0, description="seed of SFT and policy training")
    sampling_seed: int | None = Field(None, ge=0, description="seed of sampled responses")
    device: Literal["auto", "cpu", "cuda", "xla"] = cosmetic("auto", "auto: cuda if there is one, else cpu; xla: a TPU (docs/tpu.md)")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the device has it in hardware, else float32"
    )
    threads: PositiveInt | None = Field(
        None, description="CPU threads of the stage; fixed, because the order of sums, hence the last bit, depends on it"
    )
    report_to: Literal["none", "wandb"] = cosmetic("none", "where to log besides metrics.jsonl, which is always written")
    wandb_project: str = cosmetic("rpo", "Weights & Biases project")
    expected_seconds: PositiveFloat | None = cosmetic(None, "measured wall time on two CPU cores; feeds the first ETA only")


# The set that a source reads unless the recipe names another; name@revision where it is not on the main branch.
PUBLISHED = {
    "tldr-comparisons": "openai/summarize_from_feedback@refs/convert/parquet",
    "tldr-preference": "trl-lib/tldr-preference",
    "hh-rlhf": "Anthropic/hh-rlhf",
}
PUBLISHED_DIR = {"tldr-comparisons": "comparisons", "hh-rlhf": "helpful-base"}
LOADED_TABLES = ("sft_train", "sft_validation", "pairs", "pairs_validation", "prompts_validation", "prompts_test")


class DataRecipe(Recipe):
    """Where posts, human preference pairs and prompts come from: the embedded miniature, files, or a published set."""

    stage: Literal["data"]
    source: Literal["miniature", "files", "tldr-comparisons", "tldr-preference", "hh-rlhf", "preference"] = Field(
        "files",
        description="the embedded world; the JSONL / Parquet files below; OpenAI's raw comparisons; TL;DR pairs with the prompt written "
        "out; Anthropic's dialogues; any set in TRL's preference formats",
    )
    files: dict[Table, str] = Field({}, description="table -> JSONL or Parquet file, relative to the recipe")
    rows: dict[Table, PositiveInt] = Field(
        {}, description="rows per table: the miniature's sizes, or how many rows to use: of a file the first, of a set those of drawn posts"
    )
    dataset: str | None = Field(
        None, description="the pairs: hub name (or name@revision), directory or file (./x.jsonl); default: the source's published set"
    )
    data_dir: str | list[str] | None = Field(None, description="folder(s) of the set to read, such as helpful-base; default: the source's")
    sft_dataset: str | None = Field(
        None, description="written responses, named like dataset; its splits give the prompts too. Without: chosen responses"
    )
    tokenizer: str | None = Field(
        None, description="hub name (or name@revision) or directory: counts max_prompt_tokens and brings the chat template"
    )
    max_prompt_tokens: PositiveInt | None = Field(
        None, description="TL;DR posts are cut at their last newline until the prompt fits; other longer prompts are left out; both counted"
    )
    newlines: Literal["keep", "flatten"] = Field(
        "keep", description="blank lines inside TL;DR posts; trl-lib/tldr-preference has lost its own, so beside it flatten everything"
    )
    prompt_format: Literal["raw", "chat"] = Field(
        "raw", description="dialogues of hh-rlhf as published, or through the tokenizer's chat template"
    )
    validation_share: Share = Field(
        0.05, description="share of posts held out for validation (and for test) where the set has no split for it"
    )

    @property
    def loaded(self) -> bool:
        """Whether the tables come from a data set with a loader, rather than from the miniature or a list of files."""
        return self.source not in ("miniature", "files")

    @property
    def folders(self) -> list[str]:
        """The folders of the set to read; none: all of it."""
        published = PUBLISHED_DIR.get(self.source) if self.dataset is None else None
        chosen = published if self.data_dir is None else self.data_dir
        return [chosen] if isinstance(chosen, str) else list(chosen or [])

    def unused(self) -> set[str]:
        """Fields that have no effect under this source, and so are no part of the tables' key."""
        if not self.loaded:
            return {"dataset", "data_dir", "sft_dataset", "tokenizer", "max_prompt_tokens", "newlines", "prompt_format", "validation_share"}
        without = set() if self.source.startswith("tldr") else {"newlines"}
        return without if self.source == "hh-rlhf" else without | {"prompt_format"}

    @model_validator(mode="after")
    def source_has_what_it_needs(self) -> DataRecipe:
        without = sorted(self.unused() & {name for name in self.model_fields_set if getattr(self, name) != _default(self, name)})
        if without:
            raise ValueError(f"{', '.join(without)}: no effect with source: {self.source}")
        if self.loaded and self.files:
            raise ValueError(f"files: no effect with source: {self.source}")
        if self.source == "preference" and self.dataset is None:
            raise ValueError("source: preference needs dataset")
        if self.tokenizer is None and (self.max_prompt_tokens is not None or self.prompt_format == "chat"):
            raise ValueError(f"{'max_prompt_tokens' if self.max_prompt_tokens is not None else 'prompt_format: chat'} needs a tokenizer")
        for name in ("dataset", "sft_dataset"):
            value = getattr(self, name)
            if value is not None and Path(value).suffix in (".jsonl", ".json", ".parquet", ".gz") and not Path(value).is_absolute():
                raise ValueError(f"{name}: a relative path begins with ./ (others are hub names)")
        return self


def _default(recipe: BaseModel, name: str) -> Any:
    return type(recipe).model_fields[name].default


class ModelSource(Recipe):
    """Which model a training stage starts from."""

    model_name_or_path: str | None = Field(
        None, description="hub name, directory, or a sibling recipe (x.yaml: the checkpoint that recipe makes)"
    )
    model_revision: str | None = Field(None, description="revision of a hub model")
    pad_token: str | None = Field(
        None, description="padding token, never the EOS; one outside the vocabulary is added; default: the tokenizer's own"
    )
    attn_implementation: str | None = Field(None, description="as in transformers; default: the model's own")
    max_length: PositiveInt = Field(512, description="tokens of prompt plus response; nothing is ever cut silently")
    overlong: Literal["error", "drop"] = Field(
        "error", description="rows longer than max_length: stop and name the first, or drop and count them"
    )


class FourBits(BaseModel):
    """Keys of TRL's ModelConfig for a base model in 4 bits."""

    load_in_4bit: bool = added(False, "QLoRA: the frozen base in 4 bits (extra `qlora`), with use_peft only; the saved model is whole")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = added("nf4", "4-bit data type of load_in_4bit")
    use_bnb_nested_quant: bool = added(False, "quantise the constants of load_in_4bit as well, 0.4 bits a parameter less")


class TrainingRecipe(ModelSource, FourBits):
    """Keys of transformers.TrainingArguments that the recipes use, under their own names."""

    max_steps: PositiveInt = Field(1000, description="optimiser steps")
    learning_rate: PositiveFloat = Field(1e-6, description="peak learning rate")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    per_device_train_batch_size: PositiveInt = Field(16, description="rows at a time on one device; several processes share them")
    gradient_accumulation_steps: PositiveInt = Field(
        1, description="pieces of this size in the batch of an optimiser step, which stays the same in several processes"
    )
    train_sampling_strategy: Literal["random", "group_by_length"] = added(
        "random",
        "group_by_length: the rows of an optimiser batch are of about equal length, so that less is padding; such a batch no longer stands "
        "for the data, which matters where it decides something (ensemble_min: batch) and where the bias is one of length. Of either kind, "
        "a batch is cut into its pieces from the longest row to the shortest",
    )
    per_device_eval_batch_size: PositiveInt = cosmetic(64, "rows at a time where nothing is learnt")
    optim: str = "adamw_torch"
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    gradient_checkpointing: bool = cosmetic(False, "trade time for memory")
    logging_steps: PositiveInt = cosmetic(10, "steps between lines of metrics.jsonl")
    save_steps: PositiveInt | None = cosmetic(None, "steps between checkpoints to resume from; default: none are written")
    use_peft: bool = Field(False, description="train a LoRA adapter (extra `lora`); the saved model is merged, the adapter kept beside it")
    lora_r: PositiveInt = 16
    lora_alpha: PositiveInt = 32
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: str | list[str] = "all-linear"

    @model_validator(mode="after")
    def four_bits_are_frozen(self) -> TrainingRecipe:
        if self.load_in_4bit and not self.use_peft:
            raise ValueError("load_in_4bit needs use_peft: true; weights of 4 bits cannot be trained, an adapter beside them can")
        if not self.load_in_4bit and (self.use_bnb_nested_quant or self.bnb_4bit_quant_type != "nf4"):
            raise ValueError("bnb_4bit_quant_type and use_bnb_nested_quant: no effect without load_in_4bit")
        return self


class SharedPrompts(BaseModel):
    """Key of the stages that read several responses to one prompt."""

    shared_prompts: bool = Field(
        True, description="a row holds a prompt once with all its responses (about half the work); false: each response has its own"
    )


class SFTRecipe(TrainingRecipe):
    """Supervised fine-tuning on (prompt, completion): makes pi_SFT, the reference policy."""

    stage: Literal["sft"]
    data: str = Field("data.yaml", description="the data recipe")
    table: Table = "sft_train"
    model_config_kwargs: dict[str, Any] | None = Field(
        None, description="train from scratch: model_type and the keys of its transformers config; the tokenizer is the data's"
    )

    @model_validator(mode="after")
    def one_source(self) -> SFTRecipe:
        if (self.model_name_or_path is None) == (self.model_config_kwargs is None):
            raise ValueError("give either model_name_or_path or model_config_kwargs")
        if self.load_in_4bit and self.model_config_kwargs is not None:
            raise ValueError("load_in_4bit: a model from scratch has no weights to quantise; name one with model_name_or_path")
        return self


class RewardRecipe(TrainingRecipe, SharedPrompts):
    """Bradley-Terry reward model: the oracle, the one RM of D_rho, or the ensemble's members."""

    stage: Literal["reward"]
    data: str = Field("data.yaml", description="recipe of the pairs: data, relabel or splits")
    table: Table = Field("pairs", description="which table of a data recipe")
    rho: Share | None = Field(None, description="train on D_rho of a splits recipe")
    ensemble: list[Share] = cosmetic([], "biases b of the ensemble: one member on each D_rho,b")  # a member's own b is in its key
    stopping: Literal["steps", "early"] = Field(
        "steps", description="the last step, or the evaluated step with the lowest held-out loss (paper: unknown)"
    )
    eval_steps: PositiveInt | None = Field(None, description="steps between held-out evaluations; needed by stopping: early")

    @model_validator(mode="after")
    def early_needs_eval(self) -> RewardRecipe:
        if self.stopping == "early" and (self.eval_steps is None or self.eval_steps > self.max_steps):
            raise ValueError("stopping: early needs eval_steps, at most max_steps")
        return self


class RelabelRecipe(ModelSource, SharedPrompts):
    """Replace human labels by the oracle's: chosen is the response it prefers."""

    stage: Literal["relabel"]
    data: str = Field("data.yaml", description="the data recipe")
    reward_model: str = Field("oracle.yaml", description="the oracle: recipe or model directory")
    labels: Literal["argmax", "sample"] = Field("argmax", description="the oracle's preferred response, or a Bradley-Terry draw")
    per_device_eval_batch_size: PositiveInt = cosmetic(256, "responses scored at a time")


class SplitsRecipe(Recipe):
    """D_rho, and the subsets D_rho,b on which the ensemble's members are trained."""

    stage: Literal["splits"]
    data: str = Field("relabel.yaml", description="recipe of the pairs: relabel, or data for already labelled pairs")
    rho: Share | None = Field(None, description="share of pairs whose longer response is preferred; null: no resampling")
    rhos: list[Share] = cosmetic([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], "what `--rho all` means")
    num_pairs: PositiveInt | None = Field(None, description="pairs in D_rho; null: all (needs rho: null)")
    held_out: PositiveInt = Field(500, description="further pairs of the same bias, never trained on: RM validation and calibration")
    ensemble: list[Share] = Field([0.2, 0.4, 0.5, 0.6, 0.8], description="biases b of the subsets")
    subset_size: Literal["equal", "largest"] | PositiveInt = Field(
        "equal", description="equal: the largest size that every b allows; largest: for each b its own; or a number"
    )
    length_margin: float = Field(0.1, ge=0, description="longer means at least this share more tokens; closer pairs are ties")
    ties: Literal["exclude", "include"] = Field(
        "exclude", description="ties: left out of D_rho, or kept at their natural share; never counted in rho"
    )
    tokenizer: str = Field("sft.yaml", description="whose tokens lengths are counted in: recipe or model")

    @model_validator(mode="after")
    def rho_needs_size(self) -> SplitsRecipe:
        if self.rho is not None and self.num_pairs is None:
            raise ValueError("rho needs num_pairs")
        return self


class PolicyRecipe(TrainingRecipe, SharedPrompts):
    """Offline preference optimisation from pi_SFT."""

    stage: Literal["policy"]
    objective: Objective
    data: str = Field("splits.yaml", description="recipe of the pairs: splits")
    rho: Share | None = Field(None, description="which D_rho; null: the unbiased pairs")
    reward_model: str = Field("rm.yaml", description="teacher of d-dpo and dp-dpo: recipe or model directory")
    ensemble: str | list[str] = Field("rm.yaml", description="teachers of e-dpo: a recipe with `ensemble:`, or model directories")
    teacher: Literal["one", "mean", "lcb", "warm"] = Field(
        "one",
        description="what d-dpo and dp-dpo distil. one: reward_model; of the ensemble: mean, the members' mean margin; lcb: that drawn "
        "towards 0 by lcb_lambda standard deviations; warm: one reward model with the mean of the members' weights",
    )
    lcb_lambda: float = Field(1.0, ge=0, description="lambda of teacher: lcb")
    beta: PositiveFloat = Field(0.1, description="strength of the reference in reward units; dpo, d-dpo and kin")
    tau: PositiveFloat = Field(0.1, description="ipo's regularisation: the target margin is 1 / (2 tau)")
    length_alpha: float = Field(0.01, ge=0, description="r-dpo's charge for a token, in reward units")
    sft_weight: float = Field(1.0, ge=0, description="dpo-sft's weight of -log pi(chosen) / length")
    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="robust-dpo's share of labels assumed to be flipped")
    simpo_gamma: float = Field(0.5, ge=0, description="simpo's margin, in reward units")
    gamma: float = Field(1e-4, ge=0, description="weight of KL(pi_ref || pi_theta) at the first step; p-dpo, dp-dpo, e-dpo")
    gamma_end: float | None = Field(1e-2, ge=0, description="weight at the last step (linear); null: constant")
    kl_estimator: Literal["full", "sample", "data"] = Field(
        "sample",
        description="full: whole vocabulary along reference samples (reference model in memory); sample: -log pi_theta on "
        "reference samples; data: on the data set's own responses, biased unless they came from the reference",
    )
    kl_coefficient: Literal["gamma", "gamma_beta"] = Field("gamma", description="weight of the KL: gamma itself, or gamma * beta")
    ensemble_min: Literal["dataset", "batch", "example"] = Field("example", description="scope of e-dpo's min over members")
    ema_decay: Share = Field(0.9, description="decay of the data-set losses that ensemble_min: dataset compares")
    calibration: Literal["none", "temperature"] = Field(
        "temperature", description="temperature: divide each member's rewards by a T fitted on held-out pairs"
    )
    calibration_mix: Literal["own", "data"] = Field("own", description="held-out pairs reweighted to the member's own b, or as they are")
    by_rho: dict[Share, dict[str, Any]] = cosmetic({}, "values that model selection chose for each rho")
    grid: dict[Literal["beta", "tau"], list[PositiveFloat]] = cosmetic({}, "what `rpo sweep` tries")
    evaluate: str = cosmetic("evaluate.yaml", "the evaluation recipe of its samples")
    reference_samples: PositiveInt = Field(1, description="samples of pi_ref per training prompt, drawn once, for the KL")
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
        rivals = {"r-dpo": "length_alpha", "dpo-sft": "sft_weight", "robust-dpo": "label_smoothing", "simpo": "simpo_gamma"}
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


JUDGE_PROMPT = """\
Two responses to the same prompt follow. Decide which of them is the better response to the prompt. Judge what they say and how
well they say it; neither their order nor their length is a merit in itself.

<prompt>
{prompt}
</prompt>

<response A>
{response_a}
</response A>

<response B>
{response_b}
</response B>

Explain in a sentence or two, then end with one line that is exactly "Verdict: A", "Verdict: B" or "Verdict: tie".
"""


class JudgeSettings(BaseModel):
    """A model behind an OpenAI-compatible endpoint that compares responses, and what it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(min_length=1, description="the judge's name, as its endpoint knows it")
    base_url: str = Field("https://api.openai.com/v1", description="OpenAI-compatible endpoint; /chat/completions is added")
    against: list[Literal["baseline", "reference"]] = Field(
        ["baseline"], min_length=1, description="baseline: pi_SFT's samples; reference: the `completion` column of the prompts"
    )
    prompt: str = Field(JUDGE_PROMPT, description="with {prompt}, {response_a}, {response_b}; must ask for `Verdict: A`, `B` or `tie`")
    num_prompts: PositiveInt | None = Field(None, description="judge the first so many prompts; null: all that were evaluated")
    max_tokens: PositiveInt | None = Field(512, description="longest answer; null: not sent")
    temperature: float | None = Field(0.0, ge=0, description="null: not sent, for models that refuse it")
    extra_body: dict[str, Any] = Field({}, description="further keys of the request, such as {max_completion_tokens: 2000, seed: 1}")
    api_key_env: str | None = cosmetic("OPENAI_API_KEY", "environment variable that holds the key; null: the endpoint needs none")
    price_per_million_input_tokens: float | None = cosmetic(None, "for the cost in the metrics; no price is assumed", ge=0)
    price_per_million_output_tokens: float | None = cosmetic(None, "for the cost in the metrics; no price is assumed", ge=0)
    concurrency: PositiveInt = cosmetic(8, "requests at a time")
    timeout: PositiveFloat = cosmetic(60.0, "seconds until an answer must be there, whole")
    retries: int = cosmetic(6, "further tries of a request that failed; waits grow and honour Retry-After", ge=0)

    @field_validator("base_url")
    @classmethod
    def plain_url(cls, value: str) -> str:
        # A manifest shows the URL: whatever could hide a secret has no place in it.
        if not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", value):
            raise ValueError("expected http(s)://host/path, without user, password or query")
        return value.rstrip("/")

    @field_validator("prompt")
    @classmethod
    def has_places(cls, value: str) -> str:
        absent = [place for place in ("{prompt}", "{response_a}", "{response_b}") if place not in value]
        if absent:
            raise ValueError(f"lacks {', '.join(absent)}")
        return value

    @field_validator("against")
    @classmethod
    def each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("lists the same twice")
        return value

    @field_validator("extra_body")
    @classmethod
    def no_overrides(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted({"model", "messages", "max_tokens", "temperature", "n", "stream"} & value.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot be set here")
        return value


class EvaluateRecipe(ModelSource):
    """Sample for test prompts, score with the oracle, compare with pi_SFT."""

    stage: Literal["evaluate"]
    data: str = Field("data.yaml", description="the data recipe")
    split: Literal["validation", "test"] = Field("test", description="validation chooses, test reports")
    oracle: str = Field("oracle.yaml", description="the scoring reward model: recipe or model directory")
    baseline: str = Field("sft.yaml", description="whose samples are the zero of the advantage")
    num_prompts: PositiveInt | None = Field(None, description="how many prompts; null: all")
    num_samples: PositiveInt = Field(1, description="samples per prompt")
    temperature: PositiveFloat = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: PositiveInt = 128
    truncated: Literal["score", "drop"] = Field("score", description="samples without EOS: scored as they are, or left out (and counted)")
    per_device_eval_batch_size: PositiveInt = cosmetic(128, "prompts sampled at a time")
    bootstrap_samples: PositiveInt = Field(2000, description="resamples behind each interval")
    sampler: Literal["transformers", "vllm"] = added("transformers", "what samples the policy; vllm needs the extra `vllm` and a GPU")
    # No part of this stage's key: verdicts are a stage of their own and can be asked for later.
    judge: JudgeSettings | None = cosmetic(None, "a judge for `rpo judge`: win rates beside the oracle's advantage")


class JudgeRecipe(Recipe, JudgeSettings):
    """Verdicts on evaluated samples: an evaluate recipe's `judge:` section as a stage of its own."""

    stage: Literal["judge"]
    truncated: Literal["score", "drop"] = "score"
    bootstrap_samples: PositiveInt = 2000


class ScoringRecipe(ModelSource, SharedPrompts, FourBits):
    """Work that a policy recipe implies and nobody writes down: reference log-probs, reference samples, rewards."""

    stage: Literal["reference", "samples", "scores", "measure"]
    per_device_eval_batch_size: PositiveInt = cosmetic(256, "sequences at a time")
    reference_samples: PositiveInt = 1
    max_new_tokens: PositiveInt = 64


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
    mean_over_rho: bool = Field(False, description="of the mean over those rho, instead of one comparison at each")
    within: PositiveFloat | None = Field(None, description="passes if the difference is smaller than this, whatever its sign")
    beyond: PositiveFloat | None = Field(None, description="passes if the difference is larger than this, whatever its sign")

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
    variants: list[Variant] = Field([], description="other kinds: policy recipes with changes, in the order of the legend")
    claims: list[Claim] = Field([], description="other kinds: what the figure is to show, reported as passed or not")
    rhos: list[Share | None] = Field(
        [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], min_length=1, description="biases of the pairs; null (not in figure2): without resampling"
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
                raise ValueError(f"claims: {claim.claim}: {claim.measure} is no measure of {self.kind} ({measures})")
            if unknown := [rho for rho in claim.rhos or [] if rho not in self.rhos]:
                raise ValueError(f"claims: {claim.claim}: rho {unknown[0]:g} is none of the figure's")
        return self


StageRecipe = DataRecipe | SFTRecipe | RewardRecipe | RelabelRecipe | SplitsRecipe | PolicyRecipe | EvaluateRecipe | FigureRecipe
MODELS: dict[str, type[Recipe]] = {
    "data": DataRecipe,
    "sft": SFTRecipe,
    "reward": RewardRecipe,
    "relabel": RelabelRecipe,
    "splits": SplitsRecipe,
    "policy": PolicyRecipe,
    "evaluate": EvaluateRecipe,
    "figure": FigureRecipe,
}


def result_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields that can change a result: what an artifact's key is made of; of the seeds those in force that it draws under."""
    fields = type(recipe).model_fields
    stage: str = recipe.stage  # type: ignore[attr-defined]
    extras = {name: extra for name, field in fields.items() if isinstance(extra := field.json_schema_extra, dict)}
    hidden = {name for name, extra in extras.items() if extra.get("cosmetic")}
    hidden |= {name for name, extra in extras.items() if extra.get("added") and getattr(recipe, name) == fields[name].default}
    hidden |= {"seed", *(name for name in fields if name.endswith("_seed"))}
    unused: set[str] = recipe.unused() if isinstance(recipe, PolicyRecipe | DataRecipe) else set()
    if (isinstance(recipe, DataRecipe) and recipe.source == "files") or (isinstance(recipe, RelabelRecipe) and recipe.labels == "argmax"):
        unused |= {"data_seed"}
    if stage in WITHOUT_MODEL:
        unused |= {"dtype"}
    seeds = {f"{purpose}_seed": seed_of(recipe, purpose) for purpose in SEEDS[stage] if f"{purpose}_seed" not in unused}
    return recipe.model_dump(mode="json", exclude=hidden | unused) | seeds


def seed_of(recipe: Recipe, purpose: Purpose) -> int:
    """The seed for one purpose; the master seed unless set on its own."""
    own = getattr(recipe, f"{purpose}_seed")
    return recipe.seed if own is None else int(own)


def is_recipe(reference: str) -> bool:
    """Whether a model or data reference names a recipe rather than a directory or a hub name."""
    return Path(reference).suffix in (".yaml", ".yml")
