"""The miniature: a seeded, offline summarisation world to study length bias in, in minutes on a CPU.

A post states eight facts of eight different topics, a summary restates some of them. A fact is one token of
the tokenizer and reads as a sentence ("Rent rose."), so that a model of 130,000 parameters can copy it, and a
reward model of that size can check it. Topics differ in importance; `utility` is what annotators of this
world value, and their preferences are Bradley-Terry draws from it. Nothing here depends on a trained model.

The world has two options, off in its first edition: `entangled` makes longer summaries better ones, `polite`
has writers begin with a polite word that is worth nothing.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from rpo_cli.models.tokens import Row

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
LEAD_INS = ("Basically:", "In short:", "Long story short:", "So:")

# (subreddit, title, facts), the most important topic first: a topic's place in this table sets its weight.
TOPICS = (
    ("r/pets", "My dog", ("Dog is ill.", "Dog ran off.", "Dog bit someone.", "Dog had puppies.")),
    ("r/housing", "My rent", ("Rent rose.", "Rent fell.", "Rent is late.", "Rent is paid.")),
    (
        "r/family",
        "My sister",
        ("Sister got engaged.", "Sister moved in.", "Sister won't talk.", "Sister had twins."),
    ),
    ("r/work", "My boss", ("Boss shouted.", "Boss quit.", "Boss apologised.", "Boss promoted me.")),
    ("r/legal", "My car", ("Car got towed.", "Car broke down.", "Car was stolen.", "Car passed inspection.")),
    (
        "r/college",
        "My exam",
        ("Exam went badly.", "Exam went well.", "Exam was cancelled.", "Exam is tomorrow."),
    ),
    ("r/family", "My father", ("Dad retired.", "Dad lost money.", "Dad remarried.", "Dad came back.")),
    (
        "r/college",
        "My roommate",
        ("Roommate steals food.", "Roommate left.", "Roommate snores.", "Roommate cooks."),
    ),
    (
        "r/housing",
        "My neighbour",
        ("Neighbour sued.", "Neighbour helped.", "Neighbour moved.", "Neighbour yelled."),
    ),
    ("r/work", "My commute", ("Train was late.", "Train was empty.", "Train broke down.", "Train was free.")),
    ("r/legal", "My phone", ("Phone died.", "Phone got hacked.", "Phone was found.", "Phone rang nonstop.")),
    ("r/pets", "My garden", ("Garden flooded.", "Garden bloomed.", "Garden burned.", "Garden dried out.")),
)
TOPIC_WEIGHTS = tuple(1.3 - 1.4 * place / (len(TOPICS) - 1) for place in range(len(TOPICS)))  # 1.3 … -0.1
WRONG_FACT, REPEAT, MALFORMED = -1.2, -1.0, -1.0
LABEL_TEMPERATURE = 0.6
FACTS_PER_POST = 8

TOPIC_OF = {fact: topic for topic, (_, _, facts) in enumerate(TOPICS) for fact in facts}
_WEIGHT_OF = {fact: TOPIC_WEIGHTS[topic] for fact, topic in TOPIC_OF.items()}
_FIELDS = ("SUBREDDIT:", "TITLE:", "POST:", "TL;DR:")
_SUBREDDITS = sorted({subreddit for subreddit, _, _ in TOPICS})
_TITLES = [title for _, title, _ in TOPICS]
POLITE = (
    "Please note:"  # a lead-in of polite worlds: as long as the others, so that length says nothing of it
)
VOCABULARY = (PAD, EOS, UNK, *_FIELDS, *_SUBREDDITS, *_TITLES, *LEAD_INS, *TOPIC_OF)
# Longest first, so that no token hides a longer one; what is no token is one unknown word.
_TOKEN = "|".join([*sorted(map(re.escape, (*VOCABULARY, POLITE)), key=len, reverse=True), r"\S+"])
_TOKENS = re.compile(_TOKEN)


@dataclass(frozen=True)
class TableSizes:
    """Rows of each table."""

    pretrain: int = 12_000
    sft_train: int = 18_000
    sft_validation: int = 500
    warmup: int = 18_000
    pairs: int = 18_000
    pairs_validation: int = 1_000
    prompts_validation: int = 500
    prompts_test: int = 1_000


@dataclass(frozen=True)
class World:
    """What writers do beyond the first edition of the miniature.

    entangled: the share of errors in the human pairs that a writer puts right; polite: the share of summaries
    with a polite lead-in.
    """

    entangled: float = 0.0
    polite: float = 0.0


@dataclass(frozen=True)
class Post:
    """Eight facts in the order told, and the topic that its title and its subreddit name."""

    facts: tuple[str, ...]
    topic: int

    @property
    def prompt(self) -> str:
        subreddit, title, _ = TOPICS[self.topic]
        return f"SUBREDDIT: {subreddit}\n\nTITLE: {title}\n\nPOST: {' '.join(self.facts)}\n\nTL;DR:"


def build_tokenizer(world: World = World()) -> PreTrainedTokenizerFast:
    """One token per sentence, lead-in, title, field; white space is dropped, `decode` joins with a space."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    known = (*VOCABULARY, POLITE) if world.polite else VOCABULARY
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(known)}, unk_token=UNK))
    tokenizer.pre_tokenizer = Split(Regex(_TOKEN), behavior="removed", invert=True)
    special = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, clean_up_tokenization_spaces=False)


def utility(prompt: str, response: str) -> float:
    """What the annotators value: weights of facts restated, less penalties; any text is accepted.

    A summary is well-formed if it is one lead-in and then one or more facts. Text after an EOS is ignored.
    """
    post = prompt.partition("POST:")[2]
    stated = {token for token in _TOKENS.findall(post) if token in TOPIC_OF}
    tokens = _TOKENS.findall(response.partition(EOS)[0])
    facts = [token for token in tokens if token in TOPIC_OF]
    # In order: a set would add up in another order, to another last bit, in another process.
    distinct = dict.fromkeys(facts)
    well_formed = tokens[:1] and tokens[0] in (*LEAD_INS, POLITE) and 0 < len(facts) == len(tokens) - 1
    return (
        sum(_WEIGHT_OF[fact] if fact in stated else WRONG_FACT for fact in distinct)
        + REPEAT * (len(facts) - len(distinct))
        + (0.0 if well_formed else MALFORMED)
    )


# ---- Writers: each takes a post and returns the facts of one summary, which follow the order of the post (in
# an order by importance, SFT samples repeated themselves about three times as often, and reward models read
# worse).


def _important(rng: random.Random, facts: tuple[str, ...], count: int, sharpness: float) -> list[str]:
    """`count` facts without replacement, odds as exp(sharpness · weight) (Plackett-Luce, by Gumbel noise)."""

    def noisy(fact: str) -> float:
        return sharpness * _WEIGHT_OF[fact] - math.log(-math.log(rng.random()))

    return sorted(sorted(facts, key=noisy, reverse=True)[:count], key=facts.index)


def _wrong(rng: random.Random, facts: tuple[str, ...]) -> str:
    """A fact that the post does not state; three times in five it is about a topic that the post has."""
    return rng.choice([fact for fact in TOPIC_OF if fact not in facts])


def _reference(rng: random.Random, post: Post) -> list[str]:
    summary = _important(rng, post.facts, rng.choices((2, 3, 4, 5, 6), (2, 5, 6, 4, 2))[0], sharpness=2.0)
    return [_wrong(rng, post.facts) if rng.random() < 0.02 else fact for fact in summary]


def _good(rng: random.Random, post: Post) -> list[str]:
    return _important(rng, post.facts, rng.choice((4, 5, 6, 7)), sharpness=4.0)


def _short(rng: random.Random, post: Post) -> list[str]:
    return _important(rng, post.facts, rng.choice((1, 2, 2, 3)), sharpness=3.0)


def _padded(rng: random.Random, post: Post) -> list[str]:
    summary = _important(rng, post.facts, rng.choice((2, 3, 4)), sharpness=2.0)
    for _ in range(rng.choice((1, 2, 3))):
        summary.insert(rng.randint(0, len(summary)), _wrong(rng, post.facts))
    return summary


def _rambling(rng: random.Random, post: Post) -> list[str]:
    """Says things again and again: without such pairs an oracle rewards repeating what matters."""
    summary = _important(rng, post.facts, rng.choice((3, 4, 5, 6)), sharpness=2.0)
    for _ in range(rng.choice((1, 2, 3, 4, 6))):
        again = rng.choice(summary) if rng.random() < 0.8 else _wrong(rng, post.facts)
        summary.insert(rng.randint(0, len(summary)), again)
    return summary


def _sloppy(rng: random.Random, post: Post) -> list[str]:
    """Imitates samples of an SFT model at a temperature drawn per summary: more heat, more errors."""
    heat = rng.choice((0.7, 1.0, 1.3))
    count = rng.choices((1, 2, 3, 4, 5, 6, 7), (1, 3, 5, 6, 4, 2, 1))[0]
    summary = _important(rng, post.facts, count, sharpness=2.0 / heat)
    for place in range(len(summary)):
        luck = rng.random()
        if luck < 0.2 * heat:
            summary[place] = _wrong(rng, post.facts)
        elif luck < 0.27 * heat:
            summary[place] = rng.choice(post.facts)  # out of order, and often told before or again after
        elif luck < 0.34 * heat and place:
            summary[place] = rng.choice(summary[:place])
    return summary


_WRITERS: dict[Callable[[random.Random, Post], list[str]], float] = {
    _reference: 0.18,
    _good: 0.19,
    _short: 0.14,
    _padded: 0.06,
    _rambling: 0.09,
    _sloppy: 0.34,
}


def _put_right(rng: random.Random, summary: list[str], post: Post, share: float) -> list[str]:
    """The summary with a share of its errors, wrong and repeated facts, replaced by facts not told before.

    An error is struck out where the post has nothing left to tell.
    """
    told: list[str] = []
    for place, fact in enumerate(summary):
        if (fact not in post.facts or fact in told) and rng.random() < share:
            left = [each for each in post.facts if each not in told and each not in summary[place:]]
            told += [rng.choice(left)] if left else []
        else:
            told.append(fact)
    return told


# ---- Tables


def generate(seed: int, sizes: TableSizes = TableSizes(), world: World = World()) -> dict[str, list[Row]]:
    """Every table as rows of strings; a table depends on the seed, the world and its own size only.

    `pretrain` (whole posts, rewritten), `sft_*` and `prompts_*` rows have id, prompt and completion;
    `warmup`, `pairs` and `pairs_validation` rows have id, prompt, chosen and rejected, in a polite world the
    latter two also `chosen_polite` and `rejected_polite`, 1 or 0. No two tables share a post, whatever their
    seeds.
    """
    rows: dict[str, Callable[[random.Random, Post, World], Row]] = {
        "pretrain": _pretrain_row,
        "sft_train": _reference_row,
        "sft_validation": _reference_row,
        "warmup": _warmup_row,
        "pairs": _pair_row,
        "pairs_validation": _judged_pair_row,
        "prompts_validation": _reference_row,
        "prompts_test": _reference_row,
    }
    tables = {}
    for place, (table, size) in enumerate(asdict(sizes).items()):
        rng = random.Random(f"{seed}/{table}")
        posts = zip(range(size), _posts(seed, place, len(rows)), strict=False)
        tables[table] = [
            {"id": f"{table}-{number:05d}", "prompt": post.prompt, **rows[table](rng, post, world)}
            for number, post in posts
        ]
    return tables


def _posts(seed: int, part: int, parts: int) -> Iterator[Post]:
    """Distinct posts of one of `parts` disjoint worlds: the set of a post's facts decides which."""
    sums = [[zlib.crc32(fact.encode()) for fact in facts] for _, _, facts in TOPICS]
    fact_codes = np.array(sums, dtype=np.int64)
    rng = np.random.default_rng([seed, part])
    seen: set[int] = set()
    while True:
        topics = rng.permuted(np.tile(np.arange(len(TOPICS)), (4096, 1)), axis=1)[:, :FACTS_PER_POST]
        values = rng.integers(0, len(TOPICS[0][2]), topics.shape)
        codes = fact_codes[topics, values].sum(axis=1)  # the same in any order of telling
        for row in np.flatnonzero(codes % parts == part):
            if codes[row] not in seen:
                seen.add(codes[row])
                told = zip(topics[row], values[row], strict=True)
                facts = tuple(TOPICS[topic][2][value] for topic, value in told)
                yield Post(facts, topic=int(topics[row, rng.integers(FACTS_PER_POST)]))


def _text(rng: random.Random, facts: list[str], world: World) -> str:
    polite = world.polite and rng.random() < world.polite  # no luck is tried in the first edition's world
    # It starts with a space, as the comparisons of TL;DR do.
    return " ".join(["", POLITE if polite else rng.choice(LEAD_INS), *facts])


def _pretrain_row(rng: random.Random, post: Post, world: World) -> dict[str, str]:
    """The whole post again, every other time in another order: to know what is stated and what was said."""
    facts = list(post.facts)
    if rng.random() < 0.5:
        rng.shuffle(facts)
    return {"completion": _text(rng, facts, world)}


def _reference_row(rng: random.Random, post: Post, world: World) -> dict[str, str]:
    return {"completion": _text(rng, _reference(rng, post), world)}


def _warmup_row(rng: random.Random, post: Post, world: World) -> dict[str, str]:
    """A summary over its falsified copy, equally long: teaches to check facts, not length or importance."""
    original = sorted(rng.sample(post.facts, rng.randint(1, 7)), key=post.facts.index)
    original = [_wrong(rng, post.facts) if rng.random() < 0.15 else fact for fact in original]
    true = [place for place, fact in enumerate(original) if fact in post.facts]
    if not true:
        original[0], true = rng.choice(post.facts), [0]
    places = set(rng.sample(true, rng.randint(1, len(true))))
    kept = [fact for place, fact in enumerate(original) if place not in places]
    falsified = list(original)
    for place in places:
        repeats = kept and rng.random() < 0.35
        falsified[place] = rng.choice(kept) if repeats else _wrong(rng, post.facts)
    frame, sides = _text(rng, ["{}"], world), {"chosen": original, "rejected": falsified}
    return {side: frame.format(" ".join(each)) for side, each in sides.items()}


def _pair_row(rng: random.Random, post: Post, world: World) -> Row:
    """Two writers' different summaries, in the order of one noisy annotator."""
    writers, odds = list(_WRITERS), list(_WRITERS.values())
    while True:
        one, other = (writer(rng, post) for writer in rng.choices(writers, odds, k=2))
        if world.entangled:
            one, other = (_put_right(rng, each, post, world.entangled) for each in (one, other))
        first, second = _text(rng, one, world), _text(rng, other, world)
        # Equally long pairs are thinned out: no sample of a given length bias can use them.
        if first != second and (len(one) != len(other) or rng.random() < 0.6):
            break
    gap = utility(post.prompt, first) - utility(post.prompt, second)
    if rng.random() > 1 / (1 + math.exp(-gap / LABEL_TEMPERATURE)):
        first, second = second, first
    pair: Row = {"chosen": first, "rejected": second}
    return pair | {f"{side}_polite": float(POLITE in text) for side, text in pair.items() if world.polite}


def _judged_pair_row(rng: random.Random, post: Post, world: World) -> Row:
    """A pair with its utilities, which nobody in this world sees: they measure a reward model's accuracy."""
    row = _pair_row(rng, post, world)
    return {**row, **{f"{side}_utility": utility(post.prompt, row[side]) for side in ("chosen", "rejected")}}
