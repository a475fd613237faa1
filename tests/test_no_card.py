"""A step leaves no tensor on the host and asks a GPU for no value, seen without one (no_card.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny
from no_card import CARD, Waited, Watched, no_card, to_card
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rpo_cli.models import graphs, make_batch, response_logps, response_rewards, static_rows
from rpo_cli.models.draws import Sampling
from rpo_cli.models.frozen import hold_in_bfloat16
from rpo_cli.models.layout import Layout, Reader
from rpo_cli.models.norms import fuse_norms
from rpo_cli.models.rotary import fuse_rotary
from rpo_cli.objectives import OBJECTIVES, Pair
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.stages import sft
from rpo_cli.stages.training import arguments
from rpo_cli.stages.training.trl import WholeBatches

PIECES = 2


class Ended(BaseException):
    """The training was looked at, and nothing of it is left to do."""


def steps(trainer: WholeBatches, count: int = 2) -> Watched:
    """Optimiser steps without the optimiser, of two pieces each; the last is watched, and has no metrics."""
    rows = [trainer.train_dataset[i] for i in range(2 * PIECES)]
    trainer.args.gradient_accumulation_steps = trainer.current_gradient_accumulation_steps = PIECES
    collated = [trainer.data_collator(rows[start : start + 2]) for start in range(0, len(rows), 2)]
    members, model, watched = getattr(trainer, "members", None), trainer.model, Watched()
    if trainer.args.activation_checkpointing:
        model.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)
    others = [each for each in [getattr(trainer, "kl_reference", None)] if each is not None]
    for each in (model, *others):  # as they are loaded on a GPU
        fuse_norms(each)
        fuse_rotary(each)
    with no_card() as fake, trainer.graphs.used() if trainer.graphs else nullcontext():
        for each in (model, *others):
            to_card(each, fake)
        pieces = [{name: fake.from_tensor(each) for name, each in piece.items()} for piece in collated]
        for name, value in vars(members).items() if members else ():
            if isinstance(value, Tensor):
                setattr(members, name, fake.from_tensor(value).to("meta"))
        for number in range(count):
            trainer.state.global_step = number
            with watched if number == count - 1 else nullcontext():
                tokens = [each["tokens"] for each in pieces if "tokens" in each]
                whole = torch.stack(tokens).sum() if tokens else None
                if members is not None:
                    members.begin_step(trainer._choose(pieces) if members.scope == "batch" else None)
                for piece in pieces:
                    trainer.training_step(model, dict(piece), whole)
                model.zero_grad()
                if members is not None:
                    members.end_step(trainer.batch_mean, trainer.batch_sum)
    return watched


RUNS = {
    "dpo": ("dpo.yaml",),
    "p-dpo, full": ("p-dpo.yaml", "kl_estimator=full"),
    **{
        f"e-dpo, {scope}": ("e-dpo.yaml", f"ensemble_min={scope}")
        for scope in ("example", "batch", "dataset")
    },
    "reward": ("rm.yaml",),
    "sft": ("sft.yaml",),
    "dpo, LoRA": ("dpo.yaml", "use_peft=true", "lora_r=2"),
    "dpo, layers computed again": ("dpo.yaml", "gradient_checkpointing=true"),
    "reward, kernel by kernel": ("rm.yaml", "cuda_graphs=false"),
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize("name", RUNS)
def test_a_training_step_asks_a_card_for_nothing_and_leaves_nothing_on_the_host(
    name: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, *settings = RUNS[name]
    watched: list[Watched] = []
    by_graphs = not any("checkpointing" in each or "graphs" in each for each in settings)

    def train(trainer: WholeBatches, *given: Any, **more: Any) -> None:
        assert (trainer.graphs is not None) is by_graphs
        watched.append(steps(trainer))
        raise Ended

    for module in (arguments, sft):
        monkeypatch.setattr(module, "graphed", lambda *given: by_graphs)
    monkeypatch.setattr(graphs._Graph, "_beside", lambda self, out, found: None)
    monkeypatch.setattr(WholeBatches, "train", train)
    with pytest.raises(Ended):
        tiny.make(recipe, "logging_steps=100", "dtype=bfloat16", *settings)
    wide = watched[0].products.pop(torch.float32, 0)
    assert set(watched[0].products) == {torch.bfloat16}
    assert (wide > 0) is (recipe == "rm.yaml"), "a reward is not rounded"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_loss_asks_a_card_for_anything_or_leaves_anything_on_the_host(name: str) -> None:
    recipe = PolicyRecipe(stage="policy", objective=name)
    with no_card():
        pairs = torch.ones(3, device=CARD)
        columns = {"ref_chosen_logps": pairs, "ref_rejected_logps": pairs, "margins": pairs[:, None]}
        logps = torch.ones(6, device=CARD, requires_grad=True)
        with Watched():
            losses = OBJECTIVES[name].losses(Pair(logps, columns, lambda: torch.ones_like(logps)), recipe)
            losses.mean().backward()
    assert logps.grad is not None and logps.grad.device == CARD


SIZES: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
PROMPTS = [[5] * length for length in (3, 9, 9, 12)]


def read_only(made: type[Any]) -> Any:
    """A model as it is read on a card."""
    model = made.from_config(AutoConfig.for_model(**SIZES, num_labels=1, pad_token_id=0)).eval()
    hold_in_bfloat16(model)
    fuse_norms(model)
    fuse_rotary(model)
    return model


@pytest.mark.parametrize("layout", ["shared", "right"])  # of plain rows transformers asks for the mask
@pytest.mark.parametrize(
    ("made", "read"),
    [(AutoModelForCausalLM, response_logps), (AutoModelForSequenceClassification, response_rewards)],
)
def test_a_batch_is_scored_without_asking_the_card(made: type[Any], read: Reader, layout: Layout) -> None:
    model = read_only(made)
    batch = make_batch(PROMPTS, [[[6] * 4, [7] * 5]] * len(PROMPTS), 0, layout)
    with no_card() as fake, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        to_card(model, fake)
        there = {name: fake.from_tensor(each) for name, each in batch.items()}
        with Watched() as watched:
            found = read(model, there)
    assert found.device == CARD and found.dtype == torch.float32
    assert watched.products[torch.bfloat16] > 0
    assert (watched.products[torch.float32] > 0) is (read is response_rewards)


def test_a_sampling_step_that_is_captured_asks_the_card_for_nothing() -> None:
    model, how = read_only(AutoModelForCausalLM), Sampling(1.0, 0.9, 8, 4, 0)
    with no_card() as fake, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        to_card(model, fake)
        rows = static_rows.Rows(model, 4, 24, how, [1])
        texts = [np.array(prompt) for prompt in PROMPTS]
        rows.fill(range(4), texts, torch.zeros(4, 8, dtype=torch.float64))
        rows.advance(16)
        with Watched() as watched:
            rows.advance(16)
    assert set(watched.products) == {torch.bfloat16}


@pytest.mark.parametrize(
    "asks",
    [
        lambda there: there.sum().item(),
        lambda there: bool(there.any()),
        lambda there: there.tolist(),
        lambda there: there[there > 0],
        lambda there: there.nonzero(),
        lambda there: there.cpu(),
        lambda there: there + torch.ones(()),
        lambda there: there + torch.ones(2),
        lambda there: there[torch.zeros(2, dtype=torch.long)],
        lambda there: there.copy_(torch.ones(2)),
        lambda there: torch.ones(2).to(there.device),
        lambda there: torch.tensor([1.0], device=there.device),
    ],
)
def test_what_waits_for_a_card_or_reads_the_host_is_noticed(asks: Callable[[Tensor], object]) -> None:
    with no_card():
        there = torch.ones(2, device=CARD)
        with Watched():
            there.add(torch.zeros_like(there)).sum()
            with pytest.raises(Waited, match="test_no_card"):
                asks(there)
