"""What was seen of a model in this process, and so need not be tried again of another that is built alike."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from transformers import PreTrainedModel

# Entries of a configuration that say where a model lies and who wrote it; dtypes are those of its weights.
NOT_COMPARED = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype")
# Rotations by a token's position alone. The others look at the lengths of a batch, and some remember them.
BY_POSITION = ("default", "linear", "llama3", "yarn")


@dataclass
class Proven:
    """Ways of reading that gave the right numbers, with bounds of the texts that they were seen on.

    Only what was tried first goes in here: a way that fails on long texts may be right for shorter ones, and
    the choice must not depend on what a process did before. For the same reason a trial must leave a model as
    it was, and what holds within bounds must hold within narrower ones: see `built_alike`.
    """

    seen: dict[Hashable, list[tuple[int, ...]]] = field(default_factory=dict)

    def holds(self, way: Hashable | None, bounds: tuple[int, ...]) -> bool:
        """Whether a way was right within bounds none of which is narrower; never of the way None."""
        return any(
            all(here <= there for here, there in zip(bounds, known, strict=True))
            for known in self.seen.get(way, [])
        )

    def note(self, way: Hashable | None, bounds: tuple[int, ...]) -> None:
        """A way was right within these bounds; the way None is not kept."""
        if way is not None:
            self.seen.setdefault(way, []).append(bounds)


def built_alike(model: PreTrainedModel, *more: Hashable) -> Hashable | None:
    """What two models share that read texts in the same way, whatever their weights, and `more`.

    None: of this one nothing can be said beforehand. It has hooks or a forward pass of its own, a state that
    runs through its rows, or a rotation that depends on the lengths of a batch.
    """
    modules = list(model.modules())
    forwards = [getattr(module.forward, "__func__", None) for module in modules]
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    settings = model.config.to_dict()
    rotations = set(_named(settings, "rope_type")) | set(_named(settings, "type"))
    if hooked or None in forwards or getattr(model, "_is_stateful", False) or rotations - set(BY_POSITION):
        return None
    compared = sorted((name, value) for name, value in settings.items() if name not in NOT_COMPARED)
    attention = getattr(model.config, "_attn_implementation", None)
    dtypes = frozenset(tensor.dtype for tensor in (*model.parameters(), *model.buffers()))
    kinds = tuple(zip(map(type, modules), forwards, strict=True))
    return repr(compared), repr(attention), kinds, dtypes, str(model.device), *more


def _named(settings: object, name: str) -> Iterator[object]:
    """The values of all entries of this name, at whatever depth."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key == name and value is not None:
                yield value
            yield from _named(value, name)
