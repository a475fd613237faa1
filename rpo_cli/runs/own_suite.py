"""What `rpo init` writes: a suite in one file, each value with what to know of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import NamedTuple

import numpy as np

from rpo_cli.objectives import OBJECTIVES
from rpo_cli.recipes.yaml_lines import one_line
from rpo_cli.runs.options import OwnSuite
from rpo_cli.runs.own_teachers import (
    FEWEST,
    STEPS,
    model_fits,
    passes_for,
    said_of_model,
    said_of_scores,
    scores_fit,
)
from rpo_cli.runs.suspects import POLICY, Suspect
from rpo_cli.stages.data.attributes import Balance
from rpo_cli.statistics import FEW_PAIRS
from rpo_cli.text import percent

BIASES = [0.2, 0.5, 0.8]  # of the members of an ensemble that is trained on the pairs
TRIED = "what `rpo sweep` and `rpo compare --sweep` try"
REPORTED = 60  # held-out pairs, of which one half is reported: fewer cannot tell policies apart
LARGEST_BATCH = 16
WORTH_KEEPING = 50  # steps: shorter trainings have no checkpoints to go on from
RATES = {"sft": (2e-5, 2e-4), "rm": (2e-5, 1e-4), "policy": (5e-6, 5e-5)}  # of all weights, of an adapter
EXTRAS = {"use_peft": "lora", "load_in_4bit": "qlora"}


class Line(NamedTuple):
    """One line of a recipe, with what to know of it."""

    key: str
    value: object
    note: str = ""


@dataclass(frozen=True)
class Found:
    """What the data are like: rows read, pairs kept, prompts held out, tokens of pairs and responses.

    unknown: the share of the responses' tokens that stand for what the tokenizer does not know; told: the
    pairs are messages, which a chat template makes text of; asked: tokens of the prompts that policies are
    evaluated on, where these are not the pairs' own; longest_prompt: tokens of the longest of all prompts;
    boundary: what is to be said of tokens that reach over the end of a prompt, if any do; margins: of each
    two columns of scores, chosen minus rejected [pairs]; balances: what chosen responses have more of.
    """

    read: int
    pairs: int
    prompts: Mapping[str, int]
    tokens: np.ndarray
    responses: np.ndarray
    unknown: float = 0.0
    told: bool = False
    asked: np.ndarray | None = None
    longest_prompt: int = 0
    boundary: str = ""
    margins: Sequence[np.ndarray] = ()
    balances: Mapping[str, Balance] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """How training fits into memory: rows at a time, keys of an adapter, and why."""

    rows: int
    keys: Mapping[str, bool]
    why: str


@dataclass(frozen=True)
class Suite:
    """What the recipes of a suite are made of."""

    wanted: OwnSuite
    objectives: Sequence[str]
    model: str
    teachers: Sequence[str]
    scores: Sequence[Sequence[str]]
    oracle: str | None
    prompts: str | None
    found: Found
    longest: int | None
    suspects: Sequence[Suspect] = ()

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
        wanted = min(_up_to_eight(float(np.quantile(self.found.responses, 0.99))), self.max_length)
        if self.longest is None:
            return wanted
        # Behind the longest prompt there is room for it; where that is little, longer prompts are left out.
        room = max(self.longest - self.found.longest_prompt, self.longest // 4)
        return min(wanted, room)

    @property
    def evaluated_length(self) -> int:
        """The longest prompt, in tokens, that policies answer."""
        asked = [] if self.found.asked is None else [_up_to_eight(float(self.found.asked.max()))]
        wanted = max([self.max_length, *asked])
        return wanted if self.longest is None else min(wanted, self.longest - self.max_new_tokens)

    @property
    def fitting(self) -> int:
        """Pairs that are no longer than what is trained on."""
        return int((self.found.tokens <= self.max_length).sum())

    @property
    def held_out(self) -> int:
        """Pairs that no model is trained on: a tenth, of few pairs up to a fifth, for their half reports."""
        return max(1, min(500, self.fitting // 10), min(REPORTED, self.fitting // 5))

    @property
    def batch(self) -> int:
        """Pairs of an optimiser step: at least ten steps a pass, as far as there are as many pairs."""
        rows = self.fitting - self.held_out
        return next(size for size in (LARGEST_BATCH, 8, 4, 2, 1) if size == 1 or rows >= 10 * size)

    @property
    def steps(self) -> int:
        """Optimiser steps of a policy."""
        return self._steps(self.wanted.epochs)

    def _steps(self, passes: float) -> int:
        return max(1, round(passes * ((self.fitting - self.held_out) // self.batch)))

    @property
    def teacher_passes(self) -> float:
        """Passes over the pairs of a reward model that is trained on them."""
        return passes_for(self._steps(1), self.wanted.epochs)

    @property
    def few_steps(self) -> str | None:
        """What is said of a reward model that a policy's passes would hardly train."""
        if not self.trains_teachers or self.steps >= STEPS:
            return None
        few = f"{self.steps} steps, as of a policy, hardly train a reward model"
        passes = self.teacher_passes
        key = "max_steps" if self.trains_members else "num_train_epochs"
        if passes == self.wanted.epochs:
            return f"{few}; raise {key} of rm"
        return (
            f"{few}: rm makes {passes:g} passes, {self._steps(passes)} steps; where its teacher still knows "
            f"nothing `rpo compare` says so, and {key} or learning_rate of rm may be raised"
        )

    @property
    def members(self) -> bool:
        """Whether an ensemble is trained on subsets of other length."""
        if self.suspects:
            return any(suspect.pattern is None for suspect in self.suspects)
        return self.trains_teachers and any(OBJECTIVES[n].teacher == "ensemble" for n in self.objectives)

    @property
    def trains_members(self) -> bool:
        """Whether reward models are trained on subsets, of other length or of what is suspected."""
        return self.members or bool(self.suspects)

    @property
    def trains_teachers(self) -> bool:
        given = self.teachers or self.scores
        taught = any(OBJECTIVES[name].teacher != "none" for name in self.objectives)
        return not given and (taught or bool(self.suspects))

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
            *self._suspected(),
            section("evaluate", "samples of a policy beside the model's own", self._evaluate()),
        ]  # fmt: skip
        file = f"{self.wanted.name}.yaml"
        policy = quote(f"{file}:{self.objectives[-1]}")
        head = (
            "# A suite in one file, written by `rpo init` from your data; change what you like.\n"
            f"# Check it: rpo recipe check {quote(file)}\n"
            f"# Train one policy: rpo train-policy {policy}\n"
            f"# Train all of them and compare: rpo compare {quote(file)}\n"
            "# What each key means: docs/reference/recipes.md, or `rpo recipe show`.\n"
            "recipes:\n"
        )
        return head + "\n".join(sections)

    def _prompts(self) -> Iterator[str]:
        if self.prompts is not None:
            why = "the same prompts choose and report: before you report a choice, give them two files"
            yield section(
                "prompts",
                "what policies answer when they are evaluated",
                prompt_lines(self.prompts, self.model if self.found.told else None, why),
            )

    def _splits(self) -> list[Line]:
        of = f"of {self.fitting}; never trained on: accuracy and margin are measured on them"
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
        steps = self.steps
        yield Line("num_train_epochs", self.wanted.epochs, f"about {steps} steps; or say max_steps")
        yield Line("per_device_train_batch_size", fit.rows, fit.why)
        yield Line("gradient_accumulation_steps", self.batch // fit.rows, f"batches of {self.batch}")
        yield Line("per_device_eval_batch_size", 16)
        yield Line("lr_scheduler_type", "cosine")
        yield Line("warmup_steps", steps // 10)
        yield Line("logging_steps", max(1, min(10, steps // 10)))
        if steps >= WORTH_KEEPING:
            how_large = "" if fit.keys else ", three times the weights each"
            why = f"what was stopped goes on from the last of these; two are kept{how_large}"
            yield Line("save_steps", max(10, steps // 10), why)
        for key, value in fit.keys.items():
            yield Line(key, value, f"pip install 'rpo-cli[{EXTRAS[key]}]'")

    def _models(self, fit: Fit) -> Iterator[str]:
        adapter = bool(fit.keys)
        if self.wanted.sft is not None:
            yield section("sft", "pi_SFT, from which policies start", [
                Line("extends", "training.yaml"), Line("stage", "sft"), Line("data", "data.yaml"),
                Line("model_name_or_path", self.model), Line("learning_rate", RATES["sft"][adapter]),
            ])  # fmt: skip
        if self.trains_teachers:
            ensemble = [Line("ensemble", BIASES)] if self.members else []
            passes, why = self.teacher_passes, f"{self.steps} steps would hardly train a reward model"
            steps = self._steps(passes)
            longer = [] if passes == self.wanted.epochs else [
                Line("num_train_epochs", passes, f"about {steps} steps; {why}")
            ]  # fmt: skip
            if self.trains_members:
                longer = [Line("max_steps", steps, f"{passes:g} passes over all pairs, more over a subset")]
            yield section("rm", "the teacher: a reward model of your pairs", [
                Line("extends", "training.yaml"), Line("stage", "reward"), Line("data", "splits.yaml"),
                Line("model_name_or_path", self.start), Line("learning_rate", RATES["rm"][adapter]),
                *longer, *ensemble,
            ])  # fmt: skip

        for suspect in self.suspects:
            if suspect.pattern is not None:
                yield section(f"splits-{suspect.name}", f"the same, with subsets by {suspect.name}", [
                    Line("extends", "splits.yaml"), Line("ensemble", BIASES),
                    Line("ensemble_on", suspect.columns),
                ])  # fmt: skip
                yield section(f"rm-{suspect.name}", "a reward model on each of them", [
                    Line("extends", "rm.yaml"), Line("data", f"splits-{suspect.name}.yaml"),
                    Line("ensemble", BIASES),
                ])  # fmt: skip

    def _suspected(self) -> Iterator[str]:
        """The policy that distils what reward models say that are told what is suspected."""
        if not self.suspects:
            return
        d_dpo = OBJECTIVES["d-dpo"]
        names = ", ".join(suspect.name for suspect in self.suspects)
        yield section(POLICY, f"distils the mean of reward models on subsets that differ in {names}", [
            Line("extends", "policy.yaml"), Line("objective", "d-dpo"),
            Line(d_dpo.strength, d_dpo.grid[1], d_dpo.weight),
            Line("grid", {d_dpo.strength: list(d_dpo.grid)}, TRIED), Line("teacher", "mean"),
            Line("ensemble", self._told, "the members of each"), *self._calibration(),
        ])  # fmt: skip

    @property
    def _told(self) -> list[dict[str, str]]:
        return [{"members": suspect.recipe} for suspect in self.suspects]

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
        grid, tried = list(declared.grid), TRIED
        if (scale := self._scale_of_scores) is not None and declared.loss is OBJECTIVES["d-dpo"].loss:
            tried += f"; your scores differ by {scale:.2g} in the median pair: so many times {grid}"
            grid = [float(f"{scale * value:.2g}") for value in grid]
        yield Line(declared.strength, grid[1], declared.weight)
        yield Line("grid", {declared.strength: grid}, tried)
        for key in declared.keys:
            yield Line(key.name, key.default if key.start is None else key.start, key.description)
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
            yield Line("ensemble", list(self.teachers) or self._told or "rm.yaml", "the teachers")
        if declared.teacher == "one" and self.calibrates_one:
            fitted = f"by a temperature, fitted on {self.held_out} held-out pairs"
            yield Line("calibrate_one", True, f"rewards to the labels' scale, in which beta is, {fitted}")
        if self.wanted.reward_label is not None:
            yield Line("reward_label", self.wanted.reward_label)
        if declared.teacher == "ensemble":
            yield Line("ensemble_min", "example", "the min over them is taken for each pair")
            yield from self._calibration()

    @property
    def calibrates_one(self) -> bool:
        """Whether a temperature of the first teacher that is given can be fitted, as far as can be known."""
        if self.scores:
            return scores_fit(self.found.margins[0], self.held_out)
        return bool(self.teachers) and model_fits(self.held_out)

    @property
    def _scale_of_scores(self) -> float | None:
        """The size of the first scores' differences where no temperature takes it away, else None."""
        if not self.scores or self.calibrates_one:
            return None
        return float(np.median(np.abs(self.found.margins[0]))) or None

    @property
    def scale(self) -> str | None:
        """What is said of the scale of one teacher that is given."""
        if not any(OBJECTIVES[name].teacher == "one" for name in self.objectives):
            return None
        if self.scores:
            return said_of_scores(self.scores[0], self.found.margins[0], self.held_out)
        return said_of_model(self.held_out) if self.teachers else None

    def _calibration(self) -> Iterator[Line]:
        """How an ensemble's margins come to one scale, where there are pairs enough to fit a temperature."""
        trained = self.trains_members
        if self.held_out < (FEW_PAIRS if trained else FEWEST):
            few = f"{self.held_out} held-out pairs are too few to fit a temperature"
            yield Line("calibration", "none", few if trained else f"{few}: small margins win the min")
        elif trained:
            yield Line("calibration", "temperature", "members to one scale; fitted on held-out pairs")
        else:
            yield Line("calibration", "temperature", "the teachers' scales differ; fitted on held-out pairs")
            yield Line("calibration_mix", "data", "on these as they are: a teacher's own bias is not known")

    def _evaluate(self) -> list[Line]:
        none = "no judge of rewards; a reward model that no policy learnt from may be one"
        share = percent(float((self.found.responses <= self.max_new_tokens).mean()))
        return [
            Line("stage", "evaluate"),
            Line("data", "data.yaml" if self.prompts is None else "prompts.yaml"),
            Line("oracle", self.oracle, none if self.oracle is None else ""),
            Line("baseline", self.start, "what policies are compared with"),
            Line("max_length", self.evaluated_length, "of a prompt; longer ones are left out and counted"),
            Line("overlong", "drop"),
            Line("max_new_tokens", self.max_new_tokens, f"{share} of your responses are no longer"),
            Line("per_device_eval_batch_size", 16),
        ]


def prompt_lines(file: str, chat: str | None, why: str = "") -> list[Line]:
    """The recipe of prompts to evaluate on; chat: whose template makes text of them."""
    files = dict.fromkeys(("prompts_validation", "prompts_test"), file)
    lines = [Line("stage", "data"), Line("source", "files"), Line("files", files, why)]
    if chat is not None:
        form = "messages, as your pairs; a prompt of plain text is the user's"
        lines += [Line("tokenizer", chat), Line("prompt_format", "chat", form)]
    return lines


def section(name: str, about: str, lines: Iterable[Line]) -> str:
    """A recipe of the file, its notes in one column."""
    written = [(f"    {line.key}: {_value(line.value)}", line.note) for line in lines]
    width = max((len(text) for text, note in written if note), default=0)
    body = [f"{text:{width}}  # {note}" if note else text for text, note in written]
    return "\n".join([f"  {name}:  # {about}", *body]) + "\n"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else one_line(value)


def _up_to_eight(value: float) -> int:
    return max(8, int(-(-value // 8) * 8))
