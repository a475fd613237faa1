"""Recipes of evaluation: the oracle's, and a judge's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from rpo_cli.recipes.schema.base import EachOnce, Labelled, ModelSource, Recipe, added, cosmetic

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


SECRET = re.compile(r"(?i)api[-_]?key|secret|password|authorization|access[-_]?token|bearer")


def _names(value: object) -> Iterator[object]:
    """The keys of a mapping and of all below it."""
    for name, item in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield name
        yield from _names(item)


class JudgeSettings(BaseModel):
    """A model behind an OpenAI-compatible endpoint that compares responses, and what it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(min_length=1, description="the judge's name, as its endpoint knows it")
    base_url: str = Field(
        "https://api.openai.com/v1", description="OpenAI-compatible endpoint; /chat/completions is added"
    )
    against: Annotated[list[Literal["baseline", "reference"]], EachOnce] = Field(
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
    extra_body: dict[str, object] = Field(
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

    @field_validator("extra_body")
    @classmethod
    def no_overrides(cls, value: dict[str, object]) -> dict[str, object]:
        taken = sorted({"model", "messages", "max_tokens", "temperature", "n", "stream"} & value.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot be set here")
        if any(SECRET.search(str(name)) for name in _names(value)):
            raise ValueError(
                "a secret has no place in a recipe; api_key_env names the variable that holds it"
            )
        return value

    @field_validator("api_key_env")
    @classmethod
    def names_a_variable(cls, value: str | None) -> str | None:
        # What does not look like a name may be the key itself, and is not shown.
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value):
            raise ValueError("expected the name of an environment variable, not a key itself")
        return value

    @model_validator(mode="after")
    def keeps_the_key(self) -> JudgeSettings:
        if self.api_key_env is not None and self.base_url.startswith("http:") and not self.is_local:
            cure = "use https://, or set api_key_env: null if the endpoint needs no key"
            raise ValueError(f"base_url: {self.api_key_env} would go to {self.host} unencrypted; {cure}")
        return self

    @property
    def host(self) -> str:
        """Where questions go: host, and port if one is given."""
        return urlsplit(self.base_url).netloc

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is on this machine: localhost, 127.0.0.0/8 or ::1."""
        name = urlsplit(self.base_url).hostname or ""
        try:
            return name == "localhost" or ip_address(name).is_loopback
        except ValueError:
            return False


class EvaluateRecipe(ModelSource, Labelled):
    """Sample for test prompts, score with the oracle if there is one, compare with pi_SFT."""

    stage: Literal["evaluate"]
    data: str = Field("data.yaml", description="the data recipe")
    split: Literal["validation", "test"] = Field("test", description="validation chooses, test reports")
    oracle: str | None = Field(
        "oracle.yaml",
        description="the scoring reward model: recipe, hub name or directory; null: none, so samples have no "
        "rewards and policies are compared by held-out pairs, lengths and KL",
    )
    baseline: str = Field(
        "sft.yaml", description="whose samples are the zero of the advantage: recipe or model"
    )
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
