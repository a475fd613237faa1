"""A row that holds a prompt once with all its responses gives the numbers of a row for each response."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from conftest import RHO, Tiny, column
from logps import sequence_logps
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rpo_cli.models import (
    Layout,
    layout_for,
    make_batch,
    predicts,
    response_lengths,
    response_logits,
    response_logps,
    response_rewards,
)
from rpo_cli.models import choice as choice_of_layout
from rpo_cli.models.layout import PROMPT, by_tokens
from rpo_cli.models.load import disable_dropout
from rpo_cli.objectives.kl import kl_full
from rpo_cli.objectives.logps import token_logps

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ALIKE: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen2": {**SMALL, "num_key_value_heads": 2},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": SMALL,
    "gemma2": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
    "gemma3_text": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
CANNOT: dict[str, dict[str, Any]] = {
    "mistral": {**SMALL, "num_key_value_heads": 2, "sliding_window": 6},
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
}
VOCABULARY, PAD = 50, 0
BOTH: tuple[Layout, ...] = ("plain", "shared")


def model_of(kind: str, settings: dict[str, Any], auto: Any = AutoModelForCausalLM, **kwargs: Any) -> Any:
    """A small model of a family, with weights so large that a token seen or not seen shows."""
    config = AutoConfig.for_model(
        kind,
        **settings,
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        eos_token_id=1,
        bos_token_id=2,
        initializer_range=0.3,
    )
    if auto is AutoModelForSequenceClassification:
        config.num_labels = 1
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32, **kwargs)
    disable_dropout(model)
    return model.eval()


def shares(model: Any, prompts: list[list[int]], groups: list[list[list[int]]]) -> bool:
    return layout_for(model, response_logps, prompts, groups, shared=True) == "shared"


def some_rows(responses: int = 3) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts and responses of many lengths; two responses of a row begin alike, one is the EOS alone."""
    draw = random.Random(0)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(least, most))]

    prompts = [tokens(3, 14) for _ in range(5)]
    groups = [[[*tokens(1, 9), 1] for _ in range(responses)] for _ in prompts]
    groups[0][1] = [groups[0][0][0], *groups[0][1]]
    groups[1][0] = [1]
    return prompts, groups


@pytest.mark.parametrize(
    ("kind", "attention"), [(k, a) for k in ALIKE for a in ("sdpa", "eager") if (k, a) != ("gemma2", "sdpa")]
)
def test_shared_prompts_change_no_logp_and_no_gradient(kind: str, attention: str) -> None:
    model = model_of(kind, ALIKE[kind], attn_implementation=attention)
    prompts, groups = some_rows()
    values, gradients = [], []
    for layout in BOTH:
        batch = make_batch(prompts, groups, PAD, layout)
        logps = response_logps(model, batch)
        model.zero_grad()
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
        values.append(logps.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert values[0].std() > 1
    assert values[1] == pytest.approx(values[0], abs=1e-4)
    assert (gradients[1] - gradients[0]).abs().max() < 1e-4 * gradients[0].abs().max()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt_neox", "gemma2", "gpt2"])
def test_shared_prompts_change_no_reward(kind: str) -> None:
    model = model_of(kind, ALIKE[kind], AutoModelForSequenceClassification)
    prompts, groups = some_rows()
    plain, shared = (response_rewards(model, make_batch(prompts, groups, PAD, layout)) for layout in BOTH)
    assert plain.std() > 0.1
    assert shared.detach() == pytest.approx(plain.detach(), abs=1e-4)


@pytest.mark.parametrize("kind", ALIKE)
def test_a_mask_that_lets_responses_see_each_other_would_show(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rpo_cli.models import layout

    model, (prompts, groups) = model_of(kind, ALIKE[kind]), some_rows()
    assert shares(model, prompts, groups)
    right = layout.attention_of
    monkeypatch.setattr(layout, "attention_of", lambda segments: right(segments.clamp(max=PROMPT)))
    choice_of_layout.PROVEN.seen.clear()
    assert not shares(model, prompts, groups)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_padding_that_is_seen_would_show(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rpo_cli.models import layout

    model, (prompts, groups) = model_of(kind, ALIKE[kind]), some_rows()
    right = layout.attention_of
    monkeypatch.setattr(layout, "attention_of", lambda segments: right(segments.clamp(min=PROMPT)))
    assert not shares(model, prompts, groups)


def test_a_window_that_one_response_exceeds_is_found_out_whichever_row_it_is_in() -> None:
    prompts, groups = some_rows()
    prompts[2], groups[2] = (
        prompts[2][:4],
        [[5] * 20 + [1], [6, 1], [1]],
    )  # not the longest row, but the longest response
    alone, total = (
        [len(prompt) + of(map(len, group)) for prompt, group in zip(prompts, groups, strict=True)]
        for of in (max, sum)
    )
    assert alone.index(max(alone)) == 2 != total.index(max(total)) and sorted(alone)[-2] < 23
    found = []
    for window in (23, 25):
        model = model_of("mistral", {**CANNOT["mistral"], "sliding_window": window})
        values = [response_logps(model, make_batch(prompts, groups, PAD, layout)) for layout in BOTH]
        assert shares(model, prompts, groups) == torch.allclose(*values, atol=1e-3)
        found.append(shares(model, prompts, groups))
    assert found == [False, True]


@pytest.mark.parametrize("kind", CANNOT)
def test_a_model_that_cannot_share_prompts_is_found_out(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model, (prompts, groups) = model_of(kind, CANNOT[kind]), some_rows()
    model.train()
    assert not shares(model, prompts, groups)
    assert "cannot share prompts" in caplog.text and "a row of its own" in caplog.text
    assert model.training


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
def test_gradient_checkpointing_and_adapters_work_on_shared_prompts() -> None:
    from peft import LoraConfig, get_peft_model

    prompts, groups = some_rows()
    batch = make_batch(prompts, groups, PAD, "shared")
    model = model_of("llama", ALIKE["llama"])
    before = response_logps(model, batch)
    before.sum().backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    model.train()
    model.activation_checkpointing_enable()
    again = response_logps(model, batch)
    again.sum().backward()
    assert torch.equal(before, again) and torch.equal(model.lm_head.weight.grad, gradient)
    adapted = get_peft_model(
        model_of("llama", ALIKE["llama"]), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    )
    assert response_logps(adapted, batch).detach() == pytest.approx(before.detach(), abs=1e-5)
    judge = model_of("llama", ALIKE["llama"], AutoModelForSequenceClassification)
    rewards = response_rewards(judge, batch).detach()
    adapted = get_peft_model(
        judge, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", modules_to_save=["score"])
    )
    assert response_rewards(adapted, batch).detach() == pytest.approx(rewards, abs=1e-5)
    response_rewards(adapted, batch).sum().backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert any("score.modules_to_save" in name for name in trained) and any(
        "lora_" in name for name in trained
    )


def test_both_layouts_hold_the_same_lengths_and_predict_the_same_positions() -> None:
    prompts, groups = some_rows()
    plain, shared = (make_batch(prompts, groups, PAD, layout) for layout in BOTH)
    lengths = [len(group[g]) for g in range(3) for group in groups]
    assert response_lengths(plain).tolist() == response_lengths(shared).tolist() == lengths
    # Two responses' first tokens have one position between them: the prompt's last.
    assert (
        predicts(shared, 3).sum(1).tolist()
        == [len(group[2]) for group in groups]
        == predicts(plain, 1)[-5:].sum(1).tolist()
    )
    assert shared["input_ids"].numel() < 0.7 * plain["input_ids"].numel()


def test_the_exact_kl_is_the_same_in_both_layouts() -> None:
    policy, reference = model_of("llama", ALIKE["llama"]), model_of("gpt2", ALIKE["gpt2"])
    prompts, groups = some_rows()
    plain, shared = (make_batch(prompts, groups, PAD, layout) for layout in BOTH)
    logits = [[response_logits(model, batch) for model in (policy, reference)] for batch in (plain, shared)]
    one = kl_full(*(values[-5:] for values in logits[0]), predicts(plain, 1)[-5:])
    two = kl_full(*logits[1], predicts(shared, 3))
    assert one.min() > 1
    assert two.detach() == pytest.approx(one.detach(), rel=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "response"])
def test_what_has_no_tokens_is_refused(kind: str) -> None:
    prompt, group = ([], [[5, 1]]) if kind == "prompt" else ([5], [[6, 1], []])
    with pytest.raises(ValueError, match="without tokens"):
        make_batch([prompt], [group], PAD, "shared")


def test_log_softmax_in_pieces_is_log_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 11, dtype=torch.float64, requires_grad=True)
    tokens, positions = torch.randint(11, (3, 4)), torch.tensor([[0, 1, 0, 3], [2, 2, 2, 2], [0, 1, 2, 4]])
    tokens[1] = 7  # one token at one position, four times
    monkeypatch.setattr("rpo_cli.objectives.logps._rows_of", lambda flat: 4)  # 15 rows in four pieces
    assert torch.autograd.gradcheck(lambda x: token_logps(x, tokens, positions), logits)
    plain = (
        logits.log_softmax(-1)
        .gather(1, positions[..., None].expand(-1, -1, 11))
        .gather(2, tokens[..., None])[..., 0]
    )
    assert torch.allclose(token_logps(logits, tokens, positions), plain, rtol=1e-14)
    straight = torch.arange(5).expand(3, 5)
    target = torch.randint(11, (3, 5))
    mask = torch.rand(3, 5) < 0.7
    ours = token_logps(logits, target, straight).masked_fill(~mask, 0).sum(1)
    assert ours.tolist() == pytest.approx(sequence_logps(logits, target, mask).tolist(), rel=1e-14)
    low = logits.detach().bfloat16().requires_grad_()
    (gradient,) = torch.autograd.grad(token_logps(low, tokens, positions).sum(), low)
    (exact,) = torch.autograd.grad(token_logps(logits, tokens, positions).sum(), logits)
    assert token_logps(low, tokens, positions).dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert (gradient.double() - exact).abs().max() < 0.05


def test_batches_by_tokens_hold_every_row_once_and_no_more_tokens_than_the_longest() -> None:
    lengths = [random.Random(i).randint(1, 40) for i in range(200)]
    found = list(by_tokens(lengths, 8))
    assert sorted(i for rows in found for i in rows) == list(range(200))
    assert all(len(rows) * max(lengths[i] for i in rows) <= 8 * max(lengths) for rows in found)
    assert len(found[0]) == 8 and max(map(len, found)) > 16
    assert [max(lengths[i] for i in rows) for rows in found] == sorted(
        (max(lengths[i] for i in rows) for rows in found), reverse=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dpo", "ipo", "ipo-norm", "p-dpo", "d-dpo", "dp-dpo", "e-dpo", "rm"])
def test_a_stage_trains_the_same_in_both_layouts(tiny: Tiny, recipe: str) -> None:
    settings = ("optim=sgd", "learning_rate=0.01" if recipe == "ipo" else "learning_rate=0.1")
    runs = [tiny.make(f"{recipe}.yaml", f"shared_prompts={value}", *settings) for value in ("true", "false")]
    assert [manifest["metrics"]["shared_prompts"] for _, manifest in runs] == [True, False]
    losses = [column(directory, "loss") for directory, _ in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-6)
    assert len(set(losses[0])) == 6


@pytest.mark.slow
def test_tables_are_the_same_in_both_layouts(built: Tiny, tiny: Tiny) -> None:
    import pyarrow.parquet as pq

    tiny.make("e-dpo.yaml", "shared_prompts=false")
    for table in ("seed-0/reference-logps/relabel/logps.parquet", f"{RHO}/scores/rm/b-0.2/train.parquet"):
        one, two = pq.read_table(built.root / table).to_pydict(), pq.read_table(tiny.root / table).to_pydict()
        for name in one:
            assert two[name] == (pytest.approx(one[name], abs=1e-5) if name != "id" else one[name])


def test_rows_of_a_given_shape_that_begin_at_the_left_have_their_tokens_and_ends() -> None:
    prompts, groups = [[5], [6]], [[[7, 8, 9]], [[7]]]
    free = make_batch(prompts, groups, 0, "right")
    given = make_batch(prompts, groups, 0, "right", (8, 8))  # a prompt's part is wider than any prompt
    assert given["input_ids"].shape == (2, 16) and given["predictors"].shape == (2, 15)
    assert torch.equal(given["input_ids"][:, :4], free["input_ids"])
    assert torch.equal(given["ends"], free["ends"])
    assert given["attention_mask"].sum(1).tolist() == [4, 2]


@pytest.mark.parametrize("accelerate", ["no", "bf16"])  # the second as in several processes
def test_layouts_of_a_model_trained_in_bfloat16_are_compared_in_float32(
    accelerate: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a batch differ in bfloat16 from rows read alone on a GPU, where shapes choose the kernels."""
    seen: list[torch.dtype] = []
    wrapped: list[bool] = []
    alone = choice_of_layout.read_alone

    def reads(model: Any, *given: Any) -> torch.Tensor:
        wrapped.append("_original_forward" in vars(model))
        hook = model.score.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        values = alone(model, *given)
        hook.remove()
        return values

    monkeypatch.setattr(choice_of_layout, "read_alone", reads)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", accelerate)
    tiny.run("train-rm", "oracle.yaml", "--seed", 7, "--set", "dtype=bfloat16")
    # Before the training, and after it where that is another model to read.
    assert wrapped == ([False] if accelerate == "no" else [False, True])
    assert set(seen) == {torch.float32}


def test_too_little_memory_for_a_layout_says_nothing_of_the_model() -> None:
    model = model_of("llama", SMALL)
    prompts, groups = some_rows(2)

    def full(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if len(batch["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return response_logps(model, batch)

    with pytest.raises(torch.OutOfMemoryError):
        layout_for(model, full, prompts, groups, shared=True)


def test_rewards_in_bfloat16_are_not_rounded_by_the_head() -> None:
    """Rewards on a grid of 1/64 would tie, and ties are no preference."""
    model = model_of("llama", SMALL, AutoModelForSequenceClassification)
    batch = make_batch(*some_rows(2), PAD, "shared")
    with torch.autocast("cpu", torch.bfloat16):
        rewards = response_rewards(model, batch)
    assert rewards.requires_grad and rewards.dtype == torch.float32
    assert (rewards.bfloat16().float() != rewards).float().mean() > 0.9
    exact = response_rewards(model, batch)
    assert torch.allclose(rewards, exact, rtol=0.1, atol=0.1) and not torch.equal(rewards, exact)
