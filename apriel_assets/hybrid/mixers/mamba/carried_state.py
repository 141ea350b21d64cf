"""What outputs read of a state that was there before the first token, on a GPU."""

# A kernel is indexed by its grid.
# pyright: reportIndexIssue=false

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_CHANNELS, _TOKENS = 16, 32  # of one program


def read_carried_state(state: Tensor, time: Tensor, A: Tensor, C: Tensor) -> Tensor:
    """Return sum over n of C_tn exp(A_cn time_tc) state_cn, `[batch, seq, channels]`, fp32. No gradients.

    Args:
        state: `[batch, channels, state size]`, fp32; the state size is a power of 2.
        time: step sizes summed up to each token, `[batch, seq, channels]`, fp32.
        A: decay rates, `[channels, state size]`, fp32.
        C: read vectors, `[batch, seq, heads, state size]`.
    """
    batch, seq_len, channels = time.shape
    heads, size = C.shape[-2:]
    block = min(_CHANNELS, channels // heads)
    assert size & (size - 1) == 0, "state sizes are powers of 2"
    assert block & (block - 1) == 0, "so are channels of a head"
    out = torch.empty_like(time)
    C = C.contiguous()
    with torch.cuda.device(time.device):
        _read[(channels // block, triton.cdiv(seq_len, _TOKENS), batch)](
            state.contiguous(),
            time.contiguous(),
            A.contiguous(),
            C,
            out,
            seq_len,
            channels,
            heads,
            WIDTH=channels // heads,
            SIZE=size,
            BLOCK=block,
            TOKENS=_TOKENS,
            num_warps=4,
        )
    return out


@triton.jit
def _read(
    state, time, A, C, out, seq_len, channels, heads,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    at, states = first + tl.arange(0, BLOCK), tl.arange(0, SIZE)
    s = tl.load(state + row * channels * SIZE + at[:, None] * SIZE + states[None, :])
    rates = tl.load(A + at[:, None] * SIZE + states[None, :])
    start = tl.program_id(1) * TOKENS
    for t in range(start, tl.minimum(start + TOKENS, seq_len)):
        token = row * seq_len + t
        elapsed = tl.load(time + token * channels + at)
        read = tl.load(C + (token * heads + first // WIDTH) * SIZE + states).to(tl.float32)
        left = s * tl.exp(rates * elapsed[:, None])
        tl.store(out + token * channels + at, tl.sum(left * read[None, :], 1))
