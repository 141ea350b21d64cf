"""The selective scan, symbol for symbol: slow, fp32, differentiated by autograd. Others are held to it.

Source: "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 3, with B and C per head.
"""

import torch


def selective_scan_reference(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """s_t = exp(dt_t A) s_{t-1} + dt_t B_t x_t;  y_t = C_t s_t.

    Args:
        x: inputs, `[batch, seq, channels]`.
        dt: step sizes, `[batch, seq, channels]`; 0 leaves the state as it is.
        A: decay rates (negative), `[channels, state]`.
        B, C: write and read vectors, `[batch, seq, heads, state]`; head h serves channels
            h * channels / heads and on.
        initial_state: `[batch, channels, state]`; None: zeros.

    Returns:
        y, `[batch, seq, channels]`, in x's dtype; the state after the last token, `[batch, channels, state]`,
        in fp32 (fp64 for fp64 inputs).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    batch, seq_len, channels = x.shape
    heads, state_size = B.shape[-2:]
    width = channels // heads
    s = (
        x.new_zeros(batch, channels, state_size, dtype=dtype)
        if initial_state is None
        else initial_state.to(dtype)
    )
    A = A.to(dtype)
    y = []
    for t in range(seq_len):
        x_t, dt_t = x[:, t, :, None].to(dtype), dt[:, t, :, None].to(dtype)
        B_t, C_t = (v[:, t].to(dtype).repeat_interleave(width, dim=1) for v in (B, C))
        s = torch.exp(dt_t * A) * s + dt_t * B_t * x_t
        y.append((C_t * s).sum(-1))
    return torch.stack(y, dim=1).to(x.dtype), s
