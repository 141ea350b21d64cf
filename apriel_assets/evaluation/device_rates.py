"""What the present device can do at most, measured in about a second: copying memory, and one large matrix product."""

import time
from collections.abc import Callable
from functools import cache

import torch

from apriel_assets.evaluation.roofline import Device

_COPIES = 8
_COPIED_BYTES = {"cuda": 2**31, "cpu": 2**26}
_WIDTH = {"cuda": 8192, "cpu": 1024}  # of the square matrices
_REPEATS = 5


@cache
def measured_device(device: torch.device, dtype: torch.dtype) -> Device:
    """Return the present device's rates; measured once in a process.

    Args:
        device: where.
        dtype: of the matrix product.
    """
    return Device(flops_per_s=matmul_rate(device, dtype), bytes_per_s=copy_bandwidth(device))


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes/s of copying a large buffer, bytes read and written counted both."""
    size = _COPIED_BYTES.get(device.type, 2**26)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    # Copies in a row: the wait for one alone would count.
    return 2 * size / _least_seconds(lambda: target.copy_(source), _COPIES, device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a product of two large square matrices."""
    width = _WIDTH.get(device.type, 1024)
    one, other = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(one)
    return 2 * width**3 / _least_seconds(lambda: torch.mm(one, other, out=product), 2, device)


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def _least_seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Return the seconds of one call, the least of the repeats: whatever else the machine does can only add."""
    work()
    seconds = []
    for _ in range(_REPEATS):
        wait_for(device)
        began = time.perf_counter()
        for _ in range(times):
            work()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / times
