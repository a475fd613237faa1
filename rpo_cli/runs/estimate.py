"""What a plan costs before it is run: tokens, parameters, FLOPs, memory, disk, and with a device hours and
dollars.

Every number is arithmetic on the plan; ASSUMPTIONS and the notes of `estimate` say which. Imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from rpo_cli.artifacts import External, Stage, Workspace, unreachable
from rpo_cli.errors import BadInput
from rpo_cli.models import Row, load_tokenizer
from rpo_cli.recipes import schema
from rpo_cli.runs.question import Question
from rpo_cli.runs.todo import Todo
from rpo_cli.stages.data.build import read_table
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import columns_of, read_rows
from rpo_cli.text import aligned, clock, first_line, size

WAYS = ("train", "score", "decode")
SAMPLE = 1000  # rows that lengths are measured on
READ_SHARE = 0.5  # share of the memory bandwidth that decoding reaches
ASSUMPTIONS = (
    "training: 6 N FLOPs per token (8 N with gradient_checkpointing, 4 N with LoRA); scoring and prompts: "
    "2 N; N parameters, "
    "attention scores left out",
    "a prompt counts once for its responses, with shared_prompts: false once for each; padding is left out",
    "memory of training: 4 N weights (with load_in_4bit half a byte and its constants for linear layers) + "
    "4 T gradients + 8 T Adam, "
    "T trained parameters, all float32; activations 34 b s h L bytes "
    "(2 b s h L + one layer with gradient_checkpointing; twice that in float32; Korthikanti et al., 2022, "
    "without attention "
    "scores) for b sequences of s = max_length tokens; logits 3 x 4 bytes b r V for r response tokens "
    "(SFT: all s)",
    "one device per stage; stages of different cells can run side by side, which shortens hours, not "
    "device-hours",
    "loading, start-up, tokenising, data and splits stages take no time",
)


class Lengths(NamedTuple):
    """A table's rows (None: not known), mean tokens of prompt and response (with EOS), the longest response;
    and whence.
    """

    rows: int | None
    prompt: float
    response: float
    longest: int
    source: str


@dataclass
class Work:
    """What one kind of stage does: FLOPs and tokens by way of working, and bytes of weights that decoding
    reads.
    """

    train: float = 0.0
    score: float = 0.0
    decode: float = 0.0
    train_tokens: float = 0.0
    score_tokens: float = 0.0
    decode_tokens: float = 0.0
    read_bytes: float = 0.0

    def __iadd__(self, other: Work) -> Work:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    @property
    def flops(self) -> float:
        return self.train + self.score + self.decode


class Unknown(Exception):
    """Something that only building would tell."""


@dataclass
class Model:
    """A model's size and shape; shape None where only --params is known."""

    name: str
    parameters: float
    config: PretrainedConfig | None
    linear: Sequence[tuple[int, int]] = ()


@dataclass
class Estimator:
    """Sizes of models and tables, each looked up once."""

    workspace: Workspace
    params: float | None
    notes: list[str] = field(default_factory=list)
    _models: dict[tuple[str, bool], Model] = field(default_factory=dict)
    _lengths: dict[tuple[str, str], Lengths] = field(default_factory=dict)

    # ── Models
    # ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def model(self, node: Stage | External, *, reward: bool = False) -> Model:
        """Parameters of what a stage makes or loads, counted on the meta device from its config.

        Raises:
            BadInput: the config cannot be read, and there is no --params.
        """
        source, settings, data = self._source(node)
        key = (str(source) if settings is None else repr(settings), reward)
        if key not in self._models:
            self._models[key] = self._count(source, settings, data, reward)
        return self._models[key]

    def _source(self, node: Stage | External) -> tuple[str, dict[str, Any] | None, Stage | None]:
        """The directory or hub name whose config a model has, or the settings of one that is made from
        scratch.
        """
        while isinstance(node, Stage):
            built = self.workspace.root / node.path
            if (built / "config.json").is_file():
                return str(built), None, None
            recipe = node.recipe
            if isinstance(recipe, schema.SFTRecipe) and recipe.model_config_kwargs is not None:
                return node.path, recipe.model_config_kwargs, cast(Stage, node.inputs["data"])
            node = node.inputs["model"]
        return node.reference, None, None

    def _count(self, source: str, settings: dict[str, Any] | None, data: Stage | None, reward: bool) -> Model:
        if settings is None and not Path(source).exists():
            unreachable()  # in one attempt, where the client would try for half a minute
        try:
            config = (
                AutoConfig.from_pretrained(source, trust_remote_code=False)
                if settings is None
                else self._own(settings, data)
            )
            auto: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
            if reward:
                config.num_labels = 1
            with torch.device("meta"):
                made = auto.from_config(config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if self.params is None:
                line = first_line(error)
                raise BadInput(
                    f"{source}: its config cannot be read ({line}); give --params, such as --params 1.4e9"
                ) from error
            size_of = f"taken to have {self.params:.3g} parameters, as --params says"
            note = f"{source}: {size_of}; no activations are estimated for it"
            self.notes += [] if note in self.notes else [note]
            return Model(source, self.params, None)
        head = getattr(made, "score", None) if reward else made.get_output_embeddings()
        linear = [
            (m.in_features, m.out_features)
            for m in made.modules()
            if isinstance(m, torch.nn.Linear) and m is not head
        ]
        return Model(source, float(sum(p.numel() for p in made.parameters())), config, linear)

    def _own(self, settings: dict[str, Any], data: Stage | None) -> PretrainedConfig:
        keys = dict(settings)
        folder = None if data is None else self.workspace.root / data.path / "tokenizer"
        if folder is not None and folder.is_dir():
            vocabulary = len(load_tokenizer(folder))
        elif data is not None and cast(schema.DataRecipe, data.recipe).source == "miniature":
            from rpo_cli.stages.data.miniature import build_tokenizer

            vocabulary = len(build_tokenizer())
        else:
            raise ValueError("the vocabulary is not known before the data is there")
        return AutoConfig.for_model(keys.pop("model_type"), vocab_size=vocabulary, **keys)

    def _tokenizer(self, data: Stage, user: Stage | External | None) -> Any:
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

    # ── Tables
    # ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def lengths(
        self, node: Stage | External, table: str, max_length: int, user: Stage | External | None
    ) -> Lengths:
        """Rows and lengths of a table of the data below this stage: measured where the texts are there, else
        bounded.
        """
        while isinstance(node, Stage) and node.kind != "data":
            node = node.inputs["data"]
        assert isinstance(node, Stage)
        key = (node.path, table)
        if key not in self._lengths:
            self._lengths[key] = self._read_lengths(node, table, max_length, user)
        return self._lengths[key]

    def _read_lengths(
        self, data: Stage, table: str, max_length: int, user: Stage | External | None
    ) -> Lengths:
        recipe = cast(schema.DataRecipe, data.recipe)
        texts, place = self._texts(data, table)
        declared = recipe.rows.get(table)  # type: ignore[call-overload]
        if texts is None and recipe.source == "miniature":
            from rpo_cli.stages.data.miniature import Sizes

            declared = getattr(Sizes(**recipe.rows), table)
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

    # ── Stages
    # ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def work(self, stage: Stage) -> Work:
        """What a stage computes; Unknown where a table's rows are."""
        builder = getattr(self, f"_{stage.kind}", None)
        return builder(stage) if builder is not None else Work()

    def _sft(self, stage: Stage) -> Work:
        recipe = cast(schema.SFTRecipe, stage.recipe)
        found = self.lengths(stage.inputs["data"], recipe.table, recipe.max_length, stage)
        return _training(recipe, self.model(stage), found.prompt + found.response)

    def _pairs(self, stage: Stage) -> tuple[Lengths, str]:
        recipe = cast(Any, stage.recipe)
        table = getattr(recipe, "table", "pairs")
        user = next((stage.inputs[name] for name in ("policy", "model") if name in stage.inputs), None)
        return self.lengths(stage.inputs["data"], table, recipe.max_length, user), table

    def _reward(self, stage: Stage) -> Work:
        recipe = cast(schema.RewardRecipe, stage.recipe)
        found, _ = self._pairs(stage)
        model = self.model(stage, reward=True)
        per_pair = _of_pair(recipe, found)
        work = _training(recipe, model, per_pair)
        data = stage.inputs["data"]
        if isinstance(data, Stage) and isinstance(data.recipe, schema.SplitsRecipe):
            work += _scoring(model, data.recipe.held_out * per_pair)
        return work

    def _relabel(self, stage: Stage) -> Work:
        found, table = self._pairs(stage)
        return _scoring(
            self.model(stage.inputs["model"], reward=True),
            _rows(found, table) * _of_pair(stage.recipe, found),
        )

    def _reference(self, stage: Stage) -> Work:
        found, table = self._pairs(stage)
        return _scoring(
            self.model(stage.inputs["model"]), _rows(found, table) * _of_pair(stage.recipe, found)
        )

    def _scores(self, stage: Stage) -> Work:
        found, table = self._pairs(stage)
        splits = cast(schema.SplitsRecipe, cast(Stage, stage.inputs["data"]).recipe)
        rows = _rows(found, table) if splits.num_pairs is None else splits.num_pairs + splits.held_out
        return _scoring(self.model(stage.inputs["model"], reward=True), rows * _of_pair(stage.recipe, found))

    def _samples(self, stage: Stage) -> Work:
        recipe = cast(schema.ScoringRecipe, stage.recipe)
        found, table = self._pairs(stage)
        model, count = self.model(stage.inputs["model"]), _rows(found, table) * recipe.reference_samples
        work = _decoding(model, count, found.prompt, recipe.max_new_tokens, recipe.per_device_eval_batch_size)
        work += _scoring(model, count * (found.prompt + recipe.max_new_tokens))
        return work

    def _policy(self, stage: Stage) -> Work:
        recipe = cast(schema.PolicyRecipe, stage.recipe)
        found, _ = self._pairs(stage)
        model = self.model(stage)
        sampled = (
            (0.0 if recipe.shared_prompts else found.prompt) + recipe.max_new_tokens
            if "samples" in stage.inputs
            else 0.0
        )
        work = _training(recipe, model, _of_pair(recipe, found) + sampled)
        if recipe.needs_reference:
            work += _scoring(model, _steps(recipe) * sampled)
        return work

    def _measure(self, stage: Stage) -> Work:
        recipe = cast(schema.ScoringRecipe, stage.recipe)
        found, _ = self._pairs(stage)
        splits = cast(schema.SplitsRecipe, cast(Stage, stage.inputs["data"]).recipe)
        if splits.num_pairs is None:
            raise Unknown("num_pairs of its splits")
        # Three responses by two models, each in a row of its own, and the samples once more for the exact KL.
        tokens = 2 * (found.prompt + found.response) + 2 * (found.prompt + recipe.max_new_tokens)
        work = _scoring(self.model(stage.inputs["policy"]), splits.num_pairs * tokens)
        work += _scoring(self.model(stage.inputs["model"]), splits.num_pairs * tokens)
        return work

    def _evaluate(self, stage: Stage) -> Work:
        recipe = cast(schema.EvaluateRecipe, stage.recipe)
        table = f"prompts_{recipe.split}"
        found = self.lengths(stage.inputs["data"], table, recipe.max_length, stage.inputs["policy"])
        rows = (
            _rows(found, table)
            if recipe.num_prompts is None
            else min(_rows(found, table), recipe.num_prompts)
        )
        # Prompts alone: half a row is not their length where nothing was measured.
        prompt = recipe.max_length if "every row counts" in found.source else found.prompt
        count, tokens = rows * recipe.num_samples, prompt + recipe.max_new_tokens
        policy, reference = self.model(stage.inputs["policy"]), self.model(stage.inputs["reference"])
        work = _decoding(policy, count, prompt, recipe.max_new_tokens, recipe.per_device_eval_batch_size)
        work += _scoring(policy, count * tokens)
        if stage.inputs["reference"].key != stage.inputs["policy"].key:
            work += _scoring(reference, count * tokens)
        if "oracle" in stage.inputs:
            work += _scoring(self.model(stage.inputs["oracle"], reward=True), count * tokens)
        return work

    def _held_out(self, stage: Stage) -> Work:
        found, _ = self._pairs(stage)
        splits = cast(schema.SplitsRecipe, cast(Stage, stage.inputs["data"]).recipe)
        return _scoring(self.model(stage.inputs["policy"]), splits.held_out * _of_pair(stage.recipe, found))

    def memory(self, stage: Stage) -> dict[str, float]:
        """Bytes that training a stage needs on its device, by part."""
        recipe = cast(schema.TrainingRecipe, stage.recipe)
        reward = stage.kind == "reward"
        model = self.model(stage, reward=reward)
        trained = _trained(recipe, model)
        parts = {"weights": _weights(recipe, model), "gradients": 4 * trained, "optimizer": 8 * trained}
        if model.config is None:
            return parts
        responses = {"sft": 1, "reward": 2}.get(stage.kind, 3 if "samples" in stage.inputs else 2)
        sequences, length = responses * recipe.per_device_train_batch_size, recipe.max_length
        config = model.config.get_text_config()
        hidden, layers = config.hidden_size, config.num_hidden_layers
        width = 2.0 if recipe.dtype == "float32" else 1.0
        each = sequences * length * hidden * width
        parts["activations"] = (
            each * (34 + 2 * layers) if recipe.gradient_checkpointing else each * 34 * layers
        )
        if not reward:
            longest = length
            if stage.kind == "policy":
                found, _ = self._pairs(stage)
                longest = min(
                    length,
                    max(
                        found.longest,
                        getattr(recipe, "max_new_tokens", 0) if "samples" in stage.inputs else 0,
                    ),
                )
            parts["logits"] = 12.0 * sequences * longest * config.vocab_size
        if (
            stage.kind == "policy"
            and cast(schema.PolicyRecipe, recipe).kl_estimator == "full"
            and "samples" in stage.inputs
        ):
            parts["reference model"] = 4 * model.parameters
        return parts


def _rows(found: Lengths, table: str) -> int:
    if found.rows is None:
        raise Unknown(f"how many rows {table} has is not known before the data is there")
    return found.rows


def _steps(recipe: schema.TrainingRecipe) -> int:
    return recipe.max_steps * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps


def _trained(recipe: schema.TrainingRecipe, model: Model) -> float:
    """Trained parameters: all, or the adapter's on every linear layer but the head."""
    if not recipe.use_peft:
        return model.parameters
    return float(sum(recipe.lora_r * (into + out) for into, out in model.linear))


def _weights(recipe: schema.TrainingRecipe, model: Model) -> float:
    """Bytes of the weights: float32; with load_in_4bit the linear layers but the head have 4 bits and a
    constant for each 64.
    """
    if not recipe.load_in_4bit:
        return 4 * model.parameters
    # Nested: a constant has 8 bits, and 256 of them share one of 32 (Dettmers et al., 2023, section 3).
    constant = 8 + 32 / 256 if recipe.use_bnb_nested_quant else 32
    linear = sum(into * out for into, out in model.linear)
    return 4 * (model.parameters - linear) + (4 + constant / 64) / 8 * linear


def _of_pair(recipe: Any, found: Lengths) -> float:
    """Tokens of a prompt with two responses; `found.response` is the mean of one."""
    # Where nothing was measured nobody knows how much of a row is prompt: twice a whole row is the bound.
    once = recipe.shared_prompts and "every row counts" not in found.source
    return (1 if once else 2) * found.prompt + 2 * found.response


def _training(recipe: schema.TrainingRecipe, model: Model, tokens_per_row: float) -> Work:
    factor = (4 if recipe.use_peft else 6) + (2 if recipe.gradient_checkpointing else 0)
    tokens = _steps(recipe) * tokens_per_row
    return Work(train=factor * model.parameters * tokens, train_tokens=tokens)


def _scoring(model: Model, tokens: float) -> Work:
    return Work(score=2 * model.parameters * tokens, score_tokens=tokens)


def _decoding(model: Model, prompts: int, prompt: float, new: int, batch: int) -> Work:
    """Prompts are read at once; then each batch reads all weights (float32) for every new token, up to the
    longest.
    """
    tokens = prompts * new
    read = math.ceil(prompts / batch) * new * 4 * model.parameters
    flops = 2 * model.parameters
    return Work(
        score=flops * prompts * prompt,
        score_tokens=prompts * prompt,
        decode=flops * tokens,
        decode_tokens=tokens,
        read_bytes=read,
    )


def estimate(
    todo: Sequence[Todo],
    stages: Sequence[Stage],
    workspace: Workspace,
    question: Question,
    keep: str,
    places: int,
) -> dict[str, Any]:
    """What the stages of a plan cost, as JSON; `not_counted` says which stages no number covers and why."""
    estimator = Estimator(workspace, question.params)
    by_kind: dict[str, Work] = {}
    counted: dict[str, int] = {}
    unknown: dict[str, int] = {}
    peaks: dict[str, tuple[dict[str, float], str]] = {}
    for item in todo:
        stage = item.stage
        if not schema.KINDS[stage.kind].needs_model:
            continue
        try:
            work = estimator.work(stage)
        except Unknown as error:
            unknown[f"{stage.kind}: {error}"] = unknown.get(f"{stage.kind}: {error}", 0) + 1
            continue
        by_kind.setdefault(stage.kind, Work()).__iadd__(work)
        counted[stage.kind] = counted.get(stage.kind, 0) + 1
        if schema.KINDS[stage.kind].trains:
            parts = estimator.memory(stage)
            if stage.kind not in peaks or sum(parts.values()) > sum(peaks[stage.kind][0].values()):
                peaks[stage.kind] = parts, stage.path
    total = Work()
    for work in by_kind.values():
        total += work
    not_counted = [f"{count} x {line}" for line, count in unknown.items()]
    device = question.device
    times = [_time(work, question) for work in (Work(), *by_kind.values())]
    sums = {
        name: None if any(t[name] is None for t in times) else sum(t[name] or 0.0 for t in times)
        for name in ("hours", "dollars")
    }
    return {
        "by_kind": [
            {"kind": kind, "stages": counted[kind], **vars(work), **_time(work, question)}
            for kind, work in by_kind.items()
        ],
        "flops": {"train": total.train, "score": total.score, "decode": total.decode, "total": total.flops},
        "tokens": {"train": total.train_tokens, "score": total.score_tokens, "decode": total.decode_tokens},
        "token_counts_from": sorted({found.source for found in estimator._lengths.values()}),
        "models": [
            {
                "name": model.name,
                "parameters": model.parameters,
                "head": "reward" if reward else "language model",
            }
            for (_, reward), model in estimator._models.items()
        ],
        "memory": [_peak(kind, parts, path, question) for kind, (parts, path) in peaks.items()],
        "disk": disk(todo, stages, estimator, keep, places),
        "device": None if device is None else vars(device),
        "mfu": question.mfu,
        "price_per_hour": question.price_per_hour,
        **sums,
        "assumptions": [*ASSUMPTIONS, *_device_assumptions(question)],
        "notes": estimator.notes,
        "not_counted": not_counted,
    }


def _time(work: Work, question: Question) -> dict[str, float | None]:
    """Device-hours and dollars: FLOPs at the reached share of the peak; decoding at the slower of that and
    reading weights.
    """
    if question.device is None:
        return {"hours": None, "dollars": None}
    rate = question.device.tflops * 1e12 * question.mfu
    decoding = work.decode / rate
    if question.device.bandwidth_gb_s is not None:
        decoding = max(decoding, work.read_bytes / (question.device.bandwidth_gb_s * 1e9 * READ_SHARE))
    hours = ((work.train + work.score) / rate + decoding) / 3600
    return {
        "hours": hours,
        "dollars": None if question.price_per_hour is None else hours * question.price_per_hour,
    }


def _device_assumptions(question: Question) -> list[str]:
    device = question.device
    if device is None:
        return []
    listed = [
        f"{device.name}: {device.tflops:g} TFLOP/s peak, of which {question.mfu:.0%} is reached (--mfu); "
        "nothing of this was measured"
    ]
    if device.bandwidth_gb_s is not None:
        listed.append(
            f"decoding reads all float32 weights for each new token of a batch, at {READ_SHARE:.0%} of "
            f"{device.bandwidth_gb_s:g} GB/s, "
            "up to max_new_tokens"
        )
    else:
        listed.append(
            "decoding at the same share of the peak, which is optimistic: --device-name knows the memory "
            "bandwidth"
        )
    return listed


def _peak(kind: str, parts: Mapping[str, float], path: str, question: Question) -> dict[str, Any]:
    total = sum(parts.values())
    memory = None if question.device is None else question.device.memory_gb
    return {
        "kind": kind,
        "largest": path,
        "bytes": parts,
        "total": total,
        "fits": None if memory is None else total <= memory * 1e9,
    }


def disk(
    todo: Sequence[Todo], stages: Sequence[Stage], estimator: Estimator, keep: str, places: int
) -> dict[str, float]:
    """Bytes of float32 weights at the end: of policies under this --keep-weights, of policies under each, of
    all other models.
    """
    trained = [item.stage for item in todo if schema.KINDS[item.stage.kind].trains]
    policies = [stage for stage in trained if stage.kind == "policy"]
    others = [stage for stage in trained if stage.kind != "policy"]
    each = 4 * max((estimator.model(stage).parameters for stage in policies), default=0.0)
    counts = {"all": len(policies), "best": min(len(policies), places), "none": 0}
    rest = sum(4 * estimator.model(stage, reward=stage.kind == "reward").parameters for stage in others)
    return {
        "policies": counts[keep] * each,
        "other_models": rest,
        **{f"policies_{name}": count * each for name, count in counts.items()},
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """An estimate for a terminal."""
    rows = [
        [
            group["kind"],
            str(group["stages"]),
            *(_short(group[f"{way}_tokens"]) for way in WAYS),
            _short(sum(group[way] for way in WAYS)),
            _hours(group),
        ]
        for group in found["by_kind"]
    ]
    tokens, flops = found["tokens"], found["flops"]
    count = sum(group["stages"] for group in found["by_kind"])
    rows.append(
        ["all", str(count), *(_short(tokens[way]) for way in WAYS), _short(flops["total"]), _hours(found)]
    )
    out = aligned(
        [("estimate", "stages", "trained tokens", "scored", "sampled", "FLOPs", "device-hours"), *rows],
        right=(1, 2, 3, 4, 5, 6),
    ).splitlines()
    if found["hours"] is not None:
        money = (
            ""
            if found["dollars"] is None
            else f", {found['dollars']:,.2f} dollars at {found['price_per_hour']:g} an hour"
        )
        out.append(
            f"{found['device']['name']}: {found['hours']:.3g} device-hours "
            f"({clock(found['hours'] * 3600)}){money}"
        )
    else:
        out.append(
            "name a device for hours: --device-name a100-80g, or --tflops; add --price-per-hour for dollars"
        )
    for model in found["models"]:
        out.append(f"model {model['name']} ({model['head']}): {model['parameters']:,.0f} parameters")
    for peak in found["memory"]:
        fits = {
            None: "",
            True: "; fits",
            False: "; DOES NOT FIT: a smaller per_device_train_batch_size, gradient_checkpointing or LoRA",
        }
        parts = ", ".join(f"{name} {size(value)}" for name, value in peak["bytes"].items())
        out.append(f"memory to train {peak['kind']}: {size(peak['total'])} ({parts}){fits[peak['fits']]}")
    disk = found["disk"]
    kept = ", ".join(f"{name} {size(disk[f'policies_{name}'])}" for name in ("best", "all", "none"))
    out.append(
        f"disk: {size(disk['policies'] + disk['other_models'])} of weights at the end; policies by "
        f"--keep-weights: {kept}"
    )
    out += [f"tokens: {line}" for line in found["token_counts_from"]]
    out += [f"note: {line}" for line in found["notes"]]
    out += [f"NOT COUNTED: {line}" for line in found["not_counted"]]
    return out + [f"assumed: {line}" for line in found["assumptions"]]


def _hours(found: Mapping[str, Any]) -> str:
    return "" if found["hours"] is None else f"{found['hours']:.3g}"


def _short(value: float) -> str:
    """`3.1e+15` for large numbers, digits for small ones."""
    return f"{value:,.0f}" if value < 1e6 else f"{value:.2e}"
