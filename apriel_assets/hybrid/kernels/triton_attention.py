"""Attention of one new token over a buffer of keys and values, on a GPU: the buffer's tokens split over programs.

Each program reads one key-value head's share of one row's tokens for all of its query heads; a second kernel joins
the shares. Shares are cut by each row's own length, read on the device, so one CUDA graph serves every length and no
program reads what is not filled. Source: "Flash-Decoding for long-context inference" (Dao et al., 2023).
"""

# A kernel is indexed by its grid.
# pyright: reportIndexIssue=false

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_PROGRAMS_PER_PROCESSOR = 8
_LEAST_QUERIES, _LEAST_CHANNELS = 16, 16  # of a matrix instruction
_BLOCK, _WARPS, _STAGES = 64, 4, 3


def attend(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """`decode.attend` for CUDA tensors."""
    batch, num_heads, size = q.shape
    kv_heads, capacity = keys.shape[1:3]
    splits = num_splits(batch * kv_heads, capacity, q.device)
    parts = q.new_empty(batch, num_heads, splits, size, dtype=torch.float32)
    logs = q.new_empty(batch, num_heads, splits, dtype=torch.float32)
    out = torch.empty_like(q)
    group = num_heads // kv_heads
    with torch.cuda.device(q.device):
        _attend_share[(splits, kv_heads, batch)](
            q,
            keys,
            values,
            lengths,
            parts,
            logs,
            scale * 1.4426950408889634,
            q.stride(0),
            q.stride(1),
            *keys.stride()[:3],
            *values.stride()[:3],
            SPLITS=splits,
            GROUP=group,
            ROWS=max(_LEAST_QUERIES, triton.next_power_of_2(group)),
            SIZE=size,
            PADDED=max(_LEAST_CHANNELS, triton.next_power_of_2(size)),
            BLOCK=_BLOCK,
            num_warps=_WARPS,
            num_stages=_STAGES,
        )
        _join_shares[(num_heads, batch)](
            parts,
            logs,
            out,
            out.stride(0),
            out.stride(1),
            SPLITS=splits,
            ROWS=triton.next_power_of_2(splits),
            SIZE=size,
            PADDED=triton.next_power_of_2(size),
            num_warps=4,
        )
    return out


def num_splits(pairs: int, capacity: int, device: torch.device) -> int:
    """Return into how many shares each row's tokens are cut, for `pairs` of rows and key-value heads."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = -(-processors * _PROGRAMS_PER_PROCESSOR // pairs)
    return max(1, min(wanted, -(-capacity // (2 * _BLOCK)), 128))


@triton.jit
def _attend_share(
    q, keys, values, lengths, parts, logs, scale,
    q_row, q_head, k_row, k_head, k_token, v_row, v_head, v_token,
    SPLITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    split, kv_head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.load(lengths + row)
    share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    first = split * share
    last = tl.minimum(first + share, length)
    heads, channels, tokens = tl.arange(0, ROWS), tl.arange(0, PADDED), tl.arange(0, BLOCK)
    inside = channels < SIZE
    queries = tl.load(
        q + row * q_row + (kv_head * GROUP + heads)[:, None] * q_head + channels[None, :],
        mask=(heads < GROUP)[:, None] & inside[None, :],
        other=0.0,
    )
    keys += row * k_row + kv_head * k_head
    values += row * v_row + kv_head * v_head
    best = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, PADDED], tl.float32)
    for start in range(first, last, BLOCK):
        at = start + tokens
        valid = at < last
        k = tl.load(
            keys + at[None, :].to(tl.int64) * k_token + channels[:, None],
            mask=valid[None, :] & inside[:, None],
            other=0.0,
        )
        scores = tl.where(valid[None, :], tl.dot(queries, k) * scale, -float("inf"))
        new = tl.maximum(best, tl.max(scores, 1))
        fade, weights = tl.exp2(best - new), tl.exp2(scores - new[:, None])
        total = total * fade + tl.sum(weights, 1)
        v = tl.load(
            values + at[:, None].to(tl.int64) * v_token + channels[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        out = tl.dot(weights.to(v.dtype), v, out * fade[:, None])
        best = new
    # A share without tokens has total 0: weight -inf, values 0.
    target = (row * tl.num_programs(1) + kv_head) * GROUP + heads
    empty = total == 0
    tl.store(
        parts + (target * SPLITS + split)[:, None] * SIZE + channels[None, :],
        tl.where(empty[:, None], 0.0, out / tl.where(empty, 1.0, total)[:, None]),
        mask=(heads < GROUP)[:, None] & inside[None, :],
    )
    log = tl.where(empty, -float("inf"), best + tl.log2(tl.where(empty, 1.0, total)))
    tl.store(logs + target * SPLITS + split, log, mask=heads < GROUP)


@triton.jit
def _join_shares(
    parts, logs, out, out_row, out_head,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    source = row * tl.num_programs(0) + head
    shares, channels = tl.arange(0, ROWS), tl.arange(0, PADDED)
    log = tl.load(logs + source * SPLITS + shares, mask=shares < SPLITS, other=-float("inf"))
    weights = tl.exp2(log - tl.max(log, 0))
    part = tl.load(
        parts + (source * SPLITS + shares)[:, None] * SIZE + channels[None, :],
        mask=(shares < SPLITS)[:, None] & (channels < SIZE)[None, :],
        other=0.0,
    )
    joined = tl.sum(part * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + row * out_row + head * out_head + channels, joined, mask=channels < SIZE)
