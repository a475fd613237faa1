"""The sampler where shapes cost compilations: a cache of fixed size, rows that stay, one program a step.

The numbers and the way they choose tokens are those of `sample`, so samples equal its own up to the rounding
of logits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from rpo_cli import devices
from rpo_cli.errors import Diverged
from rpo_cli.models import decode
from rpo_cli.models.buckets import for_batches
from rpo_cli.models.draws import Sampling, occurrences, pick, uniforms
from rpo_cli.models.layout import by_length, pad_of
from rpo_cli.models.score import Done
from rpo_cli.models.tokens import Tokens

LOOK = 16  # steps between two looks at whether all rows have ended: each look waits for the device


def in_batches(
    model: PreTrainedModel, prompts: Sequence[Tokens], how: Sampling, stops: Sequence[int], on_batch: Done
) -> list[list[int]]:
    """`sample` in batches of one size and few widths; a last batch too small reads its first prompt again.

    Raises:
        Diverged: logits are not finite.
    """
    copies = occurrences(prompts)
    size = min(how.batch_size, len(prompts))
    # The depth is part of the cache's shape, not of what is read: it is the same in all.
    needed = [(len(prompt), 0) for prompt in prompts]
    batches = list(by_length([len(prompt) for prompt in prompts], size))
    buckets = for_batches(needed, batches)
    logging.getLogger("rpo").info("batches of prompts: %s", buckets)
    result: list[list[int]] = [[] for _ in prompts]
    done = 0
    for rows in batches:
        filled = [*rows, *[rows[0]] * (size - len(rows))]
        width, _ = buckets.of((max(len(prompts[i]) for i in rows), 0))
        texts = [prompts[i] for i in filled]
        table = uniforms(texts, [copies[i] for i in filled], how.max_new_tokens, how.seed)
        tokens = _respond(model, texts, width, table, how, stops)
        for i, answer in zip(rows, tokens.tolist(), strict=False):
            end = next((place for place, token in enumerate(answer, 1) if token in stops), len(answer))
            result[i] = answer[:end]
            if -1 in result[i]:
                raise Diverged("the model gave logits that are not finite")
        done += len(rows)
        on_batch(done)
    return result


def _respond(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    width: int,
    table: Tensor,
    how: Sampling,
    stops: Sequence[int],
) -> Tensor:
    """Tokens [N, steps] that the numbers of `table` choose, on the host; behind a stop they mean nothing.

    Two programs: one reads the prompts, padded on the left to `width`, the other is a step, whose number is a
    tensor.
    """
    device, (count, room) = model.device, table.shape
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    starts = width - lengths
    columns = torch.arange(width + room)
    padded = [[pad_of(model)] * (width - len(prompt)) + list(map(int, prompt)) for prompt in prompts]
    ids = torch.tensor(padded).to(device)
    mask = (columns >= starts[:, None]).long().to(device)
    positions = (columns[:width] - starts[:, None]).clamp(min=0).to(device)
    answers = torch.full((count, room), stops[0])
    state = _State(*(tensor.to(device) for tensor in (table, answers, lengths, torch.tensor(stops))))
    cache = StaticCache(config=model.config, max_cache_len=width + room)
    logits = read_step(model, ids, positions, mask, cache)
    devices.step_mark(device)
    for step in range(1, room + 1):
        tokens = state.take(logits, how.temperature, how.top_p)
        # The last step reads its tokens for nothing: without that it would be a third program.
        logits = read_step(model, tokens, state.positions, mask, cache)
        devices.step_mark(device)
        if step % LOOK == 0 and bool(state.all_ended):
            break
    return state.answers.cpu()


def read_step(
    model: PreTrainedModel, ids: Tensor, positions: Tensor, mask: Tensor, cache: StaticCache
) -> Tensor:
    """Logits behind the last tokens: [N, V]."""
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    output = model(**inputs, **{decode.cache_name(model): cache}, use_cache=True, logits_to_keep=1)
    logits: Tensor = output.logits[:, -1]
    return logits


class _State:
    """What a step changes besides the cache, all of it on the device.

    table: [N, steps] numbers; answers: [N, steps] tokens; lengths: [N] tokens of each prompt; stops: [S] what
    ends a response.
    """

    def __init__(self, table: Tensor, answers: Tensor, lengths: Tensor, stops: Tensor) -> None:
        self.table, self.answers, self.stops = table, answers, stops
        self.step = torch.zeros(1, dtype=torch.long).to(table.device)
        self.ended = torch.zeros(len(table), dtype=torch.bool).to(table.device)
        self.all_ended = self.ended.all()
        self.positions = (lengths - 1)[:, None]

    def take(self, logits: Tensor, temperature: float, top_p: float) -> Tensor:
        """The next tokens [N, 1], a stop for rows that have ended, written into the answers."""
        chosen = pick(logits, self.table.index_select(1, self.step)[:, 0], temperature, top_p)
        tokens = chosen.where(~self.ended, self.stops[0])
        self.answers = self.answers.index_copy(1, self.step, tokens[:, None])
        self.ended = self.ended | (tokens[:, None] == self.stops).any(1) | (tokens < 0)
        self.all_ended = self.ended.all()
        self.step = self.step + 1
        self.positions = self.positions + 1
        return tokens.clamp(min=0)[:, None]
