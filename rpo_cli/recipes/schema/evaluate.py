"""Recipes of evaluation: the oracle's, and a judge's."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from rpo_cli.recipes.schema.base import ModelSource, Recipe, added, cosmetic

JUDGE_PROMPT = """\
Two responses to the same prompt follow. Decide which of them is the better response to the prompt. \
Judge what they say and how
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

Explain in a sentence or two, then end with one line that is exactly "Verdict: A", "Verdict: B" or \
"Verdict: tie".
"""


class JudgeSettings(BaseModel):
    """A model behind an OpenAI-compatible endpoint that compares responses, and what it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(min_length=1, description="the judge's name, as its endpoint knows it")
    base_url: str = Field(
        "https://api.openai.com/v1", description="OpenAI-compatible endpoint; /chat/completions is added"
    )
    against: list[Literal["baseline", "reference"]] = Field(
        ["baseline"],
        min_length=1,
        description="baseline: pi_SFT's samples; reference: the `completion` column of the prompts",
    )
    prompt: str = Field(
        JUDGE_PROMPT,
        description="with {prompt}, {response_a}, {response_b}; must ask for `Verdict: A`, `B` or `tie`",
    )
    num_prompts: PositiveInt | None = Field(
        None, description="judge the first so many prompts; null: all that were evaluated"
    )
    max_tokens: PositiveInt | None = Field(512, description="longest answer; null: not sent")
    temperature: float | None = Field(0.0, ge=0, description="null: not sent, for models that refuse it")
    extra_body: dict[str, Any] = Field(
        {}, description="further keys of the request, such as {max_completion_tokens: 2000, seed: 1}"
    )
    api_key_env: str | None = cosmetic(
        "OPENAI_API_KEY", "environment variable that holds the key; null: the endpoint needs none"
    )
    price_per_million_input_tokens: float | None = cosmetic(
        None, "for the cost in the metrics; no price is assumed", ge=0
    )
    price_per_million_output_tokens: float | None = cosmetic(
        None, "for the cost in the metrics; no price is assumed", ge=0
    )
    concurrency: PositiveInt = cosmetic(8, "requests at a time")
    timeout: PositiveFloat = cosmetic(60.0, "seconds until an answer must be there, whole")
    retries: int = cosmetic(
        6, "further tries of a request that failed; waits grow and honour Retry-After", ge=0
    )

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
    truncated: Literal["score", "drop"] = Field(
        "score", description="samples without EOS: scored as they are, or left out (and counted)"
    )
    per_device_eval_batch_size: PositiveInt = cosmetic(128, "prompts sampled at a time")
    bootstrap_samples: PositiveInt = Field(2000, description="resamples behind each interval")
    sampler: Literal["transformers", "vllm"] = added(
        "transformers", "what samples the policy; vllm needs the extra `vllm` and a GPU"
    )
    # No part of this stage's key: verdicts are a stage of their own and can be asked for later.
    judge: JudgeSettings | None = cosmetic(
        None, "a judge for `rpo judge`: win rates beside the oracle's advantage"
    )


class JudgeRecipe(Recipe, JudgeSettings):
    """Verdicts on evaluated samples: an evaluate recipe's `judge:` section as a stage of its own."""

    stage: Literal["judge"]
    truncated: Literal["score", "drop"] = "score"
    bootstrap_samples: PositiveInt = 2000
