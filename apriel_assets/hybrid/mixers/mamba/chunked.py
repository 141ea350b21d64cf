"""The selective scan on CPU, an order of magnitude faster than autograd through the recurrence.

Autograd keeps several `[batch, channels, state]` tensors per token and reads each back from memory. Here a
chunk of tokens at a time is laid out as `[seq, batch, heads, state, width]`, small enough to stay in the
cache: exponentials and outer products are one operation per chunk, the recurrence is one fused multiply-add
per token, in place. Only the states between chunks are kept; the backward pass recomputes those within.
"""

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

_CHUNK_ELEMENTS = 2**19  # of one buffer: with four of them in use, 8 MiB in fp32
_MAX_CHUNK = 32


def selective_scan_chunked(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments, results and gradients as `selective_scan_reference`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    batch, seq_len, channels = x.shape
    heads, state_size = B.shape[-2:]
    width = channels // heads

    def time_major(values: torch.Tensor, *shape: int) -> torch.Tensor:
        return values.to(dtype).transpose(0, 1).reshape(seq_len, batch, heads, *shape)

    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, state_size, dtype=dtype)
    y, state = _Scan.apply(
        time_major(x, 1, width),
        time_major(dt, 1, width),
        A.to(dtype).view(heads, width, state_size).transpose(1, 2).contiguous(),
        time_major(B, state_size, 1),
        time_major(C, state_size, 1),
        initial_state.to(dtype).view(batch, heads, width, state_size).transpose(2, 3).contiguous(),
    )
    y = y.view(seq_len, batch, channels).transpose(0, 1).to(x.dtype)
    return y, state.transpose(2, 3).reshape(batch, channels, state_size)


class _Scan(torch.autograd.Function):
    """The recurrence over time-major operands.

    Shapes: x, dt `[seq, batch, heads, 1, width]`; A `[heads, state, width]`; B, C `[seq, batch, heads, state,
    1]`; states `[batch, heads, state, width]`.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x, dt, A, B, C, initial_state):
        chunk = _chunk_length(initial_state)
        buffers = _Buffers(chunk, initial_state, count=2)
        u = dt * x
        y = torch.empty_like(x)
        boundaries = [initial_state]
        for start in range(0, x.shape[0], chunk):
            part = slice(start, start + chunk)
            states, _ = _chunk_states(buffers, dt[part], A, B[part], u[part], boundaries[-1])
            torch.matmul(C[part].mT, states, out=y[part])
            boundaries.append(states[-1].clone())
        ctx.save_for_backward(x, dt, A, B, C, *boundaries[:-1])
        return y, boundaries[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_state):
        x, dt, A, B, C, *boundaries = ctx.saved_tensors
        chunk = _chunk_length(boundaries[0])
        buffers = _Buffers(chunk, boundaries[0], count=3)
        u = dt * x
        grad_A, grad_B, grad_C = torch.zeros_like(A), torch.empty_like(B), torch.empty_like(C)
        grad_dt, grad_u = torch.empty_like(dt), torch.empty_like(u)
        grad_y, carry = grad_y.contiguous(), grad_state.clone()
        for index in reversed(range(len(boundaries))):
            part = slice(index * chunk, (index + 1) * chunk)
            states, decay = _chunk_states(buffers, dt[part], A, B[part], u[part], boundaries[index])
            torch.matmul(states, grad_y[part].mT, out=grad_C[part])
            grad_states = torch.mul(C[part], grad_y[part], out=buffers[2][: len(states)])
            _scan_back(grad_states, decay, carry)
            torch.mul(decay[0], grad_states[0], out=carry)
            torch.matmul(grad_states, u[part].mT, out=grad_B[part])
            torch.matmul(B[part].mT, grad_states, out=grad_u[part])
            # d loss / d (dt A) = grad_states * decay * previous state, formed in `decay`.
            grad_exponent = decay.mul_(grad_states)
            grad_exponent[0].mul_(boundaries[index])
            grad_exponent[1:].mul_(states[:-1])
            torch.sum(torch.mul(grad_exponent, A, out=states), dim=-2, keepdim=True, out=grad_dt[part])
            grad_A += grad_exponent.mul_(dt[part]).sum(dim=(0, 1))
        grad_dt += grad_u * x
        return grad_u * dt, grad_dt, grad_A, grad_B, grad_C, carry


def _chunk_length(state: torch.Tensor) -> int:
    return max(1, min(_MAX_CHUNK, _CHUNK_ELEMENTS // max(1, state.numel())))


class _Buffers:
    """Scratch tensors of one chunk, `[chunk, batch, heads, state, width]`, reused to stay in the cache."""

    def __init__(self, chunk: int, like: torch.Tensor, count: int) -> None:
        self._tensors = [like.new_empty(chunk, *like.shape) for _ in range(count)]

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._tensors[index]


def _chunk_states(buffers, dt, A, B, u, previous):
    """Return the states after each token of a chunk, and the decay factors exp(dt A) before each."""
    num_tokens = len(dt)
    decay = torch.mul(dt, A, out=buffers[0][:num_tokens]).exp_()
    states = torch.mul(B, u, out=buffers[1][:num_tokens])
    for t in range(num_tokens):
        previous = torch.addcmul(states[t], decay[t], previous, out=states[t])
    return states, decay


def _scan_back(grad_states, decay, carry):
    """Turn each state's direct gradient into its full one, last token first, in place."""
    grad_states[-1].add_(carry)
    for t in range(len(grad_states) - 2, -1, -1):
        grad_states[t].addcmul_(decay[t + 1], grad_states[t + 1])
