"""What rows of files are left out, counted by reason and said."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import PLAIN, Tiny, manifest
from test_data import GOOD, lines, table_of

from rpo_cli.errors import BadInput
from rpo_cli.stages.data.ledger import Ledger, Sieve, visible
from rpo_cli.stages.data.sources import preference
from rpo_cli.stages.data.sources.assemble import clean
from rpo_cli.stages.data.sources.records import records

# ── What is left out ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    ["", " \t\n", "\u200b", "\x00", "\ufeff", "\u2060\u00ad", "\u2800", "\u3164\ufe0f", "\u2028\x85 \x1f"],
)
def test_text_without_a_visible_character_is_none(text: str) -> None:
    assert visible(text) == "" and visible(f"{text}a{text}") == "a"


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [("if x:\n  go", "if x:\ngo", True), ("a b", "a  b", True), ("a", "a\n", False), ("a\r\n", "a", False)],
)
def test_white_space_inside_a_response_is_content(one: str, other: str, kept: bool) -> None:
    ledger = Ledger()
    assert Sieve(ledger, "pairs").keeps("p", one, other) == kept
    assert dict(ledger.counts) == ({} if kept else {"pairs/ties": 1})


def test_visible_text_is_the_same_whatever_its_white_space() -> None:
    assert visible(" one\r\n\ttwo ") == visible("one two") == "one two"
    assert visible("cafe\u0301") == visible("caf\u00e9")  # an accent apart, or in one sign
    for text in ("👩‍👩‍👧", "е́", "नमस्ते", "؟"):
        assert visible(text)


LEFT_OUT = {
    "conflicts": lines(GOOD, {"prompt": "a b", "chosen": "d", "rejected": "c"}),
    "duplicates": lines(GOOD | {"id": "x"}, GOOD | {"id": "y"}),
    "ties": lines(GOOD | {"prompt": "z"}, GOOD | {"rejected": "c "}),
    "empty": lines(GOOD, GOOD | {"rejected": "\u200b\x00\ufeff"}),
    "no_prompt": lines(GOOD, GOOD | {"prompt": "\u200b"}),
    "repeated_key": lines(GOOD) + b'{"prompt": "p", "chosen": "c", "chosen": "e", "rejected": "d"}\n',
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_a_file_loses_is_counted_by_reason_with_its_line(tmp_path: Path, reason: str) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(LEFT_OUT[reason])
    rows, ledger = table_of(tmp_path / "pairs.jsonl")
    assert [row["chosen"] for row in rows] == ["c"]
    assert ledger.metrics() == {
        "records/pairs": 2,
        f"pairs/{reason}": 1,
        "left_out_examples": {f"pairs/{reason}": [f"{tmp_path}/pairs.jsonl:2"]},
    }


def test_every_source_leaves_out_the_same_and_counts_it_alike(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(LEFT_OUT.values()))
    rows, ledger = table_of(tmp_path / "pairs.jsonl")
    other = Ledger()
    read = records([tmp_path / "pairs.jsonl"], "pairs", other, {})
    kept = clean(preference.pairs(read, preference.Templated(None, None), other), other)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in kept] == [
        (row["prompt"], row["chosen"], row["rejected"]) for row in rows
    ]
    assert other.examples == ledger.examples and ledger.counts["pairs/duplicates"] == 5
    assert len(rows) + sum(ledger.counts.values()) == ledger.records["pairs"] == 12


def test_prompts_and_written_responses_are_kept_once(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines(*({"id": n, "prompt": "p", "completion": "c"} for n in range(3))))
    for table in ("sft_train", "prompts_test"):
        rows, ledger = table_of(file, table)
        assert len(rows) == 1 and ledger.counts == {f"{table}/duplicates": 2}


def test_a_file_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(lines(*[GOOD | {"rejected": "\ufeff"}] * 5))
    with pytest.raises(BadInput) as caught:
        table_of(file)
    said = str(caught.value).splitlines()
    assert said[0] == f"{file}: no rows are left of 5"
    assert said[1:] == [
        f"{file}:{n}: a response in which nothing can be seen, or only its end (EOS)" for n in (1, 2, 3)
    ]


def test_a_reason_that_takes_more_than_a_twentieth_is_a_warning_and_inspect_lists_all(tiny: Tiny) -> None:
    rows = [GOOD | {"prompt": f"p{number}"} for number in range(100)]
    written = [{"prompt": f"q{number}", "completion": "c"} for number in range(10)]
    (tiny.suite / "pairs.jsonl").write_bytes(
        lines(*rows, rows[0], *[row | {"chosen": "d "} for row in rows[:7]])
    )
    (tiny.suite / "sft.jsonl").write_bytes(lines(*written))
    (tiny.suite / "data.yaml").write_text(
        f"{PLAIN}stage: data\nfiles: {{pairs: pairs.jsonl, sft_train: sft.jsonl}}\n"
    )
    (tiny.suite / "sft.yaml").write_text((tiny.suite / "sft.yaml").read_text() + "model_name_or_path: gpt2\n")
    result = tiny.run("data inspect", "data.yaml", code=2)  # no tokenizer: the ledger is shown all the same
    file = tiny.suite / "pairs.jsonl"
    ties = (
        "pairs: 7 of 108 rows (6.5 %) left out: chosen and rejected are the same text, so there is no "
        f"preference to learn ({file}:102, {file}:103, {file}:104, …)"
    )
    assert [line for line in result.stderr.splitlines() if line.startswith("warning")] == [
        f"warning: seed-0/data: {ties}"
    ]
    assert "rows read: 108 pairs, 10 sft_train" in result.stdout
    assert f"  pairs: 1 of 108 left out: the same row again ({file}:101)\n" in result.stdout
    assert manifest(tiny.root, "seed-0/data")["warnings"] == [ties]
