"""What the kernel libraries save on one GPU: each mixer's recurrence and its convolution, forward and backward.

    python benchmarks/kernels_gpu.py

Writes benchmarks/results/kernels_gpu.json: milliseconds of one layer of the 15B shape (32 heads of 128) over a row of
8192 tokens in bf16, by the library's kernels and by the plain torch form that runs where they are missing, and the
relative error of each against the fp32 recurrence on a short row. Libraries tune themselves at first use: minutes.
"""

import argparse
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from apriel_assets.hybrid.mixers.delta.chunked import delta_rule_chunked
from apriel_assets.hybrid.mixers.delta.reference import delta_rule_reference
from apriel_assets.hybrid.mixers.delta.rule import delta_rule_fla
from apriel_assets.hybrid.mixers.mamba.chunked import selective_scan_chunked
from apriel_assets.hybrid.mixers.mamba.reference import selective_scan_reference
from apriel_assets.hybrid.mixers.mamba.scan import selective_scan_mamba_ssm
from apriel_assets.hybrid.mixers.recurrent_inputs import convolve
from resources.provenance import code_revision, device_name, library_versions

HEADS, SIZE = 32, 128
LIBRARIES = ("triton", "flash-linear-attention", "mamba-ssm")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", generator=torch.Generator("cuda").manual_seed(sum(shape)))


def delta_operands(seq_len: int, per_channel: bool) -> list[Tensor]:
    """q, k, v, log_decay, beta."""
    return [
        functional.normalize(normal(1, seq_len, HEADS, SIZE), dim=-1) * SIZE**-0.5,
        functional.normalize(normal(1, seq_len, HEADS, SIZE) + 0.1, dim=-1),
        normal(1, seq_len, HEADS, SIZE),
        -0.05 * functional.softplus(normal(1, seq_len, HEADS, SIZE if per_channel else 1)),
        normal(1, seq_len, HEADS).sigmoid(),
    ]


def scan_operands(seq_len: int) -> list[Tensor]:
    """x, dt, A, B, C."""
    return [
        normal(1, seq_len, HEADS * SIZE),
        0.05 * normal(1, seq_len, HEADS * SIZE).abs(),
        -normal(HEADS * SIZE, SIZE).exp(),
        normal(1, seq_len, HEADS, SIZE),
        normal(1, seq_len, HEADS, SIZE),
    ]


def conv_form(kernel: str) -> Callable[..., tuple[Tensor, None]]:
    conv = nn.Conv1d(3 * HEADS * SIZE, 3 * HEADS * SIZE, 4, groups=3 * HEADS * SIZE, bias=False).to(
        "cuda", torch.bfloat16
    )
    return lambda values: (convolve(conv, values, None, kernel), None)


CASES: dict[str, tuple[Callable[[int], list[Tensor]], dict[str, Callable], Callable | None]] = {
    "gdn": (
        lambda seq_len: delta_operands(seq_len, False),
        {"fla": delta_rule_fla, "torch": delta_rule_chunked},
        delta_rule_reference,
    ),
    "kda": (
        lambda seq_len: delta_operands(seq_len, True),
        {"fla": delta_rule_fla, "torch": delta_rule_chunked},
        delta_rule_reference,
    ),
    "mamba": (
        scan_operands,
        {"mamba_ssm": selective_scan_mamba_ssm, "torch": selective_scan_chunked},
        selective_scan_reference,
    ),
    "convolution": (
        lambda seq_len: [normal(1, seq_len, 3 * HEADS * SIZE)],
        {"fla": conv_form("auto"), "torch": conv_form("torch")} if torch.cuda.is_available() else {},
        None,
    ),
}


def leaves(values: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [value.to(dtype).detach().requires_grad_() for value in values]


def run(form: Callable, values: list[Tensor], backward: bool) -> list[Tensor]:
    """Return the outputs, and with `backward` their gradients by the operands, for fixed random weights."""
    with torch.set_grad_enabled(backward):
        y, _ = form(*values)
        if not backward:
            return [y]
        weights = normal(*y.shape).to(y.dtype)
        return [y, *torch.autograd.grad((y * weights).sum(), values)]


def milliseconds(work: Callable[[], Any], repeats: int = 5) -> float:
    work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[repeats // 2]


def measure(mixer: str, seq_len: int) -> dict[str, Any]:
    """Return each form's times and errors."""
    operands, forms, reference = CASES[mixer]
    found: dict[str, Any] = {}
    values = leaves(operands(seq_len), torch.bfloat16)
    for name, form in forms.items():
        torch.cuda.empty_cache()
        row: dict[str, Any] = {}
        for what, backward in (("forward", False), ("forward_and_backward", True)):
            try:
                row[f"{what}_ms"] = milliseconds(
                    lambda form=form, backward=backward: run(form, values, backward)
                )
            except torch.OutOfMemoryError:
                row[f"{what}_ms"] = "out of memory"
        if reference is not None:
            short = operands(96)
            exact = run(reference, leaves(short, torch.float32), True)
            mine = run(form, leaves(short, torch.bfloat16), True)
            row["errors"] = [
                ((one.float() - other).norm() / other.norm()).item()
                for one, other in zip(mine, exact, strict=True)
            ]
        found[name] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--mixers", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--code-revision", help="commit, where the checkout does not say")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernels_gpu.json")
    arguments = parser.parse_args()
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    report: dict[str, Any] = {
        "shape": {"tokens": arguments.tokens, "heads": HEADS, "head_size": SIZE, "dtype": "bfloat16"},
        "device": device_name(),
        "versions": library_versions() | versions,
        "code_revision": arguments.code_revision or code_revision(),
    }
    for mixer in arguments.mixers:
        report[mixer] = measure(mixer, arguments.tokens)
        print(mixer, json.dumps(report[mixer]), flush=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
