"""Attention modules of transformers on packed rows and behind windows, by its registry of attention functions.

An attention module computes queries, keys and values, rotates them, and calls the function that its config names. Ours
is transformers' own `sdpa`, but for rows that are packed and for windows that are worth taking block by block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from apriel_assets.errors import UserError
from apriel_assets.hybrid.forward_context import packing_in_use
from apriel_assets.hybrid.packing import pack, unpack
from apriel_assets.hybrid.window_attention import window_attention

PACKABLE = "packable_sdpa"
"""The function's name in configs."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention's output, `[batch, seq, heads, head size]`, as transformers' functions do.

    Args:
        module: the attention module; one with a `swa_window` sees that many tokens where there is no mask.
        query: `[batch, heads, seq, head size]`; packed rows are `[1, heads, tokens, head size]`.
        key: likewise, of key-value heads.
        value: as `key`.
        attention_mask: what `sdpa` takes; None: causal.
        options: what `sdpa` takes, and the architecture's own `sliding_window`.
    """
    packing = packing_in_use()
    query, key, value = (
        unpack(packing, each.transpose(1, 2)).transpose(1, 2) for each in (query, key, value)
    )
    window = getattr(module, "swa_window", None) or options.get("sliding_window")
    if attention_mask is None and window and window < query.shape[2] == key.shape[2]:
        dropout = options.get("dropout", 0.0)
        output = window_attention(query, key, value, window, scaling=options.get("scaling"), dropout=dropout)
        output = output.transpose(1, 2)
    else:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return pack(packing, output), None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return `sdpa`'s mask; packed rows need none."""
    return None if packing_in_use() is not None else sdpa_mask(*args, **kwargs)


@contextmanager
def packable(*models: PreTrainedModel) -> Iterator[None]:
    """Let models take packed rows, for a while.

    Raises:
        UserError: one runs another attention than `sdpa`.
    """
    configs: list[Any] = [getattr(model, "backbone", model).base_model.config for model in models]
    if others := [config._attn_implementation for config in configs if config._attn_implementation != "sdpa"]:
        raise UserError(
            f"packing runs on attention sdpa, not {others[0]}; load the model with it, or switch packing off"
        )
    try:
        for config in configs:
            config._attn_implementation = PACKABLE
        yield
    finally:
        for config in configs:
            config._attn_implementation = "sdpa"


AttentionInterface.register(PACKABLE, attend)
AttentionMaskInterface.register(PACKABLE, _mask)
