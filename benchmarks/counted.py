"""The kernels of a piece of a batch on a GPU, counted without one: `python -m benchmarks.counted`.

A dpo piece's two passes run on tensors without contents, under bfloat16's autocast; each operation of aten's
is a kernel, but for views and allocations. What a GPU runs otherwise than a CPU is put in: attention by the
kernel that takes a mask, with the casts and the padding before it, and an RMS norm in one kernel, two
backward. Not seen: what CUDA's operations launch inside (a product cut along its sum, the sorts of an
embedding's gradient), which kernel is chosen, and how long any takes. Casts are those of the CPU's autocast,
which are CUDA's for the operations of a Llama, not for all of any model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import ceil
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.workloads import CARD, Settings
from rpo_cli.models import Batch, layout, logps_of, make_batch, response_logits
from rpo_cli.models.graphs import add_up
from rpo_cli.models.layout import Reader
from rpo_cli.models.norms import fuse_norms
from rpo_cli.models.rotary import fuse_rotary
from rpo_cli.models.rounded import Rounded
from rpo_cli.objectives import logps
from rpo_cli.objectives.dpo import dpo_losses

# The first that fits an operation's name; what fits none is element-wise.
KINDS = {
    "no kernel": r"empty|_unsafe_view|device|lift_fresh|^is_|_local_scalar|promote_types",
    "matrix products": r"^(mm|addmm|bmm|baddbmm)$",
    "attention": r"attention",
    "copies and casts": r"copy|clone|contiguous|^cat$|fill|zero|ones|pad|slice_backward|arange|full",
    "gather and scatter": r"index|scatter|gather|embedding",
    "reductions": r"^sum|mean|rms_norm|logsumexp|norm",
}
# CUDA fills, then copies; attention backward sums first, or else empties what it adds to.
SEVERAL = {"constant_pad_nd": 2, "slice_backward": 2, "rms_norm_backward": 2, "index_put_": 2, "logsumexp": 9}
ALIGNED = 8  # a mask whose rows begin elsewhere is padded in each call
# A launch over lists of tensors takes so many of each, for one list, two, ...; and so many pieces of numbers.
TENSORS, PIECES, PIECE = (110, 64, 48, 36), 320, 65536
Shape = tuple[int, int, int]  # rows, columns of prompts, columns of responses
Lean = Callable[[nn.Module], object]
Rounds = Callable[[nn.Module, torch.dtype], Rounded | None]


@dataclass
class Counted:
    """Kernels and bytes read and written, by kind."""

    kernels: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def note(self, name: str, tensors: Iterable[object], count: int | None = None) -> None:
        """An operation of that name over these tensors, in so many kernels."""
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "element-wise")
        if kind != "no kernel":
            count = SEVERAL.get(name, 1) if count is None else count
            self.kernels[kind] += count
            size = sum(_bytes(each) for each in tensors if isinstance(each, Tensor))
            self.bytes[kind] += size

    @property
    def total(self) -> int:
        return self.kernels.total()


def _bytes(tensor: Tensor) -> int:
    """Those read or written; what is expanded is there once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


class _Operations(TorchDispatchMode):
    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = func._schema.returns
        if not any(one.alias_info is not None and not one.alias_info.is_write for one in given):  # a view
            name = func._schema.name.partition("::")[2]
            lists = [each for each in args if isinstance(each, list)] if name.startswith("_foreach") else []
            self.counted.note(name, tree_leaves((args, found)), _launches(name, lists) if lists else None)
        return found


def _launches(name: str, lists: list[list[Tensor]]) -> int:
    """Of an operation over lists; of two dtypes, but to copy, each tensor has a kernel of its own."""
    if "copy" not in name and len({each.dtype for each in chain(*lists)}) > 1:
        return len(lists[0])
    pieces = sum(ceil(each.numel() / PIECE) for each in lists[0])
    return max(ceil(len(lists[0]) / TENSORS[len(lists) - 1]), ceil(pieces / PIECES))


class _AsOnCuda(TorchFunctionMode):
    """Attention and RMS norms as CUDA runs them."""

    def __init__(self, forward: Counted, backward: Counted) -> None:
        self.both = forward, backward
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.rms_norm:
            norm: Callable[..., Tensor] = _Norm.apply
            return norm(*self.both, args[0], kwargs["weight"])
        if func is functional.scaled_dot_product_attention:
            return attention(*args, mask=(kwargs or {})["attn_mask"])
        return func(*args, **(kwargs or {}))


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The kernel that takes a mask, and what torch does before it (aten's `preprocess_mask`)."""
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    query, key, value, mask = (each.to(low) for each in (query, key, value, mask))
    columns = mask.shape[-1]
    if any(stride % ALIGNED for stride in mask.stride()[:-1]):
        mask = functional.pad(mask, (0, ALIGNED - columns % ALIGNED))[..., :columns]
    seen = mask.expand(*query.shape[:3], columns)
    found: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, seen, True)[0]
    return found


class _Norm(torch.autograd.Function):
    """torch's RMS norm, which is several operations on a CPU."""

    @staticmethod
    def forward(ctx: Any, forward: Counted, backward: Counted, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.counted = backward
        ctx.save_for_backward(rows, weight)
        forward.note("rms_norm", (rows, weight, rows))
        return torch.empty_like(rows)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[None, None, Tensor, Tensor]:
        rows, weight = ctx.saved_tensors
        ctx.counted.note("rms_norm_backward", (rows, rows, weight, rows))
        return None, None, torch.empty_like(rows), torch.empty_like(weight)


def model_of(settings: Settings, lean: Lean, fake: FakeTensorMode) -> nn.Module:
    """A model without contents, of the classes that `lean` gives to a small one of its kind."""
    keys = dict(settings)
    kind, heads = keys.pop("model_type"), keys["num_attention_heads"]
    small = {"vocab_size": 8, "hidden_size": 8 * heads, "intermediate_size": 8, "num_hidden_layers": 1}
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **keys | small))
    before = [type(module) for module in model.modules()]
    lean(model)
    became = dict(zip(before, map(type, model.modules()), strict=True))
    with fake:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **keys, use_cache=False))
    for module in model.modules():
        module.__class__ = became.get(type(module), type(module))
    return model.train()


def shipped(model: nn.Module) -> None:
    """What is done to a model that is loaded on a GPU."""
    fuse_norms(model)
    fuse_rotary(model)


def counted(
    settings: Settings,
    shape: Shape,
    lean: Lean = shipped,
    rounds: Rounds | None = Rounded,
    wide: tuple[str, ...] = ("cpu",),
    mask: Callable[[nn.Module, Tensor], Tensor] = layout._mask,
    read: Reader = response_logits,
) -> tuple[Counted, Counted]:
    """What the two passes of a dpo piece launch, its loss and the sum of gradients included.

    rounds: what rounds weights, as in `Graphs`; None: an autocast does. wide: as in `logps`;
        mask: as in `layout`; read: what gives the logits.
    """
    fake = FakeTensorMode()
    model = model_of(settings, lean, fake)
    rows, width, depth = shape
    response = [1] * (depth // 2)
    batch: Batch = make_batch([[1] * width] * rows, [[response, response]] * rows, 0, "shared")
    weights = [each for each in model.parameters() if each.requires_grad]
    forward, backward = Counted(), Counted()
    with fake, patch.object(logps, "WIDE", wide), patch.object(layout, "_mask", mask):
        batch = {name: fake.from_tensor(tensor) for name, tensor in batch.items()}
        rounded = None if rounds is None else rounds(model, torch.bfloat16)
        sums = [torch.empty_like(each) for each in weights]
        with torch.autocast("cpu", torch.bfloat16), _AsOnCuda(forward, backward), _Operations(forward):
            with nullcontext() if rounded is None else rounded.used():
                better, worse = logps_of(read(model, batch), batch).chunk(2)
            loss = dpo_losses(better - worse, 0.1).mean()
        with _Operations(backward):
            if rounded is None:
                found: list[Tensor | None] = list(torch.autograd.grad(loss, weights))
            else:
                found = rounded.gradients(loss, weights, torch.ones_like(loss))
            add_up(sums, found)
    return forward, backward


SHAPES = {"SmolLM2-135M": (CARD.small, (16, 208, 32)), "Llama 1.24B": (CARD.llama, (16, 424, 96))}


def float32_mask(model: nn.Module, segments: Tensor) -> Tensor:
    """A mask that each layer casts."""
    return layout.attention_of(segments)


def float32_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits behind accelerate's wrapper."""
    return response_logits(model, batch).float()


# An autocast that is around the model alone: what a training had until its own was around the loss as well.
ACCELERATES: dict[str, Any] = {"rounds": None, "mask": float32_mask, "read": float32_logits}
PLAIN: dict[str, Any] = {"lean": fuse_norms, "rounds": None, "wide": (), "mask": float32_mask}
# Each with those above it.
CUTS: dict[str, tuple[str, ...]] = {
    "before": (),
    "a mask in the dtype that attention reads": ("mask",),
    "log-probs in larger pieces": ("wide",),
    "rotary embeddings in three kernels": ("lean",),
    "weights rounded together": (),
    "layers that read the same rows as one product": ("rounds",),
}


def ways() -> dict[str, dict[str, Any]]:
    """The arguments of `counted` for each line of the table."""
    found, how = {}, dict(PLAIN)
    for name, given in CUTS.items():
        how = {key: value for key, value in how.items() if key not in given}
        found[name] = how | ({"rounds": partial(Rounded, joined=False)} if "together" in name else {})
    return found | {"all of them by accelerate's autocast": ACCELERATES}


def main() -> None:
    """Print the counts as a table."""
    for name, (settings, shape) in SHAPES.items():
        print(f"\n| {name}, {shape[0]} rows of {shape[1]} + {shape[2]} tokens | kernels | GB | kinds |")
        print("|---|---|---|---|")
        for what, how in ways().items():
            forward, backward = counted(settings, shape, **how)
            both, size = forward.kernels + backward.kernels, (forward.bytes + backward.bytes).total() / 1e9
            kinds = ", ".join(f"{count} {kind}" for kind, count in both.most_common())
            print(f"| {what} | {forward.total} + {backward.total} | {size:.1f} | {kinds} |")


if __name__ == "__main__":
    main()
