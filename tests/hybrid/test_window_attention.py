"""Attention by blocks against the same with a mask; what lies before the window must not count, what is in it must."""

import pytest
import torch
from torch.nn import functional

from apriel_assets.hybrid import window_attention as module
from apriel_assets.hybrid.window_attention import window_attention


def make_inputs(length, heads=4, kv_heads=2, batch=2, size=8):
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(batch, count, length, size, generator=generator, dtype=torch.float64, requires_grad=True)
        for count in (heads, kv_heads, kv_heads)
    ]


def masked(query, key, value, window, **settings):
    at = torch.arange(query.shape[2])
    mask = (at[None] <= at[:, None]) & (at[None] > at[:, None] - window)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, enable_gqa=True, **settings
    )


@pytest.mark.parametrize("block", [4, 6, 16])
@pytest.mark.parametrize(("length", "window"), [(1, 4), (4, 4), (5, 4), (23, 4), (24, 4), (24, 1), (40, 7)])
def test_blocks_are_the_mask(monkeypatch, length, window, block):
    monkeypatch.setattr(module, "_LEAST_BLOCK", block)
    inputs = make_inputs(length)
    mine, wanted = window_attention(*inputs, window, scaling=0.3), masked(*inputs, window, scale=0.3)
    torch.testing.assert_close(mine, wanted)
    pull = torch.randn(mine.shape, dtype=mine.dtype)
    for ours, theirs in zip(
        torch.autograd.grad(mine, inputs, pull), torch.autograd.grad(wanted, inputs, pull), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_token_outside_of_the_window_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "_LEAST_BLOCK", 4)
    query, key, value = (each.detach() for each in make_inputs(30))
    before = window_attention(query, key, value, 5)
    value[:, :, 10] += 1
    after = window_attention(query, key, value, 5)
    changed = (before != after).any(dim=(0, 1, 3)).nonzero()[:, 0].tolist()
    assert changed == [10, 11, 12, 13, 14]
