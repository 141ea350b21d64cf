"""The selective scan on CPU, several times faster than autograd through the recurrence.

Autograd keeps several `[batch, channels, state]` tensors per token and reads each back from memory. Here a
chunk of tokens at a time is laid out as `[seq, state, batch, heads, width]`, small enough to stay in the
cache, with long contiguous rows for every operand: exponentials and outer products are one operation per
chunk, the recurrence is one fused multiply-add per token, in place. Only the states between chunks are
kept; the backward pass recomputes those within.
"""

import math

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

_CHUNK_ELEMENTS = 2**19  # of one buffer: with four of them in use, 8 MiB in fp32
_MAX_CHUNK = 64
_LOG2_E = 1 / math.log(2)


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

    def per_channel(values: torch.Tensor) -> torch.Tensor:
        return values.to(dtype).transpose(0, 1).reshape(seq_len, 1, batch, heads, width)

    def per_state(values: torch.Tensor) -> torch.Tensor:
        return values.to(dtype).permute(1, 3, 0, 2).contiguous()[..., None]

    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, state_size, dtype=dtype)
    y, state = _Scan.apply(
        per_channel(x),
        per_channel(dt),
        A.to(dtype).t().reshape(state_size, 1, heads, width).expand(-1, batch, -1, -1).contiguous(),
        per_state(B),
        per_state(C),
        initial_state.to(dtype).permute(2, 0, 1).reshape(state_size, batch, heads, width),
    )
    y = y.view(seq_len, batch, channels).transpose(0, 1).to(x.dtype)
    return y, state.view(state_size, batch, channels).permute(1, 2, 0)


class _Scan(torch.autograd.Function):
    """The recurrence over time-major operands.

    Shapes: x, dt `[seq, 1, batch, heads, width]`; B, C `[seq, state, batch, heads, 1]`; A and states
    `[state, batch, heads, width]`.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x, dt, A, B, C, initial_state):
        chunk = _chunk_length(initial_state)
        buffers = [initial_state.new_empty(chunk, *initial_state.shape) for _ in range(2)]
        u = dt * x
        y = torch.empty_like(x)
        boundaries = [initial_state]
        for start in range(0, x.shape[0], chunk):
            part = slice(start, start + chunk)
            states, decay = _chunk_states(buffers, dt[part], A, B[part], u[part], boundaries[-1])
            boundaries.append(states[-1].clone())
            torch.sum(torch.mul(states, C[part], out=decay), dim=1, keepdim=True, out=y[part])
        ctx.save_for_backward(x, dt, A, B, C, *boundaries[:-1])
        return y, boundaries[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_state):
        x, dt, A, B, C, *boundaries = ctx.saved_tensors
        chunk = _chunk_length(boundaries[0])
        buffers = [torch.empty(chunk, *A.shape, dtype=A.dtype, device=A.device) for _ in range(4)]
        u, grad_y, carry = dt * x, grad_y.contiguous(), grad_state.clone()
        grad_A, grad_B, grad_C = torch.zeros_like(A), torch.empty_like(B), torch.empty_like(C)
        grad_dt, grad_u = torch.empty_like(dt), torch.empty_like(u)
        for index in reversed(range(len(boundaries))):
            part = slice(index * chunk, (index + 1) * chunk)
            states, decay = _chunk_states(buffers, dt[part], A, B[part], u[part], boundaries[index])
            grad_states, product = (buffer[: len(states)] for buffer in buffers[2:])
            _sum_width(torch.mul(states, grad_y[part], out=product), out=grad_C[part])
            _scan_back(torch.mul(C[part], grad_y[part], out=grad_states), decay, carry)
            torch.mul(decay[0], grad_states[0], out=carry)
            _sum_width(torch.mul(grad_states, u[part], out=product), out=grad_B[part])
            torch.sum(torch.mul(grad_states, B[part], out=product), dim=1, keepdim=True, out=grad_u[part])
            # d loss / d (dt A) = gradient of the state * decay * previous state, formed in `grad_states`.
            grad_exponent = grad_states.mul_(decay)
            grad_exponent[0].mul_(boundaries[index])
            grad_exponent[1:].mul_(states[:-1])
            torch.sum(torch.mul(grad_exponent, A, out=product), dim=1, keepdim=True, out=grad_dt[part])
            grad_A += grad_exponent.mul_(dt[part]).sum(dim=0)
        grad_dt.addcmul_(grad_u, x)
        return grad_u.mul_(dt), grad_dt, grad_A, grad_B, grad_C, carry


def _chunk_length(state: torch.Tensor) -> int:
    return max(1, min(_MAX_CHUNK, _CHUNK_ELEMENTS // max(1, state.numel())))


def _chunk_states(buffers, dt, A, B, u, previous):
    """Return a chunk's states after each token and decays exp(dt A) before each, in the first two buffers."""
    num_tokens = len(dt)
    # exp2: on CPU three times faster than exp, and equal to fp32 rounding once log2(e) is in A.
    decay = torch.mul(dt, A * _LOG2_E, out=buffers[0][:num_tokens]).exp2_()
    states = torch.mul(B, u, out=buffers[1][:num_tokens])
    for state, factor in zip(states.unbind(), decay.unbind(), strict=True):
        previous = state.addcmul_(factor, previous)
    return states, decay


def _scan_back(grad_states, decay, carry):
    """Turn each state's direct gradient into its full one, last token first, in place."""
    grads, factors = grad_states.unbind(), decay.unbind()
    grads[-1].add_(carry)
    for t in range(len(grads) - 2, -1, -1):
        grads[t].addcmul_(factors[t + 1], grads[t + 1])


def _sum_width(values, out):
    # As a matrix product: torch's own sum over a short last dimension takes twice as long.
    width = values.shape[-1]
    torch.mm(values.view(-1, width), values.new_ones(width, 1), out=out.view(-1, 1))
