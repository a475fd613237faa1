"""What was seen of a model in this process, and so need not be tried again of another that is built alike."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from transformers import PreTrainedModel

# Entries of a configuration that say where a model lies or who wrote it, not how it reads.
OF_NO_READING = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype")


@dataclass
class Proven:
    """Ways of reading that gave the right numbers, for texts up to some lengths.

    Only what was tried first goes in here: a way that fails on long texts may be right for shorter ones, and
    the choice must not depend on what a process did before. What holds of long texts holds of shorter ones.
    """

    seen: dict[Hashable, list[tuple[int, ...]]] = field(default_factory=dict)

    def holds(self, way: Hashable, lengths: tuple[int, ...]) -> bool:
        """Whether a way was right for texts at least as long in every respect."""
        return any(
            all(here <= there for here, there in zip(lengths, known, strict=True))
            for known in self.seen.get(way, [])
        )

    def note(self, way: Hashable, lengths: tuple[int, ...]) -> None:
        """A way was right for texts of these lengths."""
        self.seen.setdefault(way, []).append(lengths)


def built_alike(model: PreTrainedModel) -> Hashable:
    """What two models share that read texts in the same way, whatever their weights."""
    settings = {name: value for name, value in model.config.to_dict().items() if name not in OF_NO_READING}
    attention = getattr(model.config, "_attn_implementation", None)
    modules = tuple(
        (type(module), getattr(module.forward, "__func__", module.forward)) for module in model.modules()
    )
    dtypes = frozenset(weights.dtype for weights in model.parameters())
    return repr(sorted(settings.items())), attention, modules, dtypes, str(model.device)
