"""The mean of an ensemble's weights as one reward model (Rame et al. 2024, WARM)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from rpo_cli import devices
from rpo_cli.artifacts import Job, Report
from rpo_cli.errors import RunFailed
from rpo_cli.models import load_reward, load_tokenizer, save
from rpo_cli.recipes.schema import RewardRecipe


def mean_weights(models: list[Path]) -> dict[str, torch.Tensor]:
    """Mean of the models' tensors, name by name, summed in float64: the dtypes and shapes of the first.

    Raises:
        RunFailed: the models differ in names, shapes or dtypes of their weights.
    """
    first = read_weights(models[0])
    total = {name: tensor.double() for name, tensor in first.items()}
    for model in models[1:]:
        weights = read_weights(model)
        if layout_of(weights) != layout_of(first):
            raise RunFailed(f"{model}: its weights differ in name, shape or type from those of {models[0]}")
        for name, tensor in weights.items():
            total[name] += tensor.double()
    return {name: (tensor / len(models)).to(first[name].dtype) for name, tensor in total.items()}


def layout_of(weights: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of every tensor."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}


def read_weights(model: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model directory, of one file or of shards."""
    return {
        name: tensor
        for file in sorted(model.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def run(job: Job[RewardRecipe], report: Report) -> dict[str, object]:
    """Average the members' weights: from one initialisation, without which the mean would mean nothing."""
    recipe: RewardRecipe = job.recipe
    members = [folder for name, folder in job.inputs.items() if name.startswith("members/")]
    weights = mean_weights(members)
    tokenizer = load_tokenizer(members[0], recipe)
    model = load_reward(members[0], recipe, devices.CPU, tokenizer)
    model.load_state_dict(weights)
    save(model, tokenizer, job.directory)
    report(len(members), len(members))
    return {"members": len(members)}
