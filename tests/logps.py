"""What the tests compare log-probabilities of the package with."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_logps(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x), summed over the tokens inside the mask: [B, T, V], [B, T], [B, T] → [B], nats.

    Position t's logits predict tokens[t]. Where the mask is false the tokens may be anything (−100, pad).
    """
    outside = ~mask.bool()
    picked = logits.log_softmax(-1).gather(-1, tokens.masked_fill(outside, 0).unsqueeze(-1)).squeeze(-1)
    return torch.where(outside, 0, picked).sum(-1)
