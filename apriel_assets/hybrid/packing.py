"""Sequences of different lengths without padding: one row of all tokens, taken apart only where tokens mix.

Embeddings, norms, projections, MLPs and the LM head treat every token alone, so they read `[1, tokens, ...]`.
Attention, convolutions and recurrences get each sequence as a row of its own: none can leak into another, whatever
kernel runs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Where the tokens of a packed row lie in padded rows `[batch, seq]`."""

    places: Tensor  # [tokens], indices into the flattened rows
    batch_size: int
    seq_len: int

    @classmethod
    def of(cls, attention_mask: Tensor) -> "Packing":
        """Pack the tokens at which a mask `[batch, seq]` is nonzero, row after row."""
        return cls(attention_mask.flatten().nonzero()[:, 0], *attention_mask.shape)

    def to(self, device: torch.device | str) -> "Packing":
        """Return it on a device."""
        return Packing(self.places.to(device), self.batch_size, self.seq_len)

    @property
    def positions(self) -> Tensor:
        """Each token's position in its padded row, `[1, tokens]`; rotary embeddings only look at differences."""
        return (self.places % self.seq_len)[None]

    def pack(self, values: Tensor) -> Tensor:
        """Return `[1, tokens, ...]` of `[batch, seq, ...]`."""
        return values.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, values: Tensor) -> Tensor:
        """Return `[batch, seq, ...]` of `[1, tokens, ...]`, zeros in padded places."""
        rows = values.new_zeros(self.batch_size * self.seq_len, *values.shape[2:])
        return rows.index_copy(0, self.places, values[0]).unflatten(0, (self.batch_size, self.seq_len))


def pack(packing: Packing | None, values: Tensor) -> Tensor:
    """Return the values packed, or as they are where nothing is."""
    return values if packing is None else packing.pack(values)


def unpack(packing: Packing | None, values: Tensor) -> Tensor:
    """Return the values unpacked, or as they are where nothing is."""
    return values if packing is None else packing.unpack(values)
