"""Cache layers of attention: keys and values that grow, or the last ones of a window."""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_LEAST_ROOM = 64  # tokens that a new buffer can grow by


class GrowingLayer(DynamicLayer):
    """Keys and values of full attention, in buffers with room to grow.

    transformers' own layer copies all of them at every token, which in decoding costs more than attention
    itself: full attention would look slower than it is, and every hybrid faster.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[torch.Tensor | None] = [None, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[batch, heads, seq, head size]`; return all keys and values, views of the buffers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append(0, self.keys, key_states)
        self.values = self._append(1, self.values, value_states)
        return self.keys, self.values

    def lengthen(self, num_tokens: int) -> None:
        """Repeat what is held until it is `num_tokens` longer; for timing, where content does not matter."""
        assert self.keys is not None
        assert self.values is not None
        index = torch.arange(num_tokens, device=self.keys.device) % self.keys.shape[-2]
        self.update(self.keys.index_select(-2, index), self.values.index_select(-2, index))

    def reset(self) -> None:
        super().reset()
        self._buffers = [None, None]

    def _append(self, which: int, held: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        assert held is not None
        if new.requires_grad:  # autograd must not see its tensors overwritten
            return torch.cat([held, new], dim=-2)
        length = held.shape[-2] if held.numel() else 0
        needed, buffer = length + new.shape[-2], self._buffers[which]
        # Whoever permutes or crops rows replaces `held`; what still is the buffer's beginning can grow in place.
        in_place = (
            buffer is not None
            and held.data_ptr() == buffer.data_ptr()
            and held.shape[:2] == buffer.shape[:2]
            and held.stride() == buffer.stride()
            and needed <= buffer.shape[-2]
        )
        if not in_place:
            batch, heads, _, width = new.shape
            buffer = new.new_empty(batch, heads, needed + max(_LEAST_ROOM, needed // 4), width)
            if length:
                buffer[..., :length, :] = held
            self._buffers[which] = buffer
        assert buffer is not None
        buffer[..., length:needed, :] = new
        return buffer[..., :needed, :]


class WindowLayer(DynamicSlidingWindowLayer):
    """The last `sliding_window - 1` keys and values."""

    def lengthen(self, num_tokens: int) -> None:
        """Fill the window with repeats of what is held, and count tokens that have left it; for timing."""
        assert self.keys is not None
        assert self.values is not None
        length = self.keys.shape[-2]
        missing = max(0, min(num_tokens, self.sliding_window - 1 - length))
        index = torch.arange(length + missing, device=self.keys.device) % length
        self.keys, self.values = self.keys.index_select(-2, index), self.values.index_select(-2, index)
        self.cumulative_length += num_tokens

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, exactly.

        Args:
            tokens_to_remove: minus their number; 0 drops what was only recorded to be able to go back.

        Raises:
            RuntimeError: keys that the window would need again are gone; the cache is left as it was.
        """
        left = self.get_seq_length() - abs(tokens_to_remove)
        kept = 0 if self.keys is None else self.keys.shape[-2] - abs(tokens_to_remove)
        if self.is_initialized and kept < min(left, self.sliding_window - 1):
            raise RuntimeError(
                f"cannot take back {abs(tokens_to_remove)} tokens: keys before the window of "
                f"{self.sliding_window} are gone; call activate_past_recording() before such tokens"
            )
        if self.is_initialized:
            super().crop(tokens_to_remove)
