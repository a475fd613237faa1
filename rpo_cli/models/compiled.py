"""A model's layers as compiled code, which fuses what a layer does element by element.

Only the steps of a training run it. Layers are all of one kind, so one of them is compiled, for rows of any
number and length; the head, the loss and everything that is read without a gradient stay as they are.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path

from torch import compiler, nn


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that repeat: members of the outermost lists of modules of one class."""
    if isinstance(model, nn.ModuleList) and len(model) > 1 and len({type(layer) for layer in model}) == 1:
        return list(model)
    return [layer for child in model.children() for layer in layers_of(child)]


def cannot_compile(device: str) -> str | None:
    """What torch's compiler lacks here to make code for a CPU or a GPU; None: nothing."""
    if device == "cuda" and find_spec("triton") is None:
        return "Triton is not installed"
    variable, *names = ("CC", "cc", "gcc", "clang") if device == "cuda" else ("CXX", "g++", "clang++")
    if not any(shutil.which(name) for name in (os.environ.get(variable, ""), *names)):
        return f"there is no compiler ({names[0]})"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are not installed (python3-dev)"
    return None


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Within it `in_step` runs compiled code for the model's layers; all else is as without.

    What a training before it compiled is forgotten: torch stops compiling at a number of codes for one class.
    """
    compiler.reset()
    for layer in layers_of(model):
        layer.compile(dynamic=True)  # every batch has another shape
    try:
        with compiler.set_stance("force_eager"):
            yield
    finally:
        for layer in layers_of(model):
            layer._compiled_call_impl = None


def in_step() -> AbstractContextManager[None]:
    """A training step, which runs what was compiled."""
    stance: AbstractContextManager[None] = compiler.set_stance("default")
    return stance
