"""Reddit TL;DR: OpenAI's raw comparisons, the Parquet derivatives, and the reference summaries.

One prompt for all of them (Stiennon et al., 2020, as in their tasks.py): `SUBREDDIT: r/...`, `TITLE: ...`,
`POST: ...`, `TL;DR:`, at most max_prompt_tokens long because the post is cut at its last newline. One
response for all of them: a space, the summary, and no literal end-of-text mark, because the EOS token is
added where rows are tokenised.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import row_id
from rpo_cli.stages.data.sources.base import Pair, Records, Sets, Written, column, named, number, text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Batches of CNN/DailyMail articles among the validation comparisons.
CNNDM = ("batch0_cnndm", "cnndm0", "cnndm2")
PROMPT = re.compile(
    r"SUBREDDIT: r/(?P<subreddit>.*?)\n\nTITLE: (?P<title>.*?)\n\nPOST: (?P<post>.*)\n\nTL;DR:\s*", re.S
)
END_OF_TEXT = "<|endoftext|>"
# A derivative whose posts were cut already must still meet the whole post: its beginning names it.
NAMING = 200


@dataclass(frozen=True)
class Post:
    """A Reddit post."""

    subreddit: str
    title: str
    body: str

    @property
    def prompt(self) -> str:
        return f"SUBREDDIT: r/{self.subreddit}\n\nTITLE: {self.title}\n\nPOST: {self.body}\n\nTL;DR:"

    @property
    def name(self) -> str:
        """The post by content, however its white space and its end were treated."""
        parts = (" ".join(part.split()) for part in (self.subreddit.lower(), self.title, self.body))
        return row_id(*(part[:NAMING] for part in parts))


@dataclass
class Writer:
    """Makes prompts of posts: white space one way, and short enough.

    `tokenizer`: counts; None only with `limit` None.
    """

    tokenizer: PreTrainedTokenizerBase
    limit: int | None
    newlines: Literal["keep", "flatten"]
    ledger: Ledger
    known: dict[Post, str] = field(default_factory=dict)

    def prompt(self, post: Post) -> str:
        """The post's prompt; a cut one is counted once for each post.

        Raises:
            BadInput: even without its body the prompt is too long.
        """
        if post not in self.known:
            body = post.body.replace("\r\n", "\n").strip()
            if self.newlines == "flatten":
                body = re.sub(r"\n\s*\n", "\n", body)
            self.known[post] = self._fitted(Post(post.subreddit.strip(), " ".join(post.title.split()), body))
        return self.known[post]

    def _fitted(self, post: Post) -> str:
        if self.limit is None or self._fits(post):
            return post.prompt
        self.ledger.counts["cut_posts"] += 1
        body = post.body
        while "\n" in body:
            body = body[: body.rindex("\n")].rstrip()
            if self._fits(replace(post, body=body)):
                return replace(post, body=body).prompt
        # One line alone is too long: the longest beginning that fits, as OpenAI's loop over single characters
        # finds it.
        low, high = 0, len(body)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(replace(post, body=body[:middle])) else (low, middle - 1)
        if low == 0 and not self._fits(replace(post, body="")):
            where = f"a post in r/{post.subreddit}: {post.title[:60]!r}"
            raise BadInput(f"max_prompt_tokens {self.limit}: too few for the title of {where}")
        return replace(post, body=body[:low].rstrip()).prompt

    def _fits(self, post: Post) -> bool:
        return self.limit is None or len(self.tokenizer(post.prompt)["input_ids"]) <= self.limit


def response(summary: str) -> str:
    """A summary as a response: one space before it, nothing after it; empty if there is no text."""
    bare = summary.strip()
    while bare.endswith(END_OF_TEXT):
        bare = bare.removesuffix(END_OF_TEXT).strip()
    return f" {bare}" if bare else ""


def _read(
    sets: Sets, pairs_of: Callable[[Records, Writer, Ledger], Iterator[Pair]]
) -> tuple[Iterator[Pair], Iterator[Written]]:
    recipe, lines = sets.recipe, Lines()
    writer = Writer(sets.tokenizer, recipe.max_prompt_tokens, recipe.newlines, sets.ledger)
    pairs = lines.noted(pairs_of(sets.pairs, writer, sets.ledger))
    return pairs, lines.compared(written(sets.written, writer, sets.ledger))


def comparisons(records: Records, writer: Writer, ledger: Ledger) -> Iterator[Pair]:
    """OpenAI's raw comparisons, JSON lines or the hub's Parquet; CNN/DailyMail is left out and counted."""
    for place, split, row in records:
        info = _info(place, row)
        if row.get("batch") in CNNDM or (not info.get("post") and info.get("article")):
            ledger.leave_out("cnndm")
            continue
        post = _post(place, info)
        summaries = column(place, row, "summaries")
        if isinstance(summaries, dict):  # Parquet made by older versions of datasets: a struct of lists
            summaries = column(place, summaries, "text")
        if not isinstance(summaries, list):
            raise BadInput(f"{place}: summaries: expected a list of two, got {named(summaries)}")
        choice = column(place, row, "choice")
        if len(summaries) != 2 or choice not in (0, 1):
            got = f"{len(summaries)} and {reprlib.repr(choice)}"
            raise BadInput(f"{place}: expected two summaries and choice 0 or 1, got {got}")
        chosen, rejected = (_summary(place, summaries[i]) for i in (int(choice), 1 - int(choice)))
        # The published splits are train, valid1 and valid2; the hub joins the latter two.
        where = "train" if (split or text(place, row, "split")) == "train" else "validation"
        yield Pair(where, _names(post, info), writer.prompt(post), chosen, rejected)


def preference(records: Records, writer: Writer, ledger: Ledger) -> Iterator[Pair]:
    """Pairs with the prompt written out.

    They are those of trl-lib/tldr-preference, vwxyzjn's set (`query`), and mnoukhov's relabelled one (with
    scores).
    """
    for place, split, row in records:
        post = _parsed(text(place, row, "prompt", "query"))
        if post is None or (split or "").endswith("cnndm"):
            ledger.leave_out("cnndm")
            continue
        info = _info(place, row) if row.get("info") else {}
        names, prompt = _names(post, info), writer.prompt(post)
        chosen, rejected = (response(text(place, row, side)) for side in ("chosen", "rejected"))
        one, other = (number(place, row, name) for name in ("chosen_score", "rejected_score"))
        scores = None if one is None or other is None else (one, other)
        yield Pair(split or "train", names, prompt, chosen, rejected, scores)


read_comparisons = partial(_read, pairs_of=comparisons)
read_preference = partial(_read, pairs_of=preference)


def written(records: Records, writer: Writer, ledger: Ledger) -> Iterator[Written]:
    """Reference summaries.

    They are those of trl-lib/tldr (prompt, completion), vwxyzjn's, or OpenAI's filtered set (subreddit,
    title, post, summary).
    """
    for place, split, row in records:
        apart = row.get("post") is not None
        post = _post(place, row) if apart else _parsed(text(place, row, "prompt", "query"))
        if post is None:
            raise BadInput(f"{place}: prompt: is no TL;DR prompt (SUBREDDIT, TITLE, POST, TL;DR:)")
        answer = response(text(place, row, "completion", "summary", "reference_response"))
        yield Written(split or "train", _names(post, row), writer.prompt(post), answer)


def _names(post: Post, row: dict[str, Any]) -> tuple[str, ...]:
    """What identifies a post: its content, and Reddit's own id (t3_...) where the row has it."""
    own = str(row.get("id") or "")
    return (post.name, own) if own.startswith("t3_") else (post.name,)


def _post(place: str, row: dict[str, Any]) -> Post:
    """The post whose parts are columns."""
    title = text(place, row, "title") if row.get("title") else ""
    return Post(text(place, row, "subreddit"), title, text(place, row, "post"))


def _info(place: str, row: dict[str, Any]) -> dict[str, object]:
    """What a row says of its post."""
    value = column(place, row, "info")
    if not isinstance(value, dict):
        raise BadInput(f"{place}: info: expected an object, got {named(value)}")
    return value


def _summary(place: str, summary: object) -> str:
    """The text of one of a row's summaries."""
    found = summary.get("text") if isinstance(summary, dict) else summary
    if not isinstance(found, str | None):
        raise BadInput(f"{place}: summaries: expected text, got {named(found)}")
    return response(found or "")


def _parsed(prompt: str) -> Post | None:
    """The post in a written-out prompt; None for another kind of prompt (CNN/DailyMail)."""
    found = PROMPT.fullmatch(prompt.strip())
    return None if found is None else Post(found["subreddit"], found["title"], found["post"])


@dataclass
class Lines:
    """Whether the pairs' posts have lines, and blank ones: where one set lost its own, prompts differ."""

    any: bool = False
    blank: bool = False

    def noted(self, pairs: Iterator[Pair]) -> Iterator[Pair]:
        """The pairs, looked at on their way."""
        for pair in pairs:
            self.any |= "\n" in _body(pair.prompt)
            self.blank |= "\n\n" in _body(pair.prompt)
            yield pair

    def compared(self, others: Iterator[Written]) -> Iterator[Written]:
        """The written responses, read after the pairs.

        Raises:
            BadInput: their posts have blank lines, and the pairs' have none.
        """
        for row in others:
            if self.any and not self.blank and "\n\n" in _body(row.prompt):
                raise BadInput(
                    "the pairs' posts have no blank lines but those of sft_dataset have: "
                    "set newlines: flatten, one prompt for both"
                )
            yield row


def _body(prompt: str) -> str:
    return prompt.split("POST: ", 1)[1].removesuffix("\n\nTL;DR:")
