"""What stands for a GPU where there is none: tensors without contents, of which the host's are told apart.

torch's "cpu" plays the card, as autograd and autocast know it on every machine; "meta" plays the host, and is
where a tensor is made unless somebody names a device. Not seen: what is done on the name "cuda" alone, what a
kernel launches inside, memory, time, and every number.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CARD = torch.device("cpu")
READS = ("cpu", "numpy", "tolist", "__array__")
MAKES = ("tensor", "as_tensor")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


class Waited(AssertionError):
    """The host would wait for the card, or an operation would read the memory of both."""


@contextmanager
def no_card() -> Iterator[FakeTensorMode]:
    """Within it no tensor has contents; one that is made without a device is the host's."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.device("meta"):
        yield fake


def to_card(model: nn.Module, fake: FakeTensorMode) -> None:
    """Bring what `Module.to` moves: weights, with the ties among them, and buffers."""
    moved: dict[int, Tensor] = {}
    for own in [each for module in model.modules() for each in (module._parameters, module._buffers)]:
        for name, tensor in own.items():
            if tensor is not None:
                own[name] = moved.setdefault(id(tensor), fake.from_tensor(tensor))


class Watched(TorchDispatchMode):
    """Raises `Waited`, with the line, where a step does what a card's would wait for.

    That is a value that the host asks for, a shape that depends on values, and a tensor of the host's beside
    the card's, copies included: batches are there before a step. products: dtypes of what is multiplied.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[torch.dtype] = Counter()
        self.reads = _Reads()

    def __enter__(self) -> Watched:
        self.reads.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.reads.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tensors_of((args, kwargs))
        if len({each.device.type for each in given}) > 1:
            raise Waited(f"{func} of the card's tensors and the host's: {place()}")
        try:
            found = func(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise Waited(f"{func} depends on values: {place()}") from error
        if len({each.device.type for each in (*given, *tensors_of(found))}) > 1:
            raise Waited(f"{func} from one memory to the other: {place()}")
        if func.overloadpacket.__name__ in PRODUCTS:
            self.products.update(each.dtype for each in given)
        return found


class _Reads(TorchFunctionMode):
    """Notices what calls no operation where the card is a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        found = func(*args, **(kwargs or {}))
        makes = name in MAKES and not isinstance(args[0], Tensor)
        there = tensors_of(args[:1] if name in READS else found if makes else ())
        if any(each.device == CARD for each in there):
            raise Waited(f"{name}: {place()}")
        return found


def tensors_of(tree: object) -> list[Tensor]:
    """All tensors in it."""
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def place() -> str:
    """The last line outside torch."""
    stack = [each for each in traceback.extract_stack() if "/torch/" not in each.filename]
    last = [each for each in stack if each.filename != __file__][-1]
    return f"{'/'.join(Path(last.filename).parts[-3:])}:{last.lineno} {last.line}"
