"""What stands for a CUDA graph where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded(TorchDispatchMode):
    """What stands for a CUDA graph: the operations of one run, run again on the tensors it had.

    A number that stayed on the host, or a tensor that was put elsewhere, would be those of the first run.
    """

    made = 0

    def __init__(self, work: Callable[[], None], pool: object = None) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        with self:
            work()
        self.ran = True  # unlike what a capture launches
        Recorded.made += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("item", "is_nonzero", "_local_scalar_dense", "nonzero", "equal"), name
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        if not self.ran:
            # As what was recorded: below autograd, and whatever an autocast cast.
            with torch._C._AutoDispatchBelowAutograd(), torch.autocast("cpu", enabled=False):
                for func, args, kwargs, found in self.calls:
                    again = func(*args, **kwargs)
                    for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                            old.copy_(new)
        self.ran = False

    def pool(self) -> object:
        return None
