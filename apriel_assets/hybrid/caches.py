"""Caches of a hybrid: KV caches for attention layers, constant-size state for recurrent ones, in one object.

Built from transformers' own cache layers, which generation, beam search and assisted decoding know how to
handle.
What we add: every layer counts its tokens, so the sequence length is right wherever the recurrent layers are;
and a layer whose past cannot be taken back says so instead of silently continuing from a wrong state.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, LinearAttentionLayer

from apriel_assets.hybrid.attention_caches import GrowingLayer, WindowLayer
from apriel_assets.hybrid.placement import FULL_ATTENTION

SKIPPED = "skipped"
"""Stands in a cache's layout for a layer whose mixer is left out."""


class RecurrentLayer(LinearAttentionLayer):
    """Convolution and recurrent state of one layer, and how many tokens went into them."""

    is_compileable = False

    def __init__(self, number_of_states: int = 1) -> None:
        super().__init__(number_of_states=number_of_states)
        self.cumulative_length = 0

    def advance(self, num_tokens: int) -> None:
        """Count the tokens that went into the states."""
        self.cumulative_length += num_tokens

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    @property
    def is_croppable(self) -> bool:
        return False

    def activate_past_recording(self) -> None:
        raise RuntimeError(
            "this placement has recurrent mixers, whose state cannot be taken back; assisted decoding and "
            "other methods that crop the cache need a placement of attention layers only"
        )

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: a recurrent state cannot be taken back.

        Raises:
            RuntimeError: unless there is nothing to take back.
        """
        if tokens_to_remove:
            raise RuntimeError(
                f"a recurrent state cannot be cropped by {abs(tokens_to_remove)} tokens; start it anew"
            )

    def reset(self) -> None:
        super().reset()
        self.cumulative_length = 0

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map_states(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._map_states(lambda state: state[indices, ...])

    def held(self) -> dict[str, Any]:
        """Return a copy of everything that changes from token to token."""
        states = {
            name: {
                index: None if state is None else state.clone()
                for index, state in getattr(self, name).items()
            }
            for name in ("conv_states", "recurrent_states")
        }
        return {**_attributes(self), **states}

    def _map_states(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for states in (self.conv_states, self.recurrent_states):
            for index, state in states.items():
                if state is not None:
                    states[index] = function(state)


class SkippedLayer:
    """A layer whose mixer is left out: it only counts tokens."""

    is_compileable, is_croppable, is_sliding, supports_early_init = False, True, False, False

    def __init__(self) -> None:
        self.cumulative_length = 0

    def advance(self, num_tokens: int) -> None:
        """Count the tokens that passed by."""
        self.cumulative_length += num_tokens

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.cumulative_length -= abs(tokens_to_remove)

    def reset(self) -> None:
        self.cumulative_length = 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None: ...

    def batch_repeat_interleave(self, repeats: int) -> None: ...

    def batch_select_indices(self, indices: torch.Tensor) -> None: ...

    def offload(self) -> None: ...

    def prefetch(self) -> None: ...


class HybridCache(Cache):
    """One cache layer per decoder layer, of the kind that its mixer needs."""

    def __init__(self, layers: list, layout: tuple[str, ...]) -> None:
        """
        Args:
            layers: cache layers, first layer first.
            layout: what each is for: a mixer's name, or `SKIPPED`. The cache serves no other layout.
        """
        super().__init__(layers=layers)
        self.layout = layout

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens the layer has seen, its padding included."""
        return cast(Any, self.layers[layer_idx]).get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return length and offset of the keys that the backbone's own attention will see.

        The backbone sizes one mask for all of its layers by one of them, picked by `is_sliding`. A layer
        whose mixer is ours may keep fewer keys than they do, so the first of its own answers in its place.
        """
        own = [layer for layer, kind in enumerate(self.layout) if kind == FULL_ATTENTION]
        if layer_idx not in own:
            layer_idx = next((layer for layer in own if not self.is_sliding[layer]), layer_idx)
        return cast(Any, self.layers[layer_idx]).get_mask_sizes(query_length)

    def lengthen(self, num_tokens: int) -> None:
        """Make every layer as if `num_tokens` more tokens had passed: repeats of its own, or just counted.

        For timing decode steps at long contexts without reading such prompts; what is decoded then means
        nothing.

        Raises:
            RuntimeError: a layer of a kind that cannot be lengthened.
        """
        for layer, kind in zip(cast(list[Any], self.layers), self.layout, strict=True):
            if isinstance(layer, RecurrentLayer | SkippedLayer):
                layer.advance(num_tokens)
            elif isinstance(layer, GrowingLayer | WindowLayer):
                layer.lengthen(num_tokens)
            else:
                raise RuntimeError(
                    f"{type(layer).__name__} of {kind!r} cannot be lengthened; prefill instead"
                )

    def snapshot(self) -> list[dict[str, Any]]:
        """Return what `restore` takes the cache back to: recurrent states are copied, keys and values are not.

        Of later tokens' keys nothing is kept, so a snapshot is good once only.
        """
        return [
            layer.held() if isinstance(layer, RecurrentLayer) else _attributes(layer) for layer in self.layers
        ]

    def restore(self, snapshot: Sequence[Mapping[str, Any]]) -> None:
        """Forget every token since the snapshot was taken; a recurrent state, which cannot be cropped, can do this."""
        for layer, held in zip(self.layers, snapshot, strict=True):
            vars(layer).update(held)

    @property
    def is_sliding(self) -> list[bool]:
        sliding = [getattr(layer, "is_sliding", False) for layer in self.layers]
        return [kind == FULL_ATTENTION and own for kind, own in zip(self.layout, sliding, strict=True)]

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens of every layer, or refuse and change none.

        Args:
            tokens_to_remove: minus the number of tokens.

        Raises:
            RuntimeError: a layer cannot go back.
            ValueError: a positive number (transformers once took the length to keep), or more tokens than
                there are.
        """
        if not -self.get_seq_length() <= tokens_to_remove <= 0:
            raise ValueError(
                f"crop({tokens_to_remove}): give minus the number of the last tokens, at most "
                f"{self.get_seq_length()}"
            )
        for layer in self.layers:  # recurrent layers first: they refuse without having changed anything
            if isinstance(layer, RecurrentLayer):
                layer.crop(tokens_to_remove)
        before = [(layer, dict(vars(layer))) for layer in self.layers]
        try:
            super().crop(tokens_to_remove)
        except RuntimeError:
            for layer, attributes in before:
                vars(layer).update(attributes)
            raise


def _attributes(layer: Any) -> dict[str, Any]:
    """Return a cache layer's attributes; its own lists and dicts are written in place, so they are copied."""
    return {
        name: copy.copy(value) if isinstance(value, list | dict) else value
        for name, value in vars(layer).items()
    }


def native_layers(config: PreTrainedConfig) -> list:
    """Return the cache layers that the backbone itself would use, its own sliding windows included."""
    layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    return [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in layers]


def check_cache(cache: Cache, layout: Sequence[str]) -> None:
    """Check that a cache that came from outside serves this layout.

    Raises:
        ValueError: made for another layout, or by something that knows only attention.
    """
    layout = tuple(layout)
    if isinstance(cache, HybridCache):
        if cache.layout != layout:
            raise ValueError(
                f"this cache was filled under placement {' '.join(cache.layout)}, the model now runs "
                f"{' '.join(layout)}; start a new one with model.make_cache()"
            )
    elif any(kind != FULL_ATTENTION for kind in layout):
        raise ValueError(
            f"{type(cache).__name__} holds attention layers only; use model.make_cache() for a hybrid"
        )
