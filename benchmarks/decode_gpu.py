"""Decode speed on one GPU: 50 (and 48) layers of the 15B shape, random bf16 weights, batches at capacity and of 1.

    python benchmarks/decode_gpu.py

Writes benchmarks/results/decode_gpu.json. Every placement is run by the same runner with as many rows as fit beside
its weights; ratios are to the all-FA model of as many layers at the same context. Beside it the model's own forward
pass, as transformers' generate calls it, operation by operation. Caches hold random values: speed does not depend on
them.

Targets on one H100 80GB: all-FA at least 85% of its byte bound, the others 80%; at 32k H-30 2.3x, H-40 4.3x, a 48-layer
FA/SWA/KDA/GDN 0/10/5/33 placement 15x (window 4096); at batch 1 3x the operation-by-operation model.
"""

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from apriel_assets.evaluation.decode_runner import DecodeRunner
from apriel_assets.evaluation.decode_runner_report import measure_decode
from apriel_assets.evaluation.device_rates import copy_bandwidth
from apriel_assets.evaluation.generation import Decoding
from apriel_assets.evaluation.roofline import DEVICES, cache_bytes_per_layer
from apriel_assets.evaluation.throughput import model_shape
from apriel_assets.hybrid.hybrid_config import HybridConfig
from apriel_assets.hybrid.model import HybridForCausalLM
from resources.provenance import code_revision, device_name, library_versions

SHAPE: dict[str, Any] = {
    "hidden_size": 5120,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131_072,
    "max_position_embeddings": 40_960,
}
PLACEMENTS = {
    "all-FA, 50 layers": {"fa": 50},
    "H-30": {"fa": 20, "mamba": 30},
    "H-40": {"fa": 10, "mamba": 40},
    "all-FA, 48 layers": {"fa": 48},
    "FA/SWA/KDA/GDN 0/10/5/33": {"swa": 10, "kda": 5, "gdn": 33},
}
RATIO_TARGETS = {"H-30": 2.3, "H-40": 4.3, "FA/SWA/KDA/GDN 0/10/5/33": 15.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "fa": {},
    "mamba": {},
    "swa": {"window": 4096},
    # The model's own step in plain torch: the runner has kernels of its own.
    "gdn": {"kernel": "torch"},
    "kda": {"kernel": "torch"},
}
ROOM = 40  # tokens beyond the context
RESERVE = 1.5e9  # bytes for activations and workspaces
GROUPS = {
    "matrix products": ("gemm", "nvjet", "cutlass", "splitK", "gemv", "cublas"),
    "attention": ("_attend_share", "_join_shares", "flash", "fmha"),
    "recurrent": ("_delta_step", "_mamba_step", "_convolve"),
    "norms, rotation, SwiGLU": ("_add_norm", "_swiglu", "_rotate_and_store"),
}


def build(counts: dict[str, int], scale: float) -> HybridForCausalLM:
    """Return a hybrid that holds one mixer a layer, spread evenly."""
    placement = spread({name: max(1, round(count * scale)) for name, count in counts.items()})
    return random_hybrid([{name: OPTIONS[name]} for name in placement], placement)


def random_hybrid(
    mixers: list[dict[str, dict[str, Any]]], placement: tuple[str, ...], shape: dict[str, Any] | None = None
) -> HybridForCausalLM:
    """Return a hybrid of the 15B shape with random bf16 weights on the GPU.

    Args:
        mixers: options of each layer's mixers, by name.
        placement: the active one.
        shape: other sizes.
    """
    config = LlamaConfig(**(SHAPE if shape is None else shape), num_hidden_layers=len(placement))
    with torch.device("cuda"):
        backbone = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    config = HybridConfig(
        backbone=backbone.config, mixers=mixers, placement=list(placement), dtype=torch.bfloat16,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = HybridForCausalLM(config, backbone).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "A_log" not in name:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(1.0 if "norm" in name or name.endswith(".D") else -1.0)
    return model


def spread(counts: dict[str, int]) -> tuple[str, ...]:
    """Return a placement in which each mixer's layers are as evenly spaced as can be."""
    places = sorted(((index + 0.5) / count, name) for name, count in counts.items() for index in range(count))
    return tuple(name for _, name in places)


def rows_that_fit(model: HybridForCausalLM, capacity: int) -> int:
    torch.cuda.empty_cache()
    shape = model_shape(model)
    row = sum(cache_bytes_per_layer(shape, mixer, capacity) for mixer in model.placement)
    return max(1, int((torch.cuda.mem_get_info()[0] - RESERVE) // row))


def run_point(model: HybridForCausalLM, context: int, batch: int, bytes_per_s: float) -> dict[str, Any]:
    """Return the runner's figures."""
    runner = DecodeRunner(model, batch_size=batch, capacity=context + ROOM)
    runner.fill(context)
    report = measure_decode(runner, bytes_per_s=bytes_per_s)
    datasheet = next((d.bytes_per_s for name, d in DEVICES.items() if name in device_name()), None)
    seconds = report.seconds_per_step
    return {
        **dataclasses.asdict(report),
        "datasheet_share": datasheet and report.bytes_per_step / datasheet / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "milliseconds_by_kind": profile(runner),
    }


def profile(runner: DecodeRunner) -> dict[str, float]:
    """Return milliseconds of one step by kind of kernel."""
    tokens = torch.zeros(runner.batch_size, dtype=torch.long, device="cuda")
    runner.step(tokens)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        runner.step(tokens)
        torch.cuda.synchronize()
    found: Counter[str] = Counter()
    for event in profiled.key_averages():
        kind = next(
            (kind for kind, names in GROUPS.items() if any(name in event.key for name in names)), "other"
        )
        found[kind] += event.self_device_time_total / 1e3
    return {kind: round(milliseconds, 3) for kind, milliseconds in found.most_common()}


def timed_steps(step: Callable[[], Any], steps: int = 6) -> float:
    """Return the median seconds of a step."""
    seconds = []
    for _ in range(steps + 2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


@torch.inference_mode()
def own_forward(model: HybridForCausalLM, context: int, batch: int) -> float:
    """Return the seconds of a decode step as transformers' generate takes it: forward, argmax, a dynamic cache."""
    if set(model.placement) == {"fa"}:
        cache = DynamicCache(config=model.backbone.config)
        shape = (batch, SHAPE["num_key_value_heads"], context, SHAPE["head_dim"])
        for layer in range(model.num_layers):
            keys, values = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
            cache.update(keys, values, layer)
            del keys, values
        ids = torch.zeros(batch, 1, dtype=torch.long, device="cuda")

        def step() -> None:
            positions = torch.full_like(ids, cache.get_seq_length())
            output = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
            ids.copy_(output.logits[:, -1:].argmax(-1))
    else:
        prompt = torch.zeros(batch, 64, dtype=torch.long, device="cuda")
        state = Decoding(model, prompt, torch.ones_like(prompt))
        state.lengthen(context - 64)

        def step() -> None:
            state.step(state.logits.argmax(-1))

    return timed_steps(step)


def forget() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def tried(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what it returns, or what went wrong, so that the other points are still measured."""
    try:
        return function(*arguments)
    except torch.OutOfMemoryError as error:
        return {"failed": str(error).splitlines()[0][:120]}
    finally:
        forget()


def measure_placement(name: str, arguments: argparse.Namespace, bytes_per_s: float) -> list[dict[str, Any]]:
    """Return a placement's rows: batch at capacity and batch 1 at each context."""
    model = build(PLACEMENTS[name], arguments.scale)
    DecodeRunner(
        model, batch_size=1, capacity=64, graph=False
    )  # fuses the projections before rows are counted
    forget()
    rows = []
    for context in arguments.contexts:
        for batch in (rows_that_fit(model, context + ROOM), 1):
            row: dict[str, Any] = {"placement": name, "layers": model.num_layers, "context": context}
            found = tried(run_point, model, context, batch, bytes_per_s)
            row |= found | {"batch_size": batch}
            if (batch == 1 and context == arguments.contexts[-1]) or (
                batch > 1 and set(model.placement) == {"fa"}
            ):
                seconds = tried(own_forward, model, context, batch)
                row["own_forward_seconds"] = seconds
                if isinstance(seconds, float) and "seconds_per_step" in row:
                    row["speedup_over_own_forward"] = seconds / row["seconds_per_step"]
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Set `ratio_to_all_fa` where batches are at capacity."""
    full = {
        (row["layers"], row["context"]): row.get("tokens_per_s")
        for row in rows
        if row["placement"].startswith("all-FA") and row["batch_size"] > 1
    }
    for row in rows:
        base = full.get((row["layers"], row["context"]))
        if base and row["batch_size"] > 1 and "tokens_per_s" in row:
            row["ratio_to_all_fa"] = row["tokens_per_s"] / base
            if row["placement"] in RATIO_TARGETS and row["context"] == 32_768:
                row["ratio_target"] = RATIO_TARGETS[row["placement"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[16_384, 32_768])
    parser.add_argument("--placements", nargs="+", default=list(PLACEMENTS), choices=list(PLACEMENTS))
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the layer counts; below 1 for a quick look"
    )
    parser.add_argument("--code-revision", help="commit, where the checkout does not say")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decode_gpu.json")
    arguments = parser.parse_args()
    bytes_per_s = copy_bandwidth(torch.device("cuda"))
    rows: list[dict[str, Any]] = []
    for name in arguments.placements:
        began = time.perf_counter()
        rows += measure_placement(name, arguments, bytes_per_s)
        forget()
        print(name, f"{time.perf_counter() - began:.0f} s", flush=True)
        add_ratios(rows)
        report = {
            "shape": SHAPE,
            "window": OPTIONS["swa"]["window"],
            "copy_bytes_per_s": bytes_per_s,
            "rows": rows,
            "device": device_name(),
            "versions": library_versions() | {"triton": importlib.metadata.version("triton")},
            "code_revision": arguments.code_revision or code_revision(),
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
