"""Which implementation of the selective scan runs. All take and return the same."""

from collections.abc import Callable

import torch

from apriel_assets.hybrid.mixers.mamba.chunked import selective_scan_chunked

Scan = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def choose_scan(device: torch.device, seq_len: int) -> Scan:
    """Return the fastest scan for this device and length: the one place that decides.

    A GPU kernel joins here. mamba-ssm's `selective_scan_fn` takes our operands as `[batch, channels, seq]`
    with B and C as `[batch, heads, state, seq]`, but knows no initial state: it can serve a prefill that
    starts from nothing.
    """
    del device
    return selective_scan_step if seq_len == 1 else selective_scan_chunked


def selective_scan_step(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`selective_scan_reference` for one token: a handful of operations, for decoding."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    batch, _, channels = x.shape
    heads, state_size = B.shape[-2:]
    x_t, dt_t = (values.to(dtype).view(batch, heads, -1, 1) for values in (x, dt))
    B_t, C_t = (values.to(dtype).view(batch, heads, 1, state_size) for values in (B, C))
    s = (x_t * dt_t) * B_t
    if initial_state is not None:
        decay = (dt_t * A.to(dtype).view(heads, -1, state_size)).exp()
        s = torch.addcmul(s, decay, initial_state.to(dtype).view_as(s))
    y = (s @ C_t.mT).view(batch, 1, channels)
    return y.to(x.dtype), s.view(batch, channels, state_size)
