"""Sources without pairs: Debian descriptions, written responses; and the suite that samples its own pairs."""

from __future__ import annotations

import lzma
import random
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Tiny, manifest, rpo
from published import write_jsonl
from repository import ROOT
from test_sources import make
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rpo_cli.errors import BadInput

WORDS = ["filter", "archive", "window", "parser", "engine", "small", "fast", "daemon", "viewer", "editor"]


def body(number: int, length: int = 30) -> str:
    draw = random.Random(number)
    return f"Package {number:03d} is a " + " ".join(draw.choices(WORDS, k=length))


def paragraph(name: str, summary: str, text: str) -> str:
    lines = text.replace("\n ", "\0").replace("\n", "\n .\n ").replace("\0", "\n ")
    return f"Package: {name}\nDescription-md5: 00\nDescription-en: {summary}\n {lines}\n\n"


def archive(folder: Path, texts: dict[str, tuple[str, str]], sources: dict[str, str] | None = None) -> Path:
    """A Debian archive's two indices, packed as a mirror has them."""
    folder.mkdir(parents=True)
    packages = "".join(
        f"Package: {name}\n"
        + (f"Source: {(sources or {})[name]} (1.0)\n" if name in (sources or {}) else "")
        + f"Version: 1.0\nDescription: {summary}\nDescription-md5: 00\n\n"
        for name, (summary, _) in texts.items()
    )
    translations = "".join(paragraph(name, *described) for name, described in texts.items())
    (folder / "Packages.xz").write_bytes(lzma.compress(packages.encode()))
    (folder / "mirror_dists_stable_main_i18n_Translation-en").write_text(translations)
    return folder


def texts(count: int) -> dict[str, tuple[str, str]]:
    draw = random.Random(0)
    return {f"pack{n}": (" ".join(draw.choices(WORDS, k=4)) + f" no {n}", body(n)) for n in range(count)}


def all_rows(tables: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    return {row["prompt"]: row["completion"] for rows in tables.values() for row in rows}


def test_a_description_is_a_post_of_paragraphs_and_its_synopsis_the_summary(tmp_path: Path) -> None:
    described = texts(40)
    described["pack7"] = ("A fine set of tools", body(7) + "\n   * listed\nIt goes\n on here.\nAnd ends.")
    folder = archive(tmp_path / "lists", described)
    tables, _ = make(tmp_path, f"source: debian\ndataset: {folder}\nvalidation_share: 0.2\n")
    rows = all_rows(tables)
    post = f"{body(7)}\nIt goes on here.\nAnd ends."
    assert rows[f"PACKAGE: pack7\n\nPOST: {post}\n\nTL;DR:"] == " A fine set of tools"
    assert len(rows) == 40


def test_packages_of_one_source_are_on_one_side_and_alike_ones_stand_once(tmp_path: Path) -> None:
    described = texts(60)
    for n in range(0, 60, 2):  # pack0 and pack1 are of one source, and so on
        described[f"pack{n}-doc"] = (f"manual of no {n} in full", described[f"pack{n}"][1] + "\nThe manual.")
    sources = {name: f"src{int(name.removeprefix('pack').split('-')[0]) // 2}" for name in described}
    folder = archive(tmp_path / "lists", described, sources)
    tables, metrics = make(tmp_path, f"source: debian\ndataset: {folder}\nvalidation_share: 0.2\n")
    side = {}
    for table, rows in tables.items():
        for row in rows:
            name = row["prompt"].split("\n")[0].removeprefix("PACKAGE: ")
            side.setdefault(sources[name], set()).add(table.split("_")[1] if table[0] == "p" else table)
    for sides in side.values():
        assert len({each.removeprefix("sft_") for each in sides} - {"train"}) <= 1
        assert sides <= {"test"} or sides <= {"validation", "sft_validation"} or len(sides) == 1
    assert metrics["sft/family"] == 30


def test_indices_without_descriptions_say_what_to_fetch(tmp_path: Path) -> None:
    folder = archive(tmp_path / "lists", texts(3))
    (folder / "mirror_dists_stable_main_i18n_Translation-en").unlink()
    with pytest.raises(BadInput, match="Translation-en: apt-get -o Acquire::Languages=en update"):
        make(tmp_path, f"source: debian\ndataset: {folder}\n")


@pytest.mark.parametrize(
    ("summary", "text", "why"),
    [
        ("short", body(900), "another_length"),
        ("two words-and-more", body(901), "another_length"),
        ("a fine set of tools", "Too little.", "another_length"),
        ("a fine set of tools", body(902, 200), "another_length"),
        ("Package 903 is a", body(903), "copied"),
        ("transitional package for pack1", body(904), "upgrade"),
        ("another name for pack1", body(1), "duplicates"),
    ],
)
def test_what_makes_no_summary_is_left_out_and_counted(
    tmp_path: Path, summary: str, text: str, why: str
) -> None:
    described = texts(40) | {"zz": (summary, text)}
    folder = archive(tmp_path / "lists", described)
    tables, metrics = make(tmp_path, f"source: debian\ndataset: {folder}\nvalidation_share: 0.2\n")
    assert len(all_rows(tables)) == 40 and metrics[f"sft/{why}"] == 1


def test_written_responses_are_for_sft_or_to_sample_for_and_held_out_by_post(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}: {body(n)}", "completion": f" a{n}"} for n in range(200)]
    write_jsonl(tmp_path / "set/train.jsonl", rows)
    recipe = f"source: written\ndataset: {tmp_path / 'set'}\nvalidation_share: 0.1\nsft_share: 0.25\n"
    tables, _ = make(tmp_path, recipe + "rows: {prompts_test: 5}\n")
    prompts = {table: {row["prompt"] for row in found} for table, found in tables.items()}
    assert set(prompts) == {
        "sft_train",
        "sft_validation",
        "prompts_train",
        "prompts_validation",
        "prompts_test",
    }
    assert prompts["sft_validation"] == prompts["prompts_validation"] and len(prompts["prompts_test"]) == 5
    parts = [prompts[table] for table in ("sft_train", "prompts_train", "prompts_validation", "prompts_test")]
    assert sum(map(len, parts)) == len(set().union(*parts))
    # Of 160 posts a quarter, though they are those that were not held out.
    assert 25 < len(prompts["sft_train"]) < 0.4 * 160 < 0.6 * 160 < len(prompts["prompts_train"])


def tiny_model(folder: Path, lines: list[str]) -> Path:
    """A causal model of random weights with a byte-level tokenizer that has SmolLM2's padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<file_sep>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0])
    wrapped.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(wrapped), max_position_embeddings=512, eos_token_id=0, **sizes)
    torch.manual_seed(0)  # other weights may learn too little in a test's steps to be calibrated
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


PLAIN_STEPS = "warmup_steps: 0\noptim: adamw_torch"
CHANGES = {
    "base.yaml": "device: cpu\ndtype: float32\nthreads: 1\nper_device_eval_batch_size: 32",
    "data.yaml": "rows: {prompts_validation: 8, prompts_test: 8}",
    "sft.yaml": "max_steps: 40\nper_device_train_batch_size: 2\nlearning_rate: 1e-2\n" + PLAIN_STEPS,
    "human-pairs.yaml": "num_prompts: 40\nmax_new_tokens: 24",
    "oracle.yaml": "max_steps: 8\nper_device_train_batch_size: 2\nlearning_rate: 1e-2\nrequire: {}\n"
    + PLAIN_STEPS,
    "pairs.yaml": "num_samples: 6\nmax_new_tokens: 24",
    "splits.yaml": "num_pairs: 24\nheld_out: 8\nensemble: [0.4, 0.6]",
    "rm.yaml": "ensemble: [0.4, 0.6]\nmax_steps: 4\nper_device_train_batch_size: 2\n" + PLAIN_STEPS,
    "policy.yaml": "max_steps: 2\nmax_new_tokens: 8\nper_device_train_batch_size: 2\n" + PLAIN_STEPS,
    "evaluate.yaml": "max_new_tokens: 8\nbootstrap_samples: 100",
}


@pytest.mark.slow
def test_the_small_suite_runs_from_an_archive_to_an_evaluated_policy(tmp_path: Path) -> None:
    """The shipped recipes but for sizes, with a model of random weights in SmolLM2's place."""
    described = texts(300)
    model = tiny_model(tmp_path / "model", [" ".join(each) for each in described.values()])
    shutil.copytree(ROOT / "recipes/small", tmp_path / "small")
    suite = Tiny(tmp_path / "small", tmp_path / "runs")
    for recipe in CHANGES.keys() - {"data.yaml"}:
        suite.edit(recipe, CHANGES[recipe])
    data = suite.suite / "data.yaml"
    data.write_text(data.read_text().split("rows:")[0] + CHANGES["data.yaml"] + "\n")
    suite.edit("data.yaml", f"dataset: {archive(tmp_path / 'lists', described)}")
    suite.edit("sft.yaml", f"model_name_or_path: {model}")
    found = rpo(
        *("evaluate", "--recipe", suite.suite / "e-dpo.yaml", "--rho", "0.5", "--workspace", suite.root)
    )
    human = pd.read_parquet(suite.root / "seed-0/human-pairs/pairs.parquet")
    assert set(human["contrast"]) == {"written-samples", "written-others"}
    made = manifest(suite.root, "seed-0/pairs")["metrics"]
    assert made["pairs/drawn"] == 6 * made["pairs/prompts"] and made["rows/pairs"] > 32
    assert pq.read_table(suite.root / "seed-0/pairs/pairs.parquet").num_rows == made["rows/pairs"]
    assert "advantage" in found.output
