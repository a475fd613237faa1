"""CUDA graphs: what is captured, on which stream, and what a capture that breaks leaves behind."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch

CAPTURES = ("cuda",)  # where a pass is captured; elsewhere it is run again each time, which tests the rest


@cache
def stream() -> torch.cuda.Stream:
    """The one on which passes are tried and captured, as nothing can be captured on the usual one.

    It is one for all: what a graph leaves free of its memory is free on its stream only, and cuBLAS keeps
    a workspace for each.
    """
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has not typed it


def captured(work: Callable[[], None], pool: Any = None) -> torch.cuda.CUDAGraph:
    """A graph of what it launches, none of which has run; in the memory `pool` of another graph.

    Much as by `torch.cuda.graph`, without its collection of garbage, which takes a third of a second. Other
    threads, which fetch rows or write the journal, may go on meanwhile.
    """
    graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what runs before took, the graph takes anew; none is given back in a capture
    gc.disable()  # an older graph that went just now would break the capture
    try:
        with torch.cuda.stream(stream()):
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):  # it would hide what went wrong
                    _end(graph, pool)
                raise
            _end(graph, pool)
    finally:
        if collects:
            gc.enable()
    return graph


def _end(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """End a capture; of one that was broken torch's allocator does not learn it by itself."""
    try:
        graph.capture_end()
    except RuntimeError:
        device = torch.cuda.current_device()
        # Private names, which another release may lack.
        with suppress(RuntimeError, AttributeError, TypeError):
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
        # Nor does its generator, it seems, before torch 2.13: every later random number on the device would
        # raise. A capture that ends well tells it; this one is empty, of which torch warns.
        with suppress(RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            empty = torch.cuda.CUDAGraph()
            empty.capture_begin(capture_error_mode="thread_local")
            empty.capture_end()
        raise


@contextmanager
def aside() -> Iterator[None]:
    """On the stream of captures, in its turn among the current stream's work: what runs before a capture."""
    side = stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            yield
    finally:  # whatever is made anew in the memory of what was begun there waits for it
        torch.cuda.current_stream().wait_stream(side)
