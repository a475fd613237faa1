"""Log-probabilities of single tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

WIDE = ("cuda",)  # devices that wait for kernels to be launched rather than for memory


def token_logps(logits: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    """log π of single tokens: the log-softmax at `positions` of `tokens`.

    `logits` [B, S, V]; `tokens`, `positions` [B, T] int64, positions in [0, S), one position may predict
    several tokens (responses that share a prompt) → [B, T], nats, float32 or wider. Holds no
    copy of the logits but their gradient; differentiable once.
    """
    values: Tensor = _TokenLogps.apply(logits, tokens, positions)  # type: ignore[no-untyped-call]
    return values


class _TokenLogps(torch.autograd.Function):
    """Some entries of a log-softmax, piece by piece: autograd's own keeps the whole of it, in float32."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        flat = logits.reshape(-1, logits.shape[-1])
        pieces = torch.split(flat, _rows_of(flat))
        totals = torch.cat([at_least_float32(piece).logsumexp(-1) for piece in pieces]).view(logits.shape[:2])
        ctx.save_for_backward(logits, totals, tokens, positions)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        return logits[rows, positions, tokens].to(totals.dtype) - totals.gather(1, positions)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, totals, tokens, positions = ctx.saved_tensors
        rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
        at, given = (rows, positions, tokens), grads[0]
        wanted = torch.zeros_like(totals).scatter_add_(1, positions, given)
        if narrow := logits.dtype != totals.dtype:
            # Of a token that is nearly certain both parts are nearly one: their difference is rounded once.
            same = (positions[:, :, None] == positions[:, None]) & (tokens[:, :, None] == tokens[:, None])
            share = (logits[at].to(totals.dtype) - totals.gather(1, positions)).exp()
            given = (same * given[:, None]).sum(-1) - share * wanted.gather(1, positions)
        wanted = wanted.view(-1, 1)
        result = torch.empty_like(logits, memory_format=torch.contiguous_format)
        flat = logits.reshape(-1, logits.shape[-1])
        into, totals = result.view(flat.shape), totals.view(-1, 1)
        size = _rows_of(flat)
        for start in range(0, len(flat), size):
            part = slice(start, start + size)
            into[part] = (at_least_float32(flat[part]) - totals[part]).exp_().mul_(-wanted[part])
        result.index_put_(at, given.to(result.dtype), accumulate=not narrow)
        return result, None, None


def _rows_of(flat: Tensor) -> int:
    """Rows of a [n, V] tensor in a piece: some 16 MB of float32, on a GPU 128 MB of what was narrower.

    There each piece is fourteen kernels; in float32 another cut might change the order of a sum.
    """
    wide = flat.device.type in WIDE and flat.dtype.itemsize < 4
    return max(1, 2 ** (25 if wide else 22) // flat.shape[-1])


def at_least_float32(logits: Tensor) -> Tensor:
    """bfloat16 log-probabilities lose the differences that Δh consists of; float64 stays float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
