"""Causal attention to the last tokens only, at a cost that grows with the window, not with the square of the length."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_LEAST_BLOCK = 128  # queries: smaller products cost more than the keys that they leave out


def pays(length: int, window: int) -> bool:
    """Return whether blocks are less work than one product with a mask."""
    return length > 4 * _block(window)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(q_t k_s^T scaling) v_s over t - window < s <= t.

    The first `window` queries see all that precedes them; the others go in blocks, each against the keys that any of
    its queries sees, behind one mask that all blocks share.

    Args:
        query: `[batch, heads, seq, head size]`.
        key: likewise, maybe of fewer heads, each shared by as many neighbouring query heads.
        value: as `key`.
        window: tokens that are seen, the query's own included.
        scaling: of the products; None: head size ** -0.5.
        dropout: probability.
    """
    settings: dict[str, Any] = {"scale": scaling, "dropout_p": dropout}
    shared = key.shape[1] < query.shape[1]
    begin = slice(0, window)
    first = functional.scaled_dot_product_attention(
        query[:, :, begin],
        key[:, :, begin],
        value[:, :, begin],
        is_causal=True,
        enable_gqa=shared,
        **settings,
    )
    if query.shape[2] <= window:
        return first
    return torch.cat([first, _in_blocks(query, key, value, window, settings)], dim=2)


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, window: int, settings: dict[str, Any]) -> Tensor:
    """Return what the queries from position `window` on get, `[batch, heads, seq - window, head size]`."""
    length, block = query.shape[2], _block(window)
    count = -(-(length - window) // block)
    fill = window + count * block - length
    queries = functional.pad(query[:, :, window:], (0, 0, 0, fill)).unflatten(2, (count, block))
    repeats, span = query.shape[1] // key.shape[1], block + window - 1
    # The first of these blocks' queries, at position `window`, sees keys from 1 on.
    keys, values = (
        functional.pad(each[:, :, 1:], (0, 0, 0, fill))
        .unfold(2, span, block)
        .mT.repeat_interleave(repeats, dim=1)
        for each in (key, value)
    )
    ahead = torch.arange(span, device=query.device) - torch.arange(block, device=query.device)[:, None]
    queries, keys, values = (each.transpose(1, 2).flatten(0, 1) for each in (queries, keys, values))
    rest = functional.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=(ahead >= 0) & (ahead < window),
        **settings,
    )
    return rest.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)[:, :, : length - window]


def _block(window: int) -> int:
    return max(window, _LEAST_BLOCK)
