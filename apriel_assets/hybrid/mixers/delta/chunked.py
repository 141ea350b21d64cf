"""The gated delta rule a chunk of tokens at a time: matrix products instead of a step per token.

Within a chunk, with G the decay in nats since its start, the written values u solve a triangular system:

    (I + tril(M, -1)) u = b (v - (k exp(G)) S),   M_ij = b_i sum_c k_ic k_jc exp(G_ic - G_jc)

and every output and the next chunk's state are matrix products of u, q, k and the chunk's first state S.
Source: "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", section 3, with decay.
"""

import torch

CHUNK = 16  # tokens; fastest for both kinds of decay on CPU, and see `_channel_pairs`
_MAX_SPAN = 80.0  # nats; exp(88) is the largest that fp32 holds


def delta_rule_chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments, results and gradients as `delta_rule_reference`."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    batch, seq_len, heads, value_size = v.shape
    per_channel = log_decay.shape[-1] > 1
    chunk = min(seq_len, CHUNK)
    num_chunks = -(-seq_len // chunk)

    def chunks(values: torch.Tensor) -> torch.Tensor:
        """Cut into `[chunks, batch * heads, chunk, size]`; added tokens write nothing and do not decay."""
        values = values.to(dtype)
        if missing := num_chunks * chunk - seq_len:
            values = torch.cat([values, values.new_zeros(batch, missing, *values.shape[2:])], dim=1)
        values = values.unflatten(1, (num_chunks, chunk)).permute(1, 0, 3, 2, 4)
        return values.reshape(num_chunks, batch * heads, chunk, -1)

    keys, written = chunks(k), chunks(v)
    queries, strength, decay = chunks(q), chunks(beta[..., None]), chunks(log_decay).cumsum(-2)
    pairs = _channel_pairs if per_channel else _head_pairs
    read_keys, read_queries = pairs(keys, queries, decay)
    since_start = decay.exp()
    solved = torch.linalg.solve_triangular(
        strength * read_keys,
        strength * torch.cat([written, keys * since_start], dim=-1),
        upper=False,
        unitriangular=True,
    )
    written, erased = solved.split([value_size, keys.shape[-1]], dim=-1)
    until_end = (decay[..., -1:, :] - decay).exp()
    left = since_start[..., -1, :, None]
    if initial_state is None:
        state = v.new_zeros(batch * heads, k.shape[-1], value_size, dtype=dtype)
    else:
        state = initial_state.to(dtype).flatten(0, 1)
    o, state = _across_chunks(
        state, written, erased, queries * since_start, read_queries, (keys * until_end).mT, left
    )
    o = o.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4)
    o = o.reshape(batch, num_chunks * chunk, heads, value_size)[:, :seq_len]
    return o.to(v.dtype), state.unflatten(0, (batch, heads))


def _across_chunks(state: torch.Tensor, *operands: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the state through the chunks, one after the other; return outputs `[chunks, batch * heads, chunk, size]`.

    Args:
        state: `[batch * heads, key size, value size]`, before the first chunk.
        operands: each `[chunks, batch * heads, ...]`: what is written and what of it the state's own content takes
            back, queries, what queries read of their own chunk, keys by the decay until its end, and what is left of
            a state by then.
    """
    outputs = []
    # unbind, not an index each: the gradient of an index is a tensor of zeros as large as all chunks.
    for v_n, w_n, q_n, r_n, k_n, left_n in zip(*(values.unbind() for values in operands), strict=True):
        u = torch.baddbmm(v_n, w_n, state, alpha=-1)
        outputs.append(torch.baddbmm(q_n @ state, r_n, u))
        state = torch.baddbmm(left_n * state, k_n, u)
    return torch.stack(outputs), state


def _head_pairs(
    keys: torch.Tensor, queries: torch.Tensor, decay: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return k_i . k_j and q_i . k_j, decayed from token j to token i >= j and 0 for i < j: `[..., i, j]`."""
    later = torch.ones(keys.shape[-2], keys.shape[-2], dtype=torch.bool, device=keys.device).triu(1)
    # Masked before exp: from later tokens to earlier ones it may overflow.
    factors = (decay - decay.mT).masked_fill(later, -torch.inf).exp()
    return keys @ keys.mT * factors, queries @ keys.mT * factors


def _channel_pairs(
    keys: torch.Tensor, queries: torch.Tensor, decay: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same, for a decay per channel.

    exp(G_i - G_j) is split into a factor for i and one for j, so that products stay matrix products. Both are
    taken from the middle of the chunk's decay and must fit into fp32 even where i < j is masked later; a
    chunk that forgets more than that (short chunks seldom do) takes the sum over channels as it stands.
    """
    first, last = decay[..., :1, :], decay[..., -1:, :]
    if (first - last).max() <= _MAX_SPAN:
        centred = decay - (first + last).detach() / 2
        rows = torch.cat([keys, queries], dim=-2) * torch.cat([centred, centred], dim=-2).exp()
        read_keys, read_queries = (rows @ (keys * (-centred).exp()).mT).chunk(2, dim=-2)
        return read_keys, read_queries.tril()
    later = torch.ones(keys.shape[-2], keys.shape[-2], dtype=torch.bool, device=keys.device).triu(1)
    factors = (
        (decay[..., :, None, :] - decay[..., None, :, :]).masked_fill(later[..., None], -torch.inf).exp()
    )
    faded = keys[..., None, :, :] * factors
    return (faded @ keys[..., None])[..., 0], (faded @ queries[..., None])[..., 0]
