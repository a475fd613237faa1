"""Batches for policies and bulk scoring: prompts padded on the left, responses on the right.

With every prompt ending in the same column, only the response's positions need to reach the LM head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from rpo_cli.objectives import sequence_logps


@dataclass
class PolicyCollator:
    """Rows of a policy's data set to one batch of [chosen | rejected | reference samples], B rows each.

    Every row holds prompt_ids, chosen_ids, rejected_ids and optionally sample_ids, with the precomputed columns
    ref_chosen_logps, ref_rejected_logps, ref_sample_logps (scalars) and margins (k calibrated teacher margins).
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        groups = ["chosen_ids", "rejected_ids"] + (["sample_ids"] if "sample_ids" in rows[0] else [])
        prompts = [row["prompt_ids"] for row in rows] * len(groups)
        responses = [row[group] for group in groups for row in rows]
        batch = pad_batch(prompts, responses, self.pad_token_id)
        for name in ("ref_chosen_logps", "ref_rejected_logps", "ref_sample_logps", "margins"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        return batch


def pad_batch(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask, position_ids [N, P + R] and response_mask [N, R]; responses start in column P."""
    width = max(len(p) for p in prompts)
    depth = max(len(r) for r in responses)
    ids, mask = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        left, right = width - len(prompt), depth - len(response)
        ids.append([pad] * left + list(prompt) + list(response) + [pad] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(response)) + [0] * right)
    attention = torch.tensor(mask)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": attention,
        "position_ids": (attention.cumsum(1) - 1).clamp(min=0),
        "response_mask": attention[:, width:],
    }


def response_logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits that predict the response tokens, [N, R, V]: position t predicts token t."""
    depth = batch["response_mask"].shape[1]
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        logits_to_keep=depth + 1,
        use_cache=False,
    )
    logits: torch.Tensor = output.logits[:, -depth - 1 : -1]
    return logits


def response_logps(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """log pi(response | prompt), summed over its tokens, EOS included: [N] float32."""
    depth = batch["response_mask"].shape[1]
    return sequence_logps(response_logits(model, batch), batch["input_ids"][:, -depth:], batch["response_mask"])


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of `size` of about equal length, the longest first: what runs out of memory does so at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), size):
        yield order[start : start + size]
