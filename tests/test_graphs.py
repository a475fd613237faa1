"""Steps as graphs: with what replays a pass kept, training gives the bytes that it gives without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from conftest import Tiny, column, weights
from recorded import Recorded
from torch import Tensor, nn

from rpo_cli.devices import CPU, Device
from rpo_cli.models import Graphs, graphs
from rpo_cli.models.layout import Batch, Reader
from rpo_cli.models.rounded import Rounded
from rpo_cli.recipes.schema import PolicyRecipe
from rpo_cli.stages import sft
from rpo_cli.stages.training import arguments
from rpo_cli.stages.training.arguments import collator_of, graphed

GPU = Device("cuda", "bfloat16", "test")


class Plain:
    """What has the interface of graphs, and none."""

    def __init__(self, read: Reader, largest: object) -> None:
        self.read = read

    def used(self) -> AbstractContextManager[None]:
        return nullcontext()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.read(model, batch)


def trained(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, recipe: str, kind: Callable[..., Any], *more: str
) -> bytes:
    for module in (arguments, sft):
        monkeypatch.setattr(module, "graphed", lambda *given: True)
    monkeypatch.setattr(arguments, "Graphs", kind)
    pieces = ("per_device_train_batch_size=2", "gradient_accumulation_steps=2", "max_steps=4")
    directory, manifest = tiny.make(recipe, *pieces, *more)
    assert manifest["metrics"]["shapes"] >= 1
    return weights(directory)


class Captured(Recorded):
    """What it recorded counts as not run: of a capture nothing is."""

    def __init__(self, work: Callable[[], None], pool: object = None) -> None:
        super().__init__(work, pool)
        self.ran = False


def record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have passes be captured and replayed as far as that can be shown without a GPU."""
    monkeypatch.setattr(graphs, "CAPTURES", ("cpu",))
    monkeypatch.setattr(graphs, "captured", Captured)
    monkeypatch.setattr(graphs, "aside", nullcontext)


LORA = ("use_peft=true", "lora_r=2", "learning_rate=1e-3")
RECOMPUTED = ("gradient_checkpointing=true",)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        *((recipe, ()) for recipe in ("dpo.yaml", "e-dpo.yaml", "rm.yaml", "sft.yaml")),
        *((recipe, LORA) for recipe in ("dpo.yaml", "rm.yaml")),
        # Not captured as shipped; what a card's benchmark tries must be right.
        ("dpo.yaml", RECOMPUTED),
        ("dpo.yaml", (*LORA, *RECOMPUTED)),
    ],
)
def test_training_by_replayed_passes_gives_the_same_bytes(
    recipe: str, more: tuple[str, ...], captures: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays = 0
    if captures:
        record(monkeypatch)

    class Counted(Graphs):
        def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
            nonlocal replays
            found = super().__call__(model, batch)
            replays += len(self.made) > 0
            return found

    expected = trained(tiny, monkeypatch, recipe, Plain, *more)
    assert trained(tiny, monkeypatch, recipe, Counted, *more) == expected
    assert replays == 8


class Model(nn.Module):
    """A weight, and a batch times it; `drift`: what each pass adds to that."""

    def __init__(self, drift: float = 0.0) -> None:
        super().__init__()
        self.weight, self.unused, self.drift = (
            nn.Parameter(torch.tensor(2.0)),
            nn.Parameter(torch.ones(2)),
            drift,
        )
        self.passes = 0

    def forward(self, batch: Batch) -> Tensor:
        self.passes += 1
        return self.weight * batch["input_ids"] + self.drift * self.passes


def without_memory_at(call: int) -> Reader:
    """What reads a batch, and has no memory for it once."""
    calls = 0

    def read(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found: Tensor = model(batch)
        return found

    return read


def step(reader: Graphs, model: nn.Module, *rows: float) -> Tensor:
    found = reader(model, {"input_ids": torch.tensor(rows), "margins": torch.zeros(1)})
    torch.autograd.backward(found.sum())
    return found


def test_sft_by_graphs_logs_the_accuracy_that_trl_logs(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = ("per_device_train_batch_size=4", "max_steps=4", "logging_steps=1")
    expected = column(tiny.make("sft.yaml", *pieces)[0], "mean_token_accuracy")
    for module in (arguments, sft):
        monkeypatch.setattr(module, "graphed", lambda *given: True)
    found = column(tiny.make("sft.yaml", *pieces)[0], "mean_token_accuracy")
    assert found == pytest.approx(expected, abs=1e-6) and len(found) == 4 and max(found) > 0


@pytest.mark.parametrize("captures", [False, True])
def test_gradients_add_up_over_pieces_and_begin_anew_after_a_step(
    captures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if captures:
        record(monkeypatch)
    model, reader = Model(), Graphs(lambda model, batch: model(batch))
    with reader.used():
        assert step(reader, model, 1.0, 3.0).tolist() == [2.0, 6.0]
        step(reader, model, 5.0)
        step(reader, model, 2.0, 2.0)
        assert len(reader.made) == 2 and model.weight.grad == 13.0
        assert model.unused.grad is None, "an optimiser that decays weights passes over it, as without"
        with torch.no_grad():
            model.weight.mul_(10.0)
        model.zero_grad()
        assert step(reader, model, 1.0, 1.0).tolist() == [20.0, 20.0] and model.weight.grad == 2.0
        model.weight.grad = torch.tensor(7.0)  # another's
        step(reader, model, 1.0, 1.0)
        assert model.weight.grad == 9.0
    assert not reader.made
    step(reader, model, 1.0, 1.0)
    assert not reader.made, "behind it batches are read as ever"


@pytest.mark.parametrize("rounds", [Rounded, lambda model, dtype: None])
def test_weights_are_cast_anew_in_every_pass_whatever_autocast_is_around(rounds: Any) -> None:
    model = nn.Linear(2, 1, bias=False)
    reader = Graphs(lambda model, batch: model(batch["input_ids"]), None, rounds)
    rows = {"input_ids": torch.ones(1, 2)}
    with reader.used(), torch.autocast("cpu", torch.bfloat16):
        model.weight.data.fill_(1.0)
        assert model(rows["input_ids"]).item() == 2.0  # which the autocast keeps a cast for
        for value in (3.0, 5.0):
            with torch.no_grad():
                model.weight.fill_(value)
            assert reader(model, rows).item() == 2 * value
        assert len(reader.made) == 1


class Head(nn.Linear):
    """One that computes in float32 whatever autocast is around, as that of a reward model does."""

    def forward(self, rows: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(rows.float())


def test_a_captured_gradient_is_rounded_no_more_than_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    record(monkeypatch)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Head(8, 1))
    rows = {"input_ids": torch.randn(5, 8)}
    found = []
    for kind in (Plain, Graphs):
        model.zero_grad()
        reader = kind(lambda model, batch: model(batch["input_ids"]), None)
        with reader.used():
            with torch.autocast("cpu", torch.bfloat16):
                loss = reader(model, rows).square().sum()
            torch.autograd.backward(loss)  # outside of it, as a trainer does
        found.append([weights.grad for weights in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_a_model_that_replays_otherwise_is_read_without(caplog: pytest.LogCaptureFixture) -> None:
    model, reader = Model(drift=1.0), Graphs(lambda model, batch: model(batch))
    with reader.used():
        step(reader, model, 1.0)
        step(reader, model, 1.0)
    assert model.weight.grad == 2.0 and not reader.made
    told = (
        "cuda_graphs: Model: a replay gives other numbers; training goes on without them, with the same steps"
    )
    assert [record.getMessage() for record in caplog.records] == [told]


def test_what_is_not_learnt_from_is_read_without() -> None:
    model, reader = Model(), Graphs(lambda model, batch: model(batch))
    with reader.used():
        with torch.no_grad():
            reader(model, {"input_ids": torch.ones(1)})
        model.eval()
        reader(model, {"input_ids": torch.ones(1)})
        assert not reader.made


def test_where_graphs_have_no_memory_training_goes_on_without(caplog: pytest.LogCaptureFixture) -> None:
    model, reader = Model(), Graphs(without_memory_at(3))  # the first graph's first replay
    with reader.used():
        step(reader, model, 1.0)
        step(reader, model, 3.0)
    assert model.weight.grad == 4.0 and model.passes == 4
    assert (
        "not enough memory for graphs; a smaller per_device_train_batch_size needs less; training"
        in caplog.text
    )


def test_gradients_so_far_survive_a_check_without_memory() -> None:
    # Four passes of the first shape, two of the second, then its check.
    model, reader = Model(), Graphs(without_memory_at(7))
    with reader.used():
        step(reader, model, 1.0)
        step(reader, model, 3.0, 5.0)
    assert model.weight.grad == 9.0


def test_the_largest_shape_is_captured_first_and_reads_the_same(tiny: Tiny) -> None:
    from rpo_cli.models import PairCollator, load_causal, load_tokenizer, response_logps

    source = tiny.root / "seed-0/sft"
    tokenizer = load_tokenizer(source)
    model = load_causal(source, PolicyRecipe(stage="policy", objective="dpo", beta=0.1), CPU, tokenizer)
    rows = [
        {"prompt_ids": [5] * length, "chosen_ids": [6, 7], "rejected_ids": [8] * length} for length in (3, 5)
    ]
    batch = PairCollator(0)(rows)
    wider = graphs.widened(batch, (9, 12))
    assert list(wider) == list(batch) and wider["input_ids"].shape == (2, 21)
    assert wider["predictors"].shape == (2, 12)
    expected = response_logps(model, batch)
    assert torch.allclose(response_logps(model, wider), expected, rtol=1e-5)

    shapes = []

    def read(model: nn.Module, batch: Batch) -> Tensor:
        shapes.append(tuple(batch["input_ids"].shape))
        return response_logps(model, batch)

    reader = Graphs(read, (9, 12))
    with reader.used():
        reader(model.train(), batch)
        assert shapes[0] == (2, 21) and len(reader.made) == 2


def test_steps_are_graphs_on_one_gpu_where_nothing_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(device: Device = GPU, layout: Any = "shared", **keys: Any) -> bool:
        recipe = PolicyRecipe(stage="policy", objective="dpo", beta=0.1, **keys)
        return graphed(recipe, device, layout)

    assert asked() and asked(use_peft=True)
    assert not asked(CPU) and not asked(layout="plain") and not asked(cuda_graphs=False)
    assert not asked(gradient_checkpointing=True)
    assert not asked(use_peft=True, lora_dropout=0.1)
    assert not asked(optim="adalomo"), "no replay calls its hooks"
    monkeypatch.setattr("rpo_cli.stages.training.arguments.processes", lambda: 2)
    assert not asked()


def test_graphs_have_more_shapes_than_programs_that_are_compiled() -> None:
    recipe = PolicyRecipe(
        stage="policy",
        objective="dpo",
        beta=0.1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    rows = [
        {"prompt_ids": [1] * (length * 10), "chosen_ids": [1] * length, "rejected_ids": [1] * length}
        for length in range(1, 40)
    ]
    assert collator_of(rows, recipe, GPU, 0, "shared")[0].buckets is None
    shapes = collator_of(rows, recipe, GPU, 0, "shared", few=True)[1]["shapes"]
    assert 4 < shapes <= 8
