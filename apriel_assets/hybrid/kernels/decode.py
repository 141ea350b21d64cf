"""The operations of a decode step: one new token a row, on buffers that are written in place.

Each is the plain form, and takes the Triton kernel of the same name on a GPU. All shapes are fixed and all lengths are
tensors, so a step can be captured once as a CUDA graph and replayed at any length.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional


def uses_triton(device: torch.device) -> bool:
    """Whether these operations run as Triton kernels: the one place that decides."""
    return device.type == "cuda" and _triton_installed()


@cache
def _triton_installed() -> bool:
    return find_spec("triton") is not None


def attend(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Return softmax(scale q K^T) V over the first `lengths` tokens of each row's buffer.

    Args:
        q: queries of one token, `[batch, heads, head size]`.
        keys, values: buffers, `[batch, key-value heads, capacity, head size]`; query head h reads key-value head
            h // (heads / key-value heads). The order of tokens does not matter.
        lengths: tokens held by each row, `[batch]`, at least 1.

    Returns:
        `[batch, heads, head size]`.
    """
    if uses_triton(q.device):
        from apriel_assets.hybrid.kernels import triton_attention

        return triton_attention.attend(q, keys, values, lengths, scale)
    held = keys.shape[2] if q.is_cuda else int(lengths.max())
    mask = torch.arange(held, device=q.device) < lengths[:, None, None, None]
    return functional.scaled_dot_product_attention(
        q[:, :, None], keys[:, :, :held], values[:, :, :held], attn_mask=mask, scale=scale, enable_gqa=True
    )[:, :, 0]


def rotate_and_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, positions: Tensor, slots: Tensor
) -> Tensor:
    """Rotate queries and keys by their position, put keys and values into the buffers, return the queries.

    Args:
        qkv: `[batch, (heads + 2 key-value heads) * head size]`, queries first, then keys, then values.
        cos, sin: of every position, `[positions, head size]`, for halves that rotate into each other.
        keys, values: buffers, `[batch, key-value heads, capacity, head size]`; written in place.
        positions: of the token in its row, `[batch]`.
        slots: where in the buffers it goes, `[batch]`.

    Returns:
        queries, `[batch, heads, head size]`.
    """
    if uses_triton(qkv.device):
        from apriel_assets.hybrid.kernels import triton_pointwise

        return triton_pointwise.rotate_and_store(qkv, cos, sin, keys, values, positions, slots)
    kv_heads, _, size = keys.shape[1:]
    q, k, v = qkv.unflatten(-1, (-1, size)).split(
        [qkv.shape[-1] // size - 2 * kv_heads, kv_heads, kv_heads], dim=1
    )
    cos, sin = (table[positions.long()][:, None] for table in (cos, sin))
    rows = torch.arange(len(qkv), device=qkv.device)
    keys[rows, :, slots.long()] = _rotate(k, cos, sin)
    values[rows, :, slots.long()] = v
    return _rotate(q, cos, sin)


def _rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = values.chunk(2, dim=-1)
    return values * cos + torch.cat([-second, first], dim=-1) * sin


def add_norm(residual: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add `update` to `residual` in place and return its RMSNorm; both `[batch, hidden]`."""
    if uses_triton(residual.device):
        from apriel_assets.hybrid.kernels import triton_pointwise

        return triton_pointwise.add_norm(residual, update, weight, eps)
    if update is not None:
        residual += update
    wide = residual.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(residual.dtype)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return SiLU(gate) * up from `[batch, 2 * size]`, the gate first."""
    if uses_triton(gate_up.device):
        from apriel_assets.hybrid.kernels import triton_pointwise

        return triton_pointwise.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def convolve(values: Tensor, history: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return SiLU of a causal depthwise convolution at one token, and move it into the history.

    Args:
        values: `[batch, at least channels]`; further ones are left alone.
        history: the tokens before, oldest first, `[batch, channels, width - 1]`; written in place.
        weight: `[channels, width]`.
        bias: `[channels]`.

    Returns:
        `[batch, channels]`, contiguous.
    """
    out = values.new_empty(len(values), len(weight))
    if uses_triton(values.device):
        from apriel_assets.hybrid.kernels import triton_recurrent

        return triton_recurrent.convolve(values, history, weight, bias, out)
    whole = torch.cat([history, values[:, : len(weight), None].to(history.dtype)], dim=-1)
    history.copy_(whole[..., 1:])
    mixed = (whole * weight).sum(-1)
    return functional.silu(mixed if bias is None else mixed + bias)


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
    """Take one token through GDN (a decay per head) or KDA (one per key channel), from projections to `out_proj`.

    Args:
        projected: queries, keys, values before their convolution, `[batch, at least 3 * heads * head size]`.
        decay: before its bias and softplus, `[batch, heads or heads * head size]`.
        gate: output gate before its sigmoid, `[batch, heads * head size]`.
        beta: write strength before its sigmoid, `[batch, heads]`.
        history: of the convolution, `[batch, 3 * heads * head size, width - 1]`; written in place.
        state: `[batch, heads, head size, head size]`, keys first, fp32; written in place.
        conv_weight: `[3 * heads * head size, width]`.
        A_log: `[heads]`.
        dt_bias: as wide as `decay`.
        norm_weight: of the output's norm, `[head size]`.
        eps: of the norm.

    Returns:
        `[batch, heads * head size]`.
    """
    if uses_triton(projected.device) and state.shape[-1] & (state.shape[-1] - 1) == 0:
        from apriel_assets.hybrid.kernels import triton_recurrent

        return triton_recurrent.delta_step(
            projected, decay, gate, beta, history, state, conv_weight, A_log, dt_bias, norm_weight, eps
        )
    heads, size = state.shape[1:3]
    mixed = convolve(projected, history, conv_weight, None).float().unflatten(-1, (3, heads, size))
    q, k, v = mixed.unbind(1)
    q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    rate = A_log.float().exp()[:, None]
    log_decay = -rate * functional.softplus((decay + dt_bias).float()).unflatten(-1, (heads, -1))
    state *= log_decay.exp()[..., None]
    written = beta.float().sigmoid()[..., None] * (v - (k[:, :, None] @ state)[:, :, 0])
    state += k[..., None] * written[:, :, None]
    o = (q[:, :, None] @ state)[:, :, 0] * size**-0.5
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + eps) * norm_weight.float()
    return (o.flatten(1) * gate.float().sigmoid()).to(projected.dtype)


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
    """Take one token through Mamba's recurrence, skip and gate.

    Args:
        mixed: x, B and C after their convolution, `[batch, 2 * kv_size + channels]`, x and B per key-value head.
        dt: step sizes before their softplus, `[batch, channels]`.
        z: gate before its SiLU, `[batch, channels]`.
        state: `[batch, channels, state size]`, fp32; written in place.
        rates: A / ln 2, `[channels, state size]`, fp32: decay is 2 to the power of rate and step size.
        D: skip, `[channels]`.
        kv_size: channels of all key-value heads.
        head_size: channels of a head; the state size divides it.

    Returns:
        `[batch, channels]`.
    """
    batch, channels, size = state.shape
    if uses_triton(mixed.device) and size & (size - 1) == 0:
        from apriel_assets.hybrid.kernels import triton_recurrent

        return triton_recurrent.mamba_step(mixed, dt, z, state, rates, D, kv_size, head_size)
    x, B, C = mixed.float().split([kv_size, kv_size, channels], dim=-1)
    x, B = (
        values.unflatten(-1, (-1, head_size)).repeat_interleave(channels // kv_size, dim=1).flatten(1)
        for values in (x, B)
    )
    # B and C serve all channels of their sub-head, which is as wide as the state.
    B, C = (values.view(batch, -1, 1, size).expand(-1, -1, size, -1).flatten(1, 2) for values in (B, C))
    step = functional.softplus(dt.float())
    state *= torch.exp2(step[..., None] * rates)
    state += (step * x)[..., None] * B
    y = (state * C).sum(-1) + D.float() * x
    return (y * functional.silu(z.float())).to(mixed.dtype)
