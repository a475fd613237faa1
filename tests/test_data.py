"""Properties of rows: which split draws them, who is chosen, and that bad ones are named by line."""

from __future__ import annotations

import gzip
import json
import shlex
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import RHO, Tiny, pairs_of, tokenise
from transformers import AutoTokenizer

from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.recipes import schema
from rpo_cli.recipes.schema import DataRecipe
from rpo_cli.stages.data.build import noting, read_table
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import AT_A_TIME, GROUP, find_rows, read_rows, write_places, write_rows
from rpo_cli.stages.data.sources.records import data_files, published_split, records
from rpo_cli.stages.data.token_cache import TokenCache
from rpo_cli.stages.splits import (
    LONGER,
)

# ── Reading files ───────────────────────────────────────────────────────────────────────────────────────────

GOOD = {"prompt": "a b", "chosen": "c", "rejected": "d"}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table_of(file: Path, table: str = "pairs", **keys: Any) -> tuple[list[Row], Ledger]:
    """The rows of a file, and what was counted."""
    ledger = Ledger()
    recipe = DataRecipe.model_validate({"stage": "data", **keys})
    return list(read_table(file, table, recipe, ledger)), ledger


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(GOOD, {"prompt": "a", "chosen": "c"}), ":2: no column 'rejected' (has: chosen, prompt)"),
        (lines(GOOD, GOOD | {"chosen": 3}), ":2: chosen: expected text, got a number"),
        (lines(GOOD, GOOD | {"chosen": None}), ":2: chosen: expected text, got null"),
        (
            lines(GOOD, GOOD | {"chosen": "half \ud83d"}),
            ":2: chosen: holds half of a surrogate pair, which is no text",
        ),
        (lines(GOOD, ["a", "b"]), ":2: expected an object with columns, got a list"),
        (lines(GOOD) + b"\n" + b'{"prompt": "a", \n', ":3: not JSON: "),
        (lines(GOOD) + b'{"prompt": "a\tb"}\n', ":2: not JSON: Invalid control character, in column 14"),
        (
            lines(GOOD) + b'{"prompt": "a", "chosen": "caf\xe9", "rejected": "b"}\n',
            ":2: not UTF-8: invalid continuation byte",
        ),
        (
            lines(GOOD | {"id": "x"}, GOOD | {"id": "y"}, GOOD | {"id": "x", "chosen": "e"}),
            ":3: id 'x' belongs to another row as well",
        ),
        (lines(GOOD | {"id": "half \udc3a"}), ":1: id: holds half of a surrogate pair, which is no text"),
        (lines(GOOD | {"m\ud83d": 1}), r":1: 'm\ud83d': holds half of a surrogate pair, which is no text"),
        (
            b'{"prompt": "a", "n": {"m": [' + b"7" * 5000 + b"]}}\n",
            ":1: n: a number of more than 4300 digits",
        ),
        (b'{"n": ' + b"7" * 5000 + b", ]", ":1: the line: a number of more than 4300 digits"),
        (b"[" * 9000, ":1: a JSON array; "),
        (lines(GOOD) + b'{"a": ' * 90000, ":2: not JSON that can be read: nested too deeply"),
        (lines(GOOD | {"chosen": []}), ":1: chosen: expected text, got a list"),
        (
            lines(GOOD | {"tools": [{}]}),
            ":1: tools: plain text has no use for it; `prompt_format: chat` gives it",
        ),
        (b"", ": no rows"),
        (b"\n \n", ": no rows"),
    ],
)
def test_a_bad_row_is_one_line_that_names_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        table_of(file)
    assert str(caught.value).startswith(f"{file}{message}")
    assert "\n" not in str(caught.value)


def test_bad_parquet_is_one_line_that_names_file_and_row(tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD, GOOD | {"chosen": None}]), file)
    with pytest.raises(BadInput, match=f"{file}: row 2: chosen: expected text, got null"):
        table_of(file)
    twice = pa.Table.from_arrays([pa.array(["x"])] * 4, names=[*GOOD, "chosen"])
    pq.write_table(twice, file)
    with pytest.raises(BadInput, match=f"{file}: has the column chosen twice; leave one of them out"):
        table_of(file)
    file.write_bytes(b"not parquet at all")
    with pytest.raises(BadInput, match=f"{file}: not a Parquet file: ") as caught:
        table_of(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match=r"expected a \.jsonl or \.parquet file"):
        table_of(tmp_path / "pairs.txt")


@pytest.mark.parametrize("names", [(), ("test", "train")])
def test_of_a_folder_of_save_to_disk_it_is_said_what_makes_parquet_of_it(
    names: Sequence[str], tmp_path: Path
) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    folder = tmp_path / "it's mine"
    (datasets.DatasetDict(dict.fromkeys(names, rows)) if names else rows).save_to_disk(folder)
    with pytest.raises(BadInput, match="a data set of datasets' save_to_disk, which is not read") as caught:
        data_files(folder)
    said, made = str(caught.value).removesuffix("; name that instead").split(" makes ")
    command = shlex.split(said.split("not read: ")[1])
    assert command[:2] == ["python", "-c"]
    exec(command[2], {})
    files = data_files(Path(made))
    assert [published_split(file) for file in files] == list(names or [None])
    assert [pq.read_table(file).to_pylist() for file in files] == [[*rows]] * len(files)


@pytest.mark.parametrize(("name", "between"), [("it's mine.csv", ","), ("pairs.tsv", "\t")])
def test_of_a_table_of_text_it_is_said_what_makes_lines_of_it(
    name: str, between: str, tmp_path: Path
) -> None:
    row = {"prompt": "a,\n", "chosen": "None", "rejected": "N/A"}
    file = tmp_path / name
    file.write_text(between.join(row) + "\n" + between.join(f'"{text}"' for text in row.values()))
    dear = file.with_suffix(".jsonl")
    dear.write_text("not to be written over")
    with pytest.raises(BadInput, match=r"expected a \.jsonl or \.parquet file") as caught:
        table_of(file)
    command = shlex.split(str(caught.value).split("): ")[1].removesuffix(" makes one"))
    assert command[:2] == ["python", "-c"]
    exec(command[2], {})
    assert json.loads(dear.with_name(f"{dear.stem}-2.jsonl").read_text()) == row
    assert dear.read_text() == "not to be written over"


def test_rows_are_named_by_id_or_by_content_and_keep_their_order(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(lines(GOOD, GOOD | {"chosen": "e"}, GOOD | {"chosen": "f", "id": 7, "note": "more"}))
    rows, ledger = table_of(file)
    assert not ledger.counts and ledger.records == {"pairs": 3}
    assert rows[2] == {"id": "7", **GOOD, "chosen": "f"}
    assert [row["chosen"] for row in rows] == ["c", "e", "f"] and len({row["id"] for row in rows}) == 3
    assert table_of(file)[0] == rows


def test_text_with_any_kind_of_line_separator_inside_is_one_row(tmp_path: Path) -> None:
    odd = GOOD | {"chosen": "one\u2028two\x85three\x0bfour\x1cfive\nsix"}
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(json.dumps(odd, ensure_ascii=False).encode() + b"\r\n" + lines(GOOD))
    rows, _ = table_of(file)
    assert [row["chosen"] for row in rows] == [odd["chosen"], "c"]


def test_a_missing_file_is_named_with_the_line_of_the_recipe(tiny: Tiny) -> None:
    (tiny.suite / "data.yaml").write_text("stage: data\nsource: files\nfiles:\n  pairs: nowhere.jsonl\n")
    result = tiny.run("train-sft", "sft.yaml", code=2)
    assert (
        result.stderr.strip()
        == f"{tiny.suite / 'data.yaml'}:4: files.pairs: no such file: {tiny.suite / 'nowhere.jsonl'}"
    )


def test_a_bad_file_stops_the_command_with_its_line_and_no_manifest(empty: Tiny) -> None:
    (empty.suite / "sft.jsonl").write_bytes(lines({"prompt": "a", "completion": "b"}, {"prompt": "a"}))
    (empty.suite / "data.yaml").write_text("stage: data\nsource: files\nfiles: {sft_train: sft.jsonl}\n")
    result = empty.run("train-sft", "sft.yaml", code=2)
    assert (
        result.stderr.splitlines()[-1]
        == f"{empty.suite / 'sft.jsonl'}:2: no column 'completion' (has: prompt)"
    )
    assert not (empty.root / "seed-0/data/manifest.json").exists()


def test_a_changed_file_makes_what_rests_on_it_stale_and_a_moved_one_does_not(empty: Tiny) -> None:
    file = empty.suite / "pairs.jsonl"
    file.write_bytes(lines(*[GOOD | {"prompt": f"p{index}"} for index in range(4)]))
    recipe = empty.suite / "data.yaml"
    recipe.write_text("stage: data\nsource: files\nfiles: {pairs: pairs.jsonl}\n")
    key = empty.stage("data.yaml").key
    recipe.write_text(
        f"stage: data\nsource: files\nfiles: {{pairs: {file.rename(empty.suite / 'moved.jsonl')}}}\n"
    )
    assert empty.stage("data.yaml").key == key
    with (empty.suite / "moved.jsonl").open("ab") as moved:
        moved.write(lines(GOOD))
    assert empty.stage("data.yaml").key != key


# ── Length ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_that_are_too_long_are_an_error_or_dropped_and_never_cut(built: Tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built.root / "seed-0/sft")
    rows = read_rows(built.root / "seed-0/data/pairs.parquet")[:40]
    full = tokenise(rows, ("chosen", "rejected"), tokenizer, 1000, "error", "here")
    lengths = [len(row.prompt_ids) + max(map(len, row.responses)) for row in full]
    limit = sorted(lengths)[20]
    kept = tokenise(rows, ("chosen", "rejected"), tokenizer, limit, "drop", "here")
    assert (
        kept == [row for row, length in zip(full, lengths, strict=True) if length <= limit] and len(kept) < 40
    )
    first = next(index for index, length in enumerate(lengths) if length > limit)
    with pytest.raises(
        BadInput, match=f"here: row {rows[first]['id']} has {lengths[first]} tokens .* max_length is {limit}"
    ):
        tokenise(rows, ("chosen", "rejected"), tokenizer, limit, "error", "here")
    with pytest.raises(BadInput, match="here: no rows of at most 3 tokens"):
        tokenise(rows, ("chosen", "rejected"), tokenizer, 3, "drop", "here")


@pytest.mark.slow
def test_dropped_rows_are_counted_and_left_out_of_every_table_of_a_policy(tiny: Tiny) -> None:
    """Reference, scores and policy drop the same rows, though each counts on its own."""
    for recipe in ("rm.yaml", "policy.yaml"):
        tiny.edit(recipe, "max_length: 20\noverlong: drop\nper_device_train_batch_size: 2")
    tiny.edit("splits.yaml", "max_length: null")
    result = tiny.run("train-policy", "d-dpo.yaml", "--json")
    (found,) = json.loads(result.stdout).values()
    train = pairs_of(tiny.root, f"{RHO}/splits", "train")
    kept = {row["id"] for row in read_rows(tiny.root / RHO / "scores/rm/all/train.parquet")}
    longer = [row["longer_preferred"] == LONGER for row in train if row["id"] in kept]
    assert found["metrics"]["longer_share"] == np.mean(longer) != 0.5
    assert result.stderr.count("of those drawn; set max_length: 20 in the splits recipe") == 2
    assert found["metrics"]["rows"] + found["metrics"]["dropped"] == len(train)
    assert 0 < found["metrics"]["dropped"] < len(train)
    assert len(read_rows(tiny.root / RHO / "scores/rm/all/train.parquet")) == found["metrics"]["rows"]


def test_prompt_and_response_are_tokenised_apart_and_end_in_eos(built: Tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built.root / "seed-0/sft")
    rows = read_rows(built.root / "seed-0/data/pairs.parquet")[:20]
    for text, row in zip(
        rows, tokenise(rows, ("chosen", "rejected"), tokenizer, 100, "error", "here"), strict=True
    ):
        assert (
            row.prompt_ids == tokenizer(text["prompt"])["input_ids"]
            and tokenizer.eos_token_id not in row.prompt_ids
        )
        for side, answer in zip(("chosen", "rejected"), row.responses, strict=True):
            assert answer == [*tokenizer(text[side])["input_ids"], tokenizer.eos_token_id]
            assert answer.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", ["pairs.JSONL", "pairs.jsonl.gz", "pairs.json.GZ", "pairs.jsonl.zst"])
def test_lines_are_read_however_they_are_packed(tmp_path: Path, name: str) -> None:
    content = lines(GOOD, GOOD | {"chosen": "e"})
    packed = {"gz": gzip.compress(content[:9]) + gzip.compress(content[9:])}  # two members, as `cat` makes
    packed |= {"zst": pa.Codec("zstd").compress(content, asbytes=True)}
    file = tmp_path / name
    file.write_bytes(packed.get(name.lower().rsplit(".")[-1], content))
    assert [row["chosen"] for row in table_of(file)[0]] == ["c", "e"]
    found = list(records(data_files(tmp_path), "pairs", Ledger(), {}))
    assert [place for place, _, _ in found] == [f"{file}:1", f"{file}:2"]
    if not name.endswith("JSONL"):
        file.write_bytes(file.read_bytes()[:-12])
        with pytest.raises(BadInput, match=f"{file}: cannot be read: "):
            table_of(file)


def test_columns_of_the_data_are_read_under_our_names(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(lines({"question": "q", "chosen": "c", "rejected": "d", "prompt_id": "7"}))
    assert table_of(file, columns={"prompt": "question", "completion": "none"})[0][0]["prompt"] == "q"
    with pytest.raises(BadInput, match=r":1: no column 'ask', which columns: has for prompt \(has: chosen, "):
        table_of(file, columns={"prompt": "ask"})
    plain = {"stage": "data", "source": "files"}
    assert "columns" not in schema.result_fields(DataRecipe.model_validate(plain))
    named = schema.result_fields(DataRecipe.model_validate(plain | {"columns": {"prompt": "question"}}))
    assert named["columns"] == {"prompt": "question"}


def test_columns_may_change_names_with_each_other_and_a_name_that_no_row_has_is_said(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(lines({"prompt": "p", "chosen": "worse", "best": "good"}))
    (row,), ledger = table_of(file, columns={"chosen": "best", "rejected": "chosen"})
    assert (row["chosen"], row["rejected"]) == ("good", "worse") and not list(ledger.warnings())
    file.write_bytes(lines({"prompt": "p", "chosen": "d", "rejected": "c", "question": "q"}))
    (row,), ledger = table_of(file, columns={"chosen": "rejected", "rejected": "chosen", "prompt": "qestion"})
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("p", "c", "d")
    assert list(ledger.warnings()) == [
        "columns: no row has 'qestion'; prompt was read from the column of this name instead"
    ]
    with pytest.raises(ValueError, match="columns"):
        table_of(file, columns={"chosen": "rejected", "rejected": "rejected"})


def test_a_column_of_numbers_is_kept_whatever_it_is_called_and_what_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    tokens = {"a_token": [[1, 2]], "a_label": [[3]]}  # of a set that was tokenised already
    pq.write_table(
        pa.table({**{name: [text] for name, text in GOOD.items()}, "q_label": [0.5], **tokens}), file
    )
    (row,), _ = table_of(file, keep_columns=["q_label"])
    assert row["q_label"] == 0.5
    for value, says in (
        ("NaN", "expected a finite number, got NaN"),
        ("-1e400", "expected a finite number, got -Infinity"),
        ("null", "expected a finite number, got null"),
    ):
        row = json.dumps(GOOD | {"score": "?"}).replace('"?"', value)
        (tmp_path / "pairs.jsonl").write_text(row)
        with pytest.raises(BadInput, match=f":1: score: {says}$"):
            table_of(tmp_path / "pairs.jsonl", keep_columns=["score"])


def test_files_put_behind_each_other_with_their_marks_are_read(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"".join(b"\xef\xbb\xbf" + lines(GOOD | {"chosen": name}) for name in "ef"))
    assert [row["chosen"] for row in table_of(file)[0]] == ["e", "f"]


def test_reading_a_table_keeps_only_hashes_of_its_rows(tmp_path: Path) -> None:
    file, size = tmp_path / "pairs.jsonl", 1000
    file.write_bytes(lines(*({**GOOD, "prompt": f"{n} " + "word " * 400} for n in range(size))))
    tracemalloc.start()
    count = sum(1 for _ in read_table(file, "pairs", DataRecipe(stage="data"), Ledger()))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == size and most / size < 400  # of 2,000 bytes of text each


def test_rows_of_several_groups_are_written_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    size = GROUP + AT_A_TIME + 1
    assert write_rows(({"id": str(n), "prompt": "p"} for n in range(size)), file) == size
    assert pq.ParquetFile(file).num_row_groups == 2
    assert pq.read_table(file)["id"].to_pylist() == [str(n) for n in range(size)]
    write_rows([{"id": "x", "prompt": "p"}], file)
    pq.write_table(pa.Table.from_pylist([{"id": "x", "prompt": "p"}]), tmp_path / "other.parquet")
    assert file.read_bytes() == (tmp_path / "other.parquet").read_bytes()


@pytest.mark.parametrize("end", ["</s>", " <|eot_id|>\n", "<|im_end|></s>", "<end_of_turn>", "<eos>"])
def test_a_response_that_is_only_its_end_is_an_empty_one(tmp_path: Path, end: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(lines(GOOD, GOOD | {"rejected": end}, GOOD | {"chosen": f"yes{end}"}))
    rows, ledger = table_of(file)
    assert [row["chosen"] for row in rows] == ["c", f"yes{end}"]
    assert ledger.counts == {"pairs/empty": 1} and ledger.examples["pairs/empty"] == [f"{file}:2"]


def test_rows_that_are_warned_of_are_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "sft_train.jsonl"
    file.write_bytes(lines({"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}))
    ledger = Ledger()
    recipe = DataRecipe.model_validate({"stage": "data"})
    places: list[str] = []
    table = tmp_path / "sft_train.parquet"
    write_rows(noting(read_table(file, "sft_train", recipe, ledger), ledger, places), table)
    write_places(places, table)
    rows = find_rows([tmp_path], "sft_train", TokenCache(tmp_path))
    one, two = rows.ids
    line = f"2 of 2 rows have control tokens in a prompt (row {one}, {two}, x); take them out"
    assert f"(row {file}:1, {file}:2, x); take" in rows.placed(line)
    assert rows.placed(f"row {two} has 9 tokens") == f"row {file}:2 has 9 tokens"
