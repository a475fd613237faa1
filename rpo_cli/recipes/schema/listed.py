"""What an ensemble's list may name beside models: columns of scores, and the members of another recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from rpo_cli.recipes.schema.base import TwoColumns, is_recipe


class Columns(BaseModel):
    """A member of an ensemble that is no model: the data's own scores of chosen and rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: TwoColumns = Field(description="scores of chosen and of rejected")

    def __str__(self) -> str:
        return f"columns {', '.join(self.columns)}"


class Members(BaseModel):
    """Members of an ensemble that another recipe describes, all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: str = Field(description="a reward recipe with an ensemble")

    @field_validator("members")
    @classmethod
    def is_a_recipe(cls, value: str) -> str:
        if not is_recipe(value):
            raise ValueError(f"{value!r} is no recipe (x.yaml); a model stands in the list by itself")
        return value

    def __str__(self) -> str:
        return f"members of {self.members}"


def _form(value: object) -> str:
    """Which form an entry of an ensemble's list has."""
    if isinstance(value, Members) or (isinstance(value, dict) and "members" in value):
        return "members"
    return "columns" if isinstance(value, Columns | dict) else "model"


Listed = Annotated[
    Annotated[str, Tag("model")] | Annotated[Columns, Tag("columns")] | Annotated[Members, Tag("members")],
    Discriminator(_form),
]
