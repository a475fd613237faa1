"""What is said of rows: what to do about those that are no pairs, and how the others were read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rpo_cli.models import Row
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import GIVEN, PAIR
from rpo_cli.stages.data.sources.base import lacking
from rpo_cli.stages.data.sources.grouped import LISTS, ONE
from rpo_cli.stages.data.sources.implicit import prompt_like
from rpo_cli.stages.data.sources.labels import LABELS
from rpo_cli.text import percent

FORM = "\\n\\nHuman: … \\n\\nAssistant: …"
DIALOGUES = f"plain text is a dialogue ({FORM}), read as the messages of its turns"
STANDING = (
    f"plain text is a dialogue ({FORM}), taken as it stands; `prompt_format: chat` in the data recipe, with "
    "a chat model's `tokenizer:`, makes messages of its turns, which the chat template then writes"
)
READ = {*PAIR, "prompt", "completion", *GIVEN}


def cure(row: Row, name: str) -> str:
    """What to do about a column that is not there: rows of other kinds are no pairs under any name."""
    if name in PAIR and {"completion", "label"} <= row.keys():
        return "; unpaired rows are read beside others of their prompt, which stands in `prompt`"
    if name in PAIR and (lists := [column for column in LISTS if isinstance(row.get(column), list)]):
        pair = "the best of them is then chosen and the worst rejected"
        numbers = "a list of numbers beside them, `rewards` or `scores`"
        return f"; {lists[0]} are read with {numbers}, or as objects with a score or a rank: {pair}"
    if name in PAIR and (labels := [column for column in LABELS if column in row]):
        ends = "names end alike, such as response_a and response_b"
        return f"; {labels[0]} is read beside two columns of responses whose {ends}"
    if name in PAIR and any(isinstance(row.get(column), str) for column in ONE):
        pair = "the best and the worst of a prompt as a pair"
        number = "columns: {score: …} in the data recipe says which number"
        return f"; rows of one response each are read with a number, {pair}: {number}"
    return _called(name)


def likely(names: Sequence[str]) -> str:
    """That these columns may hold the prompt that a row lacks."""
    some = f"{', '.join(names)} look{'s' * (len(names) == 1)} like one"
    return f"no column 'prompt', but {some}: set columns: {{prompt: {names[0]}}} in the data recipe"


def no_prompt(row: Row) -> str:
    """What to do about a row of several responses without a prompt: what both begin with is none of them."""
    if names := prompt_like(row, "", READ):
        return likely(names)
    if isinstance(row.get("info"), dict):
        return "no column 'prompt'; `source: tldr-comparisons` reads OpenAI's rows with `info`"
    return f"{lacking(row, 'prompt')}{_called('prompt')}"


def _called(name: str) -> str:
    return f"; columns: {{{name}: …}} in the data recipe says what the data calls it"


def read_as_dialogues(ledger: Ledger, kind: str) -> Iterator[str]:
    """How many rows of plain text are dialogues of several turns, and what became of them."""
    for name, what in (("dialogues", DIALOGUES), ("as_dialogues", STANDING)):
        if count := ledger.counts[f"{kind}/{name}"]:
            yield f"{kind}: in {count} of {ledger.records[kind]} rows {what}"


def beside_prompt(kind: str, unread: Mapping[str, int], raw: bool) -> str:
    """That columns beside the prompt, in so many rows each, are left out; `raw`: plain text stays such."""
    names = ", ".join(f"{name} (in {count})" for name, count in sorted(unread.items()))
    more = "; `prompt_format: chat` makes a message of `system`" if raw and "system" in unread else ""
    left_out = "which is not read; put it into the prompt if it belongs there"
    return f"{kind}: beside prompt, rows have {names}, {left_out}{more}"


def notes(ledger: Ledger, unread: Mapping[str, int], seen: Mapping[str, int], chat: bool) -> Iterator[str]:
    """What the user must know of how rows were read; `seen`: of text, messages, `goes_on`, `_not_above`.

    chat: plain text is made messages.
    """
    if seen["plain"] and seen["told"]:
        yield (
            f"pairs: {seen['plain']} rows are plain text and {seen['told']} are messages; the chat template "
            "writes only these: give all of them in one form, or `prompt_format: chat` in the data recipe"
        )
    if seen["begun"]:
        yield (
            f"pairs: in {seen['begun']} rows the prompt ends in an answer that was begun, and the response "
            "is another message, so that the end of a turn stands between them; put both into one"
        )
    implicit, moved = (ledger.counts[f"pairs/{name}"] for name in ("implicit_prompts", "cut_back"))
    if moved:
        yield (
            f"pairs: {moved} of {implicit} prompts ({percent(moved / implicit)}) were cut back to the last "
            "turn or white space, because chosen and rejected part inside a word or an answer; a column "
            "`prompt` would say where they end"
        )
    if seen["not_above"]:
        yield (
            f"pairs: in {seen['not_above']} rows the score of chosen is not above that of rejected; the "
            "columns chosen and rejected are believed, not the scores"
        )
    if unread:
        yield beside_prompt("pairs", unread, bool(seen["plain"]) and not chat)
