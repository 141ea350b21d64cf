"""How fast a model reads prompts and decodes on the present device, beside what the byte model says.

Every point has throughput, percentiles of the latency, memory, and the most that the device could do. What decodes is
named in the row: `timed_decoding`. Speed does not depend on what the tokens are, so contexts longer than the model was
trained for do no harm.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from apriel_assets.evaluation.config import ThroughputConfig
from apriel_assets.evaluation.device_rates import measured_device, wait_for
from apriel_assets.evaluation.generation import Decoding, evaluating
from apriel_assets.evaluation.peak_memory import peak_memory
from apriel_assets.evaluation.roofline import (
    ModelShape,
    Phase,
    decode_tokens_per_s_bound,
    modelled_speedup,
    prefill_tokens_per_s_bound,
)
from apriel_assets.evaluation.timed_decoding import (
    TimedDecoding,
    decoding_at,
    forward_kernels,
    timed_steps,
)
from apriel_assets.progress import Progress, silent
from apriel_assets.tables.schemas import to_table

if TYPE_CHECKING:
    from apriel_assets.hybrid.model import HybridForCausalLM


def measure_throughput(
    model: "HybridForCausalLM",
    config: ThroughputConfig,
    *,
    model_name: str,
    device_name: str,
    seed: int = 0,
    progress: Progress = silent,
    teacher: "HybridForCausalLM | None" = None,
) -> pa.Table:
    """Return `throughput` rows: prefill and decode at every context and batch size, the median of the repeats.

    At `decode_contexts` there is decoding only.

    Args:
        model: what is timed, under its active placement.
        config: contexts, batch sizes, repeats, what decodes.
        model_name: goes into the rows.
        device_name: goes into the rows.
        seed: of the random tokens.
        progress: called with timed and all points.
        teacher: decodes in turn with the model, if the config wants that; None: the model is timed alone.

    Raises:
        UserError: the config asks for the runner, and it does not know the model.
    """
    contexts = (*config.contexts, *config.decode_contexts)
    points = [(context, batch_size) for batch_size in config.batch_sizes for context in contexts]
    row = partial(_row, model_shape(model), model)
    rows = []
    other = teacher if config.in_turn and teacher is not model else None
    beside = _weights_beside(model, other)
    with evaluating(model), nullcontext() if other is None else evaluating(other):
        for number, (context, batch_size) in enumerate(points):
            tokens = _random_tokens(model, batch_size, min(context, config.contexts[-1]), seed)
            for timing in _time_point(model, tokens, context, config, other):
                found = row(context, batch_size, timing, beside)
                rows.append({**found, "model": model_name, "device": device_name})
            progress(number + 1, len(points), tokens_per_s=rows[-1]["tokens_per_s"])
    return to_table("throughput", rows)


def model_shape(model: "HybridForCausalLM") -> ModelShape:
    """Return the sizes that the byte model needs, with the element size that this model really has."""
    size = next(model.parameters()).element_size()
    changes: dict[str, Any] = {"weight_bytes": size, "cache_bytes": size}
    for bank in model.banks:
        if (window := bank.options.get("swa")) is not None:
            changes["window"] = window.window  # type: ignore[union-attr]
        if (mamba := bank.options.get("mamba")) is not None:
            for name in ("state_size", "conv_size", "dt_rank"):
                changes[name] = getattr(mamba, name)
        if (kda := bank.options.get("kda")) is not None:
            changes["gate_rank"] = kda.gate_rank  # type: ignore[union-attr]
    return ModelShape.from_config(model.config.get_text_config(), **changes)


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """One phase at one point."""

    phase: Phase
    num_tokens: int  # of one sequence in one repeat
    seconds: list[float]  # of each repeat
    latencies: list[float]  # seconds to the first token, or of each further one
    speedups: list[float]  # of each repeat, over the teacher's steps right after it
    peak_memory_bytes: int | None
    cache_bytes: int  # of all sequences at the context
    decoder: str | None
    kernels: str


def _weights_beside(model: "HybridForCausalLM", teacher: "HybridForCausalLM | None") -> int:
    """Return the bytes on the GPU that only the teacher holds; a CPU's peak is the whole process's anyway."""
    if teacher is None or model.device.type != "cuda":
        return 0
    own = {parameter.data_ptr() for parameter in model.parameters()}
    return sum(p.numel() * p.element_size() for p in teacher.parameters() if p.data_ptr() not in own)


def _row(
    shape: ModelShape,
    model: "HybridForCausalLM",
    context: int,
    batch_size: int,
    timing: _Timing,
    bytes_beside: int,
) -> dict[str, Any]:
    device = measured_device(model.device, model.dtype)
    bound = decode_tokens_per_s_bound if timing.phase == "decode" else prefill_tokens_per_s_bound
    low, high = np.percentile(timing.latencies, [50, 95])
    return {
        "phase": timing.phase,
        "context_tokens": context,
        "batch_size": batch_size,
        "tokens_per_s": batch_size * timing.num_tokens / statistics.median(timing.seconds),
        "seconds_low": min(timing.seconds),
        "seconds_high": max(timing.seconds),
        "latency_p50_seconds": float(low),
        "latency_p95_seconds": float(high),
        "num_latencies": len(timing.latencies),
        "speedup": statistics.median(timing.speedups) if timing.speedups else None,
        "modelled_speedup": modelled_speedup(shape, model.placement, context, batch_size, timing.phase),
        "bound_tokens_per_s": bound(shape, model.placement, context, batch_size, device),
        "cache_bytes": timing.cache_bytes,
        "cache_bytes_per_token": timing.cache_bytes / batch_size / context,
        "peak_memory_bytes": None
        if timing.peak_memory_bytes is None
        else timing.peak_memory_bytes - bytes_beside,
        "decoder": timing.decoder,
        "kernels": timing.kernels,
        "device_bytes_per_s": device.bytes_per_s,
        "device_flops_per_s": device.flops_per_s,
    }


def _random_tokens(model: "HybridForCausalLM", batch_size: int, context: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    embeddings: Any = model.get_input_embeddings()
    tokens = torch.randint(embeddings.num_embeddings, (batch_size, context), generator=generator)
    return tokens.to(model.device)


def _time_point(
    model: "HybridForCausalLM",
    tokens: Tensor,
    context: int,
    config: ThroughputConfig,
    teacher: "HybridForCausalLM | None",
) -> list[_Timing]:
    """Return the timing of prefill, where the prompt `[batch, seq]` is as long as the context, and of decode."""
    decode = _time_decode(model, tokens, context, config, teacher)
    if tokens.shape[1] < context:
        return [decode]
    return [_time_prefill(model, tokens, config, decode.cache_bytes), decode]


def _time_prefill(
    model: "HybridForCausalLM", tokens: Tensor, config: ThroughputConfig, cache_bytes: int
) -> _Timing:
    """Time from a prompt to its first new token."""
    seconds = []
    with peak_memory(model.device) as peak, torch.inference_mode():
        for repeat in _repeats(config):
            wait_for(model.device)
            began = time.perf_counter()
            _read(model, tokens).logits.argmax(-1)
            wait_for(model.device)
            elapsed = time.perf_counter() - began
            seconds += [elapsed] if repeat else []
    return _Timing(
        phase="prefill",
        num_tokens=tokens.shape[1],
        seconds=seconds,
        latencies=seconds,
        speedups=[],
        peak_memory_bytes=peak.num_bytes,
        cache_bytes=cache_bytes,
        decoder=None,
        kernels=forward_kernels(model),
    )


def _time_decode(
    model: "HybridForCausalLM",
    tokens: Tensor,
    context: int,
    config: ThroughputConfig,
    teacher: "HybridForCausalLM | None",
) -> _Timing:
    repeats, speedups, rounds = [], [], _repeats(config)
    # Fewer: it is timed with every model, and what is asked of it is one step's time.
    fewer = -(-config.decode_tokens // 2)

    def decoding(own: "HybridForCausalLM") -> TimedDecoding:
        # Not in inference mode: the runner joins the model's matrices, which must stay trainable.
        found = decoding_at(
            own, len(tokens), context, config.decode_tokens + 1, config.decoder, partial(_read, own, tokens)
        )
        _timed(found, 1, own.device)
        return found

    with peak_memory(model.device) as peak:
        next(rounds)
        state = decoding(model)
    other = decoding(teacher) if teacher is not None else None
    for _ in rounds:
        repeats.append(_timed(state, config.decode_tokens, model.device))
        if other is not None:
            beside = _timed(other, fewer, model.device)
            # As many steps of both, each after the other model's: neither finds its data in the processor's caches.
            speedups.append(statistics.median(beside) / statistics.median(repeats[-1][:fewer]))
    return _Timing(
        phase="decode",
        num_tokens=config.decode_tokens,
        seconds=[sum(found) for found in repeats],
        latencies=[seconds for found in repeats for seconds in found],
        speedups=speedups,
        peak_memory_bytes=peak.num_bytes,
        cache_bytes=state.cache_bytes,
        decoder=state.decoder,
        kernels=state.kernels,
    )


@torch.inference_mode()
def _timed(state: TimedDecoding, num_steps: int, device: torch.device) -> list[float]:
    seconds = timed_steps(state.step, num_steps, device)
    state.rewind()
    return seconds


@torch.inference_mode()
def _read(model: "HybridForCausalLM", tokens: Tensor) -> Decoding:
    return Decoding(model, tokens, torch.ones_like(tokens))


def _repeats(config: ThroughputConfig) -> Iterator[int]:
    """Yield 0, a round that is not measured (allocations, choice of kernels), then 1, 2, ... while there is time."""
    began = time.perf_counter()
    for repeat in range(config.repeats + 1):
        if repeat > 1 and time.perf_counter() - began > config.max_seconds_per_point:
            return
        yield repeat
