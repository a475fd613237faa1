"""Weights rounded together, and layers that read the same rows as one product: the numbers of an autocast."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from test_norms import model_of
from torch import Tensor, nn

from rpo_cli.models import Graphs, logps_of, make_batch, response_logits
from rpo_cli.models.rounded import Rounded

Rounds = Callable[[nn.Module, torch.dtype], Rounded | None]
BATCH = make_batch([[5, 6, 7], [8, 9]], [[[10, 11, 1], [12, 1]], [[13, 1], [14, 15, 1]]], 2, "shared")


def not_rounded(model: nn.Module, dtype: torch.dtype) -> None:
    """An autocast does it."""


def learnt(model: nn.Module, rounds: Rounds, *, autocast: bool = True, pieces: int = 2) -> list[Tensor]:
    """Log-probs, and the gradients after some pieces, as a training by graphs gets them."""
    graphs = Graphs(response_logits, None, rounds)
    model.train().zero_grad()
    with graphs.used():
        for _ in range(pieces):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = logps_of(graphs(model, BATCH), BATCH)
            torch.autograd.backward(found.square().sum())
        assert graphs.made
    assert {type(each) for each in model.modules() if isinstance(each, nn.Linear)} == {nn.Linear}
    return [found.detach(), *(each.grad.clone() for each in model.parameters() if each.grad is not None)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other)) and len(one) == len(other)


def test_weights_rounded_together_give_the_bytes_of_an_autocast() -> None:
    model = model_of("llama")
    expected = learnt(model, not_rounded)
    assert same(learnt(model, partial(Rounded, joined=False)), expected)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert not same(learnt(model, not_rounded), expected)
    assert same(learnt(model, partial(Rounded, joined=False)), learnt(model, not_rounded)), (
        "what they are now"
    )


def test_without_an_autocast_nothing_is_rounded() -> None:
    model = model_of("qwen3")
    assert same(learnt(model, Rounded, autocast=False), learnt(model, not_rounded, autocast=False))


def test_one_product_is_no_further_from_float32_than_three() -> None:
    errors = []
    for seed in range(3):
        model = model_of("llama")
        torch.manual_seed(seed)
        for weights in model.parameters():
            weights.data += 0.3 * torch.randn_like(weights)
        right = torch.cat([each.flatten() for each in learnt(model, not_rounded, autocast=False)[1:]])
        both = []
        for rounds in (Rounded, not_rounded):
            found = learnt(model, rounds)
            both.append(
                float((torch.cat([each.flatten() for each in found[1:]]) - right).norm() / right.norm())
            )
        errors.append(both)
    assert sum(one for one, _ in errors) <= 1.05 * sum(other for _, other in errors)


def test_a_product_is_made_of_layers_that_read_the_same_rows() -> None:
    model = model_of("llama")
    rounded = Rounded(model, torch.bfloat16)
    sizes = sorted(len(each.layers) for each in rounded.products)
    assert sizes == [1, 1, 1, 1, 1, 2, 2, 3, 3], "a head; of two layers o, down, gate + up, q + k + v"
    assert model.model.layers[0].self_attn.q_proj.product is model.model.layers[0].self_attn.v_proj.product
    rounded.end()
    tied = model_of("llama")
    tied.lm_head.weight = tied.model.embed_tokens.weight
    tied.model.layers[0].mlp.up_proj.requires_grad_(False)
    sizes = sorted(len(each.layers) for each in Rounded(tied, torch.bfloat16).products)
    assert sizes == [1, 1, 1, 1, 1, 2, 3, 3], "not what embeddings have, nor a frozen layer"


class Crossed(nn.Module):
    """Queries and keys of different rows, as where one text attends to another."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, rows: Tensor) -> Tensor:
        other = rows.flip(0)
        found: Tensor = self.q_proj(rows) + self.k_proj(other) * self.v_proj(other)
        return found


def test_layers_that_turn_out_to_read_other_rows_go_their_own_ways() -> None:
    torch.manual_seed(0)
    model, rows = Crossed(), torch.randn(3, 4)
    weights = list(model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(rows)
    expected = torch.autograd.grad(plain, weights, torch.ones_like(plain))
    rounded = Rounded(model, torch.bfloat16)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16), rounded.used():
            found = model(rows)
        slopes = rounded.gradients(found, weights, torch.ones_like(found))
        assert torch.equal(found, plain) and rounded.products[0].apart
        for one, other in zip(slopes, expected, strict=True):
            assert one is not None and torch.equal(one.float(), other)


def test_layers_that_are_computed_again_read_the_copies_again() -> None:
    model = model_of("llama")
    expected = learnt(model, Rounded)
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    assert same(learnt(model, Rounded), expected)


def test_a_model_that_is_copied_in_a_training_is_a_plain_one() -> None:
    model = model_of("llama")
    graphs = Graphs(response_logits)
    with graphs.used(), torch.autocast("cpu", torch.bfloat16):
        graphs(model.train(), BATCH)
        assert graphs.rounded is not None and graphs.made
        copied = deepcopy(model)
        assert {type(each) for each in copied.modules() if isinstance(each, nn.Linear)} == {nn.Linear}
    pairs = zip(copied.state_dict().items(), model.state_dict().items(), strict=True)
    assert all(one[0] == other[0] and torch.equal(one[1], other[1]) for one, other in pairs)


def test_a_model_that_changes_queries_in_place_is_captured_without_rounding() -> None:
    model = model_of("llama")
    layer = model.model.layers[0].self_attn
    layer.q_proj.register_forward_hook(lambda module, given, found: found.clamp_(-1, 1))
    graphs = Graphs(response_logits)
    with graphs.used(), torch.autocast("cpu", torch.bfloat16):
        graphs(model.train(), BATCH)
        assert graphs.made and graphs.open and graphs.rounded is None


def test_a_product_of_wrong_numbers_is_noticed_and_not_used() -> None:
    model = model_of("llama")
    wrong = Rounded(model, torch.bfloat16)
    masters = list(wrong.masters)
    masters[0], masters[3] = masters[0] * -1, masters[3] * 3
    wrong.masters = masters
    graphs = Graphs(response_logits, None, lambda model, dtype: wrong)
    with graphs.used(), torch.autocast("cpu", torch.bfloat16):
        graphs(model.train(), BATCH)
        assert graphs.made and graphs.rounded is None
