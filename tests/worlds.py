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

    id: str
    text: str  # of the prompt
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

    @cached_property
    def texts(self) -> dict[str, dict[str, str]]:
        """Prompt, chosen and rejected of every pair by its id, as the oracle labelled it."""
        rows = self.table(f"{SEED}/data/pairs.parquet").set_index("id")
        swapped = self.table(f"{SEED}/relabel/pairs.parquet").set_index("id")["swapped"]
        turned = rows.rename(columns={"chosen": "rejected", "rejected": "chosen"})
        return {name: (turned if swapped[name] else rows).loc[name].to_dict() for name in swapped.index}

    def pairs(self, table: str = "train", rho: str = RHO) -> list[Pair]:
        """The rows of a table of D_rho."""
        return [
            self._pair(name, self.texts[name]) for name in self.table(f"{rho}/splits/{table}.parquet")["id"]
        ]

    def _pair(self, name: str, texts: dict[str, str]) -> Pair:
        chosen, rejected = (self.response(texts[side]) for side in ("chosen", "rejected"))
        return Pair(name, texts["prompt"], self.prompt(texts["prompt"]), chosen, rejected)

    def samples(self) -> pd.DataFrame:
        """The reference's samples, with the text of their prompt."""
        table = self.table(f"{SEED}/reference-samples/relabel/samples.parquet")
        ids = [list(map(int, ids)) for ids in table["sample_ids"]]
        return table.assign(prompt=[self.texts[name]["prompt"] for name in table["id"]], sample_ids=ids)

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
