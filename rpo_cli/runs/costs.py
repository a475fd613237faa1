"""What a stage costs: FLOPs and tokens, by arithmetic on its recipe and on the sizes of what it reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

from rpo_cli.artifacts import Stage
from rpo_cli.devices import HOST_BOUND
from rpo_cli.recipes import schema
from rpo_cli.runs.sizes import Lengths, Model, Sizes, Unknown


@dataclass
class Work:
    """What one kind of stage does: FLOPs and tokens by way of working, and bytes of weights that decoding
    reads. flops_small: of the FLOPs to train and score, those of models of at most HOST_BOUND parameters.
    """

    train: float = 0.0
    score: float = 0.0
    decode: float = 0.0
    train_tokens: float = 0.0
    score_tokens: float = 0.0
    decode_tokens: float = 0.0
    read_bytes: float = 0.0
    flops_small: float = 0.0

    def __iadd__(self, other: Work) -> Work:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    @property
    def flops(self) -> float:
        return self.train + self.score + self.decode


def _sft(stage: Stage, sizes: Sizes) -> Work:
    recipe = cast(schema.SFTRecipe, stage.recipe)
    found = sizes.lengths(stage.inputs["data"], recipe.table, recipe.max_length, stage)
    seen = _rows_seen(recipe, stage, found, recipe.table)
    return _training(recipe, sizes.model(stage), seen * (found.prompt + found.response))


def pairs_read(stage: Stage, sizes: Sizes) -> tuple[Lengths, str]:
    """How many pairs a stage reads, and how long; and what their table is called."""
    recipe = cast(schema.ModelSource, stage.recipe)
    table = getattr(recipe, "table", "pairs")
    user = next((stage.inputs[name] for name in ("policy", "model") if name in stage.inputs), None)
    return sizes.lengths(stage.inputs["data"], table, recipe.max_length, user), table


def _reward(stage: Stage, sizes: Sizes) -> Work:
    recipe = cast(schema.RewardRecipe, stage.recipe)
    found, table = pairs_read(stage, sizes)
    model = sizes.model(stage, reward=True)
    per_pair = _of_pair(recipe, found)
    work = _training(recipe, model, _rows_seen(recipe, stage, found, table) * per_pair)
    data = stage.inputs["data"]
    if isinstance(data, Stage) and isinstance(data.recipe, schema.SplitsRecipe):
        work += _scoring(model, data.recipe.held_out * per_pair)
    return work


def _read(stage: Stage, sizes: Sizes, name: str = "model", *, reward: bool, pairs: int | None = None) -> Work:
    """Both responses of every pair, or of so many, read once by a reward model or a model of language."""
    found, table = pairs_read(stage, sizes)
    count = _rows(found, table) if pairs is None else pairs
    model = sizes.model(stage.inputs[name], reward=reward)
    return _scoring(model, count * _of_pair(stage.recipe, found))


def _splits(stage: Stage) -> schema.SplitsRecipe:
    return cast(schema.SplitsRecipe, cast(Stage, stage.inputs["data"]).recipe)


def _scores(stage: Stage, sizes: Sizes) -> Work:
    if "model" not in stage.inputs:  # columns of the data
        return Work()
    splits = _splits(stage)
    drawn = None if splits.num_pairs is None else splits.num_pairs + splits.held_out
    return _read(stage, sizes, reward=True, pairs=drawn)


def _held_out(stage: Stage, sizes: Sizes) -> Work:
    return _read(stage, sizes, "policy", reward=False, pairs=_splits(stage).held_out)


def _samples(stage: Stage, sizes: Sizes) -> Work:
    recipe = cast(schema.ScoringRecipe, stage.recipe)
    found, table = pairs_read(stage, sizes)
    model, count = sizes.model(stage.inputs["model"]), _rows(found, table) * recipe.reference_samples
    work = _decoding(model, count, found.prompt, recipe.max_new_tokens, recipe.per_device_eval_batch_size)
    work += _scoring(model, count * (found.prompt + recipe.max_new_tokens))
    return work


def _policy(stage: Stage, sizes: Sizes) -> Work:
    recipe = cast(schema.PolicyRecipe, stage.recipe)
    found, table = pairs_read(stage, sizes)
    model, seen = sizes.model(stage), _rows_seen(recipe, stage, found, table)
    sampled = (
        (0.0 if recipe.shared_prompts else found.prompt) + recipe.max_new_tokens
        if "samples" in stage.inputs
        else 0.0
    )
    work = _training(recipe, model, seen * (_of_pair(recipe, found) + sampled))
    if recipe.needs_reference:
        work += _scoring(model, seen * sampled)
    return work


def _measure(stage: Stage, sizes: Sizes) -> Work:
    recipe = cast(schema.ScoringRecipe, stage.recipe)
    found, _ = pairs_read(stage, sizes)
    splits = _splits(stage)
    if splits.num_pairs is None:
        raise Unknown("num_pairs of its splits")
    # Three responses by two models, each in a row of its own, and the samples once more for the exact KL.
    tokens = 2 * (found.prompt + found.response) + 2 * (found.prompt + recipe.max_new_tokens)
    work = _scoring(sizes.model(stage.inputs["policy"]), splits.num_pairs * tokens)
    work += _scoring(sizes.model(stage.inputs["model"]), splits.num_pairs * tokens)
    return work


def _sampled(stage: Stage, sizes: Sizes) -> tuple[int, float]:
    """Samples of an evaluation, and tokens of a prompt."""
    recipe = cast(schema.EvaluateRecipe, stage.recipe)
    table = f"prompts_{recipe.split}"
    found = sizes.lengths(stage.inputs["data"], table, recipe.max_length, stage.inputs["policy"])
    rows = _rows(found, table) if recipe.num_prompts is None else min(_rows(found, table), recipe.num_prompts)
    # Prompts alone: half a row is not their length where nothing was measured.
    prompt = recipe.max_length if "every row counts" in found.source else found.prompt
    return rows * recipe.num_samples, prompt


def _evaluate(stage: Stage, sizes: Sizes) -> Work:
    recipe = cast(schema.EvaluateRecipe, stage.recipe)
    count, prompt = _sampled(stage, sizes)
    tokens = prompt + recipe.max_new_tokens
    policy, reference = sizes.model(stage.inputs["policy"]), sizes.model(stage.inputs["reference"])
    work = _decoding(policy, count, prompt, recipe.max_new_tokens, recipe.per_device_eval_batch_size)
    work += _scoring(policy, count * tokens)
    if stage.inputs["reference"].key != stage.inputs["policy"].key:
        work += _scoring(reference, count * tokens)
    if "oracle" in stage.inputs:
        work += _scoring(sizes.model(stage.inputs["oracle"], reward=True), count * tokens)
    return work


def _taught(stage: Stage, sizes: Sizes) -> Work:
    evaluation = cast(Stage, stage.inputs["evaluation"])
    count, prompt = _sampled(evaluation, sizes)
    longest = cast(schema.EvaluateRecipe, evaluation.recipe).max_new_tokens
    return _scoring(sizes.model(stage.inputs["model"], reward=True), 2 * count * (prompt + longest))


OF: dict[str, Callable[[Stage, Sizes], Work]] = {
    "sft": _sft, "reward": _reward, "relabel": partial(_read, reward=True),
    "reference": partial(_read, reward=False), "scores": _scores,
    "samples": _samples, "policy": _policy, "measure": _measure, "evaluate": _evaluate,
    "held_out": _held_out, "taught": _taught,
}  # fmt: skip


def work_of(stage: Stage, sizes: Sizes) -> Work:
    """What a stage computes; Unknown where a table's rows are."""
    return OF[stage.kind](stage, sizes) if stage.kind in OF else Work()


def _rows(found: Lengths, table: str) -> int:
    if found.rows is None:
        raise Unknown(f"how many rows {table} has is not known before the data is there")
    return found.rows


def _rows_seen(recipe: schema.TrainingRecipe, stage: Stage, found: Lengths, table: str) -> int:
    """Rows that pass through training, each as often as it does."""
    if recipe.num_train_epochs is None:
        return recipe.max_steps * recipe.batch
    data = stage.inputs["data"]
    splits = data.recipe if isinstance(data, Stage) else None
    drawn = splits.num_pairs if isinstance(splits, schema.SplitsRecipe) else None
    return recipe.steps(_rows(found, table) if drawn is None else drawn, recipe.batch) * recipe.batch


def _of_pair(recipe: schema.Recipe, found: Lengths) -> float:
    """Tokens of a prompt with two responses; `found.response` is the mean of one."""
    # Where nothing was measured nobody knows how much of a row is prompt: twice a whole row is the bound.
    shared = isinstance(recipe, schema.SharedPrompts) and recipe.shared_prompts
    once = shared and "every row counts" not in found.source
    return (1 if once else 2) * found.prompt + 2 * found.response


def _training(recipe: schema.TrainingRecipe, model: Model, tokens: float) -> Work:
    factor = (4 if recipe.use_peft else 6) + (2 if recipe.gradient_checkpointing else 0)
    flops = factor * model.parameters * tokens
    return Work(train=flops, train_tokens=tokens, flops_small=_if_small(model, flops))


def _scoring(model: Model, tokens: float) -> Work:
    flops = 2 * model.parameters * tokens
    return Work(score=flops, score_tokens=tokens, flops_small=_if_small(model, flops))


def _if_small(model: Model, flops: float) -> float:
    return flops if model.parameters <= HOST_BOUND else 0.0


def _decoding(model: Model, prompts: int, prompt: float, new: int, batch: int) -> Work:
    """Prompts are read at once; then each batch reads all weights (float32) for every new token."""
    tokens = prompts * new
    read = math.ceil(prompts / batch) * new * 4 * model.parameters
    flops = 2 * model.parameters
    return Work(
        score=flops * prompts * prompt,
        score_tokens=prompts * prompt,
        decode=flops * tokens,
        decode_tokens=tokens,
        read_bytes=read,
        flops_small=_if_small(model, flops * prompts * prompt),
    )
