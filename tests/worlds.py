"""A second world for the tests: several epochs, calibrated members that differ, samples that end.

And what its models say, computed plainly: one sequence at a time, unpadded, from the text of the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from conftest import RHO, SEED, Tiny, write_suite
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

BIASES = (0.2, 0.5, 0.8)
LIMIT = 6  # tokens of a sample: some end before, some there, some not
SAMPLES = 2  # of the reference for each prompt
# After thirty steps of 16 most samples end in EOS; the pairs fill four steps of 16.
CHANGES = {
    "sft.yaml": "max_steps: 30\nper_device_train_batch_size: 16\n",
    "oracle.yaml": "max_steps: 24\nlearning_rate: 1e-2\nper_device_train_batch_size: 16\n",
    "splits.yaml": "held_out: 64\n",
    "rm.yaml": "max_steps: 12\nper_device_train_batch_size: 8\n",
    "policy.yaml": "per_device_train_batch_size: 16\nmax_steps: 10\nlearning_rate: 1e-2\n"
    f"reference_samples: {SAMPLES}\nmax_new_tokens: {LIMIT}\n",
    "evaluate.yaml": f"max_new_tokens: {LIMIT}\n",
    "e-dpo.yaml": "calibration: temperature\ncalibration_mix: own\n",
}


def learnt_world(home: Path) -> None:
    """The chain of the tiny suite under `CHANGES`, built by the command line."""
    world = Tiny(write_suite(home / "tiny"), home / "runs")
    for recipe, text in CHANGES.items():
        world.edit(recipe, text)
    world.run("evaluate", "e-dpo.yaml")


@dataclass(frozen=True)
class Pair:
    """A preference row and its tokens."""

    row: dict[str, Any]
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Plain:
    """What is in a workspace, and what its models say of it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def table(self, path: str) -> pd.DataFrame:
        return pd.read_parquet(self.root / path)

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.root / SEED / "sft")

    def prompt(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def response(self, text: str) -> list[int]:
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def pairs(self, table: str = "train", rho: str = RHO) -> list[Pair]:
        """The rows of a table of D_rho."""
        rows = self.table(f"{rho}/splits/{table}.parquet").to_dict("records")
        return [
            Pair(r, self.prompt(r["prompt"]), self.response(r["chosen"]), self.response(r["rejected"]))
            for r in rows
        ]

    def policy(self, path: str | Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.root / path, dtype=torch.float32).eval()

    def reward_model(self, path: str | Path) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            self.root / path, dtype=torch.float32
        ).eval()

    def scores(self, member: float, table: str = "train") -> pd.DataFrame:
        """A member's raw scores of a table of D_rho, in its order; `margin`: chosen - rejected."""
        scores = self.table(f"{RHO}/scores/rm/b-{member:g}/{table}.parquet")
        return scores.assign(margin=scores["chosen"] - scores["rejected"])


@torch.no_grad()
def token_logps(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log-softmax [T, V] at each of a response's tokens."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    logps: torch.Tensor = logits.double().log_softmax(-1)
    return logps


def logp(model: Any, prompt: list[int], response: list[int]) -> float:
    """log pi(response | prompt), the sum over its tokens."""
    return float(token_logps(model, prompt, response).gather(1, torch.tensor(response)[:, None]).sum())


def kl(reference: Any, policy: Any, prompt: list[int], response: list[int]) -> float:
    """KL(pi_ref || pi_theta) along a response: the sum over its positions and over the vocabulary."""
    ref, ours = (token_logps(model, prompt, response) for model in (reference, policy))
    return float((ref.exp() * (ref - ours)).sum())


@torch.no_grad()
def reward(model: Any, prompt: list[int], response: list[int]) -> float:
    return float(model(input_ids=torch.tensor([prompt + response])).logits)
