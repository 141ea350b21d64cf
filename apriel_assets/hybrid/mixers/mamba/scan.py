"""Which implementation of the selective scan runs. All take and return the same."""

from collections.abc import Callable

import torch

from apriel_assets.hybrid.mixers.kernels import MAMBA_SSM, use_library
from apriel_assets.hybrid.mixers.mamba.chunked import selective_scan_chunked

Scan = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def choose_scan(device: torch.device, seq_len: int, kernel: str = "auto", with_state: bool = False) -> Scan:
    """Return the scan for this device, length and `kernel` option.

    mamba-ssm's scan knows no initial state. Without gradients what is left of one is added to its outputs; with
    gradients, which no training here needs, the chunked form serves.
    """
    if seq_len == 1:
        return selective_scan_step
    if use_library(MAMBA_SSM, kernel, device) and not (with_state and torch.is_grad_enabled()):
        return selective_scan_mamba_ssm
    return selective_scan_chunked


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


def selective_scan_mamba_ssm(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`selective_scan_reference` by mamba-ssm's GPU kernel; the final state carries no gradient.

    In fp32 whatever the dtype of the operands: the kernel takes one for all, and step sizes in bf16 would be up to 0.4%
    off at every token.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore[reportMissingImports]

    def channels_first(values: torch.Tensor) -> torch.Tensor:
        return values.float().transpose(1, 2).contiguous()

    def groups_first(values: torch.Tensor) -> torch.Tensor:
        return values.float().permute(0, 2, 3, 1).contiguous()  # [batch, heads, state, seq]

    y, state = selective_scan_fn(
        channels_first(x),
        channels_first(dt),
        A.float().contiguous(),
        groups_first(B),
        groups_first(C),
        return_last_state=True,
    )
    y, state = y.transpose(1, 2), state.detach()
    if initial_state is not None:
        from apriel_assets.hybrid.mixers.mamba.carried_state import read_carried_state

        # The recurrence is linear in its state: what the initial one has become adds to what began from nothing.
        time = dt.float().cumsum(1)
        y = y + read_carried_state(initial_state.float(), time, A.float(), C)
        state = state + (A.float() * time[:, -1, :, None]).exp() * initial_state.float()
    return y.to(x.dtype), state
