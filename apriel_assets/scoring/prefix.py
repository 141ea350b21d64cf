"""Resume a model's own forward at a layer, from hidden states of an earlier pass.

Candidates that change layer i share every activation below it. Instead of re-implementing each architecture's
forward (masks, rotary embeddings, layer types), the layers below i are swapped for pass-throughs in the
model's list for a moment: its own forward then runs, and finds the stored input at layer i.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from apriel_assets.distillation.causal_lm import decoder_layers, final_hidden_states


@dataclass
class LayerCounts:
    """Evaluations seen while `count_layers` was active, in calls (one call = one batch)."""

    decoder_layers: int = 0
    mixers: int = 0


@dataclass(frozen=True)
class Prefix:
    """One batch's full pass: the input of every decoder layer, and what the head reads."""

    layer_inputs: tuple[Tensor, ...]  # per layer, [batch, seq, hidden]
    final_hidden_states: Tensor  # [batch, seq, hidden]


def capture_prefix(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Prefix:
    """Run the model once and keep each decoder layer's input."""
    inputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in decoder_layers(model)]
    try:
        final = final_hidden_states(model, input_ids, attention_mask)
    finally:
        for hook in hooks:
            hook.remove()
    return Prefix(tuple(inputs), final)


def resume_forward(
    model: PreTrainedModel, prefix: Prefix, layer: int, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """Return the final hidden states `[batch, seq, hidden]`, computing layers `layer` and above only.

    Args:
        prefix: of the same batch, captured when the layers below `layer` were as they are now.
        layer: first decoder layer to evaluate. Gradients flow to it and above, never below.
    """
    with resumed_at(model, layer, prefix.layer_inputs[layer]):
        return final_hidden_states(model, input_ids, attention_mask)


@contextmanager
def resumed_at(model: PreTrainedModel, layer: int, hidden_states: Tensor) -> Iterator[None]:
    """While active, the model's forward starts at a layer, with these hidden states as its input."""
    layers = decoder_layers(model)
    originals = list(layers[:layer])
    try:
        for index, original in enumerate(originals):
            layers[index] = _PassThrough(original, hidden_states)
        yield
    finally:
        for index, original in enumerate(originals):
            layers[index] = original


@contextmanager
def count_layers(model: PreTrainedModel) -> Iterator[LayerCounts]:
    """Count the decoder layers and the mixers that are evaluated while active."""
    counts = LayerCounts()

    def count(field: str) -> Any:
        return lambda *_: setattr(counts, field, getattr(counts, field) + 1)

    hooks = []
    for layer in decoder_layers(model):
        hooks.append(layer.register_forward_hook(count("decoder_layers")))
        hooks += [mixer.register_forward_hook(count("mixers")) for mixer in _mixers(layer)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


class _PassThrough(nn.Module):
    """Stands for a decoder layer whose result is known: returns the stored hidden states, whatever comes in.

    Other attributes that a forward may read (`attention_type`, `is_sliding`) are the original layer's.
    """

    def __init__(self, original: nn.Module, hidden_states: Tensor) -> None:
        super().__init__()
        # Past nn.Module's bookkeeping: the original must not become a submodule of its stand-in.
        self.__dict__["_original"] = original
        self.__dict__["_hidden_states"] = hidden_states

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._hidden_states


def _mixers(layer: nn.Module) -> list[nn.Module]:
    """Return what mixes tokens in a decoder layer: each mixer of a hybrid's bank, or the attention itself."""
    attention: Any = layer.self_attn
    return list(attention.mixers.values()) if hasattr(attention, "mixers") else [attention]
