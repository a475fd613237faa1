"""Rotary embeddings in three kernels under an autocast; transformers has six, and twelve backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

NAME = "apply_rotary_pos_emb"  # transformers' function, in the module of each model
TOLERANCE = 1e-6  # of the largest number
Both = Callable[..., tuple[Tensor, Tensor]]
_FUSED: dict[type[nn.Module], type[nn.Module]] = {}


def fuse_rotary(model: nn.Module) -> int:
    """Have queries and keys be turned in fewer kernels where that means the same; returns in how many layers.

    Under an autocast they may be rounded at once to what attention reads, so only where nothing else reads
    them. Without one they are turned as before.
    """
    fused = set(_FUSED.values())
    layers = [module for module in model.modules() if type(module) not in fused and _alike(module)]
    for layer in layers:
        kind = type(layer)
        layer.__class__ = _FUSED.setdefault(kind, _with(kind, _fused(_forward(kind).__globals__[NAME])))
    return len(layers)


def _forward(kind: type[nn.Module]) -> Any:
    """A layer's pass, without what takes arguments by their old names."""
    return inspect.unwrap(kind.forward)


def _alike(layer: nn.Module) -> bool:
    """Whether a layer turns queries and keys as is done here, and hands them to torch's attention like that.

    That is seen in its own pass over a text of three tokens.
    """
    size, reads = (
        getattr(layer, "head_dim", None),
        getattr(getattr(layer, "q_proj", None), "in_features", None),
    )
    forward = _forward(type(layer))
    if not (isinstance(forward, FunctionType) and NAME in forward.__code__.co_names and size and reads):
        return False
    turned: list[tuple[Tensor, ...]] = []

    def noted(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = forward.__globals__[NAME](query, key, cos, sin)
        turned.append((query, key, *found))
        return found

    device = next(layer.parameters()).device
    rows = torch.arange(3.0 * reads, device=device).sin().view(1, 3, reads)
    cos, sin = torch.arange(6.0 * size, device=device).sin().view(2, 1, 3, size)  # of no angle, halves unlike
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _Attention() as attention:
        try:
            mask = rows.new_zeros(1, 1, 3, 3)
            given = {"hidden_states": rows, "position_embeddings": (cos, sin), "attention_mask": mask}
            _with(type(layer), noted).forward(layer, **given)
            [(query, key, *both)], [(read, keys)] = turned, attention.read
            heads = keys.shape[1] // key.shape[1]
            if read is not both[0] or not torch.equal(keys, both[1].repeat_interleave(heads, 1)):
                return False
            ours = [_turn(each, cos[:, None], sin[:, None], each.dtype) for each in (query, key)]
            half = [each.bfloat16() for each in (query, key)]
            if any(each.dtype != cos.dtype for each in forward.__globals__[NAME](*half, cos, sin)):
                return False  # it rounds them itself
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
            return False  # it takes something else
    return all(
        bool((one - other).abs().max() <= TOLERANCE * other.abs().max())
        for one, other in zip(ours, both, strict=True)
    )


class _Attention(TorchFunctionMode):
    """Notes the queries and keys that torch's attention is given."""

    def __init__(self) -> None:
        self.read: list[tuple[Tensor, Tensor]] = []
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            self.read.append(args[:2])
        return func(*args, **(kwargs or {}))


def _with(kind: type[nn.Module], rotary: Both) -> type[nn.Module]:
    """The class of layers that call this function; of the same name, by which transformers knows it."""
    old = _forward(kind)
    forward = FunctionType(
        old.__code__, {**old.__globals__, NAME: rotary}, old.__name__, old.__defaults__, old.__closure__
    )
    forward.__kwdefaults__ = old.__kwdefaults__
    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _fused(rotary: Both) -> Both:
    """What takes the place of transformers' function."""

    def turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        device = query.device.type
        exact = cos.dtype != torch.float32 or query.dtype == torch.float64
        if exact or not torch.is_autocast_enabled(device) or torch.compiler.is_compiling():
            return rotary(query, key, cos, sin)
        low, angles = torch.get_autocast_dtype(device), (cos[:, None], sin[:, None])
        # Gradients of a key that several queries share are added up before they are rounded.
        keys = low if key.shape[1] == query.shape[1] else cos.dtype
        turn: Callable[..., Tensor] = _Turned.apply
        return turn(query, *angles, low), turn(key, *angles, keys)

    return turned


class _Turned(torch.autograd.Function):
    """Rows x [N, H, T, D] as x cos + (-x₂, x₁) sin, in another dtype, but computed in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = rows.dtype
        return _turn(rows, cos, sin, dtype)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(given[0], cos, sin, ctx.dtype, back=True), None, None, None


def _turn(rows: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, *, back: bool = False) -> Tensor:
    """As above, or what its gradient becomes on the way back, in float32 until it is written."""
    found, sign = torch.empty_like(rows, dtype=dtype), 1 if back else -1
    sines = sin.chunk(2, -1)[::-1] if back else sin.chunk(2, -1)
    halves = [each.chunk(2, -1) for each in (found, rows * cos, rows)]
    (into, beside), (first, second), (one, other) = halves
    torch.addcmul(first, other, sines[0], value=sign, out=into)
    torch.addcmul(second, one, sines[1], value=-sign, out=beside)
    return found
