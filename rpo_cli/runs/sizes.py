"""How large models and tables are: parameters from configs, lengths from texts. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from rpo_cli.artifacts import External, Stage, Workspace, below_adapters, unreachable
from rpo_cli.errors import BadInput
from rpo_cli.models import Row, load_tokenizer
from rpo_cli.recipes import schema
from rpo_cli.stages.data.build import read_table
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import columns_of, read_rows
from rpo_cli.text import first_line

SAMPLE = 1000  # rows that lengths are measured on
GIVE_PARAMS = "; give --params, such as --params 1.4e9"


class Lengths(NamedTuple):
    """A table's rows, if known, mean tokens of prompt and response (with EOS), the longest; and whence."""

    rows: int | None
    prompt: float
    response: float
    longest: int
    source: str


class Unknown(Exception):
    """Something that only building would tell."""


@dataclass
class Model:
    """A model's size and shape; shape None where only --params is known.

    linear: inputs and outputs of every linear layer but the head; head: weights of a head of its own.
    """

    name: str
    parameters: float
    config: PretrainedConfig | None
    linear: Sequence[tuple[int, int]] = ()
    head: float = 0.0

    @property
    def in_layers(self) -> float:
        """Weights of the linear layers but the head."""
        return float(sum(into * out for into, out in self.linear))


@dataclass
class Sizes:
    """Sizes of models and tables, each looked up once.

    advice: what to do about a model whose config cannot be read, where the command has an option for it.
    """

    workspace: Workspace
    params: float | None
    advice: str = ""
    notes: list[str] = field(default_factory=list)
    models: dict[tuple[str, bool], Model] = field(default_factory=dict)
    tables: dict[tuple[str, str], Lengths] = field(default_factory=dict)

    def model(self, node: Stage | External, *, reward: bool = False) -> Model:
        """Parameters of what a stage makes or loads, counted on the meta device from its config.

        Raises:
            BadInput: the config cannot be read, and there is no --params.
        """
        source, settings, data = self._source(node)
        source = source if settings is not None else str(below_adapters(Path(source)))
        key = (str(source) if settings is None else repr(settings), reward)
        if key not in self.models:
            self.models[key] = self._count(source, settings, data, reward)
        return self.models[key]

    def _source(self, node: Stage | External) -> tuple[str, dict[str, object] | None, Stage | None]:
        """The directory or hub name with a model's config, or the settings of one made from scratch."""
        while isinstance(node, Stage):
            built = self.workspace.root / node.path
            if (built / "config.json").is_file():
                return str(built), None, None
            recipe = node.recipe
            if isinstance(recipe, schema.SFTRecipe) and recipe.model_config_kwargs is not None:
                return node.path, recipe.model_config_kwargs, cast(Stage, node.inputs["data"])
            node = node.inputs["model"]
        return node.reference, None, None

    def _count(
        self, source: str, settings: dict[str, object] | None, data: Stage | None, reward: bool
    ) -> Model:
        if settings is None and not Path(source).exists():
            unreachable()  # in one attempt, where the client would try for half a minute
        try:
            config = (
                AutoConfig.from_pretrained(source, trust_remote_code=False)
                if settings is None
                else self._own(settings, data)
            )
            auto = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
            if reward:
                config.num_labels = 1
            with torch.device("meta"):
                made = auto.from_config(config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if self.params is None:
                line = first_line(error)
                raise BadInput(f"{source}: its config cannot be read ({line}){self.advice}") from error
            size_of = f"taken to have {self.params:.3g} parameters, as --params says"
            note = f"{source}: {size_of}; no activations are estimated for it"
            self.notes += [] if note in self.notes else [note]
            return Model(source, self.params, None)
        head: Any = getattr(made, "score", None) if reward else made.get_output_embeddings()
        linear = [
            (m.in_features, m.out_features)
            for m in made.modules()
            if isinstance(m, torch.nn.Linear) and m is not head
        ]
        tied = reward or head is None or head.weight is made.get_input_embeddings().weight
        own = 0.0 if tied else float(head.weight.numel())
        return Model(source, float(sum(p.numel() for p in made.parameters())), config, linear, own)

    def _own(self, settings: dict[str, object], data: Stage | None) -> PretrainedConfig:
        keys, tokenizer = dict(settings), None if data is None else self._tokenizer(data, None)
        if tokenizer is None:
            raise ValueError("the vocabulary is not known before the data is there")
        return AutoConfig.for_model(keys.pop("model_type"), vocab_size=len(tokenizer), **keys)

    def _tokenizer(self, data: Stage, user: Stage | External | None) -> PreTrainedTokenizerBase | None:
        """The tokenizer of the models that use a table, or None: its lengths are then not measured."""
        folder = self.workspace.root / data.path / "tokenizer"
        if folder.is_dir():
            return load_tokenizer(folder, need_pad=False)
        if cast(schema.DataRecipe, data.recipe).source == "miniature":
            from rpo_cli.stages.data.miniature import build_tokenizer

            return build_tokenizer()
        if user is None:
            return None
        try:
            return load_tokenizer(Path(self._source(user)[0]), need_pad=False)
        except BadInput:
            return None

    def lengths(
        self, node: Stage | External, table: str, max_length: int, user: Stage | External | None
    ) -> Lengths:
        """Rows and lengths of a table below this stage: measured where the texts are there, else bounded."""
        while isinstance(node, Stage) and node.kind != "data":
            node = node.inputs["data"]
        assert isinstance(node, Stage)
        key = (node.path, table)
        if key not in self.tables:
            self.tables[key] = self._read_lengths(node, table, max_length, user)
        return self.tables[key]

    def _read_lengths(
        self, data: Stage, table: str, max_length: int, user: Stage | External | None
    ) -> Lengths:
        recipe = cast(schema.DataRecipe, data.recipe)
        texts, place = self._texts(data, table)
        declared = recipe.rows.get(table)  # type: ignore[call-overload]
        if texts is None and recipe.source == "miniature":
            from rpo_cli.stages.data.miniature import TableSizes

            declared = getattr(TableSizes(**recipe.rows), table)
        rows = len(texts) if texts is not None else declared
        known = "rows not known" if rows is None else f"{rows:,} rows"
        tokenizer = None if texts is None else self._tokenizer(data, user)
        if not texts or tokenizer is None:
            why = "not there yet" if not texts else "no tokenizer can be loaded"
            return Lengths(
                rows,
                max_length / 2,
                max_length / 2,
                max_length,
                f"{table}: {known}; {why}: every row counts as max_length",
            )
        some = texts[:SAMPLE]
        prompts = [len(ids) for ids in tokenizer([row["prompt"] for row in some])["input_ids"]]
        answers = [
            len(ids) + 1
            for column in columns_of(table)[1:]
            for ids in tokenizer([row[column] for row in some], add_special_tokens=False)["input_ids"]
        ]
        mean = sum(answers) / len(answers) if answers else math.nan
        source = f"{table}: {known}; lengths measured on {len(some):,} of {place}"
        return Lengths(rows, sum(prompts) / len(prompts), mean, max(answers, default=0), source)

    def _texts(self, data: Stage, table: str) -> tuple[list[Row] | None, str]:
        """A table's rows, from the workspace or from the user's own file."""
        file = self.workspace.root / data.path / f"{table}.parquet"
        if file.is_file() and self.workspace.why_stale(data.path, data.identity) is None:
            return read_rows(file), str(file)
        if table in data.files:
            recipe = cast(schema.DataRecipe, data.recipe)
            return list(read_table(Path(data.files[table]), table, recipe, Ledger())), data.files[table]
        return None, ""
