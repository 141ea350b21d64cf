"""Which implementation of the gated delta rule runs. All take and return the same."""

from collections.abc import Callable

import torch

from apriel_assets.hybrid.mixers.delta.chunked import delta_rule_chunked
from apriel_assets.hybrid.mixers.kernels import FLA, HALF, gdn_trains_by_kda_kernels, use_library

Rule = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def choose_rule(device: torch.device, dtype: torch.dtype, seq_len: int, kernel: str = "auto") -> Rule:
    """Return the rule for this device, dtype of the values, length and `kernel` option."""
    if use_library(FLA, kernel, device, dtype in HALF):
        return delta_rule_fla
    return delta_rule_step if seq_len == 1 else delta_rule_chunked


def delta_rule_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`delta_rule_reference` for one token: a handful of operations, for decoding."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    q_t, k_t, v_t, a_t, b_t = (
        values.to(dtype).transpose(1, 2) for values in (q, k, v, log_decay, beta[..., None])
    )
    if initial_state is None:
        state = (b_t * k_t).mT @ v_t
    else:
        kept = a_t.mT.exp() * initial_state.to(dtype)
        state = kept + (b_t * k_t).mT @ (v_t - k_t @ kept)
    return (q_t @ state).transpose(1, 2).to(v.dtype), state


def delta_rule_fla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`delta_rule_reference` by flash-linear-attention's GPU kernels."""
    from fla.ops import gated_delta_rule, kda  # pyright: ignore[reportMissingImports]

    # Their recurrent kernels have no backward pass.
    stepping = v.shape[1] == 1 and not torch.is_grad_enabled()
    if log_decay.shape[-1] == 1 and torch.is_grad_enabled() and gdn_trains_by_kda_kernels():
        log_decay = log_decay.expand_as(k)
    if log_decay.shape[-1] > 1:
        kernel = kda.fused_recurrent_kda if stepping else kda.chunk_kda
    else:
        kernel = (
            gated_delta_rule.fused_recurrent_gated_delta_rule
            if stepping
            else gated_delta_rule.chunk_gated_delta_rule
        )
        log_decay = log_decay.squeeze(-1)
    o, state = kernel(
        q=q.to(v.dtype),
        k=k.to(v.dtype),
        v=v,
        g=log_decay.float(),
        beta=beta.to(v.dtype),
        scale=1.0,
        initial_state=None if initial_state is None else initial_state.float(),
        output_final_state=True,
    )
    return o, state
