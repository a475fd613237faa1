"""What a process sets up before a stage: threads, algorithms, the libraries' talk."""

from __future__ import annotations

import logging
import os
from functools import cache


def prepare(threads: int | None, deterministic: bool = True, *, strict: bool = False) -> None:
    """Fix what would let the same seed give another result: thread count and, if asked to, the algorithms.

    strict: what has no deterministic algorithm is an error. Else attention on a GPU only warns, and does not
    take the one it has.
    """
    import torch

    torch.set_num_threads(_own_threads() if threads is None else threads)
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        # What `cuda` without a number means from here on.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # cuDNN's attention makes a plan for every new length of rows; the next kernel in torch's order makes
    # none. On others' word (FunASR's issue 3704, a B200): there a plan took ten times as long as a step.
    torch.backends.cuda.enable_cudnn_sdp(False)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=not strict)
    # Filling every new tensor would make a small model's step five times slower; none is read unwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@cache
def _own_threads() -> int:
    """The threads of this process before any stage asked for a number of them, which is no other stage's."""
    import torch

    return torch.get_num_threads()


def unheard() -> None:
    """Keep off the terminal that QLoRA on a CPU could be faster, as bitsandbytes says when imported."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "kernels-community" not in str(record.msg)


def quiet() -> None:
    """Keep the libraries' bars and load reports off the terminal; their warnings go to the stage's log."""
    from datasets.utils.logging import disable_progress_bar as no_datasets_bar
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.disable_default_handler()
    logging.enable_propagation()
    no_datasets_bar()
