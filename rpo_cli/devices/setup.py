"""What a process sets up before a stage: threads, algorithms, the libraries' talk."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def prepare(threads: int | None) -> None:
    """Fix what would let the same seed give another result: thread count and algorithm choice."""
    import torch

    torch.set_num_threads(_own_threads() if threads is None else threads)
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(
            int(os.environ["LOCAL_RANK"])
        )  # what `cuda` without a number means from here on
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor would make a small model's step five times slower; nothing here reads unwritten
    # memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if os.environ.get("USE_TORCH_XLA") == "1":
        _mend_transformers()


@cache
def _own_threads() -> int:
    """The threads of this process before any stage asked for a number of them, which is no other stage's."""
    import torch

    return torch.get_num_threads()


def _mend_transformers() -> None:
    """What transformers does on XLA that fails, or compiles and reads more than it must."""
    import torch_xla.runtime
    import torch_xla.utils.checkpoint
    import transformers.modeling_utils
    import transformers.trainer

    # torch's own asks for the module torch.xla, which there is none of.
    transformers.modeling_utils.checkpoint = torch_xla.utils.checkpoint.checkpoint
    if torch_xla.runtime.world_size() == 1:
        # The logged loss would go through a rendezvous of the process with itself, in four programs.
        transformers.trainer.nested_gather = lambda tensors, *args, **kwargs: tensors.cpu()


def quiet() -> None:
    """Keep the libraries' own bars and load reports off the terminal; their warnings go to the stage's
    log.
    """
    from datasets.utils.logging import disable_progress_bar as no_datasets_bar
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.disable_default_handler()
    logging.enable_propagation()
    no_datasets_bar()
