"""`rpo data inspect`: a stage's tables as the trainers will see them, in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from rpo_cli.artifacts import Stage
from rpo_cli.models import TokenRow, encode, views, without_end
from rpo_cli.recipes import Loaded
from rpo_cli.runs.inspect_tokens import find_tokenizer, max_lengths
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.session import Session
from rpo_cli.stages.data.attributes import Balance, balances
from rpo_cli.stages.data.ledger import losses
from rpo_cli.stages.data.overlap import leaks, shared_prompts
from rpo_cli.stages.data.rows import Rows, digest, find_rows
from rpo_cli.stages.data.token_cache import TokenCache
from rpo_cli.stages.splits import LENGTH_MARGIN, bias_of, preference_of_length
from rpo_cli.text import aligned, percent, some

RESPONSES = ("chosen", "rejected", "completion")
FIRST = ("train", "pairs", "sft_train")  # tables whose rows say most
BOUNDARY_ROWS = 2000


@dataclass(frozen=True)
class TableReport:
    """One table in numbers; lengths in tokens, responses with their EOS, shares of rows.

    `tokens`: text column -> min, median, p95, max. `over`: max_length -> share of rows longer than it.
    `longer_preferred`: among pairs that are no ties. `boundary_differs`: rows whose prompt and response make
    other tokens when tokenised together, among `boundary_rows` rows. `odd`: lines on control tokens in texts.
    `more`: of pairs, what chosen responses have more or less of.
    """

    rows: int
    duplicate_prompts: int
    tokens: dict[str, dict[str, float]]
    over: dict[int, float]
    longer_preferred: float | None
    ties: float | None
    boundary_differs: float | None
    boundary_rows: int
    odd: list[str]
    more: dict[str, Balance]


def inspect(
    session: Session,
    planner: Planner,
    loads: Sequence[Loaded],
    targets: Sequence[Stage],
    rows: int,
    max_length: int | None,
) -> None:
    """Build what is missing, then print every table of the targets, with `rows` rows in tokens.

    Raises:
        BadInput: no tokenizer to count with.
    """
    logging.set_verbosity_error()  # of texts longer than the model's window the report itself speaks
    workspace = session.make(targets, loads[0].recipe.suite)
    limits = {max_length: ["--max-length"]} if max_length is not None else max_lengths(loads[0])
    found: dict[str, dict[str, object]] = {}
    for loaded, target in zip(loads, targets, strict=True):
        stages = (target, *target.tables())
        made = {stage.kind: workspace.finished(stage.path)["metrics"] for stage in stages}.get("data", {})
        if not session.as_json:
            print(f"{workspace.root / target.path}")
            _print_left_out(made)
        tokenizer, source = find_tokenizer(loaded, planner, target, workspace)
        margin = getattr(loaded.recipe, "length_margin", LENGTH_MARGIN)
        reports: dict[str, TableReport] = {}
        prompts: dict[str, set[int]] = {}
        samples: dict[str, list[dict[str, list[str]]]] = {}
        shown: set[tuple[str, ...]] = set()
        folders = [workspace.root / stage.path for stage in stages]
        for file in _tables(folders[0]):
            found_rows = find_rows(folders, file.stem, TokenCache(workspace.root))
            prompts[file.stem] = {digest(prompt) for prompt in found_rows.texts("prompt")}
            columns = tuple(column for column in RESPONSES if column in found_rows.columns)
            tokens = found_rows.tokens(columns, tokenizer, str(file))
            distinct = len(prompts[file.stem])
            reports[file.stem] = report_of(
                found_rows, columns, tokens, tokenizer, list(limits), margin, distinct
            )
            if columns not in shown:
                samples[file.stem] = [_pieces(row, columns, tokenizer) for row in tokens[:rows]]
            shown.add(columns)
        shared = shared_prompts(prompts)
        found[target.path] = {
            "path": str(workspace.root / target.path),
            "tokenizer": source,
            "max_length": {str(limit): names for limit, names in limits.items()},
            "length_margin": margin,
            "shared_prompts": {f"{one}/{other}": count for (one, other), count in shared.items()},
            "read": {name[8:]: count for name, count in made.items() if name.startswith("records/")},
            "read_as": made.get("read_as", []),
            "left_out": [asdict(loss) for loss in losses(made)],
            "tables": {name: asdict(report) for name, report in reports.items()},
            "samples": samples,
        }
        if not session.as_json:
            print(f"tokenizer: {source}")
            _print(session, limits, margin, reports)
            for (one, other), count in shared.items():
                print(f"prompts of {other} that are in {one} too: {count}")
        odd = [f"{name}: {line}" for name, report in reports.items() for line in report.odd]
        for line in [*odd, *leaks(shared, prompts)]:
            session.say(f"warning: {target.path}: {line}")
        if not session.as_json:
            _print_samples(session, samples)
    if session.as_json:
        session.print_json(found)


def _tables(folder: Path) -> list[Path]:
    """Files of rows, the telling ones first."""
    return sorted(
        sorted(folder.glob("*.parquet")),
        key=lambda file: FIRST.index(file.stem) if file.stem in FIRST else len(FIRST),
    )


def _print_left_out(made: Mapping[str, Any]) -> None:
    """What the data stage read, how, and what it left out and why, by its manifest's metrics."""
    read = [f"{n} {name.removeprefix('records/')}" for name, n in made.items() if name.startswith("records/")]
    if read:
        print(f"rows read: {', '.join(read)}")
    for line in made.get("read_as", ()):
        print(f"  {line}")
    for loss in losses(made):
        print(f"  {loss.kind}: {loss.count} of {loss.read} {loss.why}")


def report_of(
    rows: Rows,
    columns: Sequence[str],
    tokens: Sequence[TokenRow],
    tokenizer: PreTrainedTokenizerBase,
    limits: Sequence[int],
    margin: float,
    distinct: int,
) -> TableReport:
    """A table's numbers.

    columns: its responses; margin: the share by which the longer one must be longer; distinct: prompts.
    """
    lengths = {"prompt": np.array([len(row.prompt_ids) for row in tokens])}
    lengths |= {
        column: np.array([len(row.responses[i]) for row in tokens]) for i, column in enumerate(columns)
    }
    # Tables of prompts to answer have no responses.
    longest = lengths["prompt"] + np.max(
        [np.zeros(len(rows), dtype=int), *(lengths[c] for c in columns)], axis=0
    )
    bias: Mapping[str, float | None] = {}
    more: dict[str, Balance] = {}
    if "chosen" in columns:
        kinds = preference_of_length(lengths["chosen"], lengths["rejected"], margin)
        bias = bias_of(kinds, np.arange(len(rows)))
        more = balances(rows, kinds)
    differs = reaching_over(rows, columns, tokens, tokenizer)
    return TableReport(
        rows=len(rows),
        duplicate_prompts=len(rows) - distinct,
        tokens={name: _statistics(values) for name, values in lengths.items()},
        over={limit: float((longest > limit).mean()) for limit in limits},
        longer_preferred=bias.get("longer_share"),
        ties=bias.get("tie_share"),
        boundary_differs=float(differs.mean()) if columns else None,
        boundary_rows=len(differs),
        odd=rows.odd(tokens, tokenizer),
        more=more,
    )


def _statistics(values: np.ndarray) -> dict[str, float]:
    low, median, high, top = np.quantile(values, [0, 0.5, 0.95, 1]).tolist()
    return {"min": low, "median": median, "p95": high, "max": top}


def reaching_over(
    rows: Rows, columns: Sequence[str], tokens: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase
) -> np.ndarray:
    """For each of some rows whether a token of `prompt + response` reaches over the boundary: [n]."""
    step = -(-len(rows) // BOUNDARY_ROWS)
    some, apart_rows = rows.take(range(0, len(rows), step)).to_list(), tokens[::step]
    differs = np.zeros(len(some), dtype=bool)
    for index, column in enumerate(columns):
        texts = [row["prompt"] + without_end(row[column], tokenizer) for row in some]
        joint = views(encode("prompt", texts, tokenizer))
        apart = [np.concatenate([one.prompt_ids, one.responses[index][:-1]]) for one in apart_rows]
        differs |= np.array([not np.array_equal(*pair) for pair in zip(joint, apart, strict=True)])
    return differs


def said_of_boundary(share: float, rows: int) -> str:
    """That in this share of so many rows a token reaches over the end of the prompt."""
    return (
        f"in {percent(share)} of {rows} rows a token would reach over the boundary of prompt and response; "
        "end prompts where a token ends (no trailing space) and begin responses with the space"
    )


def _pieces(
    row: TokenRow, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[str]]:
    """Each text of a row as the texts of its tokens."""
    parts = {"prompt": row.prompt_ids, **dict(zip(columns, row.responses, strict=True))}
    return {name: [_piece(int(token), tokenizer) for token in ids] for name, ids in parts.items()}


def _piece(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A token's text; where it is only a part of a character, its name in the vocabulary."""
    text = str(tokenizer.decode([token]))
    name = str(tokenizer.convert_ids_to_tokens(token))
    return name if "\ufffd" in text else text.replace("\n", "\\n")


def _print(
    session: Session, limits: Mapping[int, Sequence[str]], margin: float, reports: Mapping[str, TableReport]
) -> None:
    """The numbers for people, 80 columns wide."""
    for limit, names in limits.items():
        print(f"max_length {limit}: {some(names)}")
    if not limits:
        print("max_length: no recipe beside this one has any; --max-length N counts longer rows")
    over = [f"over {limit}" for limit in limits]
    head = ["table", "rows", "same prompt", *over, "longer", "ties", "boundary"]
    rows = []
    for name, r in reports.items():
        shares = [*r.over.values(), r.longer_preferred, r.ties, r.boundary_differs]
        rows.append([name, str(r.rows), str(r.duplicate_prompts), *map(percent, shares)])
    print("\n" + aligned([head, *rows], right=range(1, len(head))), end="")
    print(
        f"longer: the longer response (by {margin:.0%} or more tokens) is preferred; closer pairs are "
        "ties, not counted"
    )
    print("boundary: prompt and response make other tokens when tokenised together\n")
    lengths = [
        [name if text == "prompt" else "", text, *(f"{values[q]:g}" for q in ("min", "median", "p95", "max"))]
        for name, r in reports.items()
        for text, values in r.tokens.items()
    ]
    head = ["table", "tokens of", "min", "median", "95 %", "max"]
    print(aligned([head, *lengths], right=range(2, 6)), end="")
    _print_more(reports)
    for name, r in reports.items():
        if r.boundary_differs:
            said = said_of_boundary(r.boundary_differs, r.boundary_rows)
            session.say(f"warning: {name}: {said}")


def _print_more(reports: Mapping[str, TableReport]) -> None:
    """What chosen responses have more or less of than rejected ones."""
    rows = []
    for name, report in reports.items():
        for attribute, found in report.more.items():
            low, high = (f"{100 * end:.1f}" for end in (found.interval.low, found.interval.high))
            table = name if attribute == next(iter(report.more)) else ""
            share = [str(found.pairs), percent(found.more), f"{low} .. {high} %"]
            rows.append([table, attribute, *share, str(found.level_pairs), percent(found.level)])
    if not rows:
        return
    head = ["table", "chosen has more", "pairs", "share", "95 % interval", "as long", "share"]
    print("\n" + aligned([head, *rows], right=range(2, 7)), end="")
    print("share: of the pairs that differ in it; as long: those of about equal length among them")


def _print_samples(session: Session, samples: Mapping[str, Sequence[Mapping[str, Sequence[str]]]]) -> None:
    """Rows with a thin line between tokens, the prompt dimmed."""
    for table, rows in samples.items():
        for number, row in enumerate(rows, 1):
            print(f"\n{table}, row {number}:")
            for name, pieces in row.items():
                text = Text(f"  {name:10} ", style="dim" if name == "prompt" else "")
                text += Text("|", style="dim cyan").join(Text(piece) for piece in pieces)
                session.out.print(text, soft_wrap=True, highlight=False)
