"""How a token is drawn: one uniform for each row and step, from the seed, the prompt and the copy."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from rpo_cli.models.tokens import Tokens

# Probabilities are integers, in units of 2^-40 of the likeliest token's: their sums are exact, in any order
# and on any device, and fit 63 bits for vocabularies up to 2^23.
UNIT = 2.0**40


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn: what they depend on besides model and prompts, and how many at a time."""

    temperature: float
    top_p: float
    max_new_tokens: int
    batch_size: int
    seed: int


def occurrences(prompts: Sequence[Tokens]) -> list[int]:
    """How often each prompt came before, in the order of the prompts."""
    seen: Counter[bytes] = Counter()
    result = []
    for prompt in prompts:
        content = _bytes(prompt)
        result.append(seen[content])
        seen[content] += 1
    return result


def _bytes(prompt: Tokens) -> bytes:
    return np.asarray(prompt, dtype="<i8").tobytes()


def uniforms(prompts: Sequence[Tokens], copies: Sequence[int], count: int, seed: int) -> Tensor:
    """The numbers that choose the tokens: float64 [rows, count] in [0, 1), on the CPU.

    Bits of SHAKE-128 over (seed, copy, prompt): the same on every machine and with every version of numpy and
    torch; a smaller count gives the same numbers, fewer of them.
    """
    table = np.empty((len(prompts), count))
    for row, (prompt, copy) in enumerate(zip(prompts, copies, strict=True)):
        content = f"{seed},{copy};".encode() + _bytes(prompt)
        bits = np.frombuffer(hashlib.shake_128(content).digest(8 * count), dtype="<u8")
        table[row] = (bits >> np.uint64(11)) * 2.0**-53
    return torch.from_numpy(table)


class Waiting:
    """Prompts that no row has begun with, longest first, as that needs the most memory; copies side by side.

    texts: all of them, as arrays.
    """

    def __init__(self, prompts: Sequence[Tokens], how: Sampling) -> None:
        self.how, self.copies = how, occurrences(prompts)
        self.texts = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
        first: dict[bytes, int] = {}
        of = [first.setdefault(text.tobytes(), i) for i, text in enumerate(self.texts)]
        self.order = deque(sorted(range(len(of)), key=lambda i: (-len(self.texts[i]), of[i], i)))
        self.tables: deque[Tensor] = deque()  # the numbers of the first of them

    def __len__(self) -> int:
        return len(self.order)

    def prepare(self, most: int) -> None:
        """Have the numbers of so many prompts that come next."""
        new = list(islice(self.order, len(self.tables), most))
        texts, copies = [self.texts[i] for i in new], [self.copies[i] for i in new]
        self.tables.extend(uniforms(texts, copies, self.how.max_new_tokens, self.how.seed))

    def take(self, most: int) -> tuple[list[int], Tensor]:
        """The next of them, and their numbers."""
        self.prepare(most)
        new = [self.order.popleft() for _ in range(min(most, len(self.order)))]
        return new, torch.stack([self.tables.popleft() for _ in new])


def pick(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> Tensor:
    """Tokens by inversion, [N] long: the first whose cumulative probability exceeds u.

    They are -1 where a row's logits are not finite. logits: [N, V]; u: float64 [N] in [0, 1). top_p keeps the
    smallest set of likeliest tokens that has this probability, and what is exactly as likely as its last one.
    A token of probability 0, or below 2^-40 of the likeliest, is never picked. No shape depends on the
    values.
    """
    logits = logits.float()
    top = logits.amax(-1, keepdim=True)
    weights = (((logits - top) / temperature).exp() * UNIT).long()
    if top_p < 1:
        ordered = weights.sort(-1, descending=True).values
        sums = ordered.cumsum(-1)
        outside = sums - ordered >= top_p * sums[:, -1:].double()
        # In the vocabulary's order again: among tokens sorted by weight, rounding would exchange neighbours.
        weights = weights * (weights >= ordered.masked_fill(outside, int(UNIT)).amin(-1, keepdim=True))
    edges = weights.cumsum(-1)
    total = edges[:, -1:]
    # The product may round up to the total.
    mark = torch.minimum((u[:, None] * total.double()).long(), total - 1)
    tokens = (edges <= mark).sum(-1)
    return tokens.where(top[:, 0].isfinite(), -1)
