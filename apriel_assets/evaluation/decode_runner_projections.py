"""Several linear layers of one input as one matrix product: a step's small products cost more than their bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Fused:
    """The layers' outputs side by side."""

    weight: Tensor  # `[all outputs, inputs]`
    bias: Tensor | None
    sizes: tuple[int, ...]

    def __call__(self, values: Tensor) -> Tensor:
        """Return all outputs, `[..., all outputs]`."""
        return functional.linear(values, self.weight, self.bias)

    def split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return each layer's share."""
        return outputs.split(self.sizes, dim=-1)


@dataclass(frozen=True, slots=True)
class Apart:
    """The same from layers that stay as they are."""

    layers: tuple[nn.Linear, ...]

    @property
    def weight(self) -> Tensor:
        return self.layers[0].weight

    def __call__(self, values: Tensor) -> Tensor:
        """Return all outputs, `[..., all outputs]`."""
        return torch.cat([layer(values) for layer in self.layers], dim=-1)

    def split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return each layer's share."""
        return outputs.split([layer.out_features for layer in self.layers], dim=-1)


_APART: ContextVar[bool] = ContextVar("apart", default=False)


@contextmanager
def weights_in_place() -> Iterator[None]:
    """Let runners that are made within leave every weight where it is.

    Weights that are mapped from a file are shared by all processes that map it; one matrix made of several would be
    each process's own.
    """
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


@torch.no_grad()
def fuse(*layers: nn.Linear) -> Fused | Apart:
    """Put the layers' weights into one matrix, of which their own parameters become parts: no copy is kept.

    The layers go on working as before, until they are moved to another device or dtype. Within `weights_in_place` they
    are left alone.
    """
    if _APART.get():
        return Apart(layers)
    weights = torch.cat([layer.weight for layer in layers])
    sizes = tuple(layer.out_features for layer in layers)
    for layer, part in zip(layers, weights.split(sizes), strict=True):
        layer.weight.data = part
    if all(layer.bias is None for layer in layers):
        return Fused(weights, None, sizes)
    biases = torch.cat(
        [weights.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    )
    for layer, part in zip(layers, biases.split(sizes), strict=True):
        if layer.bias is not None:
            layer.bias.data = part
    return Fused(weights, biases, sizes)
