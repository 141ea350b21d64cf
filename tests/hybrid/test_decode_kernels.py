"""The Triton kernels of a decode step against their plain form, on random buffers: what they return and write."""

import pytest
import torch

from apriel_assets.hybrid.kernels import decode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def compare(function, *operands, dtype):
    """Run on a GPU and, in fp32, on the CPU; compare what comes back and every operand, written or not."""
    on_gpu = [value.cuda() if isinstance(value, torch.Tensor) else value for value in operands]
    plain = [v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in operands]
    found, expected = [function(*on_gpu), *on_gpu], [function(*plain), *plain]
    # fp32: products of 16 or more terms may run in tf32, which keeps 11 bits
    tolerance = 2e-2 if dtype == torch.bfloat16 else 3e-3
    for mine, theirs in zip(found, expected, strict=True):
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(mine.cpu().float(), theirs.float(), rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("heads", [(32, 8), (4, 4), (6, 1)])
@pytest.mark.parametrize(("size", "capacity"), [(128, 700), (64, 40), (80, 5000), (8, 90)])
def test_attend(dtype, heads, size, capacity):
    q = normal(3, heads[0], size, dtype=dtype)
    keys, values = (normal(3, heads[1], capacity, size, seed=seed, dtype=dtype) for seed in (1, 2))
    lengths = torch.tensor([1, capacity // 2 + 1, capacity], dtype=torch.int32)
    for row, length in enumerate(lengths.tolist()):  # nothing may be read where nothing is held
        keys[row, :, length:] = values[row, :, length:] = 1e4
    compare(decode.attend, q, keys, values, lengths, size**-0.5, dtype=dtype)


@DTYPES
def test_rotate_and_store(dtype):
    qkv = normal(3, (8 + 2 * 2) * 64, dtype=dtype)
    cos, sin = normal(50, 64, dtype=dtype), normal(50, 64, seed=1, dtype=dtype)
    keys, values = (normal(3, 2, 20, 64, seed=seed, dtype=dtype) for seed in (2, 3))
    positions = torch.tensor([0, 49, 23], dtype=torch.int32)
    compare(decode.rotate_and_store, qkv, cos, sin, keys, values, positions, positions % 20, dtype=dtype)


@DTYPES
@pytest.mark.parametrize("with_update", [True, False])
def test_add_norm(dtype, with_update):
    residual, update, weight = (
        normal(3, 200, dtype=dtype),
        normal(3, 200, seed=1, dtype=dtype),
        normal(200, dtype=dtype),
    )
    compare(decode.add_norm, residual, update if with_update else None, weight, 1e-5, dtype=dtype)


@DTYPES
def test_swiglu(dtype):
    compare(decode.swiglu, normal(3, 2 * 1500, dtype=dtype), dtype=dtype)


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [2, 4])
def test_convolve(dtype, bias, width):
    values, history = normal(3, 700, dtype=dtype), normal(3, 600, width - 1, dtype=dtype)
    weight = normal(600, width, dtype=dtype)
    compare(decode.convolve, values, history, weight, normal(600, dtype=dtype) if bias else None, dtype=dtype)


@DTYPES
@pytest.mark.parametrize("per_channel", [False, True], ids=["gdn", "kda"])
@pytest.mark.parametrize("size", [16, 64, 128])
def test_delta_step(dtype, per_channel, size):
    heads = 3
    inner = heads * size
    decays = inner if per_channel else heads
    compare(
        decode.delta_step,
        normal(2, 3 * inner, dtype=dtype),
        normal(2, decays, seed=1, dtype=dtype),
        normal(2, inner, seed=2, dtype=dtype),
        normal(2, heads, seed=3, dtype=dtype),
        normal(2, 3 * inner, 3, seed=4, dtype=dtype),
        normal(2, heads, size, size, seed=5),
        normal(3 * inner, 4, seed=6, dtype=dtype),
        normal(heads, seed=7, dtype=dtype),
        normal(decays, seed=8, dtype=dtype),
        normal(size, seed=9, dtype=dtype),
        1e-6,
        dtype=dtype,
    )


@DTYPES
@pytest.mark.parametrize("state_size", [16, 64])
def test_mamba_step(dtype, state_size):
    kv_size, head_size, channels = 2 * 64, 64, 6 * 64
    compare(
        decode.mamba_step,
        normal(2, 2 * kv_size + channels, dtype=dtype),
        normal(2, channels, seed=1, dtype=dtype),
        normal(2, channels, seed=2, dtype=dtype),
        normal(2, channels, state_size, seed=3),
        -normal(channels, state_size, seed=4).exp(),
        normal(channels, seed=5, dtype=dtype),
        kv_size,
        head_size,
        dtype=dtype,
    )
