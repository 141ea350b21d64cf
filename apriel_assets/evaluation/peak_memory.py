"""The most memory that a block of code took: on a GPU by torch's allocator, on a CPU by the system's own count."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5), clear_refs: the peak of the resident memory becomes what is resident now


@dataclass(slots=True)
class PeakMemory:
    """What `peak_memory` found."""

    num_bytes: int | None = None  # None: the system does not say


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Yield what holds the block's peak once it has ended.

    On a GPU: bytes of tensors on `device`. On a CPU: resident memory of the whole process, libraries and other models
    included, where Linux can be asked for it.
    """
    found = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.num_bytes = torch.cuda.max_memory_allocated(device)
        return
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        found.num_bytes = 0
    yield found
    found.num_bytes = None if found.num_bytes is None else _resident_peak()


def _resident_peak() -> int | None:
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
