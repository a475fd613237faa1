"""Whether there is room: for a plan on a disk and in memory, for one more worker beside the others."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rpo_cli import devices
from rpo_cli.artifacts import External, Stage, Workspace
from rpo_cli.errors import BadInput
from rpo_cli.recipes.schema import KINDS, Recipe, TrainingRecipe
from rpo_cli.runs import local_models as models
from rpo_cli.text import size

LIBRARIES = 1_000_000_000  # bytes of a process that has imported torch, transformers and TRL
Held = Iterable[tuple[Stage, str]]  # stages in memory, each with the GPU that it is on, or ""


def each_weight(recipe: Recipe) -> int:
    """Bytes in float32 of a weight that a stage trains, its gradient and Adam's two moments; of an adapter's
    frozen base the weight alone."""
    return 16 if isinstance(recipe, TrainingRecipe) and not recipe.use_peft else 4


def tight(stages: Sequence[Stage], root: Path, jobs: int) -> list[str]:
    """Where disk or memory may not do for what these stages train, so many of them at a time: a line each.

    In float32: 4 bytes a weight saved, 12 in a checkpoint, of which two are kept; 16 while it trains,
    gradients and Adam's moments included, 4 under an adapter. Activations come on top.
    """
    trained = [stage for stage in stages if KINDS[stage.kind].trains]
    bases = [models.base_of(stage) for stage in trained]
    once = {id(base): base for base in bases}
    weights = {each: models.parameters_in(models.folder_of(base)) for each, base in once.items()}
    saved, checkpoints, memory, with_auto = 0, [0], [0], [0]
    for stage, base in zip(trained, bases, strict=True):
        if isinstance(recipe := stage.recipe, TrainingRecipe):
            count = weights[id(base)]
            saved += 4 * count
            checkpoints.append(24 * count if recipe.save_steps and not recipe.use_peft else 0)
            training = each_weight(recipe) * count
            with_auto.append(training if recipe.device in ("cpu", "auto") else 0)
            memory.append(training if recipe.device == "cpu" else 0)
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    left = devices.free_bytes(())[devices.HOST]
    disk, certain, most = (sum(sorted(each)[-jobs:]) for each in (checkpoints, memory, with_auto))
    # Which device `auto` is takes seconds to import torch for: it is asked where the answer decides.
    auto = [stage.recipe for stage in trained if stage.recipe.device == "auto"]
    here = most if most > left and not devices.gpus(auto) else certain
    wanted = (("disk", saved + disk, shutil.disk_usage(place).free), ("memory", here, left))
    return [
        f"{what}: the models of this plan take up to {size(need)} with --jobs {jobs}, {size(free)} are free"
        for what, need, free in wanted
        if need > free
    ]


@dataclass
class Room:
    """Memory by place: `free` when nothing of the plan was in it; `peaks`: the largest seen of each kind."""

    workspace: Workspace
    free: Mapping[str, int]
    peaks: dict[tuple[str, str], int] = field(default_factory=dict)

    def measured(self, stage: Stage, on_host: int, on_gpu: int) -> None:
        """What a stage's process has held."""
        for place, peak in ((devices.HOST, on_host), ("gpu", on_gpu)):
            self.peaks[stage.kind, place] = max(peak, self.peaks.get((stage.kind, place), 0))

    def lacks(self, stage: Stage, gpu: str, held: Held) -> str | None:
        """The place that has no room for a stage beside those that are held; None if it fits."""
        others = list(held)
        places = (devices.HOST, gpu)
        return next((place for place in places if not self.fits(stage, gpu, place, others)), None)

    def fits(self, stage: Stage, gpu: str, place: str, held: Held) -> bool:
        """Whether a place, the host or the GPU, has room for a stage beside those that are held."""
        beside = sum(self.need(o, gpu, place) for o, at in held if place in (devices.HOST, at))
        return place not in self.free or beside + self.need(stage, gpu, place) <= self.free[place]

    def place(self, stage: Stage, gpus: Sequence[str], held: Held) -> str:
        """The GPU for a stage's worker: where there is room, the fewest others, and most memory left."""
        others = list(held)

        def rank(gpu: str) -> tuple[bool, int, int]:
            beside = [other for other, at in others if at == gpu]
            left = self.free.get(gpu, 0) - sum(self.need(other, gpu, gpu) for other in beside)
            return self.lacks(stage, gpu, others) != gpu, -len(beside), left

        return max(gpus, key=rank, default="")

    def need(self, stage: Stage, gpu: str, place: str) -> int:
        """Bytes that a stage's process takes in a place: the largest seen of its kind, else as expected."""
        host = place == devices.HOST
        if (peak := self.peaks.get((stage.kind, place if host else "gpu"))) is not None:
            return peak
        return (LIBRARIES if host else 0) + (0 if host and gpu else self._expected(stage, bool(gpu)))

    def _expected(self, stage: Stage, gpu: bool) -> int:
        if gpu and KINDS[stage.kind].trains:  # torch is imported already: it was asked for the GPU
            from rpo_cli.runs.memory import memory_of
            from rpo_cli.runs.sizes import Sizes

            with suppress(BadInput, KeyError):
                return int(sum(memory_of(stage, Sizes(self.workspace, None)).values()))
        weights = sum(map(self._weights, stage.inputs.values()))
        return weights * (each_weight(stage.recipe) if KINDS[stage.kind].trains else 4) // 4

    def _weights(self, needed: Stage | External) -> int:
        """Bytes of a model's weights, if they are on this disk."""
        where = self.workspace.root / needed.path if isinstance(needed, Stage) else Path(needed.reference)
        return sum(file.stat().st_size for file in where.glob("*.safetensors"))
