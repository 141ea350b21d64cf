"""How fast a decode runner's step is, beside the time that its bytes need: the share of the roofline, and its limit."""

import statistics
import time
from dataclasses import dataclass

import torch

from apriel_assets.evaluation.decode_runner import DecodeRunner
from apriel_assets.evaluation.device_rates import copy_bandwidth, wait_for

_LIMITED = 0.8  # a resource that is busy for this share of the time limits the step


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeReport:
    """One point: a placement, a context, a batch."""

    batch_size: int
    context_tokens: int  # held by each row when timing began
    seconds_per_step: float  # median
    tokens_per_s: float  # all rows together
    weight_bytes: int  # read by a step
    cache_bytes: int  # KV read and states read and written by a step
    bytes_per_step: int
    bytes_per_s: float  # what the device copies at, read and written bytes together
    roofline_share: float  # time that the bytes need, over the time of a step
    limited_by: str


def measure_decode(
    runner: DecodeRunner, *, bytes_per_s: float | None = None, steps: int = 16, repeats: int = 5
) -> DecodeReport:
    """Time steps from where the runner stands, each repeat's from there again.

    What the tokens are does not matter; `DecodeRunner.fill` gives a context without reading a prompt.

    Args:
        runner: prefilled or filled, with room for `steps` tokens and one to warm up.
        bytes_per_s: the device's bandwidth; None: measured by `copy_bandwidth`.
        steps: timed together.
        repeats: the median counts.
    """
    bytes_per_s = bytes_per_s or copy_bandwidth(runner.model.device)
    began = runner.lengths.clone()
    context = int(began.max())
    seconds = []
    for repeat in range(repeats + 1):
        runner.rewind(began)
        elapsed = _timed(runner, steps if repeat else 1)
        if repeat:
            seconds.append(elapsed / steps)
    runner.rewind(began)
    step, moved = statistics.median(seconds), runner.bytes_per_step(context + (steps + 1) // 2)
    share = moved / bytes_per_s / step
    return DecodeReport(
        batch_size=runner.batch_size,
        context_tokens=context,
        seconds_per_step=step,
        tokens_per_s=runner.batch_size / step,
        weight_bytes=runner.num_parameter_bytes,
        cache_bytes=moved - runner.num_parameter_bytes,
        bytes_per_step=moved,
        bytes_per_s=bytes_per_s,
        roofline_share=share,
        limited_by=_limit(share, step, bytes_per_s, moved),
    )


def _limit(share: float, step: float, bytes_per_s: float, moved: int) -> str:
    if share >= _LIMITED:
        return f"memory bandwidth: {share:.0%} of it is in use"
    needed = 1e3 * moved / bytes_per_s
    return (
        f"launches, small products, arithmetic: {1e3 * step - needed:.2f} ms beyond its bytes' {needed:.2f}"
    )


def _timed(runner: DecodeRunner, steps: int) -> float:
    device = runner.model.device
    tokens = torch.zeros(runner.batch_size, dtype=torch.long, device=device)
    wait_for(device)
    began = time.perf_counter()
    for _ in range(steps):
        tokens = runner.step(tokens).argmax(-1)
    wait_for(device)
    return time.perf_counter() - began
