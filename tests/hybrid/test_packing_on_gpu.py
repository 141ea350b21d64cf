"""Packed rows and windows by blocks on a GPU, where libraries' kernels run: against padded rows and a mask."""

import pytest
import torch
from torch.nn import functional

from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.hybrid.attention import packable
from apriel_assets.hybrid.window_attention import window_attention
from tests.hybrid.test_packing import MIXERS, make_batch
from tests.hybrid.tiny_teachers import tiny_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}


@pytest.mark.parametrize("mixer", MIXERS)
def test_packed_rows_are_the_padded_ones(mixer):
    held = ("fa", *({mixer} - {"fa"}))
    model = (
        build_supernet(tiny_teacher(**SIZES), [held] * 3, options={"swa": {"window": 8}}).cuda().bfloat16()
    )
    model.set_placement((mixer, "fa", mixer))
    batch = make_batch((70, 3, 129, 64, 17)).to("cuda")
    real = batch.attention_mask.bool()
    padded = model.final_hidden_states(batch.input_ids, batch.attention_mask)[real]
    packed = batch.packed()
    with packable(model):
        states = model.final_hidden_states(packed.input_ids, packing=packed.packing)[0]
        torch.testing.assert_close(states, padded, atol=0.06, rtol=0.05)
        pull = torch.randn_like(padded)
        parameters = [p for name, p in model.named_parameters() if f".{mixer}." in name or "mlp" in name]
        ours = torch.autograd.grad((states * pull).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((padded * pull).sum(), parameters, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert (mine - other).float().norm() <= 0.03 * other.float().norm() + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_the_mask(dtype):
    query, key, value = (
        torch.randn(2, heads, 700, 64, device="cuda", dtype=dtype, requires_grad=True) for heads in (8, 2, 2)
    )
    at = torch.arange(700, device="cuda")
    mask = (at[None] <= at[:, None]) & (at[None] > at[:, None] - 100)
    wanted = functional.scaled_dot_product_attention(
        query, key.repeat_interleave(4, 1), value.repeat_interleave(4, 1), attn_mask=mask
    )
    mine = window_attention(query, key, value, 100)
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if dtype == torch.bfloat16 else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(mine, wanted, **tolerance)
    pull = torch.randn_like(mine)
    for ours, theirs in zip(
        torch.autograd.grad(mine, (query, key, value), pull),
        torch.autograd.grad(wanted, (query, key, value), pull),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **{name: 4 * value for name, value in tolerance.items()})
