"""What the stages of a plan need of a machine: GPUs, memory, disk and time, as far as that is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median

from rpo_cli import devices
from rpo_cli.artifacts import External, Stage, Workspace
from rpo_cli.recipes.schema import KINDS, TrainingRecipe
from rpo_cli.runs import local_models as models
from rpo_cli.runs.plan import Resources
from rpo_cli.runs.question import Question
from rpo_cli.runs.room import LIBRARIES, each_weight

MOST_GPUS = 8  # of one machine
MB = 1_000_000
Times = Mapping[tuple[str, str], float]  # seconds by kind and name of the recipe


def resources(
    stages: Sequence[Stage], workspace: Workspace, question: Question | None
) -> dict[str, Resources]:
    """The resources of each stage by its path; `question`: a device, to estimate times that nobody knows."""
    times, count = measured(stages, workspace), cache(models.parameters_in)  # of each model once
    found = {stage.path: _of(stage, times, _weights(stage, workspace.root, count)) for stage in stages}
    if question is not None:
        from rpo_cli.runs.estimate import minutes
        from rpo_cli.runs.sizes import GIVE_PARAMS, Sizes

        sizes = Sizes(workspace, question.params, GIVE_PARAMS)
        for stage in stages:
            if found[stage.path].minutes is None and (known := minutes(stage, sizes, question)) is not None:
                found[stage.path] = found[stage.path].model_copy(update={"minutes": round(known, 2)})
    return found


def measured(stages: Sequence[Stage], workspace: Workspace) -> Times:
    """Median seconds of the finished stages among these, by kind and recipe."""
    seen: dict[tuple[str, str], list[float]] = {}
    for stage in stages:
        if (found := workspace.manifest(stage.path)) is not None:
            seen.setdefault((stage.kind, stage.source.stem), []).append(found["seconds"])
    return {place: median(seconds) for place, seconds in seen.items()}


def _of(stage: Stage, times: Times, count: int | None) -> Resources:
    recipe, gpus = stage.recipe, int(_on_gpu(stage))
    seconds = times.get((stage.kind, stage.source.stem))
    minutes = recipe.expected_seconds if seconds is None else seconds
    # As `room.tight` counts: gradients and Adam's moments with the weights, two checkpoints beside them.
    in_memory, on_disk, most = 4, 0, 1
    if isinstance(recipe, TrainingRecipe) and KINDS[stage.kind].trains:
        in_memory = 4 if gpus else each_weight(recipe)
        on_disk = 4 + (24 if recipe.save_steps and not recipe.use_peft else 0)
        most = max(number for number in range(1, MOST_GPUS + 1) if recipe.batch % number == 0)
    return Resources(
        gpus=gpus,
        max_gpus=gpus * most,
        memory_mb=None if count is None else math.ceil((LIBRARIES + in_memory * count) / MB),
        disk_mb=None if count is None else math.ceil(on_disk * count / MB),
        minutes=None if minutes is None else round(minutes / 60, 2),
        measured=seconds is not None,
    )


def _on_gpu(stage: Stage) -> bool:
    """Whether a stage wants a GPU; `device: auto` is what it means on this machine."""
    if not KINDS[stage.kind].needs_model or stage.recipe.device in ("cpu", "xla"):
        return False
    return stage.recipe.device == "cuda" or devices.choose(stage.recipe).name == "cuda"


def _weights(stage: Stage, root: Path, count: Callable[[Path | None], int]) -> int | None:
    """How many the largest model has that a stage trains or reads; None where that is not known here."""
    nodes = [stage] if KINDS[stage.kind].trains else [*filter(_is_model, stage.inputs.values())]
    if not KINDS[stage.kind].needs_model or not nodes:
        return None
    bases = [models.base_of(node) for node in nodes]
    folders = [root / each.path if isinstance(each, Stage) else models.folder_of(each) for each in bases]
    counts = [count(folder) for folder in folders]
    return None if 0 in counts else max(counts)


def _is_model(node: models.Node) -> bool:
    return node.use == "model" if isinstance(node, External) else KINDS[node.kind].trains
