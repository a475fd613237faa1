"""Between two lines of metrics nothing is read back from the device: the host never waits for it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny
from datasets import Dataset
from test_policy_training import teach
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback
from trl import SFTConfig

from rpo_cli.devices import CPU, Device, Returning
from rpo_cli.models import new_causal
from rpo_cli.recipes.schema import PolicyRecipe, SFTRecipe
from rpo_cli.stages.data import miniature
from rpo_cli.stages.training.arguments import arguments
from rpo_cli.stages.training.trl import TokenTrainer

# What a GPU must have finished before Python goes on: values on the host, shapes that depend on values.
METHODS = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "__array__",
    "__contains__",
    "is_nonzero",
}
OPERATIONS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "bincount",
    "_unique2",
    "unique_dim",
}


def needs_value(name: str, args: tuple[Any, ...]) -> bool:
    if name in ("index", "index_put", "index_put_"):  # by a mask: as many rows as are true in it
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    return name in OPERATIONS or (
        name == "repeat_interleave" and isinstance(args[0], torch.Tensor) and len(args) < 2
    )


class Waits(TorchDispatchMode):
    """Notes where code waits for a value, step by step; `progress` tells it that a step has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 1
        self.seen: dict[int, list[str]] = {}

    def note(self) -> None:
        stack = traceback.extract_stack()
        if any("/torch/optim/" in frame.filename for frame in stack):
            return  # AdamW's step counters are on the host
        last = [frame for frame in stack if "/torch/" not in frame.filename and frame.filename != __file__][
            -1
        ]
        self.seen.setdefault(self.step, []).append(
            f"{'/'.join(Path(last.filename).parts[-3:])}:{last.lineno} {last.line}"
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if needs_value(func.overloadpacket.__name__, args):
            self.note()
        return func(*args, **(kwargs or {}))

    def progress(self, step: int, of: int) -> None:
        self.step = step + 1


class Reads(TorchFunctionMode):
    """Notes methods that hand values to Python: on a CPU some of them call no operation at all."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in METHODS:
            self.waits.note()
        return func(*args, **(kwargs or {}))


def waits_of(run: Callable[[Callable[[int, int], None]], object]) -> dict[int, list[str]]:
    """Where a run waited, by step."""
    waits = Waits()
    with waits, Reads(waits):
        run(waits.progress)
    return waits.seen


RUNS = {
    **{objective: (f"{objective}.yaml",) for objective in ("dpo", "ipo-norm", "d-dpo", "p-dpo", "dp-dpo")},
    "p-dpo, full": ("p-dpo.yaml", "kl_estimator=full"),
    "e-dpo, example": ("e-dpo.yaml", "ensemble_min=example"),
    "e-dpo, batch": ("e-dpo.yaml", "ensemble_min=batch", "gradient_accumulation_steps=2"),
    "e-dpo, dataset": ("e-dpo.yaml", "ensemble_min=dataset"),
    "reward": ("rm.yaml",),
    "plain layout": ("e-dpo.yaml", "ensemble_min=dataset", "shared_prompts=false"),
    "reward, plain layout": ("rm.yaml", "shared_prompts=false"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_steps_between_lines_of_metrics_read_nothing_back(tiny: Tiny, name: str) -> None:
    recipe, *settings = RUNS[name]
    if name == "plain layout":
        tiny.make(
            recipe, "shared_prompts=false"
        )  # the layout of its inputs too, before there is anything to teach
    teach(tiny)
    settings += ["max_steps=8", "logging_steps=4"]
    seen = waits_of(lambda progress: tiny.make(recipe, *settings, progress=progress))
    assert any(
        "trainer.py" in place for place in seen[5]
    )  # the line of step 4, as a sign that reading is noticed
    places = [place for step in (2, 3, 6, 7) for place in seen.get(step, [])]
    if name.endswith("plain layout"):
        # transformers asks whether a 2-D mask hides anything at all.
        places = [place for place in places if "transformers/masking_utils.py" not in place]
    assert places == []


def test_a_batch_goes_to_a_gpu_from_pinned_memory_without_a_wait(tmp_path: Path) -> None:
    recipe = PolicyRecipe(stage="policy", objective="dpo")
    for device in (CPU, Device("cuda", "bfloat16", "test")):
        given = arguments(recipe, tmp_path, device, 0)
        pinned, waits_not = given["dataloader_pin_memory"], given["accelerator_config"]["non_blocking"]
        assert pinned == waits_not == (device.name == "cuda")


def test_results_are_read_in_order_when_later_ones_were_sent() -> None:
    numbers = torch.arange(4)
    for behind in range(3):
        returning = Returning[str](behind)
        read = [[name for name, _ in returning.send(name, numbers)] for name in "abcde"]
        late = [[]] * behind + [[name] for name in "abcde"[: 5 - behind]]
        assert read == late
        assert [name for name, _ in returning.rest()] == list("abcde"[5 - behind :])
        assert returning.rest() == []


def sft_trainer(folder: Path, device: Device) -> TokenTrainer:
    """SFT of a tiny model on the CPU, as if on that device."""
    tokenizer = miniature.build_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = new_causal({"model_type": "llama", **sizes}, tokenizer, CPU, 0)
    recipe = SFTRecipe(
        **{"stage": "sft", "model_name_or_path": "tiny", "max_steps": 8, "logging_steps": 4},
        **{"learning_rate": 1e-2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    )
    rows = [
        {"input_ids": [*range(5, 9 + n), 2], "labels": [-100] * 3 + [*range(8, 9 + n), 2]} for n in range(32)
    ]
    config = SFTConfig(**arguments(recipe, folder, CPU, 0))
    data = Dataset.from_list(rows)
    return TokenTrainer(model, config, device=device, train_dataset=data, processing_class=tokenizer)


class Steps(TrainerCallback):
    """Tells of each step that ends."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)


@pytest.mark.slow
def test_sft_on_a_gpu_has_trls_loss_and_count_but_reads_its_metrics_only_where_they_are_logged(
    tmp_path: Path,
) -> None:
    plain = sft_trainer(tmp_path / "plain", CPU)
    plain.train()
    lean = sft_trainer(tmp_path / "lean", Device("cuda", "float32", "test"))

    def train(progress: Callable[[int, int], None]) -> None:
        lean.add_callback(Steps(progress))
        lean.train()

    seen = waits_of(train)
    assert any("sft_trainer.py" in place for place in seen[4])
    places = {place for step in (2, 3, 6, 7) for place in seen.get(step, [])}
    # transformers asks whether the mask hides anything.
    assert {place for place in places if "transformers/masking_utils.py" not in place} == set()
    for one, other in zip(plain.model.parameters(), lean.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert plain.counted() == lean.counted() != {"num_tokens": 0}
    losses, others = ([e["loss"] for e in each.state.log_history if "loss" in e] for each in (plain, lean))
    assert losses == others
