"""`rpo data inspect`: what is counted, and in which tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import done, rpo, write

pytestmark = pytest.mark.usefixtures("here")


PAIRS = [("a a", " a", " a a a"), ("a a", " a a", "a a a"), ("a a", "b", " a"), ("a", " a a", " a")]


def prepare_letters() -> None:
    """A suite on four pairs, and a tokenizer of single letters that has a token for `ab` too."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(("<pad>", "</s>", "\u2581", "a", "b", "ab"))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained("letters/model")
    write(
        "letters",
        data="stage: data\nfiles: {pairs: pairs.jsonl, prompts_test: prompts.jsonl}\n",
        sft="stage: sft\nmodel_name_or_path: ./model\nmax_length: 9\n",
        splits="stage: splits\ndata: data.yaml\ntokenizer: ./model\n"
        "held_out: 1\nensemble: []\nlength_margin: 0.3\n",
    )
    Path("letters/prompts.jsonl").write_text('{"prompt": "a b"}\n')
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    Path("letters/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_data_inspect_counts_in_the_tokens_that_training_sees() -> None:
    prepare_letters()
    result = rpo("data", "inspect", "--recipe", "letters/data.yaml", "--json", "--rows", "3")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout).values()
    pairs = found["tables"]["pairs"]
    assert (pairs["rows"], pairs["duplicate_prompts"]) == (4, 2)
    # Tokens with EOS: chosen 3, 5, 2, 5; rejected 7, 6, 3, 3; prompts 3, 3, 3, 1.
    assert pairs["tokens"]["prompt"] == {"min": 1, "median": 3, "p95": 3, "max": 3}
    assert pairs["tokens"]["chosen"] == {"min": 2, "median": 4, "p95": 5, "max": 5}
    assert found["max_length"] == {"9": ["sft.yaml"]}
    assert pairs["over"] == {"9": 0.25}  # rows of 10, 9, 6 and 6
    assert (pairs["longer_preferred"], pairs["ties"]) == (0.25, 0)
    assert pairs["boundary_differs"] == 0.25  # `a a` + `b` ends in `ab`
    assert found["samples"]["pairs"][2]["chosen"] == ["b", "</s>"]
    assert len(found["samples"]["pairs"]) == 3
    assert "base model of sft.yaml" in found["tokenizer"]
    prompts = found["tables"]["prompts_test"]
    assert prompts["tokens"] == {"prompt": {"min": 3, "median": 3, "p95": 3, "max": 3}}
    assert prompts["longer_preferred"] is prompts["ties"] is prompts["boundary_differs"] is None


def test_data_inspect_asks_no_hub_for_a_directory_that_is_not_there(here: Path) -> None:
    prepare_letters()
    write("letters", sft="stage: sft\nmodel_name_or_path: ./nope\n")
    result = rpo("data", "inspect", "--recipe", "letters/data.yaml")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"{here}/letters/nope: no such model directory"


def test_data_inspect_counts_ties_with_the_margin_and_tokenizer_of_the_splits() -> None:
    prepare_letters()
    rows = [{"prompt": "a" * number, "chosen": c, "rejected": r} for number, (_, c, r) in enumerate(PAIRS, 1)]
    Path("letters/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(done("data", "inspect", "--recipe", "letters/splits.yaml", "--rho", "none", "--json"))
    assert list(found) == ["seed-0/unbiased/splits"]
    (splits,) = found.values()
    tables = splits["tables"]
    assert {name: table["rows"] for name, table in tables.items()} == {"train": 3, "held_out": 1}
    # Of the lengths 3:7, 5:6, 2:3, 5:3 only the second is within 30 %.
    assert sum(table["ties"] * table["rows"] for table in tables.values()) == pytest.approx(1)
    assert "tokenizer: of splits.yaml" in splits["tokenizer"]


def test_pairs_whose_prompt_is_held_out_are_counted() -> None:
    prepare_letters()
    (splits,) = json.loads(
        done("make-biased-splits", "--recipe", "letters/splits.yaml", "--rho", "none", "--json")
    ).values()
    metrics = splits["metrics"]  # three of the four pairs share a prompt
    assert metrics["barred_by_prompt"] + metrics["train/size"] + metrics["held_out/size"] == 4
    assert metrics["barred_by_prompt"] in (0, 2) and metrics["held_out/size"] == 1


def test_data_inspect_for_people_warns_of_tokens_over_the_boundary() -> None:
    prepare_letters()
    result = rpo("data", "inspect", "--recipe", "letters/data.yaml", "--rows", "1", "--max-length", "5")
    assert result.exit_code == 0, result.output
    assert "over 5" in result.stdout
    assert "100.0 %" in result.stdout
    assert "warning: pairs: in 25.0 % of 4 rows" in result.stderr
    assert "a|" in result.stdout


def test_data_inspect_looks_at_no_model() -> None:
    result = rpo("data", "inspect", "--recipe", "sft.yaml")
    assert result.exit_code == 2
    assert "is an sft recipe" in result.stderr
