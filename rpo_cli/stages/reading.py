"""How a reward model reads rows: as this pipeline trains one, or as whoever made it does.

A model of the policy's tokens, or one that was trained here, reads prompt, response and EOS, the tokens that
policies learn from. Any other, and one of the policy's tokens that has a chat template where the data are
conversations, reads them by its own chat template, or prompt and response as one text where it has none, with
its own tokenizer.

A decoder that was not trained here gives its reward where transformers read it: at the last token that its
config does not call padding. Of many that is the one before the EOS: TRL pads with the EOS where a tokenizer
has no other.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import remove_none_values

from rpo_cli import devices
from rpo_cli.artifacts import MANIFEST, below_adapters, positions_of
from rpo_cli.errors import BadInput
from rpo_cli.models import (
    TokenRow,
    config_at,
    encode,
    fitting,
    load_reward,
    load_tokenizer,
    padding_read_over,
    same_tokens,
)
from rpo_cli.recipes import RECIPES
from rpo_cli.recipes.schema import EvaluateRecipe, RelabelRecipe, ScoringRecipe
from rpo_cli.stages.data.rows import PAIR, UNLIMITED, Rows
from rpo_cli.stages.data.sources.transcripts import ASSISTANT, HUMAN, messages
from rpo_cli.stages.data.sources.turns import Message, Part, TemplateRefuses, answer
from rpo_cli.text import first_line

OURS = (MANIFEST, RECIPES)  # in a folder of an artifact, and of a model that was exported
# What chat templates write before turns.
MARKS = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|(user|assistant)\|>|\[INST\]")
Warn = Callable[[str], None]
Scoring = ScoringRecipe | RelabelRecipe | EvaluateRecipe
Conversation = Mapping[str, Any]  # prompt and responses, each a `Part`, and perhaps what `GIVEN` names


@dataclass(frozen=True)
class Reading:
    """A reward model from somewhere, and how it reads rows.

    tokenizer: what it reads with, with some padding token; own: in its own way, not in this pipeline's;
    ours: it was trained by this pipeline.
    """

    source: Path
    revision: str | None
    recipe: Scoring
    tokenizer: PreTrainedTokenizerBase
    own: bool
    ours: bool = False

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, whose one logit is the reward; loaded when it is first asked for."""
        recipe = self.recipe
        return load_reward(
            self.source,
            recipe,
            devices.choose(recipe),
            self.tokenizer,
            self.revision,
            label=recipe.reward_label,
            foreign=self.own,
        )

    def rows(
        self,
        ids: Sequence[str],
        talks: Sequence[Conversation],
        columns: Sequence[str],
        what: str,
        warn: Warn,
        *,
        to_come: int = 0,
    ) -> list[TokenRow]:
        """Tokens of conversations in the model's own way: what a row's responses share is its prompt.

        Left out, with a warning, are rows that the chat template refuses and, under overlong: drop, rows of
        more tokens than the model has positions, less those that are `to_come`. A warning, too, are prompts
        that another template wrote, and a template that writes the date.

        Raises:
            BadInput: messages, and no chat template; no row is left; a row is too long.
        """
        for line in self._doubts(ids, talks):
            warn(line)
        texts, refused = [], dict[str, str]()
        for name, talk in zip(ids, talks, strict=True):
            try:
                texts.append([self.text(talk, talk[column]) for column in columns])
            except TemplateRefuses as error:
                refused[name] = str(error)
        kept = [name for name in ids if name not in refused]
        if refused:
            name, why = next(iter(refused.items()))
            left_out = f"{len(refused)} of {len(ids)} rows are left out: the chat template of {self.source}"
            line = f"{left_out} refuses them (row {name}: {why})"
            if not kept:
                raise BadInput(f"{what}: {line}")
            warn(line)
        tokens = iter(self.tokens([text for row in texts for text in row]))
        rows = [row_of(name, [next(tokens) for _ in columns]) for name in kept]
        return self._fitting(rows, what, warn, to_come)

    def _doubts(self, ids: Sequence[str], talks: Sequence[Conversation]) -> Iterator[str]:
        prompts = ((name, talk["prompt"]) for name, talk in zip(ids, talks, strict=True))
        marked = [name for name, text in prompts if isinstance(text, str) and MARKS.search(text)]
        if marked:
            count = f"{len(marked)} of {len(ids)} prompts (row {marked[0]}) were written by a chat template"
            cure = "data that are made anew from messages keep those, for its own template"
            yield f"{count}; {self.source} reads its signs as words; {cure}"
        if "strftime_now" in str(self.tokenizer.chat_template):
            yield f"the chat template of {self.source} writes the date: its rewards depend on the day"

    def text(self, talk: Conversation, response: Part) -> str:
        """A prompt with a response as the text that the model reads.

        Raises:
            BadInput: messages, and no chat template.
            TemplateRefuses: the template does not take them.
        """
        prompt: Part = talk["prompt"]
        if self.tokenizer.chat_template is None:
            if not (isinstance(prompt, str) and isinstance(response, str)):
                lacks = "its tokenizer has no chat template, and the rows are conversations"
                raise BadInput(f"{self.source}: {lacks}; take a reward model that has one")
            return prompt + response
        try:
            turns, tools = as_turns(prompt, response), talk.get("tools")
            tools = json.loads(tools) if isinstance(tools, str) else tools
            kwargs = remove_none_values(talk.get("chat_template_kwargs") or {})
            tools = remove_none_values(tools) if tools else None
            return str(self.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, **kwargs))
        except Exception as error:  # templates raise what they like
            raise TemplateRefuses(first_line(error)) from error

    def tokens(self, texts: Sequence[str], *, templated: bool = True) -> list[list[int]]:
        """Tokens of such texts; a chat template has written the tokenizer's special ones already.

        templated: the model's chat template wrote them, if it has one.
        """
        special = self.tokenizer.chat_template is None or not templated
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=special, truncation=False)[
            "input_ids"
        ]
        return [self.to_reward(tokens) for tokens in found]

    def sequences(self, talks: Sequence[Conversation], responses: Sequence[str]) -> list[list[int]]:
        """Tokens of prompts with their responses; where it does not read in its own way, those are texts."""
        if self.own:
            both = zip(talks, responses, strict=True)
            return self.tokens([self.text(talk, response) for talk, response in both])
        return self.as_here([talk["prompt"] for talk in talks], responses)

    def as_here(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        """Tokens of prompt, response and EOS, as this pipeline trains."""
        starts = encode("prompt", prompts, self.tokenizer).to_pylist()
        ends = encode("response", responses, self.tokenizer).to_pylist()
        return [self.to_reward(start + end) for start, end in zip(starts, ends, strict=True)]

    def to_reward(self, tokens: list[int]) -> list[int]:
        """A whole sequence up to the token at which the model gives its reward; no token sees later ones."""
        end = len(tokens)
        while end > 2 and tokens[end - 1] == self._padding:
            end -= 1
        return tokens[:end]

    def rows_to_reward(self, rows: Sequence[TokenRow]) -> list[TokenRow]:
        """Rows in this pipeline's tokens, each response up to the token at which its reward is."""
        if self._padding is None:
            return list(rows)
        found = []
        for row in rows:
            whole = [[*map(int, row.prompt_ids), *map(int, response)] for response in row.responses]
            read = [self.to_reward(tokens) for tokens in whole]
            found.append(row if read == whole else row_of(row.id, read))
        return found

    @cached_property
    def _padding(self) -> int | None:
        """The token that the model reads over at the end of a row; None: of its own making, it reads all."""
        if self.ours:
            return None
        try:
            return padding_read_over(below_adapters(self.source), self.revision)
        except (OSError, ValueError):  # an adapter on the hub has no config; one is missed when it is loaded
            return None

    @cached_property
    def _config(self) -> PretrainedConfig | None:
        try:
            return config_at(below_adapters(self.source), self.revision)
        except (OSError, ValueError):  # an adapter on the hub has none
            return None

    @property
    def most(self) -> int:
        """How many tokens a row may have: as many as the model has positions, as far as its config says."""
        return (self._config and positions_of(self._config)) or UNLIMITED

    @property
    def trained_to(self) -> int:
        """How many tokens rows of its training had at most, as far as its config says."""
        config = self._config and self._config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or UNLIMITED

    def beyond(self, lengths: Sequence[int]) -> str | None:
        """A line about rows longer than those that the model was trained on; None: there are none."""
        long = [length for length in lengths if length > self.trained_to]
        if not long:
            return None
        more = f"{len(long)} of {len(lengths)} rows have more tokens, up to {max(long)}"
        stated = f"the {self.trained_to} of {self.source}'s max_position_embeddings"
        return f"{more}, than {stated}: what it says of them may mean nothing"

    def _fitting(self, rows: list[TokenRow], what: str, warn: Warn, to_come: int) -> list[TokenRow]:
        most = self.most - to_come
        long = [row for row in rows if row.longest > most]
        if not long:
            if (line := self.beyond([row.longest for row in rows])) is not None:
                warn(line)
            return rows
        beside = f" beside {to_come} that are to come" if to_come else ""
        count = f"row {long[0].id} has {long[0].longest} tokens for {self.source}"
        line = f"{count}, which reads at most {most}{beside}"
        if self.recipe.overlong == "error" or len(long) == len(rows):
            raise BadInput(f"{what}: {line}; shorten the text, or set overlong: drop")
        warn(f"{len(long)} of {len(rows)} rows are left out: {line}")
        return [row for row in rows if row.longest <= most]


def as_turns(prompt: Part, response: Part) -> list[Message]:
    """One conversation: a plain prompt is the user's turn, a dialogue in hh-rlhf's form its turns."""
    if isinstance(prompt, str):
        dialogue = prompt.startswith(HUMAN) and prompt.rstrip().endswith(ASSISTANT)
        asked = messages(prompt.rstrip()) if dialogue else [{"role": "user", "content": prompt.strip()}]
    else:
        asked = prompt
    return [*asked, *(answer(response.strip()) if isinstance(response, str) else response)]


def row_of(name: str, sequences: Sequence[list[int]]) -> TokenRow:
    """Whole sequences as a prompt, the tokens that all begin with, and the rest of each, never empty."""
    shared = len(os.path.commonprefix([tuple(tokens) for tokens in sequences]))  # noqa: RUF071 - of tokens
    shared = max(1, min(shared, min(map(len, sequences)) - 1))
    return TokenRow(name, sequences[0][:shared], [tokens[shared:] for tokens in sequences])


def reading_of(
    source: Path,
    recipe: Scoring,
    revision: str | None,
    policy: PreTrainedTokenizerBase | None = None,
    *,
    talks: bool = False,
    plain_as_here: bool = False,
) -> Reading:
    """How this reward model reads rows beside a policy with this tokenizer, or beside none.

    talks: the rows are conversations; plain_as_here: where it has no chat template it reads as this pipeline
    trains.
    """
    tokenizer = load_tokenizer(source, recipe, revision, need_pad=False, need_eos=False)
    here = any((source / name).is_file() for name in OURS)
    # Whoever trained it on conversations did so through its template, which may end otherwise than ours.
    templated = talks and not here and tokenizer.chat_template is not None
    if policy is not None and not templated and same_tokens(policy, tokenizer):
        return Reading(source, revision, recipe, policy, own=False, ours=here)
    plain = tokenizer.chat_template is None and tokenizer.eos_token is not None
    own = not (here or (plain and plain_as_here))
    if tokenizer.pad_token is None:  # masks hide it, whatever it is
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return Reading(source, revision, recipe, tokenizer, own, here)


def read_pairs(
    reading: Reading, pairs: Rows, what: str, warn: Warn, max_length: int = UNLIMITED
) -> list[TokenRow]:
    """The pairs of a table as the model reads them, those of at most max_length of its tokens."""
    overlong = reading.recipe.overlong
    if reading.own:
        rows = reading.rows(pairs.ids, pairs.conversations(PAIR), PAIR, what, warn)
        return fitting(rows, max_length, overlong, what)
    return reading.rows_to_reward(pairs.tokens(PAIR, reading.tokenizer, what, max_length, overlong, warn))
