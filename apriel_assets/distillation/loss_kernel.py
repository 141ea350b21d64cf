"""A chunk's losses and their gradient by its logits on a GPU, in two passes over the logits.

The first pass collects both normalisers and the loss, with a running maximum; the second writes the gradient over the
student's logits, in their own dtype. Nothing else of a chunk's size exists. Needs triton, which torch brings on CUDA.
"""

# A kernel is indexed by its grid.
# pyright: reportIndexIssue=false
# ruff: noqa: SIM108  (branches on constants, resolved when a kernel is compiled)

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_KINDS = {"reverse_kl": 0, "forward_kl": 1, "cross_entropy": 2}
_BLOCK = 4096  # logits at a time; 8 warps hold them in registers


def loss_and_slope(kind: str, logits: Tensor, reference: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss summed over tokens, fp32, and its gradient by the logits, in their dtype and buffer.

    Args:
        kind: "reverse_kl", "forward_kl" or "cross_entropy".
        logits: the student's, `[tokens, vocab]`; overwritten by the gradient.
        reference: the teacher's logits, `[tokens, vocab]`, or token ids, `[tokens]`, for cross entropy.
        temperature: divides both sides.
    """
    assert logits.stride(-1) == 1
    assert reference.stride(-1) == 1
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    with torch.cuda.device(logits.device):
        _two_passes[(len(logits),)](
            logits,
            reference,
            losses,
            logits.shape[-1],
            logits.stride(0),
            reference.stride(0),
            1 / temperature,
            KIND=_KINDS[kind],
            BLOCK=min(_BLOCK, triton.next_power_of_2(logits.shape[-1])),
            num_warps=8,
        )
    return losses.sum(), logits


@triton.jit
def _two_passes(
    student,
    other,
    losses,
    vocab,
    student_stride,
    other_stride,
    inverse_t,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    other += row * other_stride
    lanes = tl.arange(0, BLOCK)
    # s and t: logits of student and teacher over T. Sums are kept per lane, relative to a maximum of the whole row.
    max_s = tl.full([], -float("inf"), tl.float32)
    max_t = tl.full([], -float("inf"), tl.float32)
    sum_s = tl.zeros([BLOCK], tl.float32)
    sum_t = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        inside = start + lanes < vocab
        s = tl.load(student + start + lanes, mask=inside, other=-float("inf")).to(tl.float32) * inverse_t
        new_s = tl.maximum(max_s, tl.max(s, 0))
        fade_s, e_s = tl.exp(max_s - new_s), tl.exp(s - new_s)
        sum_s = sum_s * fade_s + e_s
        max_s = new_s
        if KIND != 2:
            t = tl.load(other + start + lanes, mask=inside, other=-float("inf")).to(tl.float32) * inverse_t
            new_t = tl.maximum(max_t, tl.max(t, 0))
            fade_t, e_t = tl.exp(max_t - new_t), tl.exp(t - new_t)
            sum_t = sum_t * fade_t + e_t
            max_t = new_t
            difference = tl.where(inside, s - t, 0.0)
            if KIND == 0:
                weighted = weighted * fade_s + e_s * difference
            else:
                weighted = weighted * fade_t - e_t * difference
    total_s = tl.sum(sum_s, 0)
    log_s = max_s + tl.log(total_s)
    if KIND == 2:
        target = tl.load(other)
        loss = log_s - tl.load(student + target).to(tl.float32) * inverse_t
        log_t = 0.0
    else:
        target = -1
        total_t = tl.sum(sum_t, 0)
        log_t = max_t + tl.log(total_t)
        if KIND == 0:
            loss = tl.sum(weighted, 0) / total_s - log_s + log_t
        else:
            loss = tl.sum(weighted, 0) / total_t - log_t + log_s
    tl.store(losses + row, loss)
    for start in range(0, vocab, BLOCK):
        inside = start + lanes < vocab
        log_q = tl.load(student + start + lanes, mask=inside).to(tl.float32) * inverse_t - log_s
        if KIND == 2:
            slope = tl.exp(log_q) - tl.where(start + lanes == target, 1.0, 0.0)
        else:
            log_p = tl.load(other + start + lanes, mask=inside).to(tl.float32) * inverse_t - log_t
            if KIND == 0:
                slope = tl.exp(log_q) * (log_q - log_p - loss)
            else:
                slope = tl.exp(log_q) - tl.exp(log_p)
        tl.store(student + start + lanes, slope * inverse_t, mask=inside)
