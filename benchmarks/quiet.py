"""What is set before torch is imported, so that a measurement is disturbed little."""

from __future__ import annotations

import contextlib
import ctypes
import os


def quiet(threads: int = 1) -> None:
    """What must be set before torch and transformers are imported; and no bars, no reports, no telemetry."""
    from rpo_cli.runs.work import QUIET_ENVIRONMENT

    os.environ.update(QUIET_ENVIRONMENT)
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "WANDB_MODE": "disabled",
    }
    one_arena()
    import torch
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bar()


def one_arena() -> None:
    """One heap for all threads (glibc): else each trainer's keeps its own peak, 15 GB with seven."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX
