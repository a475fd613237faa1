"""What a data stage read and what it left out: one policy for every source, counted by reason."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rpo_cli.stages.data.rows import digest
from rpo_cli.text import percent

EXAMPLES = 3  # places that are named for each reason
MANY = 0.05  # of the rows read: if one reason takes more of them, that is a warning
REASONS = {
    "no_prompt": "no prompt that can be seen",
    "empty": "a response in which nothing can be seen, or only its end (EOS)",
    "ties": "chosen and rejected are the same text, so there is no preference to learn",
    "few_responses": "fewer than two responses, so there is nothing to prefer",
    "no_numbers": "not one finite number for each response",
    "equal_numbers": "responses with equal numbers, so there is no preference to learn",
    "undecided": "a tie by the label, so there is no preference to learn",
    "no_label": "nothing in the label",
    "unpaired": "a response whose prompt has no other with the contrary label left",
    "several_turns": "lists of several turns, in which each side goes on from its own answers",
    "half_sign": "half of a surrogate pair, which is no text",
    "duplicates": "the same row again",
    "conflicts": "a pair again with the other response chosen; the first is kept",
    "repeated_key": "a key that stands twice in the row, so one of its values would be lost",
    "no_boundary": "one text begins the other, so nothing tells where the prompt ends",
    "no_dialogue": "no dialogue of Human and Assistant",
    "part_early": "the dialogues part before the last answer",
    "transcript": "a plain prompt that a chat template or a transcript's roles wrote already, which "
    "`prompt_format: chat` would write once more; `raw` takes it as it stands; see docs/data.md",
    "no_answer": "messages that do not end in an answer",
    "prompt_elsewhere": "a `prompt` of text that is no turn of the conversations beside it; leave the column "
    "out, or put its text into the messages",
    "refused": "a conversation that the chat template refuses",
    "long_prompt": "a prompt of more than max_prompt_tokens",
    "of_evaluated_posts": "of a post that an evaluation table has",
    "another_length": "a text that is shorter or longer than this source takes",
    "copied": "a summary that stands in its post",
    "family": "a package of the same source with the same first paragraph",
    "upgrade": "a package that only eases an upgrade",
    "cnndm": "not a post of Reddit: an article of CNN/DailyMail",
}
REMARKS = {  # on rows that are kept, where they are many
    "begin_with_space": "responses begin with white space, which stands in the assistant's messages then; "
    "leave out what only joined them to a plain prompt",
    "prompt_again": "chosen and rejected begin with the prompt, which is there twice then; leave the column "
    "`prompt` out to have it taken from them",
}
# Letters and marks by their category that show nothing: fillers, variation selectors, the blank of Braille.
BLANK = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


# A response that is nothing but the end of one, as tokenizers and chat templates write it.
ONLY_ENDS = re.compile(r"\s*(?:(?:</s>|<eos>|<end_of_turn>|<\|\w+\|>|<｜\S+?｜>)\s*)+")


def visible(text: str) -> str:
    """A text as a reader tells it from others: any white space as one space, invisible signs gone."""
    shown = " ".join(text.split())
    if shown.isascii() and shown.isprintable():
        return shown
    shown = unicodedata.normalize("NFC", shown)  # é is one sign, or e and an accent
    # Not printable are control, format and unassigned characters, and separators but the space.
    seen = (sign for sign in BLANK.sub("", shown) if sign.isprintable() or sign.isspace())
    return " ".join("".join(seen).split())


def _gaps(text: str) -> str:
    """The white space inside a text: indentation and lines are content where code is written."""
    return "|".join(re.findall(r"\s+", text.strip().replace("\r\n", "\n")))


@dataclass
class Ledger:
    """Rows read, rows left out by reason, and examples of each.

    place: of the row that is being read; records: rows read of pairs, of written responses (`sft`), or of a
    table of files; counts: by name, `pairs/ties`; notes: what else the user must know; renamed: of each name
    that a recipe has for a column, what the first row has in its place, "" once a row has it; read_as: how
    labels were read.
    """

    place: str = ""
    records: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    read_as: list[str] = field(default_factory=list)
    renamed: dict[tuple[str, str], str] = field(default_factory=dict)

    def read(self, kind: str, place: str) -> None:
        """Count a row of a file as read; what is left out next is this row."""
        self.records[kind] += 1
        self.place = place

    def leave_out(self, name: str) -> None:
        """Count the row that is being read as left out."""
        self.counts[name] += 1
        if len(self.examples[name]) < EXAMPLES:
            self.examples[name].append(self.place)

    def metrics(self) -> dict[str, object]:
        """All that was counted, for the manifest: `records/…`, counts, places by reason, and more."""
        records = {f"records/{kind}": count for kind, count in sorted(self.records.items())}
        counts = {name: count for name, count in sorted(self.counts.items()) if count}
        examples = {name: places for name, places in sorted(self.examples.items()) if places}
        absent = {theirs: has for (_, theirs), has in self.renamed.items() if has}
        more = {"left_out_examples": examples, "read_as": self.read_as, "absent_columns": absent}
        return records | counts | {name: value for name, value in more.items() if value}

    def warnings(self) -> Iterator[str]:
        """The notes, and a line for what took, or holds of, more than `MANY` of the rows read."""
        yield from self.notes
        for (ours, theirs), has in self.renamed.items():
            if has:
                yield f"columns: no row has {theirs!r}; {ours} was read from the column of this name instead"
        for name, count in sorted(self.counts.items()):
            kind, _, what = name.rpartition("/")
            if what in REMARKS and count > MANY * self.records[kind]:
                yield f"{kind}: in {count} rows {REMARKS[what]}"
        for loss in losses(self.metrics()):
            if loss.count > MANY * loss.read:
                share = percent(loss.count / loss.read)
                yield f"{loss.kind}: {loss.count} of {loss.read} rows ({share}) {loss.why}"


@dataclass(frozen=True)
class Loss:
    """What one reason took: of which rows, of how many, in words with places."""

    kind: str
    count: int
    read: int
    why: str


def losses(metrics: Mapping[str, Any]) -> Iterator[Loss]:
    """What was left out of the tables of a data stage, by its manifest's metrics."""
    records = {name.removeprefix("records/"): n for name, n in metrics.items() if name.startswith("records/")}
    for name, count in metrics.items():
        kind, _, reason = name.rpartition("/")
        if reason in REASONS and records:
            places = metrics.get("left_out_examples", {}).get(name, [])
            such = f" ({', '.join(places)}{', …' if count > len(places) else ''})" if places else ""
            read = records.get(kind) or sum(records.values())
            yield Loss(kind or "rows", count, read, f"left out: {REASONS[reason]}{such}")


@dataclass
class Sieve:
    """Which rows are kept, whatever their source: with texts that can be seen, pairs that differ, each once.

    kind: of the rows, for their names in the ledger; seen: hashes of the rows kept, and for each whether its
    texts are in order.
    """

    ledger: Ledger
    kind: str
    seen: dict[int, bool] = field(default_factory=dict)

    def keeps(self, prompt: str, *responses: str) -> bool:
        """Whether a row is kept; one that is not has been counted.

        An unordered pair is kept once: relabelling turns it as it likes. With the other response chosen it is
        a conflict, and the first stays.
        """
        shown = ["" if ONLY_ENDS.fullmatch(text) else visible(text) for text in responses]
        if len(shown) == 2 and shown[0] == shown[1] and len({_gaps(text) for text in responses}) == 2:
            shown = [f"{text}\n{_gaps(own)}" for text, own in zip(shown, responses, strict=True) if text]
        why = self._against(visible(prompt), shown)
        if why is not None:
            self.ledger.leave_out(f"{self.kind}/{why}")
        return why is None

    def _against(self, prompt: str, responses: list[str]) -> str | None:
        if not prompt:
            return "no_prompt"
        if not all(responses):
            return "empty"
        if len(responses) == 2 and responses[0] == responses[1]:
            return "ties"
        name, order = digest(prompt, *sorted(responses)), responses == sorted(responses)
        if name in self.seen:
            return "duplicates" if self.seen[name] == order else "conflicts"
        self.seen[name] = order
        return None
