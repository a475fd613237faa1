"""Sampling responses with a KV cache, each a function of its own prompt and seed, whatever shares its batch.

The t-th token of a response is where its t-th uniform number falls in the model's cumulative distribution.
The numbers belong to (seed, prompt, how often that prompt came before), so batch size, order, retirement of
finished rows and device change a sample only where rounding of the logits moves an edge across a number.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence, Set

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rpo_cli import devices
from rpo_cli.artifacts import positions_of
from rpo_cli.errors import BadInput, Diverged
from rpo_cli.models import sample_graphs, sample_static
from rpo_cli.models.decode import Decoder, decoder_for
from rpo_cli.models.draws import Sampling, occurrences, pick, uniforms
from rpo_cli.models.generation import stops_of
from rpo_cli.models.layout import by_length
from rpo_cli.models.tokens import Tokens

# Finished rows leave the batch when they are this share of it: leaving copies what others have in the cache.
RETIRE = 1 / 8


def room(model: PreTrainedModel) -> int:
    """How many tokens a prompt and its response may have together."""
    found = positions_of(model.config) or getattr(model.config, "max_position_embeddings", None)
    return sys.maxsize if found is None else int(found)


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """One sample for each prompt: response tokens, ending in a stop token unless max_new_tokens came first.

    It stops where the model's own `generate` does (`stops_of`). Samples do not depend on batch_size or on the
    other prompts; the n-th copy of a prompt has numbers of its own. Nothing else of generation_config has
    influence: a repetition penalty would not be pi's sample.

    Raises:
        BadInput: prompt and response would exceed the model's positions, or it is no causal model.
        Diverged: logits are not finite.
    """
    longest = max((len(p) for p in prompts), default=0)
    if longest + max_new_tokens > room(model):
        asked = f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens}"
        instead = "lower max_new_tokens, or leave longer prompts out by max_length and overlong: drop"
        raise BadInput(f"{asked} exceed the model's {room(model)} positions; {instead}")
    model.eval()
    if not prompts:
        return []
    pad, stops = int(tokenizer.pad_token_id), stops_of(model.generation_config, tokenizer)
    how = Sampling(pad, stops, temperature, top_p, max_new_tokens, batch_size, seed, on_batch)
    if devices.fixed_shapes(model.device):
        with devices.reading(model.device):
            return sample_static.in_batches(model, prompts, how)
    if sample_graphs.worth_it(model):
        trouble = sample_graphs.why_not(model, prompts, max_new_tokens)
        try:
            if trouble is None:
                with devices.reading(model.device):
                    return sample_graphs.continuously(model, prompts, how)
        except sample_graphs.NotCaptured as error:
            trouble = str(error)
        told = f"sampling goes on without CUDA graphs, more slowly, from the same distribution: {trouble}"
        logging.getLogger("rpo").warning("%s: %s", type(model).__name__, told)
        sample_graphs.give_up(model)
    with devices.reading(model.device):
        return _in_batches(model, prompts, how)


def _in_batches(model: PreTrainedModel, prompts: Sequence[Tokens], how: Sampling) -> list[list[int]]:
    copies = occurrences(prompts)
    result: list[list[int]] = [[] for _ in prompts]
    decoder, even = decoder_for(model, prompts, how.pad, how.max_new_tokens, how.batch_size)
    ends = frozenset(how.stops)
    done = 0
    for rows in _batches([len(p) for p in prompts], how.batch_size, even=even):
        texts = [list(map(int, prompts[i])) for i in rows]
        table = uniforms(texts, [copies[i] for i in rows], how.max_new_tokens, how.seed)
        table = devices.put(table, model.device)
        behind = devices.behind(model.device)
        answers = _respond(decoder, texts, table, how.temperature, how.top_p, ends, behind)
        for i, answer in zip(rows, answers, strict=True):
            result[i] = answer
        done += len(rows)
        how.on_batch(done)
    return result


def _batches(lengths: Sequence[int], size: int, *, even: bool) -> Iterator[list[int]]:
    """Indices in batches of about equal length, longest first, or of exactly equal length."""
    groups = sorted(set(lengths), reverse=True) if even else [None]
    for length in groups:
        members = [i for i, other in enumerate(lengths) if length in (None, other)]
        for places in by_length([lengths[i] for i in members], size):
            yield [members[place] for place in places]


def _respond(
    decoder: Decoder,
    prompts: Sequence[Tokens],
    table: Tensor,
    temperature: float,
    top_p: float,
    ends: Set[int],
    behind: int,
) -> list[list[int]]:
    """Responses of one batch; a row that has ended is soon read no further.

    What was picked is looked at `behind` steps later: until then an ended row is read on, for nothing.

    Raises:
        Diverged: logits are not finite.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # those in the decoder
    count = table.shape[1]
    logits = decoder.start(prompts, count)
    returning = devices.Returning[list[int]](behind)
    for step in range(count):
        tokens = pick(logits, table[:, step], temperature, top_p)
        _take(answers, returning.send(rows, tokens), ends)
        going = [place for place, row in enumerate(rows) if not _ended(answers[row], ends)]
        if not going or step == count - 1:
            break
        if len(rows) - len(going) >= RETIRE * len(rows):
            places = devices.put(torch.tensor(going), tokens.device)
            decoder.keep(places)
            tokens, table, rows = tokens[places], table[places], [rows[place] for place in going]
        logits = decoder.step(tokens.clamp(min=0))  # one that is not finite is told of when it is looked at
    _take(answers, returning.rest(), ends)
    return answers


def _take(answers: list[list[int]], arrived: list[tuple[list[int], Tensor]], ends: Set[int]) -> None:
    """Append to the rows' answers what was picked for them, unless they ended before."""
    for rows, tokens in arrived:
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if token < 0:
                raise Diverged("the model gave logits that are not finite")
            if not _ended(answers[row], ends):
                answers[row].append(token)


def _ended(answer: list[int], ends: Set[int]) -> bool:
    return bool(answer) and answer[-1] in ends
