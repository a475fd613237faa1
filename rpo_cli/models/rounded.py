"""Weights that an autocast rounds, rounded by one operation in a pass; layers that read the same rows as one.

An autocast rounds the float32 weights of each linear layer by a kernel of its own, and the rows once for each
layer that reads them, in the backward pass as well. In passes that are captured all weights are rounded into
places that stay, those of queries, keys and values and of a gated MLP's two sides into one matrix: a product
in place of three, whose gradient of the rows is added up before it is rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

# Children that read the same rows in many models; whether they do is seen when they are called.
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Rounded:
    """Rounded copies of what the trained linear layers of a model multiply with; read within `used` only.

    A weight that something else has as well, as a head has the embeddings', stays as it is.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, joined: bool = True) -> None:
        owners = Counter(id(each) for module in model.modules() for each in module._parameters.values())
        modules = list(model.modules())
        groups: list[list[object]] = [
            [getattr(module, name, None) for name in names] for module in modules for names in TOGETHER
        ]
        self.products: list[_Product] = []
        alone: list[list[object]] = [[module] for module in modules]
        for group in [*groups, *alone] if joined else alone:
            layers = [each for each in group if _rounds(each, owners)]
            alike = len({(each.in_features, each.bias is None) for each in layers}) == 1
            if alike and len(layers) == len(group):
                self.products.append(_Product(layers, dtype))
        self.copies = [copy for each in self.products for copy in each.copies]
        self.parts = [part for each in self.products for _, parts in each.shares for part in parts]
        self.masters = [master for each in self.products for masters, _ in each.shares for master in masters]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it layers read the copies, which are made of what the weights are now."""
        if self.parts:
            with torch.no_grad():
                torch._foreach_copy_(self.parts, self.masters)
        with self._read():
            yield

    @contextmanager
    def _read(self) -> Iterator[None]:
        for each in self.products:
            each.open = True
        try:
            yield
        finally:
            for each in self.products:
                each.open, each.rows, each.left = False, None, {}

    def gradients(self, out: Tensor, weights: Sequence[Tensor], slope: Tensor) -> list[Tensor | None]:
        """The gradients of weights, read as such or as copies; of a copy in its dtype. None: of no use."""
        with self._read():  # by layers that are computed again
            found = torch.autograd.grad(out, [*weights, *self.copies], slope, allow_unused=True)
        own = dict(zip(map(id, weights), found, strict=False))
        shares = [masters for each in self.products for masters, _ in each.shares]
        for masters, whole in zip(shares, found[len(weights) :], strict=True):
            if whole is not None:
                for master, part in zip(masters, _cut(whole, masters), strict=True):
                    more = own[id(master)]
                    own[id(master)] = part if more is None else more + part
        return [own[id(each)] for each in weights]

    def end(self) -> None:
        """Leave the model as it was."""
        for each in self.products:
            for layer in each.layers:
                layer.__class__ = nn.Linear
                del layer.product


class _Layer(nn.Linear):
    """A linear layer with a share in a product."""

    product: _Product

    def forward(self, input: Tensor) -> Tensor:
        rounds = self.product.open and torch.is_autocast_enabled(input.device.type)
        if rounds and not torch.compiler.is_compiling():
            found = self.product.of(self, input)
            if found is not None:
                return found
        return super().forward(input)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """A plain layer: what a training keeps of its model has no share in its products."""
        copied = nn.Linear.__new__(nn.Linear)
        memo[id(self)] = copied
        copied.__dict__ = deepcopy(
            {name: value for name, value in vars(self).items() if name != "product"}, memo
        )
        return copied


class _Product:
    """Linear layers that read the same rows, one after another; shares: weights and their parts of a copy."""

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self.layers, self.open, self.apart = list(layers), False, False
        self.sizes = [layer.out_features for layer in layers]
        self.rows: Tensor | None = None
        self.left: dict[nn.Module, Tensor] = {}  # what layers give that were not called yet
        self.copies: list[Tensor] = []
        self.shares: list[tuple[list[Tensor], list[Tensor]]] = []
        for name in ("weight", "bias"):
            masters: list[Tensor] = [getattr(each, name) for each in layers]
            if masters[0] is not None:
                copy = masters[0].new_empty(sum(self.sizes), *masters[0].shape[1:], dtype=dtype)
                self.shares.append((masters, _cut(copy, masters)))
                self.copies.append(copy.requires_grad_())
        for layer in layers:
            layer.__class__ = _Layer
            vars(layer)["product"] = self

    def of(self, layer: nn.Module, rows: Tensor) -> Tensor | None:
        """A layer's share of the product with rows; None: the layers turned out to read others."""
        if self.apart:
            return None
        if len(self.layers) == 1:
            return functional.linear(rows, *self.copies)
        if self.rows is not rows or layer not in self.left:
            self.apart = bool(self.left)
            self.left = {}
            if self.apart:
                return None
            whole = functional.linear(rows, *self.copies)
            parts = torch.split(whole, self.sizes, -1)
            self.rows, self.left = rows, dict(zip(self.layers, parts, strict=True))
        found = self.left.pop(layer)
        if not self.left:
            self.rows = None
        return found


def _cut(whole: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """A copy's parts, or those of its gradient."""
    return list(torch.split(whole, [len(each) for each in parts]))


def _rounds(layer: object, owners: Counter[int]) -> TypeGuard[nn.Linear]:
    """Whether it is a plain linear layer, in no product yet, trained in float32 with weights of its own."""
    if type(layer) is not nn.Linear:
        return False
    every = [each for each in layer._parameters.values() if each is not None]
    return all(each.requires_grad and each.dtype == torch.float32 and owners[id(each)] == 1 for each in every)
