"""Optimisers for weights in bf16 or fp16: they step on fp32 copies and hand rounded weights back.

At a learning rate of 1e-4 most steps are smaller than the distance between two bf16 numbers, so a weight that were
updated in bf16 would stand still. The copies are optimiser state, so they are saved and resumed like any other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MASTER = "master"  # the copy's name in an optimiser's state


class MasterWeights:
    """Mixin before a `torch.optim` class whose `step` reads and writes `parameter.data` and `parameter.grad`.

    Parameters in fp32 and those without a gradient are left to the class as they are.
    """

    param_groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Perform one step; gradients of weights with a copy are used up."""
        assert closure is None, "closures are not supported"
        with self._in_full_precision():
            super().step()  # pyright: ignore[reportAttributeAccessIssue]

    @contextmanager
    def _in_full_precision(self) -> Iterator[None]:
        parameters = [p for group in self.param_groups for p in group["params"]]
        rounded = {p: p.data for p in parameters if p.grad is not None and p.dtype.itemsize < 4}
        masters: dict[nn.Parameter, Tensor] = {}
        try:
            for parameter in rounded:
                masters[parameter] = self._enter(parameter)
            yield
        finally:
            for parameter, master in masters.items():
                parameter.grad = None
                parameter.data = rounded[parameter].copy_(master)
                # Apart from the rest of the state, so that the class never takes an empty one for its own.
                self.state[parameter][MASTER] = master

    def _enter(self, parameter: nn.Parameter) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        # Allocated before anything is taken or swapped: it may not fit.
        precise = gradient.to(torch.float32)
        master = self.state[parameter].pop(MASTER, None) if parameter in self.state else None
        master = parameter.data.float() if master is None else master
        parameter.grad = None
        parameter.data = master
        parameter.grad = precise
        return master
