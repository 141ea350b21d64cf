"""How much faster the chunked selective scan is on CPU than autograd through the recurrence.

    python benchmarks/mamba_scan.py

Writes benchmarks/results/mamba_scan.json. Target: at most 1/5 of the sequential scan's time at batch 16, 128
tokens, 128 channels, 16 states. The two take turns, so that other work on the machine slows both; the ratio
of the least times is the one that such work disturbs least.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from apriel_assets.hybrid.mixers.mamba.chunked import selective_scan_chunked
from apriel_assets.hybrid.mixers.mamba.reference import selective_scan_reference
from apriel_assets.hybrid.mixers.mamba.scan import Scan, selective_scan_step
from resources.provenance import code_revision, device_name, library_versions

SHAPES = {  # batch, tokens, channels, states
    "target": (16, 128, 128, 16),
    "bundled teacher's layer": (16, 128, 128, 32),
}


def operands(batch: int, seq_len: int, channels: int, state_size: int) -> list[torch.Tensor]:
    """Return x, dt, A, B, C, initial state, with heads as wide as the state."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    heads = channels // state_size
    values = [
        normal(batch, seq_len, channels),
        0.1 * torch.rand(batch, seq_len, channels, generator=generator),
        -4 * torch.rand(channels, state_size, generator=generator),
        normal(batch, seq_len, heads, state_size),
        normal(batch, seq_len, heads, state_size),
        normal(batch, channels, state_size),
    ]
    return [value.requires_grad_() for value in values]


def milliseconds(scan: Scan, values: list[torch.Tensor], backward: bool) -> float:
    started = time.perf_counter()
    y, state = scan(*values)
    if backward:
        torch.autograd.grad(y.sum() + state.sum(), values)
    return 1e3 * (time.perf_counter() - started)


def measure_shape(shape: tuple[int, int, int, int], repeats: int) -> dict[str, float]:
    """Return the median and least times of both scans, and the median of a decode step."""
    values = operands(*shape)
    with torch.no_grad():
        x, dt, A, B, C, state = values
        step_values = [x[:, :1], dt[:, :1], A, B[:, :1], C[:, :1], state]
        step = statistics.median(
            milliseconds(selective_scan_step, step_values, False) for _ in range(5 * repeats)
        )
    for scan in (selective_scan_reference, selective_scan_chunked):
        milliseconds(scan, values, True)
    sequential, chunked = [], []
    for _ in range(repeats):
        sequential.append(milliseconds(selective_scan_reference, values, True))
        chunked.append(milliseconds(selective_scan_chunked, values, True))
    return {
        "sequential_ms": statistics.median(sequential),
        "chunked_ms": statistics.median(chunked),
        "sequential_least_ms": min(sequential),
        "chunked_least_ms": min(chunked),
        "ratio_of_medians": statistics.median(chunked) / statistics.median(sequential),
        "ratio_of_least": min(chunked) / min(sequential),
        "decode_step_ms": step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mamba_scan.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = {
        "shapes": {
            name: dict(zip(("batch", "tokens", "channels", "states"), shape, strict=True))
            | measure_shape(shape, arguments.repeats)
            for name, shape in SHAPES.items()
        },
        "repeats": arguments.repeats,
        "device": device_name(),
        "versions": library_versions(),
        "code_revision": code_revision(),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, figures in report["shapes"].items():
        print(name, {key: round(value, 3) for key, value in figures.items()})


if __name__ == "__main__":
    main()
