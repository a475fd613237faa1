"""Recipes of pairs that a model's own samples make."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from rpo_cli.recipes.schema.base import EachOnce, Idle, ModelSource, Positive, Table, cosmetic

Contrast = Literal["samples", "written-samples", "written-others"]


class PairsRecipe(ModelSource):
    """Preference pairs from a model's own samples: against each other, or against what people wrote."""

    stage: Literal["pairs"]
    data: str = Field("data.yaml", description="the data recipe")
    model_name_or_path: str = Field("sft.yaml", description="whose samples: hub name, directory, or recipe")
    table: Table = Field("prompts_train", description="whose prompts make `pairs`")
    validation_table: Table | None = Field(
        "prompts_validation", description="whose prompts make `pairs_validation`; null: none"
    )
    contrasts: Annotated[list[Contrast], EachOnce] = Field(
        ["samples"],
        min_length=1,
        description="samples: two of a prompt, in the order drawn, for `relabel` to order; written-samples: "
        "the written response is preferred to each sample; written-others: to another prompt's written one",
    )
    num_prompts: PositiveInt | None = Field(None, description="use the first so many prompts; null: all")
    num_samples: PositiveInt = Field(2, description="samples for each prompt")
    temperatures: list[Positive] = Field(
        [1.0], min_length=1, description="a prompt's samples take turns with them"
    )
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: PositiveInt = Field(
        64, description="longest sample; those that have not ended by then are left out and counted"
    )
    per_device_eval_batch_size: PositiveInt = cosmetic(64, "prompts sampled at a time")

    @model_validator(mode="after")
    def samples_come_in_twos(self) -> PairsRecipe:
        if "samples" in self.contrasts and self.num_samples < 2:
            raise ValueError("contrasts: samples needs num_samples of at least 2")
        return self

    def idle(self) -> Idle:
        of_samples = ("num_samples", "temperatures", "top_p", "max_new_tokens")
        unused = () if self.needs_samples else of_samples
        return super().idle() | {(name,): "contrasts" for name in unused}

    @property
    def needs_samples(self) -> bool:
        """Whether the model has to be asked at all."""
        return self.contrasts != ["written-others"]

    @property
    def needs_written(self) -> bool:
        """Whether the prompts' table must have written responses."""
        return self.contrasts != ["samples"]
