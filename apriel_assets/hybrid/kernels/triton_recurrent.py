"""Recurrent steps of one token on a GPU, in place: every state is read and written once, and nothing else is large."""

# A kernel is indexed by its grid.
# pyright: reportIndexIssue=false

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

# Measured on an H100: programs of 4 warps that hold a head's whole state move 2.6 TB/s of it at batch 190.
_LANES = 128  # state elements a thread keeps in registers, at most
_CHANNELS = 16  # Mamba channels of one program


def convolve(values: Tensor, history: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """`decode.convolve` for CUDA tensors."""
    batch, channels = out.shape
    block = 256
    with torch.cuda.device(values.device):
        _convolve[(triton.cdiv(channels, block), batch)](
            values,
            history,
            weight,
            weight if bias is None else bias,
            out,
            values.stride(0),
            channels,
            WIDTH=weight.shape[-1],
            BIAS=bias is not None,
            BLOCK=block,
            num_warps=4,
        )
    return out


def delta_step(
    projected: Tensor,
    decay: Tensor,
    gate: Tensor,
    beta: Tensor,
    history: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    eps: float,
) -> Tensor:
    """`decode.delta_step` for CUDA tensors."""
    batch, heads, size, _ = state.shape
    out = torch.empty(batch, heads * size, dtype=projected.dtype, device=projected.device)
    with torch.cuda.device(projected.device):
        _delta_step[(heads, batch)](
            projected,
            decay,
            gate,
            beta,
            history,
            state,
            conv_weight,
            A_log,
            dt_bias,
            norm_weight,
            out,
            *(values.stride(0) for values in (projected, decay, gate, beta)),
            eps,
            size**-0.5,
            HEADS=heads,
            SIZE=size,
            WIDTH=conv_weight.shape[-1],
            PER_CHANNEL=dt_bias.numel() > heads,
            num_warps=max(1, min(8, size * size // (32 * _LANES))),
        )
    return out


def mamba_step(
    mixed: Tensor,
    dt: Tensor,
    z: Tensor,
    state: Tensor,
    rates: Tensor,
    D: Tensor,
    kv_size: int,
    head_size: int,
) -> Tensor:
    """`decode.mamba_step` for CUDA tensors."""
    batch, channels, size = state.shape
    out = torch.empty(batch, channels, dtype=mixed.dtype, device=mixed.device)
    block = min(_CHANNELS, size)
    with torch.cuda.device(mixed.device):
        _mamba_step[(channels // block, batch)](
            mixed,
            dt,
            z,
            state,
            rates,
            D,
            out,
            *(values.stride(0) for values in (mixed, dt, z)),
            channels,
            kv_size,
            HEAD=head_size,
            GROUP=channels // kv_size,
            SIZE=size,
            BLOCK=block,
            num_warps=max(1, min(4, block * size // (32 * 16))),
        )
    return out


@triton.jit
def _step_of(values, history, weight, channels, WIDTH: tl.constexpr):
    """Convolution of one token's channels with the tokens before it, which move up by one."""
    x = tl.load(values)
    mixed = x.to(tl.float32) * tl.load(weight + channels * WIDTH + WIDTH - 1).to(tl.float32)
    for index in tl.static_range(WIDTH - 1):
        past = tl.load(history + channels * (WIDTH - 1) + index)
        mixed += past.to(tl.float32) * tl.load(weight + channels * WIDTH + index).to(tl.float32)
        if index > 0:
            tl.store(history + channels * (WIDTH - 1) + index - 1, past)
    tl.store(history + channels * (WIDTH - 1) + WIDTH - 2, x.to(history.dtype.element_ty))
    return mixed


@triton.jit
def _convolve(
    values, history, weight, bias, out, values_row, channels,
    WIDTH: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    x = tl.load(values + row * values_row + at, mask=inside)
    mixed = x.to(tl.float32) * tl.load(weight + at * WIDTH + WIDTH - 1, mask=inside).to(tl.float32)
    history += row * channels * (WIDTH - 1)
    for index in tl.static_range(WIDTH - 1):
        past = tl.load(history + at * (WIDTH - 1) + index, mask=inside)
        mixed += past.to(tl.float32) * tl.load(weight + at * WIDTH + index, mask=inside).to(tl.float32)
        if index > 0:
            tl.store(history + at * (WIDTH - 1) + index - 1, past, mask=inside)
    tl.store(history + at * (WIDTH - 1) + WIDTH - 2, x.to(history.dtype.element_ty), mask=inside)
    if BIAS:
        mixed += tl.load(bias + at, mask=inside).to(tl.float32)
    tl.store(out + row * channels + at, mixed * tl.sigmoid(mixed), mask=inside)


@triton.jit
def _softplus(x):
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def _delta_step(
    projected, decay, gate, beta, history, state, weight, A_log, dt_bias, norm_weight, out,
    projected_row, decay_row, gate_row, beta_row, eps, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, PER_CHANNEL: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, SIZE)
    rows, columns = lanes[:, None], lanes[None, :]  # key channels, value channels
    state += (row * HEADS + head) * SIZE * SIZE + rows * SIZE + columns
    S = tl.load(state)
    projected += row * projected_row
    history += row * 3 * HEADS * SIZE * (WIDTH - 1)
    q_at, k_at, v_at = head * SIZE + lanes, (HEADS + head) * SIZE + lanes, (2 * HEADS + head) * SIZE + lanes
    q = _step_of(projected + q_at, history, weight, q_at, WIDTH)
    k = _step_of(projected + k_at, history, weight, k_at, WIDTH)
    v = _step_of(projected + v_at, history, weight, v_at, WIDTH)
    q, k, v = q * tl.sigmoid(q), k * tl.sigmoid(k), v * tl.sigmoid(v)
    q *= scale * tl.rsqrt(tl.sum(q * q, 0) + 1e-6)
    k *= tl.rsqrt(tl.sum(k * k, 0) + 1e-6)
    rate = tl.exp(tl.load(A_log + head).to(tl.float32))
    if PER_CHANNEL:
        at = head * SIZE + lanes
        raw = tl.load(decay + row * decay_row + at).to(tl.float32) + tl.load(dt_bias + at).to(tl.float32)
        S *= tl.exp(-rate * _softplus(raw))[:, None]
    else:
        raw = tl.load(decay + row * decay_row + head).to(tl.float32) + tl.load(dt_bias + head).to(tl.float32)
        S *= tl.exp(-rate * _softplus(raw))
    strength = tl.sigmoid(tl.load(beta + row * beta_row + head).to(tl.float32))
    written = strength * (v - tl.sum(k[:, None] * S, 0))
    S += k[:, None] * written[None, :]
    tl.store(state, S)
    o = tl.sum(q[:, None] * S, 0)
    o *= tl.rsqrt(tl.sum(o * o, 0) / SIZE + eps) * tl.load(norm_weight + lanes).to(tl.float32)
    opened = tl.sigmoid(tl.load(gate + row * gate_row + head * SIZE + lanes).to(tl.float32))
    tl.store(out + row * HEADS * SIZE + head * SIZE + lanes, o * opened)


@triton.jit
def _mamba_step(
    mixed, dt, z, state, rates, D, out, mixed_row, dt_row, z_row, channels, kv_size,
    HEAD: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # channels of the query heads, all of one sub-head
    states = tl.arange(0, SIZE)
    state += row * channels * SIZE + at[:, None] * SIZE + states[None, :]
    s = tl.load(state)
    first = tl.program_id(0) * BLOCK
    kv_first = first // (HEAD * GROUP) * HEAD  # where the key-value head starts
    sub_head = first % HEAD // SIZE * SIZE
    mixed += row * mixed_row
    x = tl.load(mixed + kv_first + at % HEAD).to(tl.float32)
    B = tl.load(mixed + kv_size + kv_first + sub_head + states).to(tl.float32)
    C = tl.load(mixed + 2 * kv_size + first // SIZE * SIZE + states).to(tl.float32)
    step = _softplus(tl.load(dt + row * dt_row + at).to(tl.float32))
    # rates: A / ln 2
    decay = tl.exp2(step[:, None] * tl.load(rates + at[:, None] * SIZE + states[None, :]))
    s = decay * s + (step * x)[:, None] * B[None, :]
    tl.store(state, s)
    y = tl.sum(s * C[None, :], 1) + tl.load(D + at).to(tl.float32) * x
    gate = tl.load(z + row * z_row + at).to(tl.float32)
    tl.store(out + row * channels + at, y * gate * tl.sigmoid(gate))
