"""Sampling responses with a KV cache, each a function of its own prompt and seed, whatever shares its batch.

The t-th token of a response is where its t-th uniform number falls in the model's cumulative distribution.
The numbers belong to (seed, prompt, how often that prompt came before), so batch size, order, retirement of
finished rows and device change a sample only where rounding of the logits moves an edge across a number.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rpo_cli import devices
from rpo_cli.artifacts import positions_of
from rpo_cli.errors import BadInput, Diverged
from rpo_cli.models import sample_graphs, sample_static
from rpo_cli.models.decode import Decoder, decoder_for
from rpo_cli.models.draws import Sampling, occurrences, pick, uniforms
from rpo_cli.models.generation import stops_of
from rpo_cli.models.layout import by_length
from rpo_cli.models.score import Done, silent
from rpo_cli.models.tokens import Tokens

# Finished rows leave the batch when they are this share of it: leaving copies what others have in the cache.
RETIRE = 1 / 8


def room(config: PretrainedConfig) -> int:
    """How many tokens a prompt and its response may have together."""
    found = positions_of(config) or getattr(config, "max_position_embeddings", None)
    return sys.maxsize if found is None else int(found)


def need_room(longest: int, max_new_tokens: int, positions: int) -> None:
    """BadInput where a prompt of so many tokens and its response exceed the model's positions."""
    if longest + max_new_tokens > positions:
        asked = f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens}"
        instead = "lower max_new_tokens, or leave longer prompts out by max_length and overlong: drop"
        raise BadInput(f"{asked} exceed the model's {positions} positions; {instead}")


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    how: Sampling,
    on_batch: Done = silent,
) -> list[list[int]]:
    """One sample for each prompt: response tokens, ending in a stop token unless max_new_tokens came first.

    It stops where the model's own `generate` does (`stops_of`). Samples do not depend on batch_size or on the
    other prompts; the n-th copy of a prompt has numbers of its own. Nothing else of generation_config has
    influence: a repetition penalty would not be pi's sample. on_batch is told how many prompts are done.

    Raises:
        BadInput: prompt and response would exceed the model's positions, or it is no causal model.
        Diverged: logits are not finite.
    """
    if not prompts:
        return []
    need_room(max(map(len, prompts)), how.max_new_tokens, room(model.config))
    model.eval()
    stops = stops_of(model.generation_config, tokenizer)
    if sample_graphs.worth_it(model):
        try:
            return sample_graphs.continuously(model, prompts, how, stops, on_batch)
        except sample_graphs.NotCaptured as error:
            told = f"sampling goes on without CUDA graphs, more slowly, from the same distribution: {error}"
            logging.getLogger("rpo").warning("%s: %s", type(model).__name__, told)
        sample_graphs.give_up(model)
    back_end = sample_static.in_batches if devices.fixed_shapes(model.device) else _in_batches
    with devices.reading(model.device):
        return back_end(model, prompts, how, stops, on_batch)


def _in_batches(
    model: PreTrainedModel, prompts: Sequence[Tokens], how: Sampling, stops: Sequence[int], on_batch: Done
) -> list[list[int]]:
    """`sample` step by step with whatever reads the model rightly, for any of them."""
    copies = occurrences(prompts)
    result: list[list[int]] = [[] for _ in prompts]
    decoder, even = decoder_for(model, prompts, how.max_new_tokens, how.batch_size)
    done = 0
    for rows in _batches([len(p) for p in prompts], how.batch_size, even=even):
        texts = [list(map(int, prompts[i])) for i in rows]
        table = uniforms(texts, [copies[i] for i in rows], how.max_new_tokens, how.seed)
        table = devices.put(table, model.device)
        behind = devices.behind(model.device)
        answers = _respond(decoder, texts, table, how, stops, behind)
        for i, answer in zip(rows, answers, strict=True):
            result[i] = answer
        done += len(rows)
        on_batch(done)
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
    how: Sampling,
    stops: Sequence[int],
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
        tokens = pick(logits, table[:, step], how.temperature, how.top_p)
        _take(answers, returning.send(rows, tokens), stops)
        going = [place for place, row in enumerate(rows) if not _ended(answers[row], stops)]
        if not going or step == count - 1:
            break
        if len(rows) - len(going) >= RETIRE * len(rows):
            places = devices.put(torch.tensor(going), tokens.device)
            decoder.keep(places)
            tokens, table, rows = tokens[places], table[places], [rows[place] for place in going]
        logits = decoder.step(tokens.clamp(min=0))  # one that is not finite is told of when it is looked at
    _take(answers, returning.rest(), stops)
    return answers


def _take(answers: list[list[int]], arrived: list[tuple[list[int], Tensor]], stops: Sequence[int]) -> None:
    """Append to the rows' answers what was picked for them, unless they ended before."""
    for rows, tokens in arrived:
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if token < 0:
                raise Diverged("the model gave logits that are not finite")
            if not _ended(answers[row], stops):
                answers[row].append(token)


def _ended(answer: list[int], stops: Sequence[int]) -> bool:
    return bool(answer) and answer[-1] in stops
