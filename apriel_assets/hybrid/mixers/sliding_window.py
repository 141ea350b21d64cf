"""Sliding-window attention (SWA): the layer's attention, seeing only the last `window` tokens.

o_t = softmax(q_t K^T / sqrt(d_h)) V over the keys t - window < s <= t.
"""

import copy
from typing import Any, cast

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sliding_window_causal_mask_function

from apriel_assets.errors import UserError
from apriel_assets.hybrid.attention import PACKABLE
from apriel_assets.hybrid.attention_caches import WindowLayer
from apriel_assets.hybrid.forward_context import ForwardContext
from apriel_assets.hybrid.window_attention import pays

_SUPPORTED = ("sdpa", "eager")


class SlidingWindowMixer(nn.Module):
    """An attention module of the teacher's class behind a mask of its own."""

    def __init__(self, attention: nn.Module, window: int) -> None:
        """Take over an attention module of this layer's own."""
        super().__init__()
        self.attention, self.window = attention, window
        cast(Any, attention).swa_window = window  # what `attend` reads
        # Of its own, since the other layers' attention does not go through `attend`.
        self._shared_config = cast(Any, attention.config)
        attention.config = copy.copy(self._shared_config)

    def make_cache_layer(self) -> WindowLayer:
        return WindowLayer(sliding_window=self.window)

    def forward(
        self, context: ForwardContext, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run attention with the layer's usual arguments, but for the mask.

        Raises:
            UserError: an attention implementation whose window we cannot set by a mask.
        """
        implementation = self._shared_config._attn_implementation
        if implementation not in (*_SUPPORTED, PACKABLE):
            raise UserError(
                f"swa runs on attention {' or '.join(_SUPPORTED)}, not {implementation}; load with one"
            )
        hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        by_blocks = implementation != "eager" and self._starts_bare(context, layer, hidden_states, cache)
        cast(Any, self.attention.config)._attn_implementation = PACKABLE if by_blocks else implementation
        kwargs["attention_mask"] = None if by_blocks else self._mask(context, layer, hidden_states, cache)
        return self.attention(*args, **kwargs)

    def _starts_bare(
        self, context: ForwardContext, layer: int, hidden_states: torch.Tensor, cache: Cache | None
    ) -> bool:
        """Whether the pass starts its texts and has no padding, and blocks are worth it."""
        if context.packing is not None:
            return True
        seq_len = hidden_states.shape[1]
        begins = cache is None or cast(WindowLayer, cache.layers[layer]).get_seq_length() == 0
        return begins and pays(seq_len, self.window) and context.token_mask(seq_len) is None

    def _mask(
        self, context: ForwardContext, layer: int, hidden_states: torch.Tensor, cache: Cache | None
    ) -> torch.Tensor | None:
        """Return the mask for this pass; layers of one window share it."""
        batch, seq_len, _ = hidden_states.shape
        past, (kv_length, kv_offset) = 0, (seq_len, 0)
        if cache is not None:
            own = cast(WindowLayer, cache.layers[layer])
            past, (kv_length, kv_offset) = own.get_seq_length(), own.get_mask_sizes(seq_len)
        key = (self.window, past, kv_length, kv_offset)
        if key not in context.attention_masks:
            implementation = cast(Any, self.attention.config)._attn_implementation
            padding = context.padding_mask
            context.attention_masks[key] = ALL_MASK_ATTENTION_FUNCTIONS[implementation](
                batch_size=batch,
                q_length=seq_len,
                kv_length=kv_length,
                q_offset=past,
                kv_offset=kv_offset,
                mask_function=sliding_window_causal_mask_function(self.window),
                attention_mask=None if padding is None else padding.bool(),
                local_size=self.window,
                dtype=hidden_states.dtype,
                device=hidden_states.device,
            )
        return context.attention_masks[key]
