"""The paper's suites from data to figures: the shipped recipes with only places and sizes changed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import published
import pytest
import torch
from conftest import Tiny, manifest, set_aside
from repository import copy_tracked
from transformers import LlamaConfig, LlamaForCausalLM

from rpo_cli.recipes import load

POLICIES = ("dpo", "ipo", "p-dpo", "d-dpo", "dp-dpo", "e-dpo")
ENSEMBLE = (0.2, 0.4, 0.5, 0.6, 0.8)
BATCH = "per_device_train_batch_size: 8\ngradient_accumulation_steps: 1\ngradient_checkpointing: false\n"
SIZES = {
    "base.yaml": "device: cpu\ndtype: float32\nthreads: 1\nmax_length: 64",
    "splits.yaml": "device: cpu\nthreads: 1\nrhos: [0.2, 0.8]\nnum_pairs: 40\nheld_out: 60",
    "sft.yaml": BATCH + "max_steps: 8\nlearning_rate: 1e-2\nsave_steps: null",
    "oracle.yaml": BATCH + "max_steps: 60\nlearning_rate: 1e-2\nwarmup_steps: 0\nsave_steps: null",
    "rm.yaml": BATCH + "max_steps: 4\nlearning_rate: 2e-3\nwarmup_steps: 0\nsave_steps: null",
    "policy.yaml": BATCH
    + "max_steps: 4\nlearning_rate: 1e-2\nwarmup_steps: 0\nlogging_steps: 1\nsave_steps: null\n"
    "max_new_tokens: 8",
    "evaluate.yaml": "max_new_tokens: 8\nbootstrap_samples: 100",
    "figure2.yaml": "device: cpu\nrhos: [0.2, 0.8]\nbootstrap_samples: 100",
}


def small(name: str, home: Path, sizes: dict[str, str]) -> Tiny:
    """A suite as shipped but for its sizes, and a random model of 1 layer."""
    set_aside()
    copy_tracked(f"recipes/{name}", home)
    copy_tracked("recipes/hardware", home)
    model = home / "model"
    tokenizer = published.word_tokenizer(model)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(model)
    suite = Tiny(home / "recipes" / name, home / "runs")
    for recipe, text in sizes.items():
        suite.edit(recipe, text)
    for policy in POLICIES:  # two values of the seven
        file = suite.suite / f"{policy}.yaml"
        file.write_text(re.sub(r"^(  (?:beta|tau): \[).*", r"\g<1>0.1, 1]", file.read_text(), flags=re.M))
    suite.edit("sft.yaml", f"model_name_or_path: {model}")
    file = suite.suite / "data.yaml"
    file.write_text(file.read_text().split("rows:")[0])  # the sizes are a block of lines
    suite.edit("data.yaml", f"tokenizer: {model}\ndevice: cpu\nthreads: 1\nmax_prompt_tokens: 27")
    return suite


@pytest.fixture
def tldr(tmp_path: Path) -> Tiny:
    """The TL;DR suite on tiny repositories of the published layouts."""
    suite = small("tldr", tmp_path, SIZES)
    sets = (
        published.comparisons_parquet(tmp_path / "comparisons", 160, 20),
        published.tldr(tmp_path / "tldr", 40, 8, 12),
    )
    rows = "rows: {prompts_validation: 6, prompts_test: 8, pairs_validation: 20}"
    suite.edit("data.yaml", f"dataset: {sets[0]}\nsft_dataset: {sets[1]}\n{rows}")
    return suite


@pytest.mark.slow
def test_every_stage_of_the_tldr_suite_through_figure2(tldr: Tiny) -> None:
    out = tldr.root.parent / "figure"
    tldr.run("figure figure2", "figure2.yaml", "--tune", "--out", out)
    data = manifest(tldr.root, "seed-0/data")["metrics"]
    assert data["cnndm"] == 1 and data["cut_posts"] > 0 and data["rows/pairs"] > 200
    assert (data["rows/prompts_test"], data["rows/pairs_validation"]) == (8, 20)
    assert manifest(tldr.root, "seed-0/oracle")["metrics"]["held_out_accuracy"] > 0.9
    for rho in (0.2, 0.8):
        splits = manifest(tldr.root, f"seed-0/rho-{rho}/splits")["metrics"]
        assert splits["train/size"] == 40 and splits["train/longer_share"] == rho
        assert [splits[f"b-{b}/longer_share"] for b in ENSEMBLE] == list(ENSEMBLE)
    for policy in POLICIES:
        chosen = load(str(tldr.suite / f"{policy}.yaml")).recipe.by_rho  # type: ignore[attr-defined]
        assert chosen.keys() == {0.2, 0.8} and all(
            value in (0.1, 1.0) for values in chosen.values() for value in values.values()
        )
    cells = pd.read_parquet(out / "cells.parquet")
    assert cells.groupby(["policy", "rho"]).size().to_dict() == {
        (p, r): 8 for p in POLICIES for r in (0.2, 0.8)
    }
    assert (cells["advantage"] != 0).any() and (out / "figure2.png").is_file()
    assert json.loads((out / "figure2.json").read_text())["missing"] == []
    assert "0 stages to build" in tldr.run("figure figure2", "figure2.yaml", "--dry-run").output


@pytest.mark.slow
def test_every_stage_of_the_helpfulness_suite_through_its_figure(tmp_path: Path) -> None:
    sizes = {recipe: text for recipe, text in SIZES.items() if recipe != "figure2.yaml"}
    sizes |= {
        "splits.yaml": "device: cpu\nthreads: 1\nheld_out: 60",
        "figure-unbiased.yaml": "device: cpu\nbootstrap_samples: 100",
    }
    suite = small("helpfulness", tmp_path, sizes)
    rows = "rows: {prompts_validation: 6, prompts_test: 8}"
    suite.edit(
        "data.yaml", f"dataset: {published.hh(tmp_path / 'hh', 240, 12)}\nvalidation_share: 0.1\n{rows}"
    )
    out = tmp_path / "figure"
    suite.run("figure unbiased", "figure-unbiased.yaml", "--tune", "--out", out)
    data = manifest(suite.root, "seed-0/data")["metrics"]
    assert data["pairs/read"] == 252 and (data["rows/prompts_test"], data["rows/prompts_validation"]) == (
        8,
        6,
    )
    splits = manifest(suite.root, "seed-0/unbiased/splits")["metrics"]
    assert splits["train/size"] + splits["held_out/size"] == data["rows/pairs"]
    cells = pd.read_parquet(out / "cells.parquet")
    assert (
        cells.groupby("policy", observed=True).size().to_dict() == dict.fromkeys(POLICIES, 8)
        and (cells["advantage"] != 0).any()
    )
    tried = pd.read_csv(out / "validation.csv").groupby("policy")["value"].apply(list)
    assert set(tried.index) == set(POLICIES) and all(values == [0.1, 1.0] for values in tried)
    assert (
        len(json.loads((out / "unbiased.json").read_text())["claims"]) == 10
        and (out / "unbiased.png").is_file()
    )
    assert (
        "0 stages to build"
        in suite.run("figure unbiased", "figure-unbiased.yaml", "--tune", "--dry-run").output
    )
