"""What every recipe may say, and how a field is marked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from rpo_cli.text import is_word, unplain

Table = Literal[
    "pretrain", "sft_train", "sft_validation", "warmup", "pairs", "pairs_validation",
    "prompts_train", "prompts_validation", "prompts_test",
]  # fmt: skip
TABLES: tuple[str, ...] = get_args(Table)
Share = Annotated[float, Field(gt=0, lt=1)]
LARGEST = 3.4e38  # of float32, in which models compute
MOST_THREADS = 1024  # with very many PyTorch ends the process without a word
LAST_SEED = 2**32 - 1  # NumPy's, which Trainer seeds too


def at_most(largest: float) -> AfterValidator:
    """A bound that needs no word in the reference of keys."""

    def check(value: Number) -> Number:
        if value > largest:
            raise ValueError(f"must be at most {largest:.12g}, got {repr(value)[:24]}")
        return value

    return AfterValidator(check)


Positive = Annotated[float, Field(gt=0), at_most(LARGEST)]
NotNegative = Annotated[float, Field(ge=0), at_most(LARGEST)]
Seed = Annotated[int, Field(ge=0), at_most(LAST_SEED)]
Idle = dict[tuple[str, ...], str]  # keys without effect, and of each the key whose value takes it away


def each_once(values: list[Item]) -> list[Item]:
    """The list; ValueError where it has one thing twice, as folders are named and paths are resolved."""
    named = [f"{value:g}" if isinstance(value, float) else os.path.normpath(str(value)) for value in values]
    if twice := [name for index, name in enumerate(named) if name in named[:index]]:
        raise ValueError(f"lists {twice[0]} twice")
    return values


EachOnce = AfterValidator(each_once)
TwoColumns = Annotated[list[str], Field(min_length=2, max_length=2), EachOnce]  # of chosen and of rejected
Item = TypeVar("Item")
Number = TypeVar("Number", int, float)
Purpose = Literal["data", "rm", "policy", "sampling"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def cosmetic(default: Any, description: str, **kwargs: Any) -> Any:
    """A field that cannot change a result, and so is no part of an artifact's key."""
    return Field(default, description=description, json_schema_extra={"cosmetic": True}, **kwargs)


def added(default: Any, description: str, **kwargs: Any) -> Any:
    """A field that came after results were published: part of a key only where it is not at its default."""
    return Field(default, description=description, json_schema_extra={"added": True}, **kwargs)


class Recipe(BaseModel):
    """Keys every stage understands."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    stage: str
    description: str = cosmetic("", "one line shown by `rpo recipe list`")
    suite: str = cosmetic(
        "", "name of the experiment, the first folder in the workspace; default: the recipe's own folder"
    )
    seed: Seed = Field(0, description="master seed; the four below default to it")
    data_seed: Seed | None = Field(None, description="seed of data generation and of the draws of D_rho")
    rm_seed: Seed | None = Field(None, description="seed of reward model training")
    policy_seed: Seed | None = Field(None, description="seed of SFT and policy training")
    sampling_seed: Seed | None = Field(None, description="seed of sampled responses")
    device: Literal["auto", "cpu", "cuda", "xla"] = cosmetic(
        "auto", "auto: cuda if there is one, else cpu; xla: a TPU (docs/tpu.md)"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the device has it in hardware, else float32"
    )
    deterministic: bool | None = added(
        None,
        "algorithms that give the same bytes for the same seed on the same device; default: on the CPU and "
        "on XLA yes, on a GPU no (there they take longer). Asked for on a GPU, an operation that has no such "
        "algorithm is an error",
    )
    threads: Annotated[PositiveInt, at_most(MOST_THREADS)] | None = Field(
        None,
        description="CPU threads of the stage; fixed, because the order of sums, hence the last bit, depends "
        "on it",
    )
    report_to: Literal["none", "wandb"] = cosmetic(
        "none", "where to log besides metrics.jsonl, which is always written"
    )
    wandb_project: str = cosmetic("rpo", "Weights & Biases project")
    expected_seconds: PositiveFloat | None = cosmetic(
        None, "measured wall time on two CPU cores; feeds the first ETA only"
    )

    @field_validator("suite")
    @classmethod
    def plain(cls, value: str) -> str:
        if value and (why := unplain(value)) is not None:
            raise ValueError(f"{why}, got {value!r}")
        return value

    def idle(self) -> Idle:
        """Keys that have no effect beside the others of this recipe, whether it sets them or not."""
        return {}


class ModelSource(Recipe):
    """Which model a training stage starts from."""

    model_name_or_path: str | None = Field(
        None,
        description="hub name, directory, or a sibling recipe (x.yaml: the checkpoint that recipe makes)",
    )
    model_revision: str | None = Field(None, description="revision of a hub model")
    pad_token: str | None = Field(
        None,
        description="padding token, never the EOS; one outside the vocabulary is added; default: the "
        "tokenizer's own",
    )
    attn_implementation: str | None = Field(None, description="as in transformers; default: the model's own")
    max_length: PositiveInt = Field(
        512, description="tokens of prompt plus response; nothing is ever cut silently"
    )
    overlong: Literal["error", "drop"] = Field(
        "error", description="rows longer than max_length: stop and name the first, or drop and count them"
    )

    @field_validator("pad_token")
    @classmethod
    def pads_with_no_word(cls, token: str | None) -> str | None:
        if token is not None and is_word(token):
            hint = "set `pad_token:` to an unused token, or to a new one such as '[PAD]'"
            raise ValueError(f"{token!r} is a word or a sign, which a text may hold; {hint}")
        return token

    def idle(self) -> Idle:
        if self.stage in ("evaluate", "relabel"):
            return dict.fromkeys((("model_name_or_path",), ("model_revision",)), "stage")
        model = self.model_name_or_path
        named = model is None or is_recipe(model) or Path(model).exists()
        return {("model_revision",): "model_name_or_path"} if named else {}


class FourBits(BaseModel):
    """Keys of TRL's ModelConfig for a base model in 4 bits."""

    load_in_4bit: bool = added(
        False,
        "QLoRA: the frozen base in 4 bits (extra `qlora`), with use_peft only; the saved model is whole",
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = added("nf4", "4-bit data type of load_in_4bit")
    use_bnb_nested_quant: bool = added(
        False, "quantise the constants of load_in_4bit as well, 0.4 bits a parameter less"
    )


class Labelled(BaseModel):
    """Key of the stages that read a reward model."""

    reward_label: str | None = added(
        None, "of a reward model with several labels, the one that is the reward, as its id2label calls it"
    )


class SharedPrompts(BaseModel):
    """Key of the stages that read several responses to one prompt."""

    shared_prompts: bool = Field(
        True,
        description="a row holds a prompt once with all its responses (about half the work); false: each "
        "response has its own",
    )


def seed_of(recipe: Recipe, purpose: Purpose) -> int:
    """The seed for one purpose; the master seed unless set on its own."""
    own = getattr(recipe, f"{purpose}_seed")
    return recipe.seed if own is None else int(own)


def is_recipe(reference: str) -> bool:
    """Whether a model or data reference names a recipe rather than a directory or a hub name."""
    return Path(reference).suffix in (".yaml", ".yml")
