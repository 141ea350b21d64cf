"""What vLLM's grouping of caches costs a placement: memory that it takes and that no layer needs.

vLLM gives out one size of block to all layers, and groups layers of the same kind of cache, as many in each group. A
kind with fewer layers is filled up with layers that do not exist; a recurrent state takes a whole block, whose tokens
are as many as the largest state asks for. Only counts matter, not the order of the layers.

Source: vllm 0.32.0, `v1/core/kv_cache_utils.py` (`_get_kv_cache_groups_uniform_page_size`) and
`platforms/interface.py` (`_align_hybrid_block_size`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from apriel_assets.errors import UserError
from apriel_assets.evaluation.roofline import ModelShape, cache_bytes_per_layer

_KINDS = {"fa": "attention", "swa": "window", "gdn": "delta", "kda": "delta", "mamba": "mamba"}
_ALIKE = 1.5  # kinds whose numbers of layers differ by less are filled up to the larger


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheGroups:
    """How vLLM lays out the caches of one placement."""

    shape: ModelShape
    layers: Mapping[str, int]  # by kind of cache: attention, window, delta (GDN and KDA), mamba
    layers_per_group: int
    block_tokens: int  # of attention; a state takes one block
    page_bytes: int  # of one layer in a block

    @property
    def num_groups(self) -> int:
        """Block tables that vLLM keeps for each request."""
        return sum(self._groups(kind) for kind in self.layers)

    @property
    def padding_layers(self) -> int:
        """Layers that do not exist and have memory."""
        return self.num_groups * self.layers_per_group - sum(self.layers.values())

    def request_bytes(self, context: int) -> int:
        """Return what a request takes after `context` tokens."""
        blocks = sum(self._groups(kind) * self._blocks(kind, context) for kind in self.layers)
        return blocks * self.layers_per_group * self.page_bytes

    def needed_bytes(self, context: int) -> float:
        """Return what its layers need of that: keys and values of the tokens that they see, and states."""
        mixers = {kind: mixer for mixer, kind in _KINDS.items()}
        return sum(
            count * cache_bytes_per_layer(self.shape, mixers[kind], context)
            for kind, count in self.layers.items()
        )

    def wasted_share(self, context: int) -> float:
        """Return the part of a request's memory that no layer needs, 0 to 1."""
        return 1 - self.needed_bytes(context) / self.request_bytes(context)

    def _groups(self, kind: str) -> int:
        return ceil(self.layers[kind] / self.layers_per_group)

    def _blocks(self, kind: str, context: int) -> int:
        whole = ceil(context / self.block_tokens)
        if kind == "attention":
            return whole
        if kind == "window":  # it may begin in the middle of a block
            return min(whole, ceil(self.shape.window / self.block_tokens) + 1)
        return 1


def cache_groups(shape: ModelShape, placement: Sequence[str], *, least_block_tokens: int = 16) -> CacheGroups:
    """Return how vLLM lays out a placement's caches.

    Args:
        shape: sizes of the model; `cache_bytes` is those of an element of its KV cache.
        placement: a mixer for each layer, in any order.
        least_block_tokens: what the attention backend asks for: 16 on NVIDIA GPUs, 128 on CPUs.

    Raises:
        UserError: an unknown mixer, or no layers.
    """
    if not placement or (unknown := sorted(set(placement) - set(_KINDS))):
        named = repr(unknown[0]) if placement else "no layers"  # pyright: ignore[reportPossiblyUnboundVariable]
        raise UserError(f"cannot group {named}; give each layer one of {', '.join(_KINDS)}")
    layers = Counter(_KINDS[mixer] for mixer in placement)
    token_bytes = int(2 * shape.num_kv_heads * shape.head_size * shape.cache_bytes)
    largest_state = max((_state_bytes(shape, mixer) for mixer in set(placement)), default=0)
    block_tokens = least_block_tokens * max(1, ceil(largest_state / (least_block_tokens * token_bytes)))
    has_attention = "attention" in layers or "window" in layers
    fewest, most = min(layers.values()), max(layers.values())
    return CacheGroups(
        shape=shape,
        layers=dict(layers),
        layers_per_group=most if most < _ALIKE * fewest else fewest,
        block_tokens=block_tokens,
        page_bytes=block_tokens * token_bytes if has_attention else largest_state,
    )


def _state_bytes(shape: ModelShape, mixer: str) -> int:
    return 0 if mixer in ("fa", "swa") else int(cache_bytes_per_layer(shape, mixer, context=0))
