"""The two ways in which decoding is timed, and the clock that times them.

The runner decodes as an engine would: static caches, on a GPU one CUDA graph a step. A model that it does not know is
decoded by its own forward pass, operation by operation. Contexts hold numbers of no meaning: speed does not depend on
them.
"""

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from apriel_assets.errors import UserError
from apriel_assets.evaluation.decode_runner import DecodeRunner
from apriel_assets.evaluation.device_rates import wait_for
from apriel_assets.evaluation.generation import Decoding
from apriel_assets.hybrid.kernels.decode import uses_triton
from apriel_assets.hybrid.mixers.kernels import kernels_in_use

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM


class TimedDecoding(Protocol):
    """Sequences with a context behind them, ready for further tokens."""

    decoder: str  # what decodes, in words
    kernels: str  # what computes its operations
    cache_bytes: int  # of all sequences at the context

    def step(self) -> None:
        """Append a token to each sequence."""
        ...

    def rewind(self) -> None:
        """Go back to the context, as far as that can be done."""
        ...


def decoding_at(
    model: "HybridForCausalLM",
    batch_size: int,
    context: int,
    room: int,
    decoder: Literal["auto", "runner", "model"],
    prompt: Callable[[], Decoding],
) -> TimedDecoding:
    """Return sequences that hold `context` tokens each.

    Args:
        model: under its active placement.
        batch_size: sequences.
        context: tokens that each holds.
        room: steps that will be taken before each rewind.
        decoder: "auto" takes the runner unless it does not know the model.
        prompt: reads a prompt, no longer than the context; called only where the model itself decodes.

    Raises:
        UserError: "runner" was asked for, and the runner does not know the model.
    """
    if decoder != "model":
        try:
            return ByRunner(model, batch_size, context, room)
        except UserError:
            if decoder == "runner":
                raise
    return _ByModel(model, context, prompt())


def timed_steps(step: Callable[[], None], num_steps: int, device: torch.device) -> list[float]:
    """Return the seconds of each step, on a GPU by the device's clock: the host runs ahead as in real decoding."""
    wait_for(device)
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(num_steps):
            step()
            marks.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(num_steps + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    wait_for(device)
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]


def forward_kernels(model: "HybridForCausalLM") -> str:
    """Return what computes the mixers of the active placement in the model's own forward pass."""
    options: dict[str, Any] = {
        mixer: bank.options.get(mixer) for bank, mixer in zip(model.banks, model.placement, strict=True)
    }
    return "; ".join(
        f"{name}: {by}" for name, by in kernels_in_use(options, model.device, model.dtype).items()
    )


class ByRunner:
    """Decoding by the runner, of a model under the placement that is active when this is made."""

    def __init__(self, model: "HybridForCausalLM", batch_size: int, context: int, room: int) -> None:
        self._runner = DecodeRunner(model, batch_size=batch_size, capacity=context + room, only_timed=True)
        self._runner.fill(context)
        self._began = self._runner.lengths.clone()
        self._tokens = torch.zeros(batch_size, dtype=torch.long, device=model.device)
        self.cache_bytes = self._runner.held_bytes(context)
        self.decoder = "static caches" + (", one CUDA graph a step" if self._runner.uses_graphs else "")
        self.kernels = "Triton" if uses_triton(model.device) else f"torch {torch.__version__}"

    def step(self) -> None:
        self._tokens = self._runner.step(self._tokens).argmax(-1)

    def rewind(self) -> None:
        self._runner.rewind(self._began)


class _ByModel:
    def __init__(self, model: "HybridForCausalLM", context: int, state: Decoding) -> None:
        self._state = state
        if (lacking := context - state.cache.get_seq_length()) > 0:
            state.lengthen(lacking)
        self.cache_bytes = _bytes_of(state.cache)
        self.decoder = "the model's forward pass"
        self.kernels = forward_kernels(model)

    def step(self) -> None:
        self._state.step(self._state.logits.argmax(-1))

    def rewind(self) -> None:
        """Nothing: a recurrent state cannot go back, and a few tokens more are no other context."""


def _bytes_of(cache: Any) -> int:
    """Return the bytes of every state that the cache's layers hold; counters do not count."""
    total = 0
    for layer in cache.layers:
        for value in vars(layer).values():
            tensors = value.values() if isinstance(value, dict) else [value]
            total += sum(
                t.numel() * t.element_size()
                for t in tensors
                if isinstance(t, Tensor) and t.is_floating_point()
            )
    return total
