"""Run many placements over one batch, each layer prefix that several share only once.

Sorted mixer by mixer, placements are the leaves of a trie, and walking it from left to right computes each of
its nodes once: a placement starts at the first layer in which it differs from the one before. Kept are only
the activations at which a later placement will branch off, at most one `[batch, seq, hidden]` per layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from apriel_assets.distillation.batches import Batch
from apriel_assets.hybrid.placement import Placement
from apriel_assets.scoring.prefix import resumed_at

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM


@dataclass(frozen=True, slots=True)
class Step:
    """One placement of a walk."""

    placement: Placement
    start: int  # first layer to compute
    keep: frozenset[int]  # layers, above 0, whose inputs later placements start from


def plan_walk(placements: Sequence[Placement]) -> list[Step]:
    """Return the distinct placements in the order in which they share most, with what to keep."""
    if not placements:
        return []
    order = sorted(set(placements))
    starts = [0] + [_shared_prefix(a, b) for a, b in pairwise(order)]
    # A later placement can start at a layer only if every one until then shares the path below that layer:
    # the layers to keep are the successive minima of the later starts.
    keeps: list[frozenset[int]] = [frozenset()]
    for start in reversed(starts[1:]):
        keeps.append(frozenset({layer for layer in keeps[-1] if layer < start} | {start}))
    return [
        Step(placement, start, keep - {0})
        for placement, start, keep in zip(order, starts, reversed(keeps), strict=True)
    ]


def layer_evaluations(steps: Sequence[Step]) -> int:
    """Return the decoder layers that a walk computes, per batch."""
    return sum(len(step.placement) - step.start for step in steps)


def walk(model: "HybridForCausalLM", steps: Sequence[Step], batch: Batch) -> Iterator[Tensor]:
    """Yield each step's final hidden states, `[batch, seq, hidden]`.

    Each is bit for bit what a whole pass under its placement gives. No mask: mixers are causal and the padding
    is on the right, so it changes nothing before it, and attention without a mask is faster. The model's
    placement is changed and put back at the end; run it to its end, or close it, before using the model
    otherwise.
    """
    before = model.placement
    inputs: dict[int, Tensor] = {}
    try:
        for step in steps:
            model.set_placement(step.placement)
            with _inputs_kept(model, [layer for layer in step.keep if layer > step.start], inputs):
                if step.start:
                    with resumed_at(model, step.start, inputs[step.start]):
                        final = model.final_hidden_states(batch.input_ids)
                else:
                    final = model.final_hidden_states(batch.input_ids)
            for layer in set(inputs) - step.keep:
                del inputs[layer]
            yield final
    finally:
        model.set_placement(before)


@contextmanager
def _inputs_kept(
    model: "HybridForCausalLM", layers: Sequence[int], inputs: dict[int, Tensor]
) -> Iterator[None]:
    def keeper(layer: int) -> Any:
        def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            inputs[layer] = args[0] if args else kwargs["hidden_states"]

        return keep

    decoder_layers = model.decoder_layers
    hooks = [
        decoder_layers[layer].register_forward_pre_hook(keeper(layer), with_kwargs=True) for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shared_prefix(first: Placement, second: Placement) -> int:
    pairs = zip(first, second, strict=True)
    return next(layer for layer, (a, b) in enumerate(pairs) if a != b)
