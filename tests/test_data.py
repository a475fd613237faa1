"""Properties of rows: which split draws them, who is chosen, and that bad ones are named by line."""

from __future__ import annotations

import gzip
import json
import shlex
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PLAIN, RHO, SEED, Tiny, manifest, pairs_of, tokenise
from transformers import AutoTokenizer

from rpo_cli.errors import BadInput
from rpo_cli.models import Row, TokenRow
from rpo_cli.recipes import schema
from rpo_cli.recipes.schema import DataRecipe, SplitsRecipe
from rpo_cli.stages.data.build import noting, read_table
from rpo_cli.stages.data.ledger import Ledger, Sieve, visible
from rpo_cli.stages.data.rows import AT_A_TIME, GROUP, Rows, find_rows, read_rows, write_places, write_rows
from rpo_cli.stages.data.sources import preference
from rpo_cli.stages.data.sources.assemble import clean
from rpo_cli.stages.data.sources.records import data_files, published_split, records
from rpo_cli.stages.data.token_cache import TokenCache
from rpo_cli.stages.splits import (
    LONGER,
    SHORTER,
    TIE,
    Split,
    bias_of,
    bias_trained_on,
    draw,
    hold_out,
    preference_of_length,
)

# 600 longer, 500 shorter, 200 ties, in no order.
KINDS = np.random.default_rng(0).permutation(np.repeat([LONGER, SHORTER, TIE], [600, 500, 200]))


def splits(**values: Any) -> SplitsRecipe:
    return SplitsRecipe(
        **{
            "stage": "splits",
            "rho": 0.3,
            "num_pairs": 200,
            "held_out": 50,
            "ensemble": [0.2, 0.5, 0.8],
            **values,
        }
    )


def share(rows: np.ndarray, kinds: np.ndarray = KINDS) -> float:
    found = bias_of(kinds, rows)["longer_share"]
    assert found is not None
    return found


def everything(split: Split) -> list[int]:
    return [*split.train.tolist(), *split.held_out.tolist()]


# ── Length and bias ─────────────────────────────────────────────────────────────────────────────────────────


def test_longer_means_a_share_more_tokens_and_always_more() -> None:
    chosen, rejected = np.array([11, 10, 109, 22, 100, 10, 1, 5]), np.array([10, 11, 100, 20, 110, 10, 2, 5])
    assert preference_of_length(chosen, rejected, 0.1).tolist() == [
        LONGER,
        SHORTER,
        TIE,
        LONGER,
        SHORTER,
        TIE,
        SHORTER,
        TIE,
    ]
    assert preference_of_length(chosen, rejected, 0.0).tolist() == [
        LONGER,
        SHORTER,
        LONGER,
        LONGER,
        SHORTER,
        TIE,
        SHORTER,
        TIE,
    ]


@pytest.mark.parametrize("rho", [0.2, 0.3, 0.5, 0.7, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_has_exactly_its_bias_and_draws_no_row_twice(rho: float, seed: int) -> None:
    split = draw(KINDS, splits(rho=rho), seed)
    assert len(split.train) == 200 and len(split.held_out) == 50
    assert len(set(everything(split))) == 250
    assert share(split.train) == rho and share(split.held_out) == rho
    assert not (KINDS[everything(split)] == TIE).any()
    assert abs(share(split.train[:100]) - rho) < 0.2  # shuffled: not the longer ones first


def test_subsets_have_exactly_their_bias_inside_the_training_rows() -> None:
    for size in ("equal", "largest", 50):
        split = draw(KINDS, splits(rho=0.5, num_pairs=160, subset_size=size), 0)
        assert list(split.subsets) == [0.2, 0.5, 0.8]
        for b, rows in split.subsets.items():
            assert len(set(rows.tolist())) == len(rows)
            assert set(rows.tolist()) <= set(split.train.tolist())
            assert share(rows) == b
        # 80 longer and 80 shorter pairs: 100 at b 0.2 and 0.8, all 160 at b 0.5.
        expected = {"equal": [100, 100, 100], "largest": [100, 160, 100], 50: [50, 50, 50]}
        assert [len(rows) for rows in split.subsets.values()] == expected[size]


def test_a_rounded_bias_is_off_by_less_than_one_pair() -> None:
    split = draw(KINDS, splits(rho=0.37, num_pairs=101, ensemble=[0.23, 0.61], subset_size="largest"), 0)
    assert abs(share(split.train) * 101 - 0.37 * 101) <= 0.5
    for b, rows in split.subsets.items():
        assert abs(share(rows) * len(rows) - b * len(rows)) <= 1


def test_ties_are_left_out_or_kept_at_their_natural_share() -> None:
    split = draw(KINDS, splits(rho=0.4, num_pairs=260, held_out=130, ties="include"), 0)
    assert bias_of(KINDS, split.train) == {
        "size": 260,
        "longer_share": pytest.approx(0.4, abs=1 / 220),
        "tie_share": 40 / 260,
    }
    assert bias_of(KINDS, split.held_out)["tie_share"] == 20 / 130
    assert len(set(everything(split))) == 390
    assert all(not (KINDS[rows] == TIE).any() for rows in split.subsets.values())


def test_without_a_rho_the_pairs_are_as_they_come() -> None:
    split = draw(KINDS, splits(rho=None, num_pairs=None, held_out=100), 0)
    assert sorted(everything(split)) == list(range(len(KINDS))) and len(split.held_out) == 100
    some = draw(KINDS, splits(rho=None, num_pairs=700, held_out=100), 0)
    assert len(some.train) == 700 and len(set(everything(some))) == 800
    assert bias_of(KINDS, some.train)["tie_share"] == pytest.approx(200 / 1300, abs=0.05)


def test_draws_repeat_under_their_seed_and_differ_under_another() -> None:
    one, again, other = (draw(KINDS, splits(), seed) for seed in (0, 0, 1))
    assert one.train.tolist() == again.train.tolist() and one.held_out.tolist() == again.held_out.tolist()
    assert all(one.subsets[b].tolist() == again.subsets[b].tolist() for b in one.subsets)
    assert one.train.tolist() != other.train.tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho": 0.8, "num_pairs": 900},
         "splits: rho 0.8 with num_pairs 900 and held_out 50 needs 760 pairs whose longer response is "
         "preferred, 600 exist"),
        ({"rho": 0.2, "num_pairs": 600}, "needs 520 pairs whose shorter response is preferred, 500 exist"),
        ({"rho": None, "num_pairs": 1300},
        "splits: 1300 training and 50 held-out pairs are needed, 1300 exist"),
        ({"subset_size": 100}, (r"splits: subset_size 100 cannot be filled for b 0.8: 75 pairs at most, from "
            r"60 longer and 140 shorter")),
        ({"rho": 0.01, "num_pairs": 20, "subset_size": "largest"},
         "splits: the subset for b 0.2 would be empty: D_rho has 0 longer and 20 shorter"),
    ],
)  # fmt: skip
def test_a_split_that_cannot_be_filled_says_how_many_pairs_there_are(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        draw(KINDS, splits(**values), 0)


def test_the_splits_stage_writes_what_it_drew(built: Tiny) -> None:
    """Token counts with EOS, kinds and shares, recounted from the text."""
    tokenizer = AutoTokenizer.from_pretrained(built.root / "seed-0/sft")
    folder = built.root / RHO / "splits"
    pairs = {row["id"]: row for row in pairs_of(built.root, f"{SEED}/relabel")}
    tables = {
        name: pairs_of(built.root, f"{RHO}/splits", name)
        for name in ("train", "held_out", "b-0.2", "b-0.5", "b-0.8")
    }
    metrics = manifest(built.root, f"{RHO}/splits")["metrics"]
    counts_of = {
        row["id"]: row for name in ("train", "held_out") for row in read_rows(folder / f"{name}.parquet")
    }
    for name, rows in tables.items():
        rows = [row | counts_of[row["id"]] for row in rows]
        assert len({row["id"] for row in rows}) == len(rows) == metrics[f"{name}/size"]
        for row in rows:
            assert all(row[key] == value for key, value in pairs[row["id"]].items())
            lengths = [len(tokenizer(row[side])["input_ids"]) + 1 for side in ("chosen", "rejected")]
            assert [row["chosen_tokens"], row["rejected_tokens"]] == lengths
            assert row["longer_preferred"] == (LONGER if lengths[0] > lengths[1] else SHORTER)
            assert max(lengths) >= 1.1 * min(lengths)
        counts = Counter(row["longer_preferred"] for row in rows)
        expected = float(name[2:]) if name.startswith("b-") else 0.5
        assert counts[LONGER] / len(rows) == metrics[f"{name}/longer_share"] == expected
    ids = {name: {row["id"] for row in rows} for name, rows in tables.items()}
    assert not ids["train"] & ids["held_out"]
    assert all(ids[name] <= ids["train"] for name in ids if name.startswith("b-"))


# ── Relabelling ─────────────────────────────────────────────────────────────────────────────────────────────


def test_relabelling_puts_the_higher_score_first_and_marks_what_it_turned(built: Tiny) -> None:
    human = {row["id"]: row for row in read_rows(built.root / "seed-0/data/pairs.parquet")}
    rows = pairs_of(built.root, f"{SEED}/relabel")
    assert [row["id"] for row in rows] == list(human)
    for row in rows:
        assert row["chosen_score"] >= row["rejected_score"]
        sides = ("rejected", "chosen") if row["swapped"] else ("chosen", "rejected")
        assert [row["prompt"], row["chosen"], row["rejected"]] == [
            human[row["id"]][side] for side in ("prompt", *sides)
        ]
    swapped = sum(row["swapped"] for row in rows)
    assert 0 < swapped < len(rows)
    assert manifest(built.root, "seed-0/relabel")["metrics"]["swapped_share"] == swapped / len(rows)


def test_sampled_labels_follow_the_scores_and_repeat(tiny: Tiny) -> None:
    first, _ = tiny.make("relabel.yaml", "labels=sample")
    rows = read_rows(first / "pairs.parquet")
    against = sum(row["chosen_score"] < row["rejected_score"] for row in rows)
    # An oracle of six steps is almost indifferent: about half of the draws go against its scores.
    expected = sum(1 / (1 + np.exp(abs(row["chosen_score"] - row["rejected_score"]))) for row in rows)
    assert abs(against - expected) < 5 * np.sqrt(len(rows) / 4)
    tiny.make("relabel.yaml", "labels=sample")
    assert read_rows(first / "pairs.parquet") == rows


@pytest.mark.parametrize("temperature", [0.001, 4.0])
def test_labels_drawn_at_a_temperature_go_against_the_oracle_as_often_as_it_says(
    tiny: Tiny, temperature: float
) -> None:
    found, made = tiny.make("relabel.yaml", "labels=sample", f"label_temperature={temperature}")
    rows = read_rows(found / "pairs.parquet")
    gaps = np.array([abs(row["chosen_score"] - row["rejected_score"]) for row in rows]) / temperature
    doubt = 1 / (1 + np.exp(gaps))
    against = np.array([row["chosen_score"] < row["rejected_score"] for row in rows])
    assert abs(against.sum() - doubt.sum()) < 4 * np.sqrt((doubt * (1 - doubt)).sum())
    assert made["metrics"]["against_share"] == pytest.approx(against.mean())
    assert against.mean() < 0.2 if temperature < 1 else against.mean() > 0.3


def test_a_temperature_of_labels_that_are_not_drawn_changes_no_key(empty: Tiny) -> None:
    plain, hot = (empty.stage("relabel.yaml", *more) for more in ((), ("label_temperature=2",)))
    drawn, hot_drawn = (
        empty.stage("relabel.yaml", "labels=sample", *more) for more in ((), ("label_temperature=2",))
    )
    assert plain.key == hot.key != drawn.key != hot_drawn.key


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


# ── Prompts ─────────────────────────────────────────────────────────────────────────────────────────────────


def prompts_of(kinds: np.ndarray, each: int) -> list[str]:
    """`each` pairs for a prompt, scattered over the rows."""
    return [f"p{number // each}" for number in np.random.default_rng(1).permutation(len(kinds)).tolist()]


@pytest.mark.parametrize(
    "values", [{}, {"rho": None}, {"rho": None, "num_pairs": None}, {"rho": 0.6, "ties": "include"}]
)
@pytest.mark.parametrize("each", [2, 5])
def test_pairs_of_one_prompt_are_trained_on_or_held_out_never_both(values: dict[str, Any], each: int) -> None:
    prompts = prompts_of(KINDS, each)
    recipe = splits(**values)
    split = draw(KINDS, recipe, 0, prompts)
    apart = [{prompts[row] for row in rows.tolist()} for rows in (split.train, split.held_out)]
    assert not apart[0] & apart[1]
    assert len(split.held_out) == 50 and len(set(everything(split))) == len(everything(split))
    if recipe.num_pairs is not None:
        assert len(split.train) == 200
    else:  # all pairs of the prompts that are not held out
        assert len(split.train) == sum(prompt not in apart[1] for prompt in prompts)
        assert len(apart[1]) <= -(-50 // each)
    if recipe.rho is not None:
        assert share(split.train) == pytest.approx(recipe.rho, abs=0.01) and share(
            split.held_out
        ) == pytest.approx(recipe.rho, abs=0.02)


@pytest.mark.parametrize(
    "values", [{}, {"rho": None}, {"rho": None, "num_pairs": None}, {"rho": 0.6, "ties": "include"}]
)
def test_where_every_prompt_is_unique_prompts_change_nothing(values: dict[str, Any]) -> None:
    recipe = splits(**values)
    one, other = draw(KINDS, recipe, 3), draw(KINDS, recipe, 3, prompts_of(KINDS, 1))
    assert one.train.tolist() == other.train.tolist() and one.held_out.tolist() == other.held_out.tolist()
    assert [rows.tolist() for rows in one.subsets.values()] == [
        rows.tolist() for rows in other.subsets.values()
    ]


def test_pairs_are_held_out_behind_those_to_train_on_and_of_prompts_that_are_held_out_already() -> None:
    first, second = np.arange(4), np.arange(4, 8)
    apart = hold_out([(first, 3, 1), (second, 2, 2)], np.arange(8))
    assert [rows.tolist() for rows in apart] == [[3], [6, 7]]
    shared = hold_out([(first, 3, 1), (second, 3, 1)], np.array([0, 1, 2, 3, 3, 2, 1, 0]))
    assert [rows.tolist() for rows in shared] == [[3], [4]]  # one prompt is lost to training, not two


@pytest.mark.parametrize(("left_out", "told"), [("longer", True), ("shorter", True), ("both", False)])
def test_a_bias_that_moved_either_way_is_told_of_though_few_pairs_are_left_out(
    left_out: str, told: bool
) -> None:
    kinds = np.array([LONGER, SHORTER] * 50, dtype=np.int8)
    ids = [str(number) for number in range(100)]
    notes = pa.table({"id": ids, "longer_preferred": kinds})
    pairs = Rows(Path(), cast(Any, None), np.arange(100), np.zeros(100, dtype=bool), notes)
    lost = {"longer": {"0", "2", "4"}, "shorter": {"1", "3", "5"}, "both": {"0", "1", "2", "3"}}[left_out]
    kept, said = [TokenRow(name, [], []) for name in ids if name not in lost], list[str]()
    found = bias_trained_on(pairs, kept, 48, cast(Any, SimpleNamespace(warn=said.append)))
    share = {"longer": 47 / 97, "shorter": 50 / 97, "both": 0.5}[left_out]
    assert found == {"longer_share": pytest.approx(share)} and bool(said) == told


def test_a_split_that_prompts_leave_too_few_pairs_for_says_how_many_there_are() -> None:
    message = (
        r"num_pairs 600 and held_out 50 needs 420 training pairs whose shorter response is preferred, "
        r"\d+ share no prompt with the 50 held"
    )
    with pytest.raises(BadInput, match=message):
        draw(
            KINDS,
            splits(rho=0.3, num_pairs=600, ensemble=[]),
            0,
            ["one"] * 900 + [f"p{n}" for n in range(400)],
        )
    with pytest.raises(
        BadInput,
        match="splits: num_pairs 1200 cannot be filled: 0 pairs share no prompt with the 50 held-out pairs",
    ):
        draw(KINDS, splits(rho=None, num_pairs=1200), 0, ["one"] * 1300)


def test_prompts_that_tables_share_are_counted_and_a_leak_is_said(empty: Tiny) -> None:
    (empty.suite / "pairs.jsonl").write_bytes(lines(*[GOOD | {"prompt": f"p{index}"} for index in range(6)]))
    (empty.suite / "test.jsonl").write_bytes(lines(*[{"prompt": f"p{index}"} for index in range(4, 14)]))
    (empty.suite / "written.jsonl").write_bytes(
        lines(*[{"prompt": f"p{index}", "completion": "c"} for index in range(4)])
    )
    (empty.suite / "data.yaml").write_text(
        "stage: data\nfiles: {pairs: pairs.jsonl, prompts_test: test.jsonl, sft_train: written.jsonl}\n"
    )
    leak = (
        "seed-0/data: leak: 2 of the 10 prompts of prompts_test are in pairs too; on them nothing is held out"
    )
    result = empty.run("train-sft", "sft.yaml", code=2)  # these files bring no tokenizer
    assert f"warning: {leak}" in result.stderr.splitlines()
    found = manifest(empty.root, "seed-0/data")
    assert found["warnings"] == [leak.removeprefix("seed-0/data: ")]
    shared = {name: value for name, value in found["metrics"].items() if name.startswith("shared_prompts/")}
    assert shared == {"shared_prompts/pairs/prompts_test": 2, "shared_prompts/sft_train/prompts_test": 0}


def test_data_inspect_counts_the_prompts_that_tables_share(tiny: Tiny) -> None:
    (data,) = json.loads(tiny.run("data inspect", "data.yaml", "--json").stdout).values()
    assert len(data["shared_prompts"]) == 7 and set(data["shared_prompts"].values()) == {0}
    result = tiny.run("data inspect", "splits.yaml")
    assert "prompts of held_out that are in train too: 0" in result.stdout
    assert "leak" not in result.stderr


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
