"""Which stages of a plan one job of an engine should make: starting a job can take longer than a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rpo_cli.artifacts import Stage
from rpo_cli.recipes.schema import KINDS

SHORT = 5.0  # minutes: with stages this short others of the same seed and rho go in one job
TOGETHER = 30.0  # minutes of short stages in one job, so that a lost job costs little


def groups(stages: Sequence[Stage], minutes: Mapping[str, float | None]) -> dict[str, str]:
    """The name of the group of each stage, by path; `stages`: inputs first; `minutes`: expected, if known.

    Short stages go with those of their seed and rho; what reads a model and trains none, of whatever length,
    with the last of the trainings that it needs. All others are alone. A stage between two of a group is in
    that group, and no two groups need each other.
    """
    labels: dict[str, str] = {}
    # Each change of label raises the level, so that no path leaves a group and comes back to it.
    levels: dict[str, int] = {}
    filled: dict[tuple[str, int], float] = {}
    found: dict[str, str] = {}
    for stage in stages:
        trained = [each.path for each in stage.stages() if KINDS[each.kind].trains]
        label, expected = stage.path, minutes[stage.path]
        if expected is not None and expected <= SHORT:
            seed, folder, *_ = stage.path.split("/")
            label = f"{seed}/{folder}" if folder.startswith("rho-") or folder == "unbiased" else seed
        elif trained and KINDS[stage.kind].needs_model and not KINDS[stage.kind].trains:
            label = labels[max(trained, key=levels.__getitem__)]
        level = max((levels[path] + (labels[path] != label) for path in stage.needed()), default=0)
        filled[label, level] = filled.get((label, level), 0.0) + (expected or 0.0)
        part = int(filled[label, level] / TOGETHER)
        labels[stage.path], levels[stage.path] = label, level
        found[stage.path] = f"{label.replace('/', '__')}.{level}.{part}"
    return found
