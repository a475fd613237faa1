"""RMS norms as one operation of torch's, a kernel on a GPU; transformers has five, and ten backward."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# Of the largest number: two orders of adding up squares in float32. A weight of another meaning changes all.
TOLERANCE = 1e-5
_FUSED: dict[type[nn.Module], type[nn.Module]] = {}


def fuse_norms(model: nn.Module) -> int:
    """Have torch compute those of a model's RMS norms that it computes alike; returns how many.

    The numbers differ in the rounding of float32. Those that add one to their weight, as Gemma's, stay.
    """
    fused = set(_FUSED.values())
    norms = [module for module in model.modules() if type(module) not in fused and _alike(module)]
    for norm in norms:
        norm.__class__ = _FUSED.setdefault(type(norm), _fused(type(norm)))
    return len(norms)


def _alike(module: nn.Module) -> bool:
    """Whether it is an RMS norm of float32 weights that gives what torch's gives, by a text of its size."""
    weight, name = getattr(module, "weight", None), type(module).__name__
    if not (name.endswith("RMSNorm") and isinstance(weight, Tensor) and isinstance(_eps(module), float)):
        return False
    if weight.ndim != 1 or weight.dtype != torch.float32:
        return False
    text = torch.arange(2 * len(weight), device=weight.device).sin().view(2, -1)
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        try:
            theirs = module(text)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False  # it takes something else
        ours = functional.rms_norm(text, weight.shape, weight, _eps(module))
    return theirs.shape == ours.shape and bool((theirs - ours).abs().max() <= TOLERANCE * theirs.abs().max())


def _eps(module: nn.Module) -> float | None:
    found: float | None = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found


def _fused(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of norms that torch computes; of the same name, by which transformers knows what it is."""

    def forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != torch.float32:
            found: Tensor = kind.forward(self, hidden_states)
            return found
        weight = cast(Tensor, self.weight)
        return functional.rms_norm(hidden_states, weight.shape, weight, _eps(self))

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
