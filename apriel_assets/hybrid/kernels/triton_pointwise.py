"""What stands between a decode step's matrix products on a GPU, one launch each: norms, rotation, SwiGLU."""

# A kernel is indexed by its grid.
# pyright: reportIndexIssue=false

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor


def add_norm(residual: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """`decode.add_norm` for CUDA tensors."""
    out = torch.empty_like(residual)
    with torch.cuda.device(residual.device):
        _add_norm[(len(residual),)](
            residual,
            residual if update is None else update,
            weight,
            out,
            residual.shape[-1],
            eps,
            ADD=update is not None,
            BLOCK=triton.next_power_of_2(residual.shape[-1]),
            num_warps=8,
        )
    return out


def swiglu(gate_up: Tensor) -> Tensor:
    """`decode.swiglu` for CUDA tensors."""
    size = gate_up.shape[-1] // 2
    out = gate_up.new_empty(len(gate_up), size)
    block = 1024
    with torch.cuda.device(gate_up.device):
        _swiglu[(triton.cdiv(size, block), len(gate_up))](
            gate_up, out, size, gate_up.stride(0), BLOCK=block, num_warps=4
        )
    return out


def rotate_and_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, positions: Tensor, slots: Tensor
) -> Tensor:
    """`decode.rotate_and_store` for CUDA tensors."""
    batch, kv_heads, _, size = keys.shape
    num_heads = qkv.shape[-1] // size - 2 * kv_heads
    q = qkv.new_empty(batch, num_heads, size)
    with torch.cuda.device(qkv.device):
        _rotate_and_store[(num_heads + 2 * kv_heads, batch)](
            qkv,
            cos,
            sin,
            keys,
            values,
            positions,
            slots,
            q,
            qkv.stride(0),
            *keys.stride()[:3],
            *values.stride()[:3],
            HEADS=num_heads,
            KV_HEADS=kv_heads,
            HALF=size // 2,
            PADDED=triton.next_power_of_2(size // 2),
            num_warps=1,
        )
    return q


@triton.jit
def _add_norm(residual, update, weight, out, size, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    inside = at < size
    start = tl.program_id(0).to(tl.int64) * size
    x = tl.load(residual + start + at, mask=inside, other=0.0)
    if ADD:
        # Rounded as the residual stream is kept, so that the norm sees what the next layer adds to.
        x = (x.to(tl.float32) + tl.load(update + start + at, mask=inside, other=0.0).to(tl.float32)).to(
            x.dtype
        )
        tl.store(residual + start + at, x, mask=inside)
    x = x.to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    y = x.to(out.dtype.element_ty) * tl.load(weight + at, mask=inside)
    tl.store(out + start + at, y, mask=inside)


@triton.jit
def _swiglu(gate_up, out, size, row_stride, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(gate_up + row * row_stride + at, mask=inside).to(tl.float32)
    up = tl.load(gate_up + row * row_stride + size + at, mask=inside).to(tl.float32)
    opened = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * size + at, opened * up, mask=inside)


@triton.jit
def _rotate_and_store(
    qkv, cos, sin, keys, values, positions, slots, q,
    qkv_row, k_row, k_head, k_token, v_row, v_head, v_token,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = tl.arange(0, PADDED)
    inside = at < HALF
    source = qkv + row * qkv_row + head * 2 * HALF
    x1 = tl.load(source + at, mask=inside)
    x2 = tl.load(source + HALF + at, mask=inside)
    slot = tl.load(slots + row).to(tl.int64)
    if head >= HEADS + KV_HEADS:
        target = values + row * v_row + (head - HEADS - KV_HEADS) * v_head + slot * v_token
        tl.store(target + at, x1, mask=inside)
        tl.store(target + HALF + at, x2, mask=inside)
    else:
        angle = tl.load(positions + row).to(tl.int64) * 2 * HALF
        c1 = tl.load(cos + angle + at, mask=inside).to(tl.float32)
        s1 = tl.load(sin + angle + at, mask=inside).to(tl.float32)
        c2 = tl.load(cos + angle + HALF + at, mask=inside).to(tl.float32)
        s2 = tl.load(sin + angle + HALF + at, mask=inside).to(tl.float32)
        y1 = x1.to(tl.float32) * c1 - x2.to(tl.float32) * s1
        y2 = x2.to(tl.float32) * c2 + x1.to(tl.float32) * s2
        if head < HEADS:
            target = q + (row * HEADS + head) * 2 * HALF
        else:
            target = keys + row * k_row + (head - HEADS) * k_head + slot * k_token
        tl.store(target + at, y1, mask=inside)
        tl.store(target + HALF + at, y2, mask=inside)
