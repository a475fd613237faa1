"""Has torch-xla see a host of two chips, for each of which its launcher starts a process."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import Any

NAME = "torch_xla._internal.pjrt"


class Plugins:
    """What that module asks of torch-xla's plugins."""

    def using_dynamic_plugins(self) -> bool:
        return True

    def default(self) -> Plugins:
        return self

    def physical_chip_count(self) -> int:
        return 2

    def configure_single_process(self) -> None:
        """None."""

    def configure_multiprocess(self, rank: int, count: int) -> None:
        """None."""


class Finder(MetaPathFinder):
    """Has that module ask Plugins."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            module.plugins = Plugins()

        # A module has no hook for after its import: the method of its own loader is replaced, this once.
        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())
