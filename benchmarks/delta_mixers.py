"""How much faster the chunked gated delta rule is on CPU than its recurrent form, forward and backward.

    python benchmarks/delta_mixers.py

Writes benchmarks/results/delta_mixers.json. Targets at batch 16, 128 tokens, 4 heads of 32: GDN at most 1/5,
KDA at most 1/2 of the recurrent form's time. The two take turns, so that other work on the machine slows
both; the ratio of the least times is the one that such work disturbs least.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional

from apriel_assets.hybrid.mixers.delta.chunked import delta_rule_chunked
from apriel_assets.hybrid.mixers.delta.reference import delta_rule_reference
from apriel_assets.hybrid.mixers.delta.rule import Rule, delta_rule_step
from resources.provenance import code_revision, device_name, library_versions

SHAPES = {"target": (16, 128, 4, 32), "long": (4, 512, 4, 32)}  # batch, tokens, heads, head size


def operands(shape: tuple[int, int, int, int], per_channel: bool) -> list[torch.Tensor]:
    """Return q, k, v, log_decay, beta and initial state."""
    batch, seq_len, heads, size = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator)

    values = [
        functional.normalize(normal(batch, seq_len, heads, size), dim=-1) * size**-0.5,
        functional.normalize(normal(batch, seq_len, heads, size), dim=-1),
        normal(batch, seq_len, heads, size),
        -0.1 * functional.softplus(normal(batch, seq_len, heads, size if per_channel else 1)),
        normal(batch, seq_len, heads).sigmoid(),
        normal(batch, heads, size, size),
    ]
    return [value.requires_grad_() for value in values]


def milliseconds(rule: Rule, values: list[torch.Tensor], backward: bool) -> float:
    started = time.perf_counter()
    o, state = rule(*values)
    if backward:
        torch.autograd.grad(o.sum() + state.sum(), values)
    return 1e3 * (time.perf_counter() - started)


def measure(shape: tuple[int, int, int, int], per_channel: bool, repeats: int) -> dict[str, float]:
    """Return the median and least times of both forms, and the median of a decode step."""
    values = operands(shape, per_channel)
    with torch.no_grad():
        step_values = [value[:, :1] for value in values[:5]] + values[5:]
        step = statistics.median(
            milliseconds(delta_rule_step, step_values, False) for _ in range(5 * repeats)
        )
    for rule in (delta_rule_reference, delta_rule_chunked):
        milliseconds(rule, values, True)
    recurrent, chunked = [], []
    for _ in range(repeats):
        recurrent.append(milliseconds(delta_rule_reference, values, True))
        chunked.append(milliseconds(delta_rule_chunked, values, True))
    return {
        "recurrent_ms": statistics.median(recurrent),
        "chunked_ms": statistics.median(chunked),
        "recurrent_least_ms": min(recurrent),
        "chunked_least_ms": min(chunked),
        "ratio_of_medians": statistics.median(chunked) / statistics.median(recurrent),
        "ratio_of_least": min(chunked) / min(recurrent),
        "decode_step_ms": step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "delta_mixers.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = {
        "shapes": {
            f"{mixer}, {name}": dict(zip(("batch", "tokens", "heads", "head_size"), shape, strict=True))
            | measure(shape, mixer == "kda", arguments.repeats)
            for name, shape in SHAPES.items()
            for mixer in ("gdn", "kda")
        },
        "threads": arguments.threads,
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
