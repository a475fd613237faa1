"""Recipes of data: its sources, relabelling, biased splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from rpo_cli.recipes.schema.base import (
    EachOnce,
    Idle,
    Labelled,
    ModelSource,
    Positive,
    Recipe,
    Share,
    SharedPrompts,
    Table,
    TwoColumns,
    added,
    cosmetic,
    each_once,
)


@dataclass(frozen=True)
class Source:
    """A source of tables.

    about: it in a few words; reads: "module:function" in stages/data/sources of one that is a data set, which
    takes `Sets` and returns its pairs and written responses; published: the set that it reads unless the
    recipe names another (name@revision where it is not on the main branch), none: the recipe must; folder: of
    the published set, which; uses: which of the keys that not every set has a use for; written: it has
    written responses and no pairs.
    """

    about: str
    reads: str | None = None
    published: str | None = None
    folder: str | None = None
    uses: tuple[str, ...] = ()
    written: bool = False

    @property
    def tables(self) -> tuple[str, ...]:
        """What a data set of it is read as."""
        return WRITTEN_TABLES if self.written else LOADED_TABLES


# One row for each; a new one is a file in stages/data/sources and its row here.
SOURCES = {
    "miniature": Source("the embedded world", uses=("entangled", "polite")),
    "files": Source("the JSONL / Parquet files below", uses=("columns", "keep_columns", "attributes")),
    "tldr-comparisons": Source("OpenAI's raw comparisons", "tldr:read_comparisons",
                               "openai/summarize_from_feedback@refs/convert/parquet", "comparisons",
                               ("newlines",)),
    "tldr-preference": Source("TL;DR pairs with the prompt written out", "tldr:read_preference",
                              "trl-lib/tldr-preference", uses=("newlines",)),
    "hh-rlhf": Source("Anthropic's dialogues", "preference:read_dialogues",
                      "Anthropic/hh-rlhf", "helpful-base", ("prompt_format",)),
    "shp": Source("answers on Reddit by their votes", "shp:read", "stanfordnlp/SHP", uses=("prompt_format",)),
    "debian": Source("a Debian archive's descriptions with their one-line summaries", "debian:read",
                     "/var/lib/apt/lists", uses=("sft_share",), written=True),
    "written": Source("any set of written responses, to sample pairs for", "preference:read",
                      uses=("columns", "sft_share"), written=True),
    "preference": Source("any set in TRL's preference formats", "preference:read",
                         uses=("columns", "keep_columns", "attributes")),
}  # fmt: skip
OWN = {"files", "preference", "written"}  # which read a user's own rows, plain text or messages
OF_EVERY_SET = {"dataset", "data_dir", "sft_dataset", "split", "tokenizer", "max_prompt_tokens",
                "validation_share"}  # fmt: skip
OF_SOME_SETS = {"newlines", "prompt_format", "columns", "keep_columns", "attributes", "sft_share",
                "entangled", "polite", "counts"}  # fmt: skip
if TYPE_CHECKING:
    SourceName = str
else:
    SourceName = Literal[tuple(SOURCES)]
# What a file of a data set is called by; packed ones by their packing.
FILES = {".jsonl", ".json", ".parquet", ".gz", ".zst", ".xz", ".bz2", ".lz4"}
# Columns that tables of pairs have, or are given by the stages behind them.
TAKEN = {"id", "prompt", "chosen", "rejected", "completion", "messages", "swapped", "chosen_tokens",
         "rejected_tokens", "longer_preferred"}  # fmt: skip
WRITTEN_TABLES = ("sft_train", "sft_validation", "prompts_train", "prompts_validation", "prompts_test")
LOADED_TABLES = (
    "sft_train", "sft_validation", "pairs", "pairs_validation", "prompts_validation", "prompts_test",
)  # fmt: skip


def uncountable(name: str, pattern: str) -> str | None:
    """Why the matches of a regular expression cannot be counted under a name, in words; None: they can."""
    if not name.isidentifier() or f"chosen_{name}" in TAKEN:
        return "the name is to be part of a column's; write letters, such as `lists`"
    try:
        found = re.compile(pattern).search("")
    except re.error as error:
        return f"no regular expression: {error}"
    return None if found is None else "finds what is empty, everywhere; write what is to be counted"


class DataRecipe(Recipe):
    """Where posts, human preference pairs and prompts come from:
    the embedded miniature, files, or a published set.
    """

    stage: Literal["data"]
    source: SourceName = Field("files", description="; ".join(row.about for row in SOURCES.values()))
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
    split: dict[Literal["train", "validation", "test"], str] = added(
        {},
        "which published split is which, such as {train: train_prefs, test: test_prefs}; default: those of "
        "these names (or with _prefs, for sft_dataset with _sft)",
    )
    columns: dict[
        Literal["prompt", "chosen", "rejected", "completion", "messages", "label", "score"], str
    ] = added(
        {},
        "what the data calls a column, such as {prompt: question}; label says which of two responses is "
        "better, score how good the one of each row is",
    )
    keep_columns: Annotated[list[str], EachOnce] = added(
        [],
        "columns of numbers to keep beside the pairs, such as [score_chosen, score_rejected]: a policy's "
        "margin_columns names them",
    )
    attributes: Annotated[list[str], EachOnce] = added(
        [],
        "columns to keep beside the pairs that say of what kind each is, such as [source, category]: rpo "
        "diagnose tells accuracies apart by them",
    )
    counts: dict[str, str] = added(
        {},
        "regular expressions of Python whose matches are counted in the responses of pairs, such as {lists: "
        "'(?m)^[-*] '}: columns chosen_lists and rejected_lists, for bias_on and ensemble_on of splits",
    )
    entangled: float = added(
        0.0,
        "the miniature's: share of the errors in human pairs that a writer puts right with a true fact: 0, "
        "length and worth are nearly independent; 1, the longer summary is nearly always the better one",
        ge=0,
        le=1,
    )
    polite: float = added(
        0.0,
        "the miniature's: share of summaries with a polite lead-in, worth nothing; the pairs then have the "
        "columns chosen_polite and rejected_polite",
        ge=0,
        lt=1,
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
        "raw",
        description="text as it stands, or through the tokenizer's chat template: with chat dialogues are "
        "messages, and a plain prompt is the user's message, a plain response the assistant's; messages of "
        "source: preference and written go through it always",
    )
    sft_share: Share = added(
        0.5, "share of the training posts that SFT learns from; the others are prompts_train"
    )
    validation_share: Share = Field(
        0.05,
        description="share of posts held out for validation (and for test) where the set has no split for it",
    )

    @field_validator("keep_columns", "attributes")
    @classmethod
    def has_names_of_its_own(cls, value: list[str]) -> list[str]:
        if taken := sorted(TAKEN & set(value)):
            raise ValueError(f"{', '.join(taken)}: rpo has columns of this name; rename it in the data")
        return value

    @field_validator("counts")
    @classmethod
    def counts_what_is_an_expression(cls, value: dict[str, str]) -> dict[str, str]:
        for name, pattern in value.items():
            if (why := uncountable(name, pattern)) is not None:
                raise ValueError(f"{name}: {why}")
        return value

    @field_validator("columns")
    @classmethod
    def has_each_column_once(cls, value: dict[str, str]) -> dict[str, str]:
        each_once(list(value.values()))
        return value

    @property
    def of(self) -> Source:
        """The source's row of the table."""
        return SOURCES[self.source]

    @property
    def numbers(self) -> list[str]:
        """The columns of numbers beside the pairs."""
        counted = [*self.counts, *(["polite"] if self.polite else [])]
        sides = ("chosen", "rejected")
        return [*self.keep_columns, *(f"{side}_{name}" for name in counted for side in sides)]

    @property
    def loaded(self) -> bool:
        """Whether the tables come from a data set with a loader, not from the miniature or listed files."""
        return self.of.reads is not None

    @property
    def folders(self) -> list[str]:
        """The folders of the set to read; none: all of it."""
        published = self.of.folder if self.dataset is None else None
        chosen = published if self.data_dir is None else self.data_dir
        return [chosen] if isinstance(chosen, str) else list(chosen or [])

    def unused(self) -> set[str]:
        """Fields that have no effect under this source, and so are no part of the tables' key."""
        used = {*self.of.uses, *(OF_EVERY_SET if self.loaded else ())}
        used = used - {"sft_dataset"} if self.of.written else used | {"counts"}
        if self.source in OWN and self.prompt_format == "chat":
            used |= {"prompt_format", "tokenizer"}
        return (OF_EVERY_SET | OF_SOME_SETS) - used

    @model_validator(mode="after")
    def source_has_what_it_needs(self) -> DataRecipe:
        fields = type(self).model_fields
        without = sorted(n for n in self.unused() & fields.keys() if getattr(self, n) != fields[n].default)
        if without:
            raise ValueError(f"{', '.join(without)}: no effect with source: {self.source}")
        if self.loaded and self.files:
            raise ValueError(f"files: no effect with source: {self.source}")
        if self.loaded and self.dataset is None and self.of.published is None:
            raise ValueError(f"source: {self.source} needs dataset")
        if self.source != "preference" and (unread := sorted({"label", "score"} & self.columns.keys())):
            raise ValueError(f"columns: {', '.join(unread)}: no effect with source: {self.source}")
        columns = [*self.numbers, *self.attributes]
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise ValueError(f"counts: there is a column {min(twice)} already")
        if self.tokenizer is None and (self.max_prompt_tokens is not None or self.prompt_format == "chat"):
            why = "prompt_format: chat" if self.max_prompt_tokens is None else "max_prompt_tokens"
            raise ValueError(f"{why} needs a tokenizer")
        for name in ("dataset", "sft_dataset"):
            path = Path(getattr(self, name) or "")
            if path.suffix.lower() in FILES and not path.is_absolute():
                raise ValueError(f"{name}: a relative path begins with ./ (others are hub names)")
        return self


class RelabelRecipe(ModelSource, SharedPrompts, Labelled):
    """Replace human labels by the oracle's: chosen is the response it prefers."""

    stage: Literal["relabel"]
    data: str = Field("data.yaml", description="the data recipe")
    reward_model: str = Field("oracle.yaml", description="the oracle: recipe, hub name or directory")
    labels: Literal["argmax", "sample"] = Field(
        "argmax", description="the oracle's preferred response, or a Bradley-Terry draw"
    )
    label_temperature: Positive = added(
        1.0,
        "labels: sample divides the oracle's differences by it before the draw: the larger, the more labels "
        "go against the oracle, as people's do",
    )
    per_device_eval_batch_size: PositiveInt = cosmetic(256, "responses scored at a time")

    def idle(self) -> Idle:
        return super().idle() | ({("label_temperature",): "labels"} if self.labels == "argmax" else {})


def attribute(columns: Sequence[str]) -> str:
    """What two columns of chosen and of rejected count: of chosen_NAME and rejected_NAME the NAME alone."""
    name = columns[0].removeprefix("chosen_")
    return name if columns[1].removeprefix("rejected_") == name else columns[0]


def preferred(bias_on: Sequence[str] | None) -> str:
    """Which response rho counts, in words."""
    return "the longer one" if bias_on is None else f"the one of higher {attribute(bias_on)}"


class SplitsRecipe(Recipe):
    """D_rho, and the subsets D_rho,b on which the ensemble's members are trained."""

    stage: Literal["splits"]
    data: str = Field(
        "relabel.yaml", description="recipe of the pairs: relabel, or data for already labelled pairs"
    )
    rho: Share | None = Field(
        None, description="share of pairs whose longer response is preferred; null: no resampling"
    )
    bias_on: TwoColumns | None = added(
        None,
        "two columns of numbers beside the pairs, of chosen and of rejected, such as [chosen_polite, "
        "rejected_polite]: rho and b are shares of pairs whose response with the higher number is preferred, "
        "pairs of equal numbers are the ties; default: the longer response",
    )
    rhos: list[Share] = cosmetic([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], "what `--rho all` means")
    num_pairs: PositiveInt | None = Field(None, description="pairs in D_rho; null: all (needs rho: null)")
    held_out: PositiveInt = Field(
        500, description="further pairs of the same bias, never trained on: RM validation and calibration"
    )
    ensemble: Annotated[list[Share], EachOnce] = Field(
        [0.2, 0.4, 0.5, 0.6, 0.8], description="biases b of the subsets"
    )
    subset_size: Literal["equal", "largest"] | PositiveInt = Field(
        "equal",
        description="equal: the largest size that every b allows; largest: for each b its own; or a number",
    )
    subset_draw: Literal["nested", "independent"] = added(
        "nested",
        "nested: each subset takes the same first pairs of either kind, as far as its bias allows; "
        "independent: each is drawn from D_rho by itself",
    )
    ensemble_on: TwoColumns | Literal["length"] | None = added(
        None,
        "what the subsets D_rho,b differ in, where that is not what D_rho is biased in: two columns as those "
        "of bias_on, or length",
    )
    length_counts_eos: bool = added(
        True, "whether the EOS is one of a response's tokens where lengths are compared"
    )
    length_margin: float = Field(
        0.1, ge=0, description="longer means at least this share more tokens; closer pairs are ties"
    )
    ties: Literal["exclude", "include"] = Field(
        "exclude", description="ties: left out of D_rho, or kept at their natural share; never counted in rho"
    )
    tokenizer: str = Field("sft.yaml", description="whose tokens lengths are counted in: recipe or model")
    max_length: PositiveInt | Literal["auto"] | None = added(
        "auto",
        "draw from pairs of at most so many tokens, prompt plus longer response; auto: the least max_length "
        "of the recipes beside this one that are trained on these splits with overlong: drop; null: no limit",
    )

    @property
    def biased_to(self) -> str:
        """Which response rho counts, in words: the longer one, or that of the higher number."""
        return preferred(self.bias_on)

    @property
    def told(self) -> list[str] | None:
        """The columns of what the subsets differ in; None: lengths."""
        return None if self.ensemble_on == "length" else self.ensemble_on or self.bias_on

    @model_validator(mode="after")
    def rho_needs_size(self) -> SplitsRecipe:
        if self.rho is not None and self.num_pairs is None:
            raise ValueError("rho needs num_pairs")
        return self
