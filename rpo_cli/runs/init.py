"""`rpo init`: a suite in one file for somebody's own pairs, with what it must say read off the data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import AutoConfig, PreTrainedTokenizerBase

from rpo_cli import devices
from rpo_cli.artifacts import External, Stage, Workspace, positions_of, unreachable
from rpo_cli.errors import BadInput
from rpo_cli.models import load_tokenizer
from rpo_cli.objectives import OBJECTIVES
from rpo_cli.recipes import Loaded, RecipeError, check_suite, load, schema, suggest
from rpo_cli.recipes.draft import anchor
from rpo_cli.recipes.schema.data import FILES
from rpo_cli.recipes.whole import write_whole
from rpo_cli.recipes.yaml_lines import one_line
from rpo_cli.runs.check import plan_problems
from rpo_cli.runs.costs import memory_of
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.session import Session
from rpo_cli.runs.sizes import Sizes
from rpo_cli.stages.data.ledger import losses
from rpo_cli.stages.data.rows import PAIR, find_rows
from rpo_cli.stages.data.token_cache import TokenCache
from rpo_cli.text import first_line, percent, size, unplain

BIASES = [0.2, 0.5, 0.8]  # of the members of an ensemble that is trained on the pairs
SHARE, MOST_PROMPTS = 0.1, 500  # of the prompts to hold out, for validation and again for test
LARGEST_BATCH = 16
ROOM = 0.9  # share of the free memory that training may take
RATES = {"sft": (2e-5, 2e-4), "rm": (2e-5, 1e-4), "policy": (5e-6, 5e-5)}  # of all weights, of an adapter


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; models and data as paths or hub names."""

    name: str
    pairs: str
    model: str
    reward_models: Sequence[str] = ()
    reward_label: str | None = None
    scores: Sequence[str] = ()
    objectives: str | None = None
    oracle: str | None = None
    sft: str | None = None
    prompts: str | None = None
    epochs: float = 1.0
    lora: bool | None = None
    force: bool = False


class Line(NamedTuple):
    """One line of a recipe, with what to know of it."""

    key: str
    value: Any
    note: str = ""


@dataclass(frozen=True)
class Found:
    """What the data are like: rows read, pairs kept, prompts held out, tokens of pairs and responses."""

    read: int
    pairs: int
    prompts: Mapping[str, int]
    tokens: np.ndarray
    responses: np.ndarray


def init(session: Session, wanted: Wanted) -> None:
    """Write NAME.yaml, a suite for these pairs, and print its path.

    Raises:
        BadInput: the file is there, a name means nothing, or the data cannot be read.
    """
    file = Path.cwd() / f"{wanted.name}.yaml"
    if (why := unplain(wanted.name)) is not None:
        raise BadInput(f"{wanted.name!r}: {why}")
    if file.exists() and not wanted.force:
        raise BadInput(f"{file.name}: is there already; --force writes it anew")
    objectives, scores = _objectives(wanted), [_two_columns(text) for text in wanted.scores]
    model = _named("--model", wanted.model)
    teachers = [_named("--reward-model", each) for each in wanted.reward_models]
    oracle = None if wanted.oracle is None else _named("--oracle", wanted.oracle)
    data = [
        Line("stage", "data"),
        Line("source", "preference"),
        Line("dataset", _named("--pairs", wanted.pairs)),
        Line("tokenizer", model, "its chat template makes text of messages"),
    ]
    if scores:
        data.append(Line("keep_columns", [name for pair in scores for name in pair], "the teachers' scores"))
    if wanted.sft is not None:
        data.append(Line("sft_dataset", _named("--sft", wanted.sft)))
    prompts = None if wanted.prompts is None else _named("--prompts", wanted.prompts)
    tokenizer = load_tokenizer(Path(External.named(wanted.model).reference), need_pad=False)
    longest = _longest(wanted.model)
    stage, workspace, share = _read(session, file, data)
    found = _look(stage, workspace, tokenizer)
    data.append(Line("validation_share", share, _held_out_prompts(found)))
    _tell(session, wanted, workspace.finished(stage.path)["metrics"], found)
    suite = Suite(wanted, objectives, model, teachers, scores, oracle, prompts, found, longest)
    fit = _fit(suite, stage, workspace, session)
    before = file.read_bytes() if file.exists() else None
    write_whole(file, suite.text(data, fit))
    if problems := _problems(file, objectives):
        if before is None:
            file.unlink()
        else:
            write_whole(file, before)
        raise RecipeError(problems)
    print(file.name)
    session.say(f"one policy: rpo train-policy {file.name}:{objectives[-1]}")
    session.say(f"next: rpo compare {file.name}")


def _objectives(wanted: Wanted) -> list[str]:
    """The objectives that are asked for; without any, DPO beside what the teachers are good for."""
    if wanted.reward_models and wanted.scores:
        raise BadInput("--reward-model and --scores: the teachers are models or columns; name one of the two")
    if wanted.objectives is None:
        return ["dpo", "e-dpo" if len(wanted.reward_models) + len(wanted.scores) > 1 else "d-dpo"]
    names = [name.strip() for name in wanted.objectives.split(",")]
    for name in names:
        if name not in OBJECTIVES:
            known = suggest(name, OBJECTIVES) or f"; there are {', '.join(OBJECTIVES)}"
            raise BadInput(f"--objective {name}: no such objective{known}")
    return list(dict.fromkeys(names))


def _two_columns(text: str) -> list[str]:
    columns = [part.strip() for part in text.split(",")]
    if len(columns) != 2 or not all(columns):
        raise BadInput(f"--scores {text}: expected two columns, such as score_chosen,score_rejected")
    return columns


def _named(option: str, name: str) -> str:
    """What the recipe calls a model or a data set: a path from its own folder, or the name on the hub.

    Raises:
        BadInput: a path where nothing is.
    """
    path = Path(name).expanduser()
    if path.exists():
        return str(path) if path.is_absolute() else os.path.join(".", os.path.relpath(path))
    if name.startswith((".", "/", "~")) or path.suffix.lower() in FILES:
        raise BadInput(f"{option} {name}: no such file or directory")
    return name


def _longest(model: str) -> int | None:
    """How many tokens a row may have by the model's config; None: it sets no bound."""
    place = External.named(model)
    if place.on_hub:
        unreachable()  # in one attempt, where the client would try for half a minute
    try:
        config = AutoConfig.from_pretrained(
            place.reference, revision=place.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"--model {model}: its config cannot be read: {first_line(error)}") from error
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions_of(config) or trained


def _read(session: Session, file: Path, lines: Sequence[Line]) -> tuple[Stage, Workspace, float]:
    """The data stage of the suite, made in its workspace, and the share of prompts that it holds out.

    Of many prompts so much would be more than anybody evaluates on; then it is made again with less.
    """
    suite, share = file.stem, SHARE
    while True:
        values = {line.key: line.value for line in lines} | {"validation_share": share, "suite": suite}
        anchor(values, file.parent)
        path = file / "data.yaml"
        loaded = Loaded(schema.DataRecipe.model_validate(values), path, {}, (path,), {})
        stage = Planner(0).build(loaded)
        workspace = session.make([stage], suite)
        metrics = workspace.finished(stage.path)["metrics"]
        if metrics["rows/prompts_test"] <= 2 * MOST_PROMPTS or share < SHARE:
            return stage, workspace, share
        share = float(f"{SHARE * MOST_PROMPTS / metrics['rows/prompts_test']:.1g}")


def _look(stage: Stage, workspace: Workspace, tokenizer: PreTrainedTokenizerBase) -> Found:
    """The numbers that the recipe depends on."""
    metrics = workspace.finished(stage.path)["metrics"]
    folder = workspace.root / stage.path
    rows = find_rows([folder], "pairs", TokenCache(workspace.root)).tokens(PAIR, tokenizer, "pairs")
    responses = np.array([len(response) for row in rows for response in row.responses])
    return Found(
        read=metrics["records/pairs"],
        pairs=len(rows),
        prompts={name: metrics[f"rows/prompts_{name}"] for name in ("validation", "test")},
        tokens=np.array([row.longest for row in rows]),
        responses=responses,
    )


def _held_out_prompts(found: Found) -> str:
    return f"of the prompts; {found.prompts['validation']} for validation, {found.prompts['test']} for test"


def _tell(session: Session, wanted: Wanted, metrics: Mapping[str, Any], found: Found) -> None:
    """Say what was read, left out and held out."""
    session.say(f"{wanted.pairs}: {found.read} rows read")
    for loss in losses(metrics):
        session.say(f"  {loss.count} of {loss.read} {loss.why}")
    held = f"{_held_out_prompts(found)}, chosen by a hash: the same for the same prompt"
    session.say(f"  held out: {held}")
    session.say(f"  {found.pairs} pairs of the other prompts")
    median, most = np.quantile(found.tokens, [0.5, 0.99])
    said = f"median {median:.0f}, 99 % up to {most:.0f}, longest {found.tokens.max()}"
    session.say(f"  tokens of a prompt with its longer response: {said}")


def _up_to_eight(value: float) -> int:
    return max(8, int(-(-value // 8) * 8))


@dataclass(frozen=True)
class Suite:
    """What the recipes of a suite are made of."""

    wanted: Wanted
    objectives: Sequence[str]
    model: str
    teachers: Sequence[str]
    scores: Sequence[Sequence[str]]
    oracle: str | None
    prompts: str | None
    found: Found
    longest: int | None

    @property
    def start(self) -> str:
        """What policies start from: pi_SFT where there are written responses, else the model itself."""
        return "sft.yaml" if self.wanted.sft is not None else self.model

    @property
    def max_length(self) -> int:
        wanted = _up_to_eight(float(np.quantile(self.found.tokens, 0.99)))
        return wanted if self.longest is None else min(wanted, self.longest)

    @property
    def max_new_tokens(self) -> int:
        return min(_up_to_eight(float(np.quantile(self.found.responses, 0.99))), self.max_length)

    @property
    def held_out(self) -> int:
        """Pairs that no model is trained on."""
        return max(1, min(500, self.found.pairs // 10))

    @property
    def batch(self) -> int:
        """Pairs of an optimiser step: at least ten steps a pass, as far as there are as many pairs."""
        rows = self.found.pairs - self.held_out
        return next(size for size in (LARGEST_BATCH, 8, 4, 2, 1) if size == 1 or rows >= 10 * size)

    @property
    def members(self) -> bool:
        """Whether an ensemble is trained on the pairs."""
        return self.trains_teachers and any(OBJECTIVES[n].teacher == "ensemble" for n in self.objectives)

    @property
    def trains_teachers(self) -> bool:
        given = self.teachers or self.scores
        return not given and any(OBJECTIVES[name].teacher != "none" for name in self.objectives)

    def text(self, data: Sequence[Line], fit: Fit) -> str:
        """The file."""
        sections = [
            section("data", "your pairs", data),
            *self._prompts(),
            section("splits", "the pairs as they are, and some that nothing is trained on", self._splits()),
            section("training", "what all that is trained has in common; no recipe of its own",
                    self._training(fit)),
            *self._models(fit),
            section("policy", "what the policies have in common; no recipe of its own", self._policy(fit)),
            *(section(name, OBJECTIVES[name].summary, self._objective(name)) for name in self.objectives),
            section("evaluate", "samples of a policy beside the model's own", self._evaluate()),
        ]  # fmt: skip
        head = (
            "# A suite in one file, written by `rpo init` from your data; change what you like.\n"
            f"# Check it: rpo recipe check {self.wanted.name}.yaml\n"
            f"# Train one policy: rpo train-policy {self.wanted.name}.yaml:{self.objectives[-1]}\n"
            f"# Train all of them and compare: rpo compare {self.wanted.name}.yaml\n"
            "# What each key means: docs/reference/recipes.md, or `rpo recipe show`.\n"
            "recipes:\n"
        )
        return head + "\n".join(sections)

    def _prompts(self) -> Iterator[str]:
        if self.prompts is not None:
            why = "the same prompts choose and report: before you report a choice, give them two files"
            files = dict.fromkeys(("prompts_validation", "prompts_test"), self.prompts)
            yield section(
                "prompts", "what policies answer when they are evaluated",
                [Line("stage", "data"), Line("source", "files"), Line("files", files, why)],
            )  # fmt: skip

    def _splits(self) -> list[Line]:
        of = f"of {self.found.pairs}; never trained on: accuracy and margin are measured on them"
        biases = "one member on each: the share of its pairs whose longer response is preferred"
        return [
            Line("stage", "splits"),
            Line("data", "data.yaml"),
            Line("tokenizer", self.start, "whose tokens lengths are counted in"),
            Line("held_out", self.held_out, of),
            Line("ensemble", BIASES if self.members else [], biases if self.members else "no members"),
        ]

    def _training(self, fit: Fit) -> Iterator[Line]:
        share = float((self.found.tokens <= self.max_length).mean())
        yield Line("max_length", self.max_length, f"{percent(share)} of the pairs fit")
        yield Line("overlong", "drop", "longer pairs are left out and counted; nothing is ever cut")
        rows = self.found.pairs - self.held_out
        steps = max(1, round(self.wanted.epochs * (rows // self.batch)))
        yield Line(
            "num_train_epochs", self.wanted.epochs, f"about {steps} steps; max_steps instead sets them"
        )
        yield Line("per_device_train_batch_size", fit.rows, fit.why)
        yield Line("gradient_accumulation_steps", self.batch // fit.rows, f"batches of {self.batch}")
        yield Line("per_device_eval_batch_size", 16)
        yield Line("lr_scheduler_type", "cosine")
        yield Line("warmup_steps", steps // 10)
        yield Line("logging_steps", max(1, min(10, steps // 10)))
        for key, value in fit.keys.items():
            yield Line(
                key,
                value,
                "LoRA: an adapter is trained (pip install 'rpo-cli[lora]')" if key == "use_peft" else "",
            )

    def _models(self, fit: Fit) -> Iterator[str]:
        adapter = bool(fit.keys)
        if self.wanted.sft is not None:
            yield section("sft", "pi_SFT, from which policies start", [
                Line("extends", "training.yaml"), Line("stage", "sft"), Line("data", "data.yaml"),
                Line("model_name_or_path", self.model), Line("learning_rate", RATES["sft"][adapter]),
            ])  # fmt: skip
        if self.trains_teachers:
            ensemble = [Line("ensemble", BIASES)] if self.members else []
            yield section("rm", "the teacher: a reward model of your pairs", [
                Line("extends", "training.yaml"), Line("stage", "reward"), Line("data", "splits.yaml"),
                Line("model_name_or_path", self.start), Line("learning_rate", RATES["rm"][adapter]),
                *ensemble,
            ])  # fmt: skip

    def _policy(self, fit: Fit) -> list[Line]:
        return [
            Line("extends", "training.yaml"),
            Line("stage", "policy"),
            Line("data", "splits.yaml"),
            Line("model_name_or_path", self.start, "start and reference"),
            Line("learning_rate", RATES["policy"][bool(fit.keys)]),
            Line("max_new_tokens", self.max_new_tokens, "longest sample of the reference, for a KL term"),
        ]

    def _objective(self, name: str) -> Iterator[Line]:
        declared = OBJECTIVES[name]
        yield Line("extends", "policy.yaml")
        yield Line("objective", name)
        yield Line(declared.strength, 0.1, "smaller strays further from the reference; `rpo sweep` chooses")
        if declared.teacher == "none":
            return
        if self.scores and declared.teacher == "one":
            yield Line("teacher", "columns", "the scores beside your pairs")
            yield Line("margin_columns", [self.scores[0]])
        elif self.scores:
            yield Line("margin_columns", list(self.scores), "the scores beside your pairs")
        elif declared.teacher == "one":
            yield Line("reward_model", self.teachers[0] if self.teachers else "rm.yaml", "the teacher")
        else:
            yield Line("ensemble", list(self.teachers) or "rm.yaml", "the teachers")
        if self.wanted.reward_label is not None:
            yield Line("reward_label", self.wanted.reward_label)
        if declared.teacher == "ensemble":
            yield Line("ensemble_min", "example", "the min over them is taken for each pair")
            yield Line("calibration", "none", "with some hundred held-out pairs: temperature")

    def _evaluate(self) -> list[Line]:
        none = "no judge of rewards; a reward model that no policy learnt from may be one"
        return [
            Line("stage", "evaluate"),
            Line("data", "data.yaml" if self.prompts is None else "prompts.yaml"),
            Line("oracle", self.oracle, none if self.oracle is None else ""),
            Line("baseline", self.start, "what policies are compared with"),
            Line("max_length", self.max_length),
            Line("overlong", "drop"),
            Line("max_new_tokens", self.max_new_tokens, "99 % of your responses are no longer"),
            Line("per_device_eval_batch_size", 16),
        ]


def section(name: str, about: str, lines: Sequence[Line] | Iterator[Line]) -> str:
    """A recipe of the file, its notes in one column."""
    written = [(f"    {line.key}: {_value(line.value)}", line.note) for line in lines]
    width = max(len(text) for text, note in written if note) if any(n for _, n in written) else 0
    body = [f"{text:{width}}  # {note}" if note else text for text, note in written]
    return "\n".join([f"  {name}:  # {about}", *body]) + "\n"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else one_line(value)


@dataclass(frozen=True)
class Fit:
    """How training fits into memory: rows at a time, keys of an adapter, and why."""

    rows: int
    keys: Mapping[str, bool]
    why: str


def _fit(suite: Suite, data: Stage, workspace: Workspace, session: Session) -> Fit:
    """All weights if memory does for them, else an adapter, on a GPU with the base in 4 bits if need be."""
    known = Sizes(workspace, None)
    pessimistic = any(OBJECTIVES[name].pessimistic for name in suite.objectives)
    model = External.named(suite.wanted.model)
    inputs: dict[str, Stage | External] = {"data": data, "model": model}
    inputs |= {"samples": data} if pessimistic else {}
    values = {"stage": "policy", "objective": "dpo", "max_length": suite.max_length}
    recipe = schema.PolicyRecipe.model_validate(values | {"max_new_tokens": suite.max_new_tokens})
    device = devices.choose(recipe)
    recipe = recipe.model_copy(update={"dtype": device.dtype_name})
    gpus = devices.gpus([recipe])
    free = devices.free_bytes(gpus[:1]).get(gpus[0] if gpus else devices.HOST, 0)
    adapter = {"use_peft": True}
    ways: list[dict[str, bool]] = [{}, adapter, *([adapter | {"load_in_4bit": True}] if gpus else [])]
    if suite.wanted.lora is not None:
        ways = ways[1:] if suite.wanted.lora else ways[:1]
    sizes = [rows for rows in (8, 4, 2, 1) if rows <= suite.batch]
    for keys, rows in ((keys, rows) for keys in ways for rows in sizes):
        tried = recipe.model_copy(update={**keys, "per_device_train_batch_size": rows})
        stage = Stage("policy", f"{data.path}/policy", tried, data.source, inputs)
        need = sum(memory_of(stage, known).values())
        if need <= ROOM * free or (keys, rows) == (ways[-1], sizes[-1]):
            why = f"pairs at a time: about {size(need)}, {size(free)} are free on {device.name}"
            session.say(f"memory: {'an adapter' if keys else 'all weights'}, {rows} {why}")
            return Fit(rows, keys, why)
    raise AssertionError("the last way is taken")


def _problems(file: Path, objectives: Sequence[str]) -> list[str]:
    """What stands in the way of the suite's plans."""
    problems = check_suite(file)
    for name in objectives if not problems else ():
        problems += plan_problems(load(f"{file}:{name}"), set(), set())
    return list(dict.fromkeys(problems))
