"""Continuous batching with its step as a CUDA graph, for models whose layers see all tokens before.

A token of a small model is more kernels than a host launches while a GPU runs them. So all that a step
reads and writes stays at its address: replaying what was launched once is the next step. The rows stay as
many: where responses have ended, the next prompts are read into their places. A row is
[prompt | response | unused], with columns and a step of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from weakref import WeakSet

import torch
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from rpo_cli.artifacts import no_memory
from rpo_cli.devices import HOST_BOUND, reading
from rpo_cli.errors import Diverged
from rpo_cli.models import decode
from rpo_cli.models.buckets import for_batches
from rpo_cli.models.capture import CAPTURES
from rpo_cli.models.choice import alike, exactly
from rpo_cli.models.draws import Sampling, Waiting
from rpo_cli.models.layout import by_length
from rpo_cli.models.proven import Proven, built_alike
from rpo_cli.models.score import Done
from rpo_cli.models.static_rows import FREE, NotCaptured, Rows
from rpo_cli.models.tokens import Tokens
from rpo_cli.text import first_line

NO_MEMORY = "not enough memory for a cache of fixed size; a smaller per_device_eval_batch_size needs less"
PROVEN = Proven()
LOOK = 8  # steps between two looks at which rows have ended: each look waits for the device


_given_up: WeakSet[PreTrainedModel] = WeakSet()


def worth_it(model: PreTrainedModel) -> bool:
    """Whether a model's steps are to be graphs, if they can be.

    A graph has the same number of rows to the end, ended ones among them: that pays where the device waits
    for the host, not where the host waits.
    """
    known = model in _given_up
    return model.device.type in CAPTURES and not known and model.num_parameters() <= HOST_BOUND


def give_up(model: PreTrainedModel) -> None:
    """Have the model's samples be drawn without graphs from here on; what was made for them is given back."""
    _given_up.add(model)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def continuously(
    model: PreTrainedModel, prompts: Sequence[Tokens], how: Sampling, stops: Sequence[int], on_batch: Done
) -> list[list[int]]:
    """`sample` by graphs of a step, one for each of a few widths.

    Under autocast the weights' casts are made when the first prompts are read, and kept until all are
    answered: the graphs read them, and are gone before. In inference mode torch would keep none, and cast
    all weights in every step.

    Raises:
        NotCaptured: there is no graph of a step, or the model cannot be read so.
        Diverged: logits are not finite.
    """
    if (trouble := why_not(model, prompts, how.max_new_tokens)) is not None:
        raise NotCaptured(trouble)
    try:
        with reading(model.device):
            return _answers(model, prompts, how, stops, on_batch)
    except (RuntimeError, MemoryError) as error:
        if no_memory(error):
            raise NotCaptured(NO_MEMORY) from error
        raise


def _answers(
    model: PreTrainedModel, prompts: Sequence[Tokens], how: Sampling, stops: Sequence[int], on_batch: Done
) -> list[list[int]]:
    waiting, room, lengths = Waiting(prompts, how), how.max_new_tokens, [len(prompt) for prompt in prompts]
    count = min(how.batch_size, len(prompts))
    widths = _widths(lengths, room, count)
    rows = Rows(model, count, widths[-1], how, stops)
    logging.getLogger("rpo").info("continuous batching: %d rows of %s columns", count, widths)
    result: list[list[int]] = [[] for _ in prompts]
    going: dict[int, tuple[int, int]] = {}  # row: its prompt, and the step before its first
    step = done = 0
    while waiting or going:
        free = [row for row in range(count) if row not in going]
        if waiting and len(free) >= FREE * count:
            new, table = waiting.take(len(free))
            rows.fill(free[: len(new)], [waiting.texts[i] for i in new], table)
            going |= {row: (i, step) for row, i in zip(free, new, strict=False)}
        ahead = min(LOOK, max(room - (step - since) for _, since in going.values()))
        if ahead < 1:
            raise NotCaptured("rows go on behind their last step")
        needed = max(lengths[i] + min(step + ahead - since, room) for i, since in going.values())
        for _ in range(ahead):
            rows.advance(next(width for width in widths if width >= needed))
        step += ahead
        waiting.prepare(count // 2)  # while the device is at these steps: behind them it waits for the host
        ended = rows.ended_among(list(going))
        for row, answer in ended.items():
            if -1 in answer:
                raise Diverged("the model gave logits that are not finite")
            result[going.pop(row)[0]] = answer
        if ended:
            done += len(ended)
            on_batch(done)
    return result


def _widths(lengths: Sequence[int], room: int, count: int) -> list[int]:
    """How many columns rows may have: few numbers, as each is a graph; the last holds any prompt's row.

    They are multiples of 8, as attention wants masks; those behind a model's last position are not seen.
    """
    needed = [(length + room, 0) for length in lengths]
    return sorted({width for width, _ in for_batches(needed, list(by_length(lengths, count))).shapes})


def why_not(model: PreTrainedModel, prompts: Sequence[Tokens], room: int) -> str | None:
    """What keeps a model from being read so; None: it gives the logits of rows read alone without a cache.

    Where a model that is built alike did so within wider bounds, it is not tried again.
    """
    longest, shortest = max(prompts, key=len), min(map(len, prompts))
    way, bounds = built_alike(model), (len(longest), len(longest) + room, room, -shortest)
    if PROVEN.holds(way, bounds):
        return None
    try:
        layers = StaticCache(config=model.config, max_cache_len=1).layers
        if not all(type(layer) is StaticLayer for layer in layers):
            return "some of its layers do not see all tokens before"
        with exactly(model):
            texts = decode.telling_texts(model, longest, shortest, room)
            steps = min(decode.STEPS, room)
            more = [[text[step % len(text)] for step in range(steps)] for text in texts]
            alone = torch.cat([decode.read_alone(model, *row) for row in zip(texts, more, strict=True)])
            how = Sampling(1.0, 1.0, steps, len(texts), 0)
            made = Rows(model, len(texts), max(map(len, texts)) + steps, how, [0])
            if not alike(made.forced(texts, more), alone, decode.TOLERANCE):
                return "its logits are others with a cache of fixed size"
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        return NO_MEMORY if no_memory(error) else first_line(error)
    PROVEN.note(way, bounds)
    return None
