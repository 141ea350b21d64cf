"""The stand-in for a decoder layer's attention: holds the layer's mixers, runs the one in the placement."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import MixerConfig
from apriel_assets.hybrid.forward_context import active_context
from apriel_assets.hybrid.placement import FULL_ATTENTION


class MixerBank(nn.Module):
    """Called exactly like the attention module it replaces.

    Full attention is that module itself and gets the call as it came, so an all-FA model computes bit for bit
    what the teacher does. Other mixers take what they need of the same arguments.
    """

    def __init__(
        self, layer: int, mixers: Mapping[str, nn.Module], options: Mapping[str, MixerConfig]
    ) -> None:
        super().__init__()
        self.layer = layer
        self.mixers = nn.ModuleDict(dict(mixers))
        self.options = dict(options)

    @property
    def names(self) -> tuple[str, ...]:
        """The mixers that this layer holds."""
        return tuple(self.mixers)

    def add(self, name: str, mixer: nn.Module, options: MixerConfig) -> None:
        """Hold one more mixer, or another one of the same name."""
        self.mixers[name] = mixer
        self.options[name] = options

    def drop(self, name: str) -> None:
        """Forget a mixer and its weights."""
        del self.mixers[name], self.options[name]

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        context = active_context()
        if self.layer in context.skipped:
            hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            if (cache := kwargs.get("past_key_values")) is not None:
                cache.layers[self.layer].advance(hidden_states.shape[1])
            return torch.zeros_like(hidden_states), None
        name = context.placement[self.layer]
        if name == FULL_ATTENTION:
            return self.mixers[name](*args, **kwargs)
        return self.mixers[name](context, self.layer, *args, **kwargs)


def restore_attention(layers: nn.ModuleList) -> None:
    """Put each layer's attention back where a bank stands; layers without a bank stay as they are.

    Raises:
        UserError: a bank that holds no full attention any more; nothing is changed then.
    """
    banks = [layer.self_attn for layer in layers]
    lost = [bank.layer for bank in banks if isinstance(bank, MixerBank) and FULL_ATTENTION not in bank.names]
    if lost:
        raise UserError(f"layers {lost} hold no full attention any more; start from the original teacher")
    for layer, bank in zip(layers, banks, strict=True):
        if isinstance(bank, MixerBank):
            layer.self_attn = bank.mixers[FULL_ATTENTION]


@contextmanager
def bare_attention(layers: nn.ModuleList) -> Iterator[None]:
    """Let each layer's full attention stand where its bank stands, for a while: the model is the teacher's again.

    Raises:
        UserError: as `restore_attention`.
    """
    before = [layer.self_attn for layer in layers]
    restore_attention(layers)
    try:
        yield
    finally:
        for layer, bank in zip(layers, before, strict=True):
            layer.self_attn = bank
