"""The gated delta rule, symbol for symbol: slow, fp32, differentiated by autograd. Others are held to it.

Sources: "Gated Delta Networks: Improving Mamba2 with Delta Rule", equation 10 (one decay per head); "Kimi
Linear: An Expressive, Efficient Attention Architecture", equation 1 (one per key channel). With one decay per
head the two are the same.
"""

import torch


def delta_rule_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S_t = (I - b_t k_t k_t^T) Diag(a_t) S_{t-1} + b_t k_t v_t^T;  o_t = S_t^T q_t;  a_t = exp(log_decay_t).

    Args:
        q, k: `[batch, seq, heads, key]`, already normalised and scaled.
        v: `[batch, seq, heads, value]`.
        log_decay: nats, at most 0, `[batch, seq, heads, key]`, or `[..., 1]` for one decay per head.
        beta: strength of the write, `[batch, seq, heads]`; 0, with a decay of 0 nats, leaves the state alone.
        initial_state: `[batch, heads, key, value]`; None: zeros.

    Returns:
        o, `[batch, seq, heads, value]`, in v's dtype; the state after the last token,
        `[batch, heads, key, value]`, in fp32 (fp64 for fp64 inputs).
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    q, k, a, b = (values.to(dtype) for values in (q, k, log_decay.exp(), beta[..., None]))
    batch, seq_len, heads, value_size = v.shape
    if initial_state is None:
        S = v.new_zeros(batch, heads, k.shape[-1], value_size, dtype=dtype)
    else:
        S = initial_state.to(dtype)
    o = []
    for t in range(seq_len):
        q_t, k_t, v_t = q[:, t, ..., None], k[:, t, ..., None], v[:, t, ..., None].to(dtype)
        S = a[:, t, ..., None] * S
        S = S + b[:, t, ..., None] * k_t @ (v_t - S.mT @ k_t).mT
        o.append((S.mT @ q_t)[..., 0])
    return torch.stack(o, dim=1).to(v.dtype), S
