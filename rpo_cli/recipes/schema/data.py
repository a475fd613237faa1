"""Recipes of data: its sources, relabelling, biased splits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from rpo_cli.recipes.schema.base import TABLES, ModelSource, Recipe, Share, SharedPrompts, Table, cosmetic

Source = Literal["miniature", "files", "tldr-comparisons", "tldr-preference", "hh-rlhf", "preference"]
# The set that a source reads unless the recipe names another; name@revision: not on the main branch.
PUBLISHED = {
    "tldr-comparisons": "openai/summarize_from_feedback@refs/convert/parquet",
    "tldr-preference": "trl-lib/tldr-preference",
    "hh-rlhf": "Anthropic/hh-rlhf",
}
PUBLISHED_DIR = {"tldr-comparisons": "comparisons", "hh-rlhf": "helpful-base"}
LOADED_TABLES = tuple(table for table in TABLES if table not in ("pretrain", "warmup"))
# What only a data set with a loader has.
OF_LOADED = (
    "dataset", "data_dir", "sft_dataset", "tokenizer", "max_prompt_tokens", "newlines", "prompt_format",
    "validation_share",
)  # fmt: skip


class DataRecipe(Recipe):
    """Where posts, human preference pairs and prompts come from: the embedded miniature, files, or a published set."""  # noqa: E501

    stage: Literal["data"]
    source: Source = Field(
        "files",
        description="the embedded world; the JSONL / Parquet files below; OpenAI's raw comparisons; TL;DR "
        "pairs with the prompt written out; Anthropic's dialogues; any set in TRL's preference formats",
    )
    files: dict[Table, str] = Field({}, description="table -> JSONL or Parquet file, relative to the recipe")
    rows: dict[Table, PositiveInt] = Field(
        {},
        description="rows per table: the miniature's sizes, or how many rows to use: of a file the first, of "
        "a set those of drawn posts",
    )
    dataset: str | None = Field(
        None,
        description="the pairs: hub name (or name@revision), directory or file (./x.jsonl); default: the "
        "source's published set",
    )
    data_dir: str | list[str] | None = Field(
        None, description="folder(s) of the set to read, such as helpful-base; default: the source's"
    )
    sft_dataset: str | None = Field(
        None,
        description="written responses, named like dataset; its splits give the prompts too. Without: chosen "
        "responses",
    )
    tokenizer: str | None = Field(
        None,
        description="hub name (or name@revision) or directory: counts max_prompt_tokens and brings the chat "
        "template",
    )
    max_prompt_tokens: PositiveInt | None = Field(
        None,
        description="TL;DR posts are cut at their last newline until the prompt fits; other longer prompts "
        "are left out; both counted",
    )
    newlines: Literal["keep", "flatten"] = Field(
        "keep",
        description="blank lines inside TL;DR posts; trl-lib/tldr-preference has lost its own, so beside it "
        "flatten everything",
    )
    prompt_format: Literal["raw", "chat"] = Field(
        "raw", description="dialogues of hh-rlhf as published, or through the tokenizer's chat template"
    )
    validation_share: Share = Field(
        0.05,
        description="share of posts held out for validation (and for test) where the set has no split for it",
    )

    @property
    def loaded(self) -> bool:
        """Whether the tables come from a set with a loader, not from the miniature or a list of files."""
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
            return set(OF_LOADED)
        without = set() if self.source.startswith("tldr") else {"newlines"}
        return without if self.source == "hh-rlhf" else without | {"prompt_format"}

    @model_validator(mode="after")
    def source_has_what_it_needs(self) -> DataRecipe:
        fields = type(self).model_fields
        without = sorted(n for n in self.unused() & fields.keys() if getattr(self, n) != fields[n].default)
        if without:
            raise ValueError(f"{', '.join(without)}: no effect with source: {self.source}")
        if self.loaded and self.files:
            raise ValueError(f"files: no effect with source: {self.source}")
        if self.source == "preference" and self.dataset is None:
            raise ValueError("source: preference needs dataset")
        if self.tokenizer is None and (self.max_prompt_tokens is not None or self.prompt_format == "chat"):
            who = "prompt_format: chat" if self.max_prompt_tokens is None else "max_prompt_tokens"
            raise ValueError(f"{who} needs a tokenizer")
        for name in ("dataset", "sft_dataset"):
            path = Path(getattr(self, name) or "")
            if path.suffix in (".jsonl", ".json", ".parquet", ".gz") and not path.is_absolute():
                raise ValueError(f"{name}: a relative path begins with ./ (others are hub names)")
        return self


class RelabelRecipe(ModelSource, SharedPrompts):
    """Replace human labels by the oracle's: chosen is the response it prefers."""

    stage: Literal["relabel"]
    data: str = Field("data.yaml", description="the data recipe")
    reward_model: str = Field("oracle.yaml", description="the oracle: recipe or model directory")
    labels: Literal["argmax", "sample"] = Field(
        "argmax", description="the oracle's preferred response, or a Bradley-Terry draw"
    )
    per_device_eval_batch_size: PositiveInt = cosmetic(256, "responses scored at a time")


class SplitsRecipe(Recipe):
    """D_rho, and the subsets D_rho,b on which the ensemble's members are trained."""

    stage: Literal["splits"]
    data: str = Field(
        "relabel.yaml", description="recipe of the pairs: relabel, or data for already labelled pairs"
    )
    rho: Share | None = Field(
        None, description="share of pairs whose longer response is preferred; null: no resampling"
    )
    rhos: list[Share] = cosmetic([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], "what `--rho all` means")
    num_pairs: PositiveInt | None = Field(None, description="pairs in D_rho; null: all (needs rho: null)")
    held_out: PositiveInt = Field(
        500, description="further pairs of the same bias, never trained on: RM validation and calibration"
    )
    ensemble: list[Share] = Field([0.2, 0.4, 0.5, 0.6, 0.8], description="biases b of the subsets")
    subset_size: Literal["equal", "largest"] | PositiveInt = Field(
        "equal",
        description="equal: the largest size that every b allows; largest: for each b its own; or a number",
    )
    length_margin: float = Field(
        0.1, ge=0, description="longer means at least this share more tokens; closer pairs are ties"
    )
    ties: Literal["exclude", "include"] = Field(
        "exclude", description="ties: left out of D_rho, or kept at their natural share; never counted in rho"
    )
    tokenizer: str = Field("sft.yaml", description="whose tokens lengths are counted in: recipe or model")

    @model_validator(mode="after")
    def rho_needs_size(self) -> SplitsRecipe:
        if self.rho is not None and self.num_pairs is None:
            raise ValueError("rho needs num_pairs")
        return self
